"""The places of a limit, counted for all nodes of a hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from ..errors import HubClosedError, HubError

if TYPE_CHECKING:
    from .affinity import Affinity
    from .place_log import PlaceLog

__all__ = ["HubPlaces"]

#: How long a request waits for the log, in seconds. If the log does not answer, the process's own
#: count is enough: a limit protects the service, and must not close it.
PATIENCE = 1.0


class HubPlaces:
    """The places that the nodes of a hub share."""

    def __init__(self, log: PlaceLog, affinity: Affinity) -> None:
        self._log = log
        self._affinity = affinity

    async def take(self, name: str, most: int) -> str | None:
        """Take a place, and return it: empty if the log could not be asked.

        :returns: ``None``: there was none.
        :raises HubClosedError: the hub is closed.
        :raises RuntimeError: the hub is in use in another event loop.
        """
        self._affinity.use()
        with anyio.move_on_after(PATIENCE):
            try:
                return await self._log.take(name, most)
            except HubClosedError:
                raise
            except HubError:
                return ""
        return ""

    def give_back(self, name: str, place: str) -> None:
        """Give a place back."""
        if place:
            self._log.give_back(name, place)
