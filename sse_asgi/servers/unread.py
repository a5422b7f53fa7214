"""What a client has not taken yet of responses that are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.base import Runtime
    from .base import Stopping
    from .connection import Connection

__all__ = ["Unread"]

#: How often to look whether the client has taken it, in seconds.
PERIOD = 5.0


class Unread:
    """What waits in one connection. Nobody else looks after it: the streams have ended.

    :param cut: called if it still waits when the server is told to stop.
    :param taken: called before that, and when it has been taken.
    """

    def __init__(
        self,
        connection: Connection,
        runtime: Runtime,
        stopping: Stopping,
        *,
        cut: Callable[[], object],
        taken: Callable[[], object],
    ) -> None:
        self._connection = connection
        self._stopping = stopping
        self._cut = cut
        self._taken = taken
        self._stop = runtime.every(PERIOD, self._look)
        stopping.listen(self, at_once=True)

    def shut_down(self, grace: float | None) -> None:
        """See :class:`~sse_asgi.Shutdown`: streams are to end, and perhaps the server stops."""
        if self._stopping.signalled:
            self._end()
            self._cut()

    def _look(self) -> None:
        if self._connection.waits() is not True:
            self._end()

    def _end(self) -> None:
        self._stop()
        self._stopping.forget(self)
        self._taken()
