"""The end of a stream whose source is closed: what the client, the server and ``on_close`` get."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import anyio

from ..encoder import encode
from ..errors import HTTPError, is_status, unavailable
from ..reasons import CloseReason, CloseReport
from .deadlines import TRY_AGAIN
from .log_line import level_of, log_end
from .response import ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..options import StreamOptions
    from ..runtime.base import Runtime
    from ..types import Receive
    from .deadlines import Deadlines
    from .life import Life
    from .pump import Pump
    from .response import Response

__all__ = ["Ending", "farewell", "stopping"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: The status of a request whose client has left before there was an answer. Nobody gets it. nginx
#: has it in its logs.
CLIENT_CLOSED_REQUEST = 499


def farewell(life: Life, options: StreamOptions, body: bytes | None) -> bytes:
    """Return a random reconnection time, so that clients do not all come back at once.

    :param body: what a response has in its place that is no stream.
    """
    if body is not None:
        return body
    if options.retry is None or not life.way_out.farewell:
        return b""
    from random import randint  # slow to import, and few ask

    return encode({"retry": randint(options.retry, 2 * options.retry)}, options.sep)


def stopping() -> HTTPError:
    """Return the answer to a request that comes too late, and would not be repeated after a 200."""
    return unavailable("the server is stopping")


class Ending:
    """Tells the client that the stream is over, if it can hear it, and then the application.

    :param encode: makes a frame of what ``on_error`` returns, with a separator.
    :param opened: when the stream was opened.
    :param last_event: the frame of what the source has yielded when it was cancelled.
    :param body: the body of a response that is no stream.
    :param refuses: whether a request is refused whose stream has to end before it has begun.
    """

    def __init__(
        self,
        life: Life,
        times: Deadlines,
        response: Response,
        pump: Pump,
        options: StreamOptions,
        runtime: Runtime,
        *,
        encode: Callable[[Any, str], bytes],
        opened: float,
        last_event: bytes,
        body: bytes | None,
        refuses: bool,
    ) -> None:
        self._life = life
        self._times = times
        self._response = response
        self._pump = pump
        self._options = options
        self._runtime = runtime
        self._encode = encode
        self._opened = opened
        self._last_event = last_event
        self._body = body
        self._refuses = refuses
        #: Whether the client has not taken the end.
        self._stuck = False

    async def run(self, receive: Receive) -> None:
        """End the stream, whatever happens on the way."""
        if self._response.begun is not None:  # it was cancelled
            await self._runtime.outlast(self._response.flushed(), math.inf)
        if (failed := self._response.take_error()) is not None:
            self._life.fail(failed)
        self._life.end()
        error = self._life.error
        try:
            await self._tell_the_client()
        finally:
            try:
                await self._leave_the_connection(receive)
            finally:
                await self._report(error)

    async def _tell_the_client(self) -> None:
        life, response = self._life, self._response
        if response.ended or response.server.aborted:
            return
        if self._refuses and self._times.opening and life.reason is CloseReason.SHUTDOWN:
            life.error = stopping()
        if life.reason is CloseReason.CLIENT_DISCONNECTED:
            if not response.started and not response.torn:
                await self._answer_nobody()
            return
        seconds = self._patience()
        do_not_abort = response.abort_in(seconds, self._runtime)
        try:
            with anyio.move_on_after(seconds, shield=True) as scope:
                if response.torn:
                    await self._break_off()
                elif life.error is not None:
                    await self._tell_error()
                elif life.way_out.complete:
                    frame, events = self._unsent()
                    if self._last_event:
                        frame, events = frame + self._last_event, events + 1
                    frame += farewell(life, self._options, self._body)
                    await response.end(frame, events)
                else:
                    await self._break_off()
            self._stuck = scope.cancelled_caught
        except ClientGone:
            pass
        finally:
            do_not_abort()

    async def _answer_nobody(self) -> None:
        """End a response that has not started: a middleware may take none at all for an error."""
        with anyio.move_on_after(TRY_AGAIN, shield=True), suppress(Exception):
            await self._response.end(instead=(CLIENT_CLOSED_REQUEST, []))

    def _patience(self) -> float:
        """Return how long the end of the response may take."""
        times = self._times
        seconds = min(times.timing.cleanup_timeout, times.timing.send_timeout)
        if times.spared_in_vain or self._life.cancelled:
            seconds = min(seconds, TRY_AGAIN)
        return seconds

    async def _tell_error(self) -> None:
        """End the response by an event of ``on_error``, or break it off."""
        error, response = self._life.error, self._response
        assert error is not None
        if response.started:
            frame, events = self._unsent()
            if frame or response.keeps_events:
                await response.write([frame], events)
        if not response.started and (self._times.opening or is_status(error)):
            return  # another response can still be sent
        if isinstance(error, HTTPError):
            logger.error("%r came after the response had started; see defer_start", error)
        if self._options.on_error is not None and isinstance(error, Exception):
            try:
                event = self._options.on_error(error)
                event = await event if isawaitable(event) else event
                last = None if event is None else self._encode(event, self._options.sep)
            except Exception as exc:
                if exc is not error:
                    exc.__context__ = exc.__context__ or error  # as if raised while handling it
                self._life.error = exc
            else:
                if last is not None:
                    self._life.error = None
                    await response.end(last, 1)
                    return
        await self._break_off()

    async def _break_off(self) -> None:
        """Leave without a last message, which tells the client that this is no regular end."""
        if self._times.started and self._response.server.hides_broken_responses:
            self._response.cut_short()
            await self._response.end()

    def _unsent(self) -> tuple[bytes, int]:
        """Return what was accepted from the source and not sent, and how many events it has."""
        backlog, before = self._response.take_backlog()
        held, after = self._pump.take_held()
        return backlog + held, before + after

    async def _leave_the_connection(self, receive: Receive) -> None:
        """Cut the connection if the client would keep the server from leaving it."""
        server = self._response.server
        if self._life.reason is not CloseReason.CLIENT_DISCONNECTED:
            try:
                if self._response.torn:
                    server.connection.settle()
                    if (seconds := server.connection.notices_in) > 0:
                        with anyio.CancelScope(shield=True):
                            await anyio.sleep(seconds)
            finally:
                if self._stuck or self._response.torn:
                    server.abort()
                else:
                    server.bound_unread(self._times.timing.cleanup_timeout)
        server.release()
        if server.aborted:
            await server.abort_is_seen(receive)

    async def _report(self, error: BaseException | None) -> None:
        if self._body is not None or self._times.opening:  # there was no stream
            if self._response.observed is not None:
                self._response.observed.forget()
            return
        on_close, response, reason = self._options.on_close, self._response, self._life.reason
        assert reason is not None
        level = level_of(reason, started=response.started)
        logs = logger.isEnabledFor(level)
        if on_close is None and response.observed is None and not logs:
            return
        duration = self._runtime.clock() - self._opened
        report = CloseReport(reason, response.events, response.bytes, duration, error)
        if response.observed is not None:
            response.observed.closed(report)
        if logs:
            log_end(level, response.server.scope, report)
        if on_close is None:
            return
        timeout = self._times.timing.cleanup_timeout
        try:
            result = on_close(report)
            if isawaitable(result) and not await self._runtime.outlast(result, timeout):
                logger.warning("on_close has not ended within cleanup_timeout=%s s", timeout)
        except Exception:
            logger.exception("on_close raised")
