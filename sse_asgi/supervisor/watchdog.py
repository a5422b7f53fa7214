"""The other task of a stream: it waits for the client and for the clock.

Everything that happens at a time of its own happens here: the start of the response, a ping, a
timeout, a disconnect. So does every way to end that the source does not choose.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio

from ..encoder import encode_ping
from ..reasons import CloseReason
from ..runtime.base import nothing
from .deadlines import Due
from .response import PING, ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..options import StreamOptions
    from ..runtime.base import Cancel, Runtime
    from ..source import OpenSource
    from ..types import Message, Receive
    from .deadlines import Deadlines
    from .interruption import Interruption
    from .life import Life
    from .response import Response

__all__ = ["Watchdog"]


class Watchdog:
    """Waits for the client and the clock, sends pings, and interrupts the host.

    :param encode: makes a frame of what ``ping_message_factory`` returns, with a separator.
    :param on_drain: called when the stream is told to end.
    """

    __slots__ = (
        "_abort_timer", "_encode", "_interruption", "_life", "_listen_again", "_on_drain",
        "_options", "_patience", "_ping_timer", "_receive", "_response", "_runtime", "_source",
        "_times",
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
        self._on_drain = on_drain
        # When to listen to the client again, and how much later the next time.
        self._listen_again = self._patience = 0.0
        # None until pings by a timer were set up, if they are.
        self._ping_timer: Cancel | None = None
        self._abort_timer: Cancel = nothing

    async def run(self) -> None:
        """Watch over the stream until it is closing."""
        times = self._times
        try:
            while await self._do_what_is_due():
                times.wakes = times.next(self._runtime.clock())
                # A pending receive() may be cancelled and called again: no message is lost.
                with self._runtime.scope(deadline=times.wakes) as times.wait_scope:
                    if (rest := self._listen_again - self._runtime.clock()) > 0:
                        await anyio.sleep(rest)
                    try:
                        message = await self._receive()
                    except OSError:
                        raise ClientGone from None
                    self._heard(message)
        except ClientGone:
            self.interrupt(CloseReason.CLIENT_DISCONNECTED)
        except Exception as exc:  # ping_message_factory, or receive() of a middleware
            self.fail(exc)
        except BaseException:
            # Cancelled from around the application, which the host is shielded from.
            self.interrupt(CloseReason.CANCELLED)
            raise
        finally:
            self._response.let_others_send()

    async def _do_what_is_due(self) -> bool:
        """Do all that is due now. Return whether the stream goes on."""
        times = self._times
        while not self._life.closing:
            due = times.due(self._runtime.clock())
            if due is not Due.NOTHING:
                await self._do(due)
            if due in (Due.NOTHING, Due.PING):  # the next ping may be due before this one was sent
                if times.started and self._ping_timer is None:
                    self._set_up_at_once()
                return not self._life.closing
        return False

    async def _do(self, due: Due) -> None:
        times = self._times
        if due is Due.MAX_LIFETIME:
            times.lifetime = math.inf
            self.drain(CloseReason.MAX_LIFETIME, times.timing.grace)
        elif due is Due.CLOSE:
            # Without a reason: see _heard().
            self.interrupt(self._life.reason or CloseReason.CLIENT_DISCONNECTED)
        elif due is Due.SEND_TIMEOUT:
            self.interrupt(CloseReason.SEND_TIMEOUT)
        elif due is Due.PING:
            await self._send(self._ping_frame())
        else:  # HANDED_OVER or START
            await self._send()

    def _heard(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            if not self._response.ended:
                raise ClientGone
            # The end is on its way: that may be all that the server wants to say. If not, the end
            # is not waited for much longer.
            self._listen_again = math.inf
            self._times.drain_deadline = min(self._times.drain_deadline, self._runtime.clock())
        elif message["type"] == "http.request" and not message.get("more_body"):
            # A middleware may answer every receive() with the body again, at once.
            self._listen_again = self._runtime.clock() + self._patience
            self._patience = min(2 * self._patience or 0.01, 1)

    async def _send(self, frame: bytes = b"") -> None:
        """Send what was handed over, or ``frame``. Close the stream if that takes too long."""
        times, response, since = self._times, self._response, self._runtime.clock()
        times.wakes, _ = times.of_a_send(since)
        do_not_abort = response.abort_in(times.timing.send_timeout, self._runtime)
        try:
            with self._runtime.scope(deadline=times.wakes) as wait:
                times.wait_scope = wait
                await response.flush(frame)
        finally:
            do_not_abort()
        if wait.cancelled_caught or response.server.aborted:
            # Only now: the stream may have been told to end meanwhile.
            _, late = times.of_a_send(since)
            if late is CloseReason.MAX_LIFETIME:
                self.drain(late, 0)
                late = None
            self.interrupt(late or self._life.reason or CloseReason.SEND_TIMEOUT)

    def _ping_frame(self) -> bytes:
        factory = self._options.ping_message_factory
        return PING if factory is None else encode_ping(factory(), self._options.sep, self._encode)

    # -- what takes no task: to wake one costs ten times as much -----------------------------------

    def _set_up_at_once(self) -> None:
        """Have pings and events sent by callbacks from now on, if the server allows that."""
        self._ping_timer = nothing
        if self._response.server.sends_at_once:
            self._source.give_to(self._response)
            # A function of the application's may want a task around it.
            if self._options.ping_message_factory is None:
                self._times.pings_by_timer = True
                self._ping_later(self._times.timing.ping)

    def _ping_later(self, seconds: float) -> None:
        self._ping_timer = self._runtime.after(seconds, self._ping)

    def _ping(self) -> None:
        times, response = self._times, self._response
        if self._life.closing or response.ended:
            return  # and the watchdog, too, sends nothing any more
        ping = times.timing.ping
        rest = times.last_write + ping - self._runtime.clock()
        if response.flushing or times.sending_since is not None:
            rest = ping
        elif rest <= 0:
            if not response.try_write(PING):
                response.hand_over(PING)
            rest = ping
        self._ping_later(rest)

    # -- ways to end -----------------------------------------------------------------------------

    def drain(self, reason: CloseReason, grace: float) -> None:
        """Tell the source to end. The stream is closed after ``grace`` seconds."""
        times, response = self._times, self._response
        times.tell(self._runtime.clock(), grace)
        if response.flushing:  # this task may be in a send that can't be cancelled
            grace = times.drain_deadline - self._runtime.clock()
            self._abort_in(grace + times.timing.cleanup_timeout)
        if self._life.tell(reason) and self._on_drain is not None:
            try:
                self._on_drain()
            except Exception as exc:
                self.fail(exc)

    def interrupt(self, reason: CloseReason) -> None:
        """Close the stream here and now: wake the host from whatever it waits for."""
        if not self._life.close(reason):
            return
        times, response = self._times, self._response
        if times.sending_since is None or response.flushing:
            self._interruption.bound()  # else the host sends, and the source waits at its yield
        if reason is CloseReason.SEND_TIMEOUT:
            response.server.abort()
        elif (
            times.sending_since is not None
            and self._life.reason is not CloseReason.CLIENT_DISCONNECTED
        ):
            self._abort_in(times.timing.cleanup_timeout)
        self._interruption.now()

    def fail(self, error: Exception) -> None:
        """Close the stream with an exception of the user's that is not the source's."""
        self.interrupt(CloseReason.ERROR)
        self._life.fail(error)

    def stop(self) -> None:
        """Wait no more, and send no more pings: the host is done."""
        self._abort_timer()
        if self._ping_timer is not None:
            self._ping_timer()
        # Not the scope of the group: an exception that leaves a task is kept in a cycle.
        if self._times.wait_scope is not None:
            self._times.wait_scope.cancel()

    def _abort_in(self, seconds: float) -> None:
        self._abort_timer()
        self._abort_timer = self._response.abort_in(seconds, self._runtime)
