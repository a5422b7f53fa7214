"""The life of one stream, from its first message to its last.

Two tasks share it. The *host* is the task that the server gave us: it steps the source, encodes
what comes and sends it. The *watchdog* waits on ``receive()``, with the next deadline as its
timeout, and decides when it is time to end. Everything that happens at a time of its own (the
start of the response, a ping, a timeout, a disconnect, a shutdown) happens there.

A stream moves through its states in one direction and ends for one reason: see ``states.py``.

Scopes of the host, from the outside in:

- the task group of the watchdog;
- ``_interruption``: cancelled by the watchdog to wake the host from whatever it waits for. It is
  shielded: a cancellation from outside reaches the watchdog, which decides like in any other case;
- ``_cleanup``: from the moment that a cancellation has entered the source it shields the source
  from the one outside, so that its ``finally`` may wait for something, and its deadline bounds
  that. No scope is opened after the source was entered: the source may have scopes of its own
  open around a ``yield``, and scopes must be left in order.
"""

from __future__ import annotations

import logging
import math
import random
import types
from inspect import isawaitable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .. import runtime
from ..encoder import encode
from ..errors import HTTPError
from ..reasons import CloseReason, CloseReport, State
from ..runtime.base import nothing
from ..servers import recognise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    from ..options import StreamOptions
    from ..runtime.base import Cancel
    from ..runtime.base import Scope as CancelScope
    from ..shutdown import Shutdown
    from ..source import OpenSource
    from ..types import EventLike, Message, Receive, Scope, Send

