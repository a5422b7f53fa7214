"""The life of one stream, from its first message to its last. Begin with :meth:`Stream.run`: what
follows it here follows it in time.

Two tasks share a stream. The *host* is the task that the server gave us: it runs the pump, which
steps the source and sends what comes (``pump.py``). The *watchdog* waits for the client and for the
clock (``watchdog.py``), and interrupts the host when it is time to end (``interruption.py``). They
share the state of the stream (``life.py``), what is due when (``deadlines.py``), and the response
so far (``response.py``).
"""

from __future__ import annotations

import logging
import types
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .. import servers
from ..encoder import encode
from ..notes import note_origin, place_of
from ..opening import Opening
from ..reasons import CloseReason
from ..runtime import of_task
from ..runtime.base import driven
from ..shutdown import server_shutdown
from ..source import YIELDS_IN_CLEANUP
from .deadlines import Deadlines
from .ending import Ending, farewell, stopping
from .interruption import Interruption, Thrown
from .life import Life, State
from .pump import NOTHING, Pump
from .response import ClientGone, Response
from .watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from ..compression import Codec
    from ..observer import Observer
    from ..options import StreamOptions
    from ..source import OpenSource
    from ..types import Exchange, Scope
    from .feed import Feed
    from .incoming import Reader

__all__ = ["Stream"]

logger: logging.Logger = logging.getLogger("sse_asgi")

_YIELD_IN_CLEANUP = "the source %s yielded while it was being closed; that is not sent"


