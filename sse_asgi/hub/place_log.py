"""The contract of logs that count the streams of all nodes, for :class:`~sse_asgi.Limit`."""

from __future__ import annotations

from typing import Protocol

__all__ = ["PlaceLog"]


class PlaceLog(Protocol):
    """What a log needs in addition so that a ``Limit`` counts for all nodes: ``places`` of the log.

    A place is held by a node. The places of a node that has died are free after a bounded time.

    :class:`sse_asgi.testing.LogContract` tests it if a log has it.
    """

    async def take(self, name: str, most: int) -> str | None:
        """Take a place, atomically, and return it; ``None``: there was none.

        If this raises, or is cancelled, no place is held, or it is free after a bounded time.

        :param name: what the places are for, up to 64 ASCII letters, digits and colons.
        :param most: how many places there are.
        :raises HubError: the log can't be reached.
        """
        ...

    def give_back(self, name: str, place: str) -> None:
        """Give a place of this name back that this node holds. The log may do it later.

        :param name: the name that the place was taken under.
        :param place: the place, as it was taken.
        """
        ...
