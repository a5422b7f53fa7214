"""A stream that is observed: measures its sends, and tells its observer. Few streams have one."""

from __future__ import annotations

import logging
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from ..observer import StreamStats
from ..reasons import CloseReason
from .life import State

if TYPE_CHECKING:
    from ..observer import Observer
    from ..reasons import CloseReport
    from ..types import Message, Scope
    from .deadlines import Deadlines
    from .life import Life

__all__ = ["Observed"]

logger: logging.Logger = logging.getLogger("sse_asgi")


class Observed:
    """Stands between a response and the ``send`` of its server.

    :param name: of the factory or the endpoint.
    :param opened_at: when the stream was opened, by the clock of the event loop.
    """

    __slots__ = (
        "_clock", "_context", "_is_open", "_life", "_observer", "_response", "_send", "_times",
        "_waits", "stats",
    )  # fmt: skip

    def __init__(
        self,
        observer: Observer,
        scope: Scope,
        name: str,
        opened_at: float,
        response: Any,  # this file stands below it
        life: Life,
        times: Deadlines,
    ) -> None:
        self._observer = observer
        self._response: Any = response
        self._life = life
        self._times = times
        self._clock = response.clock
        self._send = response.send
        # The start may be sent by another task than that of the request.
        self._context = copy_context()
        self._is_open = False
        # Whether no event was sent yet, as far as it was looked.
        self._waits = True
        route = getattr(scope.get("route"), "path", None)
        self.stats: StreamStats = StreamStats(
            response,
            clock=response.clock,
            name=name,
            route=route if isinstance(route, str) else None,
            method=str(scope.get("method", "GET")).upper(),
            path=str(scope.get("path", "")),
            opened_at=opened_at,
        )
        response.send = self.send
        response.observed = self

    async def send(self, message: Message) -> None:
        """Send a message, and measure how long that takes."""
        stats, response = self.stats, self._response
        # None: it is tried at once, and dropped if it would wait.
        began = self._times.sending_since
        if self._waits:
            if response.events:
                self._first_event()
            else:
                stats.first_at = self._clock() if began is None else began
        if began is not None:
            stats.waiting = stats.waited, began
        try:
            await self._send(message)
        except BaseException:
            stats.wait_is_over()
            raise
        if response.prompt:  # most do not wait, and need no clock
            stats.waiting = None
        else:
            stats.wait_is_over()
        stats.sent += 1
        if stats.sent == 1:
            self._opened()

    def _opened(self) -> None:
        """Tell that the response has started."""
        if self._life.reason is CloseReason.CLIENT_DISCONNECTED:
            return  # a status that nobody gets, in place of a stream
        if self._response is None:
            return  # the send has returned when all was over
        self._is_open = True
        self._tell("stream_opened")
        if self._life.state is State.DRAINING:  # before it was open
            self._draining()

    def _first_event(self) -> None:
        """Tell that the first event was sent, with the message before this one."""
        self._waits = False
        if self._is_open:
            self._tell("stream_first_event")

    def draining(self) -> None:
        """Tell that the stream was told to end."""
        if self._is_open:
            self._draining()

    def _draining(self) -> None:
        self.stats.draining = True
        self._tell("stream_draining", self._life.reason)

    def closed(self, report: CloseReport) -> None:
        """Tell that the stream has ended, if it was open."""
        self.stats.end()
        if self._waits and self.stats.events:
            self._first_event()
        if self._is_open:
            self._is_open = False
            self._tell("stream_closed", report)
        self.forget()

    def forget(self) -> None:
        """Stand between them no more, so that there is no cycle for the collector."""
        self._response.send, self._response.observed = self._send, None
        self._response = None

    def _tell(self, what: str, *arguments: Any) -> None:
        try:
            # A copy: one context can't be entered twice, and what is called may end the stream.
            self._context.copy().run(getattr(self._observer, what), self.stats, *arguments)
        except Exception:
            logger.exception("%s of the observer raised", what)
