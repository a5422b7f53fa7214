"""The contract of logs that are on a server: whether that can be reached, and how fast it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

__all__ = ["RemoteLog", "RoundTrip"]

#: Called by a log with how many seconds a command has taken, and why it has failed, if it has.
RoundTrip: TypeAlias = Callable[[float, BaseException | None], None]


class RemoteLog(Protocol):
    """What a log on a server may have in addition, for :meth:`Hub.ping` and for an observer."""

    async def ping(self) -> None:
        """Return when the server has answered.

        It is asked at once, whatever else it has to do, and changes nothing.

        :raises HubError: the log can't be reached, after a bounded time.
        """
        ...

    def observe(self, round_trip: RoundTrip) -> None:
        """Call a function after each command from now on.

        Not after those that wait for events.

        :param round_trip: called with how many seconds a command has taken, and why it has failed
            (``None``: it has not). It does not raise.
        """
        ...
