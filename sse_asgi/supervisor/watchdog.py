"""The other task of a stream: it waits for the client and for the clock.

Everything that happens at a time of its own happens here: the start of the response, a ping, a
timeout, a disconnect. So does every way to end that the source does not choose.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from ..encoder import encode_ping
from ..reasons import CloseReason
from ..runtime.base import driven, nothing
from .deadlines import TRY_AGAIN, Due
from .incoming import Incoming
from .pings import pings_of
from .response import PING, ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..options import StreamOptions
    from ..runtime.base import Cancel, CancelScope, Runtime
    from ..source import OpenSource
    from ..types import Receive
    from .deadlines import Deadlines
    from .incoming import Reader
    from .interruption import Interruption
    from .life import Life
    from .pings import Pinged, Pings
    from .recheck import Recheck
    from .response import Response

__all__ = ["Watchdog"]


class Watchdog:
    """Waits for the client and the clock, sends pings, and interrupts the host.

    :param encode: makes a frame of what ``ping_message_factory`` returns, with a separator.
    :param reader: takes the body of the request.
    :param on_disconnect: called when the client has left.
    :param on_drain: called when the stream is told to end.
    """

    __slots__ = (
        "_abort_timer", "_encode", "_incoming", "_interruption", "_is_set_up", "_life",
        "_on_disconnect", "_on_drain", "_options", "_pings", "_receive", "_recheck", "_response",
        "_runtime", "_sending", "_source", "_taken", "_times", "asked_with", "tasks",
    )  # fmt: skip

    def __init__(
        self,
        receive: Receive,
        response: Response,
        life: Life,
        times: Deadlines,
        interruption: Interruption,
        source: OpenSource,
        options: StreamOptions,
        runtime: Runtime,
        *,
        encode: Callable[[Any, str], bytes],
        reader: Reader | None,
        on_disconnect: Callable[[], object] | None,
        on_drain: Callable[[], object] | None,
    ) -> None:
        self._receive = receive
        self._response = response
        self._life = life
        self._times = times
        self._interruption = interruption
        self._source = source
        self._options = options
        self._runtime = runtime
        self._encode = encode
        self._on_disconnect = on_disconnect
        self._on_drain = on_drain
        self._incoming = Incoming(reader)
        # Whether it was seen what the server allows, after the start.
        self._is_set_up = False
        # What asks for pings, if that takes no task, and the streams that it asks with this one.
        self._pings: Pings | None = None
        self.asked_with: set[Pinged] | None = None
        # Asks whether the client may still listen; None: nobody asks.
        self._recheck: Recheck | None = None
        #: The task group of the stream, while it is open.
        self.tasks: Any = None
        # The scope of a send of this task's, and what the client had taken at the last look.
        self._sending: CancelScope | None = None
        self._taken: object = None
        self._abort_timer: Cancel = nothing

    def ask_about(self, request: object) -> None:
        """Ask from time to time whether the client may still listen: see the option ``recheck``."""
        from .recheck import Recheck  # few ask

        options = self._options
        assert options.recheck is not None
        self._recheck = Recheck(
            options.recheck, request, options.recheck_every, self._times, self._runtime,
            refused=self.expire, failed=self.fail,
        )  # fmt: skip

    async def run(self, done: anyio.Event | None = None) -> None:
        """Do what is due, and listen to the client, until the stream is closing.

        :param done: set at the end. The task that runs this then watches while another sends.
        """
        times, incoming, clock = self._times, self._incoming, self._runtime.clock
        try:
            while (done is None or self._sending is not None) and await self._do_what_is_due():
                # Not a coroutine of its own: it would take memory for as long as this waits.
                times.wakes = times.next(clock())
                # A pending receive() may be cancelled and called again: no message is lost.
                with self._runtime.scope(deadline=times.wakes) as times.wait_scope:
                    if (rest := incoming.listen_at - clock()) > 0:
                        await anyio.sleep(rest)
                    while incoming.pauses:
                        await self._pause()
                    incoming.asks(clock())
                    try:
                        message = await self._receive()
                    except OSError:
                        raise ClientGone from None
                    if message["type"] == "http.disconnect":
                        self._heard_that_the_client_leaves()
                    else:
                        incoming.heard(message, clock())
                        await checkpoint()
                    continue
                incoming.hears_nothing(clock())
        except ClientGone:
            if incoming.reader is not None:
                incoming.reader.lost()
            self.interrupt(CloseReason.CLIENT_DISCONNECTED)
        except BaseException as exc:
            if self._runtime.is_cancellation(exc):
                # From around the application, which the host is shielded from.
                self._life.cancelled = True
                self.interrupt(CloseReason.CANCELLED)
                raise
            self.fail(exc)  # ping_message_factory, or receive() of a middleware
        finally:
            if done is not None:
                done.set()
            else:
                incoming.hears_nothing(math.inf)
                self._response.let_others_send()

    async def _do_what_is_due(self) -> bool:
        """Do all that is due now. Return whether the stream goes on."""
        times = self._times
        while not self._life.closing or self._spares():
            due = times.due(self._runtime.clock())
            if due is not Due.NOTHING:
                await self._do(due)
            if due in (Due.NOTHING, Due.PING):  # the next ping may be due before this one was sent
                if times.started and not self._is_set_up:
                    self._set_up_at_once()
                return not self._life.closing or self._spares()
        return False

    async def _do(self, due: Due) -> None:
        times = self._times
        if due is Due.MAX_LIFETIME:
            times.lifetime = times.expires = math.inf
            self.expire()
        elif due is Due.RECHECK:
            times.recheck_at = math.inf
            assert self._recheck is not None
            self.tasks.start_soon(self._recheck.run)
        elif due is Due.CLOSE:
            reason = self._life.reason or CloseReason.CLIENT_DISCONNECTED  # the end is not taken
            if times.spared_until is not None:
                self.interrupt(reason)
            else:
                self.close(reason)
        elif due is Due.SEND_TIMEOUT:
            self.interrupt(CloseReason.SEND_TIMEOUT)
        elif due is Due.PROGRESS:
            self._look()
        elif due is Due.PING:
            await self._send(self._ping_frame())
        elif due is Due.HANDED_OVER or not self._start_later():
            await self._send()

    def _spares(self) -> bool:
        """Return whether the stream is closed, and a send may still come to its end."""
        times = self._times
        return times.spared_until is not None and times.sending_since is not None

    def _look(self) -> None:
        """Look whether the client takes something of what is sent."""
        times, taken, before = self._times, self._response.server.progress(), self._taken
        first = times.sending_since is not None and times.looked < times.sending_since
        self._taken = taken
        # If it could not be seen before, it may have taken something since.
        times.look(
            self._runtime.clock(),
            progress=taken is not None and (first or before is None or taken != before),
        )

    async def _pause(self) -> None:
        """Wait until somebody reads the body of the request, but not for long."""
        reader = self._incoming.reader
        assert reader is not None
        if self._response.events:
            reader.drop()  # if nobody reads it: that was to be before the first event
            if reader.wants_more:
                return
        wanted = anyio.Event()
        reader.when_wanted(wanted.set)
        try:
            with anyio.move_on_after(1):  # there may have been an event since
                await wanted.wait()
        finally:
            reader.when_wanted(None)

    def _heard_that_the_client_leaves(self) -> None:
        if not self._response.ended:
            raise ClientGone
        # The end is on its way: that may be all that the server wants to say. If not, the end is
        # not waited for much longer.
        self._incoming.listen_at = math.inf
        self._times.spare(self._runtime.clock())

    def _start_later(self) -> bool:
        """Return whether the response must not start yet, since the body is read."""
        reader = self._incoming.reader
        if reader is None or not reader.is_read:
            return False
        times = self._times
        times.start_by = math.inf

        def read() -> None:
            times.start_by = self._runtime.clock()
            times.wake(times.start_by)

        reader.when_read(read)
        return True

    async def _send(self, frame: bytes = b"") -> None:
        """Send what was handed over, or ``frame``. While that waits, another task watches."""
        done: anyio.Event | None = None

        def waits() -> None:
            nonlocal done
            done = anyio.Event()
            self.tasks.start_soon(self.run, done)

        def passes(trap: Any) -> bool:
            self._response.prompt = False
            return self._runtime.passes(trap)

        try:
            with self._runtime.scope() as self._sending:
                await driven(self._response.flush(frame), waits, passes)
        finally:
            self._sending = None
            if done is not None:
                self._stop_listening()
        if done is not None:  # only one may call receive()
            await done.wait()

    def _ping_frame(self) -> bytes:
        self._response.pinged()
        factory = self._options.ping_message_factory
        return PING if factory is None else encode_ping(factory(), self._options.sep, self._encode)

    # -- what takes no task: to wake one costs ten times as much -----------------------------------

    def _set_up_at_once(self) -> None:
        """Have pings and events sent by callbacks from now on, if that can be done."""
        self._is_set_up = True
        response = self._response
        if response.server.sends_at_once or response.send_by(self._runtime.starter()):
            self._source.give_to(response)
            # A function of the application's may want a task around it.
            if self._options.ping_message_factory is None:
                times = self._times
                times.pings_by_timer = True
                self._pings = pings_of(self._runtime, times.timing.ping)
                self._pings.ask(self, times.last_write + times.timing.ping)

    def ping(self, now: float) -> float:
        """Send a ping if nothing was written for so long. Return when to ask again."""
        times, response = self._times, self._response
        if self._life.closing or response.ended:
            return math.inf  # and the watchdog, too, sends nothing any more
        interval = times.timing.ping
        if response.flushing or times.sending_since is not None:
            return now + interval
        if now < (due := times.last_write + interval):
            return due
        if response.observed is not None:
            response.pinged()
        if not response.try_write(PING):
            response.hand_over(PING)
        return now + interval

    # -- ways to end -----------------------------------------------------------------------------

    def drain(self, reason: CloseReason, grace: float) -> None:
        """Tell the source to end. The stream is closed after ``grace`` seconds."""
        self._times.tell(self._runtime.clock(), grace)
        if not self._life.tell(reason):
            return
        if (observed := self._response.observed) is not None:
            observed.draining()
        if self._on_drain is not None:
            try:
                self._on_drain()
            except Exception as exc:
                self.fail(exc)

    def expire(self) -> None:
        """Tell the source to end: the stream is old enough, or its client may not listen on."""
        self.drain(CloseReason.MAX_LIFETIME, self._times.timing.grace)

    def close(self, reason: CloseReason) -> None:
        """Close the stream: wake the host, unless it sends.

        A send that is under way has ``cleanup_timeout`` to come to its end.
        """
        if self._life.close(reason):
            times, response = self._times, self._response
            if times.sending_since is not None:
                times.spare(self._runtime.clock())
            if times.sending_since is None or response.flushing:
                self._interruption.bound()
                self._interruption.now()

    def interrupt(self, reason: CloseReason) -> None:
        """Close the stream here and now, and whatever is being sent."""
        times, server = self._times, self._response.server
        if self._spares():
            times.spared_in_vain, times.spared_until = True, None
        if self._life.close(reason):
            if reason is CloseReason.CLIENT_DISCONNECTED and self._on_disconnect is not None:
                self._on_disconnect()
        elif not times.spared_in_vain:
            return
        if times.sending_since is None or self._response.flushing:
            self._interruption.bound()  # else the host sends, and the source waits at its yield
        if reason is CloseReason.SEND_TIMEOUT or (times.spared_in_vain and server.shields_sends):
            server.abort()
        elif times.sending_since is not None and reason is not CloseReason.CLIENT_DISCONNECTED:
            self._abort_in(TRY_AGAIN)
        self._interruption.now()
        self._cancel_send()

    def fail(self, error: BaseException) -> None:
        """Close the stream with an exception of the user's that is not the source's."""
        self.close(CloseReason.ERROR)
        self._life.fail(error)

    def stop(self) -> None:
        """Wait no more, and send no more pings: the host is done."""
        self._abort_timer()
        if self._recheck is not None:
            self._recheck.stop()
            self._recheck = None  # it knows the request, as does what follows
        self._incoming.reader = None  # it knows the stream: no cycle for the collector
        self._cancel_send()
        if self._pings is not None:
            self._pings.forget(self)
        self._stop_listening()

    async def comes_to_its_end(self) -> None:
        """Wait until what this task sends is sent, but not for long if the stream was cancelled."""
        seconds = self._times.timing.cleanup_timeout
        if self._life.cancelled:
            if self._response.server.sends_at_once:
                return  # what is interrupted is sent again, with the end
            seconds = min(seconds, TRY_AGAIN)
        do_not_abort = self._response.abort_in(seconds, self._runtime)
        with anyio.move_on_after(seconds, shield=True):
            await self._response.flushed()
        do_not_abort()

    def _cancel_send(self) -> None:
        """Cancel a send that is not the host's."""
        if self._sending is not None:
            self._sending.cancel()
        if self._response.begun is not None:
            self._runtime.cancel(self._response.begun)

    def _stop_listening(self) -> None:
        # Not the scope of the group: an exception that leaves a task is kept in a cycle.
        if self._times.wait_scope is not None:
            self._times.wait_scope.cancel()

    def _abort_in(self, seconds: float) -> None:
        self._abort_timer()
        self._abort_timer = self._response.abort_in(seconds, self._runtime)