__all__ = ["Stream"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: The default ping: an empty comment, the shortest thing that keeps a connection busy.
PING = b":\n\n"

#: Go once round the event loop after so many seconds without having waited (a source that never
#: waits would starve everybody else). Short against what people and other requests notice.
TURN = 0.005

#: How events are joined that a source yields without waiting in between, since a ``send`` costs
#: ten times what an event does (asyncio only: on trio a task that waits can't be made to send
#: first). The first ones go on their own, and so does whatever takes so many seconds: a source
#: may block, which it should not, and what it has yielded before is not to wait for that.
ALONE, QUICK = 4, 0.0005

#: So many events are joined, or so many bytes, or as many as come in so many seconds.
JOINED_EVENTS, JOINED_BYTES, JOINED_FOR = 256, 32768, 0.002


#: Ways to end that are no reason of their own for a stream that was told to end.
_AS_TOLD = (CloseReason.FINISHED, CloseReason.CANCELLED)

_YIELD_IN_CLEANUP = "the source yielded while it was being closed; that is not sent"

_SCOPE_AROUND_YIELD = (
    "the source was cancelled at a yield: a cancel scope, timeout or task group that it holds open "
    "around the yield cancels whoever reads it (PEP 789); open it between two yields, or leave it "
    "to a task of its own that hands over what it has"
)


_AWAITED_CANCELLED = "the source was cancelled, and not by us: it awaited a cancelled task, say"

_FEED_AWAITED_CANCELLED = _AWAITED_CANCELLED.replace("the source", "what feeds the source", 1)


class _Gone(Exception):
    pass


class _Destroyed(BaseException):
    """The host's coroutine is closed, as a task is destroyed with its event loop: a GeneratorExit,
    which no ``await`` hands on to an async generator before Python 3.13.
    """


class _Thrown(NamedTuple):
    """Instead of a value: what was thrown."""

    error: BaseException


class Stream:
    """One event stream.

    :param source: closed on every way out, in the task that calls :meth:`run`.
    :param options: what :func:`~sse_asgi.sse_app` was given.
    :param shutdown: what tells the stream to end.
    :param status: the status code of the response.
    :param headers: its header fields, instead of those of the options.
    :param encode: makes a frame of what the source yields, with the separator of the options.
    :param on_drain: called when the stream is told to end, before the grace period.
    :param feed: a coroutine function that runs in a task of its own while the stream is open; an
        exception that leaves it ends the stream like one of the source.
    """

    __slots__ = (
        "__weakref__", "_aside", "_aside_events", "_bytes", "_cancel_requests",
        "_cancel_requests_before", "_cancelled", "_cancelled_type", "_cleanup", "_cleanup_timeout",
        "_clock", "_closing", "_do_not_abort", "_drain_ends",
        "_encode", "_ended", "_error", "_events", "_failure", "_fed", "_feed", "_feeding",
        "_finishing", "_headers", "_held", "_interruption", "_joins", "_last_words",
        "_last_write", "_lifetime_ends", "_listen_again", "_no_ping",
        "_on_drain", "_opened", "_options", "_patience", "_pause", "_ping", "_pings_at_once",
        "_raw_send", "_reason", "_receive", "_runtime", "_scope", "_send_timeout", "_sending_since",
        "_sends_at_once", "_server", "_shutdown", "_source", "_source_told", "_started",
        "_starting", "_starts", "_state", "_status", "_stepping", "_thrown_at", "_turn_comes",
        "_turned", "_waited", "_wakes", "_watchdog_sends",
    )  # fmt: skip

    def __init__(
        self,
        source: OpenSource,
        options: StreamOptions,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        shutdown: Shutdown,
        status: int = 200,
        headers: list[tuple[bytes, bytes]] | None = None,
        encode: Callable[[Any, str], bytes] = encode,
        on_drain: Callable[[], object] | None = None,
        feed: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._source = source
        self._options = options
        self._scope = scope
        self._receive = receive
        self._shutdown = shutdown
        self._status = status
        self._headers = options.response_headers if headers is None else headers
        self._encode = encode
        self._on_drain = on_drain
        self._feed = feed

        self._state = State.OPEN
        self._closing = False  # or closed: the same as a state, since each event looks at it
        self._reason: CloseReason | None = None
        self._error: BaseException | None = None  # to be raised at the end
        self._failure: BaseException | None = None  # to be reported
        self._cancelled: BaseException | None = None
        self._events = 0
        self._bytes = 0

        self._ping = _or_forever(options.ping)
        self._send_timeout = _or_forever(options.send_timeout)
        self._cleanup_timeout = _or_forever(options.cleanup_timeout)

        self._runtime = runtime.of_task()
        self._server = recognise(scope, send, self._runtime, shutdown)
        self._raw_send = self._server.send
        self._clock = self._runtime.clock
        self._opened = self._last_write = now = self._clock()
        self._turned = monotonic()  # uvloop's clock stands still within a turn
        self._starting = self._started = self._finishing = self._ended = False
        self._last_words = b""
        self._joins = self._runtime.joins
        self._held: list[bytes] = []  # events that are to be joined
        self._sends_at_once = self._server.sends_at_once
        # A function of the application's may want a task around it.
        self._pings_at_once = self._sends_at_once and options.ping_message_factory is None
        self._starts = now + _deferred(options.defer_start)
        # Spread, so that streams that were opened together do not end together.
        self._lifetime_ends = now + _or_forever(options.max_lifetime) * random.uniform(0.9, 1)
        self._drain_ends = math.inf
        self._sending_since: float | None = None
        self._thrown_at: float | None = None
        self._cancelled_type = self._runtime.cancelled

        self._interruption = self._runtime.scope(shield=True)
        self._cleanup = self._runtime.scope(within=self._interruption)
        self._stepping = self._waited = False  # the source: on to an event; and in that step
        self._source_told = False  # whether a cancellation has entered it
        self._cancel_requests = self._runtime.cancels()
        self._cancel_requests_before = self._cancel_requests()

        self._feeding: CancelScope | None = None
        self._fed: anyio.Event | None = None
        self._pause = self._runtime.scope()  # what the watchdog waits in
        self._wakes = math.inf  # its deadline
        self._watchdog_sends = False
        self._aside = b""  # what it is to send
        self._aside_events = 0
        self._no_ping: Cancel = nothing
        self._turn_comes: anyio.Event | None = None
        self._do_not_abort: Cancel = nothing
        self._listen_again = self._patience = 0.0

    @property
    def started(self) -> bool:
        """Whether the response has started, so that its status can't change any more."""
        return self._started or self._starting

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream has ended, or is about to; ``None`` while it is open."""
        return self._reason

    def draining(self) -> bool:
        """Whether the stream has been told to end."""
        return self._state is not State.OPEN

    async def run(self) -> None:
        """Serve the stream to its end; what the source raised leaves as itself."""
        self._server.attach(self._shut_down_now)
        self._shutdown.listen(self._shut_down)
        try:
            if self._shutdown.draining:
                self._shut_down(0)
            async with self._runtime.task_group() as tasks:
                if self._feed is not None and self._clock() < self._drain_ends:
                    self._fed = anyio.Event()
                    # Its cleanup may take its time, as long as the source's and more.
                    self._feeding = self._runtime.scope(again=2 * self._cleanup_timeout)
                    tasks.start_soon(self._run_feed, self._feed, self._feeding, self._fed)
                tasks.start_soon(self._watch)
                await self._host()
                if self._watchdog_sends:
                    with anyio.move_on_after(self._options.cleanup_timeout, shield=True):
                        await self._my_turn()
                self._do_not_abort()
                # Not the scope of the group: an exception that leaves a task is kept in a cycle.
                self._pause.cancel()
        except BaseException as exc:
            self._cancelled = exc  # from around the application; leaves below
        finally:
            self._shutdown.forget(self._shut_down)
            self._no_ping()
        try:
            await self._end()
        finally:
            self._server.detach()
        leaves = self._error or self._cancelled
        stopped = self._shutdown.signalled and self._server.cancels_when_stopping
        self._error = self._failure = self._cancelled = None
        if stopped and isinstance(leaves, self._cancelled_type):
            return
        if leaves is not None:
            try:
                raise leaves
            finally:
                del leaves  # its traceback has this frame: no cycle for the collector
        await checkpoint_if_cancelled()
        if self._cancelled_natively():  # a scope of an older anyio may have kept it
            raise self._cancelled_type

    # -- the host: steps the source and sends what it yields -------------------------------------

    @types.coroutine
    def _host(self) -> Generator[Any, Any, None]:
        """Send what the source has, and close it, whatever happens."""
        try:
            with self._interruption:
                with self._cleanup:
                    pump = self._pump()
                    try:
                        # What "await pump" does, but that it is seen when the source waits, and
                        # when it is cancelled. Not in a coroutine of its own: that would be memory
                        # for as long as it waits.
                        trap = pump.send(None)
                        while True:
                            if self._stepping:
                                self._waited = True
                                if self._held:
                                    self._send_beside()
                            try:
                                value = yield trap
                            except BaseException as exc:
                                value = _Thrown(exc)  # not from here: it would be its context
                            if not self._stepping and self._sending_since is not None:
                                self._last_write = self._clock()
                            trap = pump.send(None) if value is None else self._pass_on(pump, value)
                    except StopIteration:  # the pump has ended
                        pass
                    except _Gone:
                        self._close(CloseReason.CLIENT_DISCONNECTED)
                    except Exception as exc:
                        self._fail(exc)
                    finally:
                        value = None  # an error's traceback has this frame: no cycle
                        yield from self._close_source().__await__()
                if not self._closing:
                    self._finishing = True
                    yield from self._send_last(self._farewell()).__await__()
                    self._close(CloseReason.FINISHED)
        except _Gone:
            self._close(CloseReason.CLIENT_DISCONNECTED)
        except self._cancelled_type as exc:
            self._cancelled_by_others(exc)
        except BaseException as exc:  # such as KeyboardInterrupt
            self._close(CloseReason.CANCELLED)
            self._cancelled = exc

    def _cancelled_by_others(self, exc: BaseException) -> None:
        """Deal with a cancellation that is not our interruption, which ends at its scope.

        ``Task.cancel()`` by the server leaves when the stream has been ended in an orderly way.
        Anything else is the source's fault, and gets words.
        """
        if self._cancelled_natively():
            self._close(CloseReason.CANCELLED)
            self._cancelled = exc
        elif self._error is None:
            at_yield = self._sending_since is not None
            error = RuntimeError(_SCOPE_AROUND_YIELD if at_yield else _AWAITED_CANCELLED)
            error.__cause__ = exc
            self._fail(error)

    def _pass_on(self, pump: Coroutine[Any, Any, None], value: Any) -> object:
        """Resume the pump with an exception, or an outcome of trio's; it may be a cancellation."""
        error: Any = getattr(value, "error", None)
        cancels = self._waited and isinstance(error, self._cancelled_type)
        if cancels:
            self._source_told = self._closing
        try:
            if not isinstance(value, _Thrown):
                trap = pump.send(value)
            elif isinstance(error, GeneratorExit):
                trap = pump.throw(_Destroyed())
            else:
                trap = pump.throw(error)
        except _Destroyed:
            raise GeneratorExit from None
        finally:
            del error, value  # its traceback has this frame: no cycle for the collector
        if cancels and self._waited:  # in the same step
            self._source_waits_cancelled()
        return trap

    async def _pump(self) -> None:
        """Send what the source yields. The next event is asked for when the last was accepted, or
        is about to be joined with it.
        """
        # Looked up once.
        next_event, encode, sep = self._source.step, self._encode, self._options.sep
        joins, held = self._joins, self._held
        raw_send, clock, send_timeout = self._raw_send, self._clock, self._send_timeout
        if clock() >= self._drain_ends:
            return
        straight = False  # whether there is nothing to an event but to send it
        in_row = size = 0  # events that were there at once; bytes that are held
        came = held_since = 0.0
        try:
            while not self._closing:
                self._stepping = True
                event = await next_event()
                self._stepping = False
                if self._waited:
                    self._waited = False
                    self._thrown_at = None
                    in_row = 0
                    if self._closing:
                        if self._source_told:
                            self._note_last_words(event)
                        return
                    if straight and not self._watchdog_sends:
                        # What _send() does, without a coroutine of its own: here it is felt.
                        frame = encode(event, sep)
                        self._sending_since = self._last_write = since = clock()
                        if since + send_timeout < self._wakes:
                            self._wake_watchdog(since + send_timeout)
                        try:
                            await raw_send(
                                {"type": "http.response.body", "body": frame, "more_body": True}
                            )
                        except Exception as exc:
                            self._send_failed(exc)
                            raise
                        self._sending_since = None
                        self._events += 1
                        self._bytes += len(frame)
                        continue
                else:
                    in_row += 1
                frame = encode(event, sep)
                held.append(frame)
                if in_row and joins:
                    now = monotonic()
                    if now - came > QUICK:
                        in_row = 1
                    came = now
                    if in_row > ALONE:
                        if len(held) == 1:
                            size, held_since = 0, now
                        size += len(frame)
                        if (
                            size < JOINED_BYTES
                            and len(held) < JOINED_EVENTS
                            and now - held_since < JOINED_FOR
                        ):
                            continue
                if not self._send_held_now():
                    await self._send_held()
                straight = self._sends_at_once
                if in_row and monotonic() - self._turned >= TURN:
                    await checkpoint()
                    self._turned = monotonic()
        except _Gone:
            raise
        except Exception as exc:
            self._stepping = self._waited = False
            if held and not self._send_held_now():  # which came before
                await self._send_held()
            if not isinstance(exc, StopAsyncIteration):
                raise

    async def _send_held(self) -> None:
        """Send the events that are held, as one."""
        if self._watchdog_sends:
            await self._my_turn()
        held = self._held
        frame, events = b"".join(held), len(held)
        held.clear()
        if not self._started:
            await self._send_start()
            frame = self._preamble() + frame
        await self._send(_body(frame))
        self._events += events
        self._bytes += len(frame)

    def _send_held_now(self) -> bool:
        """Send the events that are held, without waiting; whether that could be done."""
        held = self._held
        if not self._send_now(held[0] if len(held) == 1 else b"".join(held)):
            return False
        self._events += len(held)
        held.clear()
        return True

    def _send_beside(self) -> None:
        """Send the events that are held while the source waits for something."""
        if not self._send_held_now():
            # Not here: what the source has around it (a timeout, say) would cancel the send.
            self._leave_to_watchdog(b"".join(self._held), len(self._held))
            self._held.clear()

    # For a source that has events while the host waits for one.

    def ready(self) -> bool:
        """Whether an event can be sent at once, without the host."""
        return (
            self._sends_at_once
            and self._started
            and not self._closing
            and not (self._ended or self._finishing or self._sends())
        )

    def accept(self, frame: bytes) -> None:
        """Send an event that the source has while the host waits for it."""
        if self._send_now(frame):
            self._events += 1
        else:
            self._leave_to_watchdog(frame, 1)

    def _send_now(self, frame: bytes) -> bool:
        """Send, without waiting, whatever the host waits for; whether that could be done."""
        if (
            not self._sends_at_once
            or not self._started
            or self._watchdog_sends
            or self._sending_since is not None
            or self._ended
        ):
            return False
        sending: Any = self._raw_send(
            {"type": "http.response.body", "body": frame, "more_body": True}
        )
        try:
            sending.send(None)
        except StopIteration:
            self._last_write = self._clock()
            self._bytes += len(frame)
            return True
        except Exception:
            return False  # it will say so again, to whoever waits
        sending.close()  # it waits for the client, and has written nothing
        return False

    def _sends(self) -> bool:
        """Whether the host or the watchdog are sending."""
        return self._sending_since is not None or self._watchdog_sends

    def _leave_to_watchdog(self, frame: bytes, events: int) -> None:
        self._aside += frame
        self._aside_events += events
        if not self._watchdog_sends:  # else it looks when it has sent
            self._watchdog_sends = True
            self._wake_watchdog(-math.inf)

    def _rest(self) -> bytes:
        """The events that are still to be sent, all of them yielded by the source already."""
        rest = self._aside + b"".join(self._held)
        self._events += self._aside_events + len(self._held)
        self._aside, self._aside_events = b"", 0
        self._held.clear()
        return rest

    def _note_last_words(self, event: EventLike) -> None:
        """Keep what a source yields when it is cancelled: one event, if the client can hear it."""
        if self._reason in (CloseReason.SHUTDOWN, CloseReason.MAX_LIFETIME, CloseReason.CANCELLED):
            self._last_words = self._encode(event, self._options.sep)
            self._events += 1
        else:
            logger.warning(_YIELD_IN_CLEANUP)

    def _source_waits_cancelled(self) -> None:
        """See whether what a cancelled source waits for is its cleanup."""
        if self._source_told:
            # Cancel scopes cancel every wait from now on. The source has got that once. The
            # shield comes no earlier: a scope of the source's own, whose deadline has come too,
            # must see that somebody around it is cancelled, or it would take the cancellation
            # for its own and let the source go on.
            self._cleanup.shield = True
        elif self._cancelled_natively():
            # By the server, it seems, which no scope can tell. (A scope of the source's own has
            # taken its cancellation back, unless it is slow.) The watchdog has another look when
            # the time for a cleanup is over.
            self._thrown_at = self._clock()
            self._wake_watchdog(self._thrown_at + self._cleanup_timeout)

    def _cancelled_natively(self) -> bool:
        """Whether somebody has called ``Task.cancel()`` on the host (asyncio)."""
        return self._cancel_requests() > self._cancel_requests_before

    async def _send_start(self) -> None:
        self._starting = True
        await self._send(
            {
                "type": "http.response.start",
                "status": self._status,
                "headers": self._headers,
            }
        )
        self._started = True
        self._starting = False
        self._wake_watchdog(self._drain_deadline())
        if self._sends_at_once and self._state < State.CLOSED:
            if self._pings_at_once:
                self._ping_later(self._ping)
            self._source.give_to(self)

    async def _send(self, message: Message) -> None:
        now = self._clock()
        self._sending_since = now
        if now + self._send_timeout < self._wakes:
            self._wake_watchdog(now + self._send_timeout)
        try:
            await self._raw_send(message)
        except Exception as exc:
            self._send_failed(exc)
            raise
        self._sending_since = None
        self._last_write = self._clock()

    def _send_failed(self, error: Exception) -> None:
        if isinstance(error, OSError):
            # Some servers raise it when the client is gone (ASGI HTTP spec 2.4).
            raise _Gone from None
        self._ended = True  # whatever it is, the response is beyond repair
        self._sending_since = None

    def _preamble(self) -> bytes:
        """What comes first in the body. Some servers and middlewares hold the headers back until
        there is a body, so it is sent even where it is empty.
        """
        retry = self._options.retry
        return b"" if retry is None else encode({"retry": retry}, self._options.sep)

    async def _my_turn(self) -> None:
        """Wait until the watchdog is not sending."""
        while self._watchdog_sends:
            self._turn_comes = anyio.Event()
            await self._turn_comes.wait()

    async def _close_source(self) -> None:
        self._cleanup.shield = True
        await self._feed_ended()
        self._bound_cleanup()
        try:
            await self._source.aclose()
        except Exception as exc:
            if isinstance(exc, RuntimeError) and "ignored GeneratorExit" in str(exc):
                logger.warning(_YIELD_IN_CLEANUP)
            else:
                self._fail(exc)
        except BaseExceptionGroup as group:
            # A task group open around the yield: it wraps the GeneratorExit that closes it.
            if (rest := group.split(GeneratorExit)[1]) is not None:
                self._fail(rest)
        finally:
            if self._cleanup.cancel_called:
                logger.warning(
                    "the source was not closed within cleanup_timeout=%s s", self._cleanup_timeout
                )

    async def _run_feed(
        self, feed: Callable[[], Awaitable[object]], feeding: CancelScope, ended: anyio.Event
    ) -> None:
        """Run what feeds the source, for as long as the source is read."""
        cancel_requests = self._runtime.cancels()
        try:
            with feeding:
                await feed()
        except self._cancelled_type as exc:
            if cancel_requests():  # from around the application
                raise
            await checkpoint_if_cancelled()  # from there, too
            error = RuntimeError(_FEED_AWAITED_CANCELLED)
            error.__cause__ = exc
            self._break(error)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            # It could not know that nobody reads any more.
            if not self._closing and not self._finishing:
                self._break(exc)
        except Exception as exc:
            self._break(exc)
        except BaseException as exc:  # such as KeyboardInterrupt
            self._interrupt(CloseReason.CANCELLED)
            self._cancelled = exc
        finally:
            ended.set()

    async def _feed_ended(self) -> None:
        """Wait for what feeds the source, before that is closed: it may be about to write to it,
        and its cleanup would be cut short by an error.
        """
        if self._fed is None or not self._closing:
            return
        self._cleanup.deadline = math.inf  # the source has a time of its own, afterwards
        with anyio.move_on_after(self._options.cleanup_timeout, shield=True) as scope:
            await self._fed.wait()
        if scope.cancelled_caught:
            logger.warning("what feeds the source has not ended within cleanup_timeout")

    # -- the watchdog: waits for the client and the clock ----------------------------------------

    async def _watch(self) -> None:
        try:
            while not self._closing:
                await self._attend()
                if not self._closing:
                    self._wakes = self._next_deadline()
                    # A pending receive() may be cancelled and called again: no message is lost.
                    with self._runtime.scope(deadline=self._wakes) as self._pause:
                        if (rest := self._listen_again - self._clock()) > 0:
                            await anyio.sleep(rest)
                        self._heard(await self._receive())
        except (_Gone, OSError):
            self._interrupt(CloseReason.CLIENT_DISCONNECTED)
        except Exception as exc:  # ping_message_factory, or receive() of a middleware
            self._break(exc)
        except BaseException:
            # Cancelled from around the application, which the host is shielded from.
            self._interrupt(CloseReason.CANCELLED)
            raise
        finally:
            self._leave_turn()

    def _heard(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._disconnected()
        elif message["type"] == "http.request" and not message.get("more_body"):
            # A middleware may answer every receive() with the body again, at once.
            self._listen_again = self._clock() + self._patience
            self._patience = min(2 * self._patience or 0.01, 1)

    def _disconnected(self) -> None:
        if not self._ended:
            raise _Gone
        # The last chunk is on its way: that may be all that the server wants to say. If not, the
        # chunk is not waited for much longer.
        self._listen_again = math.inf
        self._drain_ends = min(self._drain_ends, self._clock())

    async def _attend(self) -> None:
        """Do what is due now."""
        now = self._clock()
        sending_since = self._sending_since
        if now >= self._lifetime_ends:
            self._lifetime_ends = math.inf
            self._drain(CloseReason.MAX_LIFETIME, self._options.shutdown_grace_period)
        if self._thrown_at is not None and now >= self._thrown_at + self._cleanup_timeout:
            self._thrown_at = None
            if self._cancelled_natively():
                self._close(CloseReason.CANCELLED)
                self._cleanup.cancel()
        if now >= self._drain_deadline():
            self._interrupt(self._reason or CloseReason.CLIENT_DISCONNECTED)
        elif sending_since is not None:
            if now >= sending_since + self._send_timeout:
                self._interrupt(CloseReason.SEND_TIMEOUT)
        elif self._aside:
            frame, events = self._aside, self._aside_events
            self._aside, self._aside_events = b"", 0
            if await self._send_aside(frame):
                self._events += events
            elif self._sends_at_once:  # such a send that was interrupted has not written anything
                self._aside, self._aside_events = frame, events
        elif not self._started:
            if now >= self._starts:
                await self._send_aside(self._preamble())
        elif now >= self._last_write + self._ping and not self._pings_at_once:
            await self._send_aside(self._ping_frame())

    def _next_deadline(self) -> float:
        now = self._clock()
        deadline = min(self._lifetime_ends, self._drain_deadline())
        if self._thrown_at is not None:
            deadline = min(deadline, self._thrown_at + self._cleanup_timeout)
        if self._sending_since is not None:
            # When this send ends is not known, so neither is when the next ping is due; but not
            # earlier than this.
            return min(deadline, self._sending_since + self._send_timeout, now + self._ping)
        if not self._started:
            return min(deadline, self._starts)
        if self._pings_at_once:
            return deadline
        return min(deadline, self._last_write + self._ping)

    def _drain_deadline(self) -> float:
        """When a stream that was told to end is ended, if it has not by then."""
        if self._starting:
            # Of a start that is interrupted nobody knows whether it has taken place, so nothing
            # could be sent after it.
            return math.inf
        if self._finishing:  # it is doing what it was told
            return self._drain_ends + self._cleanup_timeout
        return self._drain_ends

    async def _send_aside(self, frame: bytes) -> bool:
        """Send from the watchdog, while the host is not sending; it waits if it wants to.

        Returns whether it was sent. If not, the stream ends.
        """
        now = self._clock()
        self._watchdog_sends = True
        self._starting = not self._started
        too_old = self._lifetime_ends + self._options.shutdown_grace_period
        self._wakes = min(now + self._send_timeout, self._drain_deadline(), too_old)
        do_not_abort = self._abort_in(self._send_timeout)
        try:
            with self._runtime.scope(deadline=self._wakes) as self._pause:
                if not self._started:
                    await self._send_start()
                await self._send(_body(frame))
                self._bytes += len(frame)
        finally:
            do_not_abort()
            self._sending_since = None
            self._leave_turn()
        if not (self._pause.cancelled_caught or self._server.aborted):
            return True
        # Not by the clock: a timer may be early by a little.
        told = self._drain_deadline() <= self._wakes
        if too_old <= self._wakes < math.inf:
            self._drain(CloseReason.MAX_LIFETIME, 0)
            told = True
        self._interrupt((told and self._reason) or CloseReason.SEND_TIMEOUT)
        return False

    def _leave_turn(self) -> None:
        self._watchdog_sends = bool(self._aside) and not self._closing
        if self._turn_comes is not None and not self._watchdog_sends:
            self._turn_comes.set()
            self._turn_comes = None

    def _wake_watchdog(self, at: float) -> None:
        if at < self._wakes:
            self._wakes = self._pause.deadline = at

    def _ping_later(self, seconds: float) -> None:
        self._no_ping = self._runtime.after(seconds, self._ping_at_once)

    def _ping_at_once(self) -> None:
        """Ping where that takes no task: to wake one costs ten times as much."""
        if self._closing or self._ended:
            return  # and the watchdog, too, sends nothing any more
        rest = self._last_write + self._ping - self._clock()
        if self._sends():
            rest = self._ping
        elif rest <= 0:
            if not self._send_now(PING):
                self._leave_to_watchdog(PING, 0)
            rest = self._ping
        self._ping_later(rest)

    def _ping_frame(self) -> bytes:
        factory = self._options.ping_message_factory
        return PING if factory is None else self._encode(factory(), self._options.sep)

    # -- ways to end -----------------------------------------------------------------------------

    def _shut_down(self, grace: float | None) -> None:
        if grace is None:
            if self._server.cancels_when_stopping and self._shutdown.signalled:
                return  # when it has cancelled us: later that would cut the source's cleanup short
            grace = self._options.shutdown_grace_period
        self._drain(CloseReason.SHUTDOWN, grace)

    def _shut_down_now(self) -> None:
        self._drain(CloseReason.SHUTDOWN, 0)

    def _drain(self, reason: CloseReason, grace: float) -> None:
        """Tell the source to end; the watchdog closes it after ``grace`` seconds."""
        self._drain_ends = min(self._drain_ends, self._clock() + grace)
        self._wake_watchdog(self._drain_deadline())
        if self._watchdog_sends:  # and may not be woken
            self._do_not_abort()
            rest = self._drain_ends - self._clock()
            self._do_not_abort = self._abort_in(rest + self._cleanup_timeout)
        if self._state is State.OPEN:
            self._state = State.DRAINING
            self._reason = reason
            if self._on_drain is not None:
                try:
                    self._on_drain()
                except Exception as exc:
                    self._break(exc)

    def _close(self, reason: CloseReason) -> None:
        """The stream ends here, for ``reason`` unless there was another before."""
        if not self._closing:
            told_to = self._state is State.DRAINING and reason in _AS_TOLD
            if not told_to:
                self._reason = reason
            self._state = State.CLOSING
            self._closing = True
            if self._feeding is not None:
                self._feeding.cancel()
            # While the host sends, its time has not begun.
            if self._sending_since is None or self._watchdog_sends:
                self._bound_cleanup()

    def _interrupt(self, reason: CloseReason) -> None:
        """End the stream from the watchdog: wake the host from whatever it waits for."""
        if not self._closing:
            self._close(reason)
            if self._thrown_at is not None and self._cancelled_natively():
                self._cleanup.shield = True  # the source is on its way out already
            if reason is CloseReason.SEND_TIMEOUT:
                self._server.abort()
            elif self._sending_since is not None and not self._client_left():
                self._do_not_abort = self._abort_in(self._cleanup_timeout)
            self._interruption.cancel()

    def _break(self, error: Exception) -> None:
        """End the stream, from outside the host, with an exception of the user's code."""
        self._interrupt(CloseReason.ERROR)
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The stream ends with an exception of the user's code; the first one counts."""
        self._close(CloseReason.ERROR)
        if self._error is None:
            self._error = error
        else:
            logger.error("another exception while the source was closed", exc_info=error)

    def _bound_cleanup(self) -> None:
        if self._cleanup.deadline == math.inf:
            self._cleanup.deadline = self._clock() + self._cleanup_timeout

    async def _end(self) -> None:
        """Tell the client that the stream is over, if it can hear it, and then the application."""
        self._close(CloseReason.CANCELLED)
        self._state = State.CLOSED
        self._failure = self._error
        try:
            # Not where that is done; or was interrupted, and nobody knows how far it came.
            if not (self._starting or self._ended or self._server.aborted or self._client_left()):
                await self._take_leave()
        finally:
            try:
                await self._leave_connection()
            finally:
                if self._options.on_close is not None:
                    await self._report(self._options.on_close)

    async def _take_leave(self) -> None:
        self._do_not_abort = self._abort_in(self._cleanup_timeout)
        try:
            with anyio.move_on_after(self._options.cleanup_timeout, shield=True):
                if self._reason is CloseReason.ERROR:
                    if self._started and (rest := self._rest()):
                        await self._send(_body(rest))
                        self._bytes += len(rest)
                    await self._send_error()
                elif self._reason is CloseReason.SEND_TIMEOUT:
                    await self._break_off()
                else:
                    await self._send_last(self._rest() + self._last_words + self._farewell())
        except _Gone:
            pass
        finally:
            self._do_not_abort()

    async def _leave_connection(self) -> None:
        """See to it that the server can leave it, too."""
        if not self._client_left():
            if self._started and self._sending_since is not None:
                self._server.abort()
            elif self._shutdown.signalled:
                # A server that stops waits until the client has taken what was written.
                self._server.abort_if_stuck(self._cleanup_timeout)
        self._server.release()
        if self._server.aborted:
            await self._server.abort_is_seen(self._receive)

    def _client_left(self) -> bool:
        return self._reason is CloseReason.CLIENT_DISCONNECTED

    async def _send_last(self, frame: bytes) -> None:
        if self._watchdog_sends:
            await self._my_turn()
        if not self._started:
            await self._send_start()
            frame = self._preamble() + frame
        if not frame and self._reason is CloseReason.SHUTDOWN and self._server.loses_empty_ends:
            frame = PING
        self._ended = True
        await self._send(_body(frame, more_body=False))
        self._bytes += len(frame)

    def _farewell(self) -> bytes:
        """Spread the clients of a server that stops over some time: they come back to another."""
        retry = self._options.retry
        if retry is None or self._reason not in (CloseReason.SHUTDOWN, CloseReason.MAX_LIFETIME):
            return b""
        return encode({"retry": random.randint(retry, 2 * retry)}, self._options.sep)

    async def _send_error(self) -> None:
        """End a stream whose source has raised: by an event of ``on_error``, or by breaking off."""
        error = self._error
        event = None
        if isinstance(error, HTTPError):
            if not self._started:
                return  # the status can still be sent
            logger.error("%r came after the response had started; see defer_start", error)
        if self._options.on_error is not None and isinstance(error, Exception):
            try:
                event = self._options.on_error(error)
                if isawaitable(event):
                    event = await event
                last = None if event is None else self._encode(event, self._options.sep)
            except Exception as exc:
                if exc is not error:
                    exc.__context__ = exc.__context__ or error  # as if raised while handling it
                self._error = exc
            else:
                if last is not None:
                    self._error = None
                    await self._send_last(last)
                    return
        await self._break_off()

    async def _break_off(self) -> None:
        """Leave without a last chunk, which tells the client that this is no regular end."""
        if self._started and self._server.hides_broken_responses:
            await self._send_last(b"")

    def _abort_in(self, seconds: float) -> Cancel:
        """Give the connection up if a send takes so long that can't be cancelled, unless what is
        returned is called before.
        """
        if self._server.shields_sends:  # on trio this costs a task
            return self._runtime.after(seconds, self._abort_send)
        return nothing

    def _abort_send(self) -> None:
        if self._sending_since is not None:  # else something else has taken so long
            self._server.abort()

    async def _report(self, on_close: Callable[[CloseReport], object]) -> None:
        assert self._reason is not None
        duration = self._clock() - self._opened
        report = CloseReport(self._reason, self._events, self._bytes, duration, self._failure)
        with anyio.move_on_after(self._options.cleanup_timeout, shield=True):
            try:
                result = on_close(report)
                if isawaitable(result):
                    await result
            except Exception:
                logger.exception("on_close raised")


def _body(frame: bytes, more_body: bool = True) -> Message:
    return {"type": "http.response.body", "body": frame, "more_body": more_body}


def _or_forever(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _deferred(defer_start: bool | float | None) -> float:
    """How many seconds the start of the response may wait for the first event."""
    if isinstance(defer_start, bool):
        return math.inf if defer_start else 0
    return defer_start or 0