class Stream:
    """One event stream.

    :param source: closed on every way out, in the task that calls :meth:`run`.
    :param exchange: scope, ``receive`` and ``send`` of the request.
    :param options: what :func:`~sse_asgi.sse_app` was given.
    :param start: status and header fields of the response.
    :param encode: makes a frame of what the source yields, with the separator of the options.
    :param body: the body of a response that is no stream, and has nothing else.
    :param reader: takes the body of the request, for the source.
    :param on_disconnect: called, and awaited in a task of its own, when the client has left.
    :param on_drain: called when the stream is told to end, before the grace period.
    :param started: whether the start of the response was sent already.
    :param codec: compresses the body.
    :param feed: a coroutine function that runs in a task of its own while the stream is open. An
        exception that leaves it ends the stream like one of the source.
    """

    __slots__ = (
        "__weakref__", "_body", "_encode", "_feed", "_has_begun", "_interruption", "_last_event",
        "_life", "_on_disconnect", "_opened", "_options", "_pump", "_receive", "_refuses",
        "_response", "_runtime", "_shutdown", "_source", "_times", "_watchdog",
    )  # fmt: skip

    def __init__(
        self,
        source: OpenSource | Opening,
        exchange: Exchange,
        options: StreamOptions,
        *,
        start: tuple[int, list[tuple[bytes, bytes]]],
        encode: Callable[[Any, str], bytes] = encode,
        body: bytes | None = None,
        reader: Reader | None = None,
        on_disconnect: Callable[[], Awaitable[object]] | None = None,
        on_drain: Callable[[], object] | None = None,
        feed: Callable[[], Awaitable[object]] | None = None,
        started: bool = False,
        codec: Codec | None = None,
    ) -> None:
        self._runtime = runtime = of_task()
        self._opened = now = (clock := runtime.clock)()
        scope, receive, send = exchange
        self._source, self._receive, self._options, self._encode = source, receive, options, encode
        self._shutdown = options.shutdown or server_shutdown(runtime)
        server = servers.recognise(scope, send, runtime, self._shutdown)
        self._life = life = Life()
        self._times = times = Deadlines(options.timing, now)
        times.opening, times.started = isinstance(source, Opening), started
        self._response = response = Response(
            server, life, times, clock, options, start,
            is_stream=body is None,
            codec=codec,
        )  # fmt: skip
        self._pump = pump = Pump(source, response, life, times)
        self._interruption = interruption = Interruption(runtime, life, times, pump, source)
        self._watchdog = Watchdog(
            receive, response, life, times, interruption, source, options, runtime,
            encode=encode,
            reader=reader,
            on_disconnect=None if on_disconnect is None else self._client_has_left,
            on_drain=on_drain,
        )  # fmt: skip
        self._feed: Feed | None = None
        if feed is not None:
            from .feed import Feed  # few streams have one

            self._feed = Feed(feed, runtime, life, times, options)
        self._last_event, self._has_begun = b"", False
        self._body, self._on_disconnect = body, on_disconnect
        # A client that has sent something would take an empty stream for the answer.
        method = str(scope.get("method", "GET")).upper()
        self._refuses = body is None and method not in ("GET", "HEAD")

    def recheck(self, request: object) -> None:
        """Ask from time to time whether the client may still listen: see the option ``recheck``."""
        self._watchdog.ask_about(request)

    def observe(self, observer: Observer, scope: Scope, name: str) -> None:
        """Measure what is sent, and tell an observer: see the option ``observer``."""
        from .observed import Observed  # few streams have one

        Observed(observer, scope, name, self._opened, self._response, self._life, self._times)

    def expire_at(self, when: float) -> None:
        """Tell the stream to end at a time: seconds since 1970. Any thread may call this."""
        expires = self._runtime.clock() + when - time()
        self._runtime.from_thread(self._times.expire, expires)

    @property
    def started(self) -> bool:
        """Whether the response has started, so that its status can't change any more."""
        return self._response.started

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream has ended, or is about to; ``None`` while it is open."""
        return self._life.reason

    def draining(self) -> bool:
        """Return whether the stream has been told to end."""
        return self._life.state is not State.OPEN

    async def run(self) -> None:
        """Serve the stream to its end. An exception of the source is raised unchanged."""
        self._response.server.attach(self._shut_down_now, self._lost)
        self._shutdown.listen(self, self._runtime)
        try:
            if self._shutdown.draining:
                self._shut_down_now()
                if self._refuses:
                    self._life.fail(stopping())
            async with self._runtime.task_group() as self._watchdog.tasks:
                try:
                    await self._host()
                    self._interruption.stop()  # before that wait: the feed may take its time
                    if self._response.flushing:
                        await self._watchdog.comes_to_its_end()
                finally:
                    self._interruption.stop()
                    self._watchdog.stop()
        except BaseException as exc:
            self._leave_with(exc)  # from around the application; _raise() raises it again
        finally:
            self._watchdog.tasks = None
            self._shutdown.forget(self)
        try:
            await self._end()
        finally:
            self._response.server.detach()
        await self._raise()

    # -- told to end -----------------------------------------------------------------------------

    def shut_down(self, grace: float | None) -> None:
        """Tell the stream to end, within ``grace`` seconds; by default those of the options."""
        if grace is None:
            if self._response.server.cancels_when_stopping and self._shutdown.signalled:
                return  # it is about to cancel us, which would cut a cleanup short that has begun
            grace = self._times.timing.grace
        self._watchdog.drain(CloseReason.SHUTDOWN, grace)

    def _shut_down_now(self) -> None:
        self._watchdog.drain(CloseReason.SHUTDOWN, 0)

    def _lost(self) -> None:
        self._watchdog.interrupt(CloseReason.CLIENT_DISCONNECTED)

    # -- open: the host --------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the other tasks: the host is about to wait for the first time.

        If that were earlier, they would run first where tasks are eager.
        """
        if self._has_begun:
            return
        self._has_begun = True
        if self._feed is not None and not self._times.finishing:
            self._interruption.feed = self._feed.scope
            self._watchdog.tasks.start_soon(self._feed.run, self._watchdog, self._pump)
        self._watchdog.tasks.start_soon(self._watchdog.run)

    def _client_has_left(self) -> None:
        self._watchdog.tasks.start_soon(self._tell_that_the_client_has_left)

    async def _tell_that_the_client_has_left(self) -> None:
        assert self._on_disconnect is not None
        with anyio.move_on_after(self._options.cleanup_timeout, shield=True):
            try:
                await self._on_disconnect()
            except Exception as exc:
                self._life.fail(exc)

    @types.coroutine
    def _host(self) -> Generator[Any, Any, None]:
        """Send what the source has, and close it, whatever happens."""
        pump, times, life, response = self._pump, self._times, self._life, self._response
        runtime, task_type = self._runtime, self._runtime.task_type
        try:
            with self._interruption.outer:
                with self._interruption.cleanup:
                    running = pump.run(self._encode, self._options.sep, joins=runtime.joins)
                    try:
                        # This does what "await running" does, and sees when the source waits and
                        # when it is cancelled. A coroutine of its own would take memory for as long
                        # as it waits.
                        trap = running.send(None)
                        runtime.before_wait(trap, self._begin)
                        while True:
                            if life.closing:
                                self._interruption.about_to_wait()
                            if pump.stepping:
                                pump.waited = True
                                if type(trap) is task_type and runtime.knows_cancelled(trap):
                                    pump.awaits_cancelled = True
                                if pump.held:
                                    runtime.before_wait(trap, pump.about_to_wait)
                            try:
                                value = yield trap
                            except BaseException as exc:
                                # Thrown later: from here, exc would be the context of what it
                                # makes the source raise.
                                value = Thrown(exc)
                            if not pump.stepping and times.sending_since is not None:
                                times.last_write = response.clock()
                                response.prompt = False
                            if value is None:
                                trap = running.send(None)
                            else:
                                trap = self._interruption.resume(running, value)
                    except StopIteration:
                        self._keep_last_event()
                    except ClientGone:
                        self._watchdog.interrupt(CloseReason.CLIENT_DISCONNECTED)
                    except BaseException as exc:
                        if runtime.is_cancellation(exc):
                            raise
                        self._fail(exc)
                    finally:
                        value = None  # an error's traceback has this frame: no cycle
                        yield from self._close_source().__await__()
                yield from self._finish().__await__()
        except ClientGone:
            self._watchdog.interrupt(CloseReason.CLIENT_DISCONNECTED)
        except runtime.cancelled as exc:
            self._cancelled(exc)
        except BaseException as exc:  # a group with a cancellation, or the coroutine is closed
            self._life.close(CloseReason.CANCELLED)
            self._leave_with(exc)

    async def _finish(self) -> None:
        """End the response of a source that has come to its end."""
        life = self._life
        if life.error is not None:  # of what feeds the source
            life.close(CloseReason.ERROR)
        if not life.closing:
            self._times.finishing = True
            last = farewell(life, self._options, self._body)
            await driven(self._response.end(last), self._begin)
            life.close(CloseReason.FINISHED)

    def _cancelled(self, exc: BaseException) -> None:
        """Deal with a cancellation that is not our interruption, which ends at its scope."""
        life, pump = self._life, self._pump
        error = self._interruption.explain(exc, at_yield=not pump.stepping)
        if error is None:  # by the server: it leaves when the stream has ended
            life.close(CloseReason.CANCELLED)
            self._leave_with(exc)
        elif pump.stepping and pump.awaits_cancelled:  # it has come to its end
            life.close(CloseReason.FINISHED)
        elif life.error is None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Close the stream with an exception of the source, or about what it has yielded."""
        note_origin(error, self._source.iterator)
        self._life.fail(error)

    def _leave_with(self, exc: BaseException) -> None:
        self._life.leaving, self._life.cancelled = exc, True

    # -- closing: the source ---------------------------------------------------------------------

    def _keep_last_event(self) -> None:
        """Keep what a source yields when it is cancelled: one event, if the client can get it."""
        if self._pump.unsent is NOTHING or not self._interruption.entered:
            return
        if not self._life.way_out.last_event:
            logger.warning(_YIELD_IN_CLEANUP, place_of(self._source.iterator))
            return
        try:
            self._last_event = self._encode(self._pump.unsent, self._options.sep)
        except Exception as exc:
            self._fail(exc)

    async def _close_source(self) -> None:
        cleanup = self._interruption.cleanup
        cleanup.shield = True
        if self._feed is not None and self._life.closing:
            self._interruption.unbound()  # the source has a time of its own, afterwards
            try:
                await self._feed.stop()
            except self._runtime.cancelled:
                # No shield keeps Task.cancel() out. The source is closed, and _raise() goes on.
                if not self._interruption.from_outside():
                    raise
        self._interruption.bound()
        try:
            try:
                await self._source.aclose()
            except RuntimeError as exc:
                if "ignored GeneratorExit" not in str(exc):
                    raise
                logger.warning(_YIELD_IN_CLEANUP, place_of(self._source.iterator))
                await self._finish_cleanup()
        except BaseExceptionGroup as group:
            # A task group open around the yield: it wraps the GeneratorExit that closes it.
            if (rest := group.split(GeneratorExit)[1]) is not None:
                self._fail(rest)
        except BaseException as exc:
            if not self._runtime.is_cancellation(exc):
                self._fail(exc)
            elif isinstance(exc, GeneratorExit) or self._interruption.from_outside():
                raise  # else the source has cancelled a task of its own, and waited for that
        finally:
            self._interruption.closed()

    async def _finish_cleanup(self) -> None:
        """Let a generator that has yielded in its cleanup come to the end of that."""
        with suppress(StopAsyncIteration, GeneratorExit):
            for _ in range(YIELDS_IN_CLEANUP):
                await self._source.step()  # it can't be closed a second time
                await checkpoint()

    # -- closed ----------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Tell everybody that the stream is over, and let go of the server."""
        ending = Ending(
            self._life, self._times, self._response, self._pump, self._options, self._runtime,
            encode=self._encode, opened=self._opened, last_event=self._last_event,
            body=self._body, refuses=self._refuses,
        )  # fmt: skip
        await ending.run(self._receive)

    async def _raise(self) -> None:
        """Raise what goes on its way now that the stream has ended."""
        life = self._life
        leaves = life.leaving if life.error is None else life.error
        life.error = life.leaving = None
        if isinstance(leaves, self._runtime.cancelled) and (
            self._response.server.cancels_when_stopping and self._shutdown.signalled
        ):
            return
        if leaves is not None:
            try:
                raise leaves
            finally:
                del leaves  # its traceback has this frame: no cycle for the collector
        await checkpoint_if_cancelled()
        if self._interruption.by_task():  # a scope of an older anyio may have kept it
            raise self._runtime.cancelled
