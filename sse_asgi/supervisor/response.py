"""The response to one request: what was sent, and the door through which all of it goes.

Three may send, one at a time:

- The *host* waits until nobody else sends, and for the client (:meth:`Response.write`,
  :meth:`Response.end`).
- Whoever has a frame while the host waits for something else sends it at once, if that can be done
  (:meth:`Response.try_write`). If ``send`` waits then, it goes on in a task of its own.
- What could not be sent at once is handed over to the *watchdog* (:meth:`Response.hand_over`),
  which sends it (:meth:`Response.flush`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from ..reasons import CloseReason
from ..servers.base import send_at_once
from .life import State
from .sender import ClientGone, Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compression import Codec
    from ..options import StreamOptions
    from ..servers.base import Server
    from ..types import Message
    from .deadlines import Deadlines
    from .life import Life
    from .observed import Observed

__all__ = ["PING", "ClientGone", "Response"]

#: The default ping: an empty comment, the shortest thing that keeps a connection busy.
PING = b":\n\n"


class _NothingMore:
    """What follows compressed data that has ended, or is to have no end."""

    def compress(self, data: bytes) -> bytes:
        return b""

    finish = compress


_NOTHING_MORE: Codec = _NothingMore()


class Response(Sender):
    """A response as it is sent.

    :param status_and_headers: what the start of the response has.
    :param is_stream: whether the response is an event stream.
    :param codec: compresses the body.
    """

    __slots__ = (
        "_backlog", "_backlog_events", "_first", "_first_events", "_flushed", "_life",
        "_pads_ends", "_status_and_headers", "bytes", "codec", "events", "flushing", "observed",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        life: Life,
        times: Deadlines,
        clock: Callable[[], float],
        options: StreamOptions,
        status_and_headers: tuple[int, list[tuple[bytes, bytes]]],
        *,
        is_stream: bool,
        codec: Codec | None = None,
    ) -> None:
        super().__init__(server, times, clock)
        self._life = life
        #: What compresses the body. What it has taken is never given to it again: if that could
        #: not be sent, it is sent first the next time.
        self.codec: Codec | None = codec
        # What comes first in the body, until it was sent, and how many events it has.
        self._first: bytes = options.preamble
        self._first_events = 0
        if codec is not None and self._first:
            self._first = codec.compress(self._first)
        self._status_and_headers = status_and_headers
        self._pads_ends = is_stream and server.loses_empty_ends
        #: Whether the watchdog is sending, or is about to, or a send that was begun at once waits.
        self.flushing: bool = False
        self._flushed: anyio.Event | None = None
        self._backlog = b""
        self._backlog_events = 0
        #: How many events were sent, and how many bytes of body.
        self.events: int = 0
        self.bytes: int = 0
        #: What measures the sends, for the observer; ``None``: there is none.
        self.observed: Observed | None = None

    @property
    def started(self) -> bool:
        """Whether the start was sent, or is on its way: the status can't change any more."""
        return self._times.started or self._times.starting

    # -- by the host -----------------------------------------------------------------------------

    async def write(self, held: list[bytes], events: int | None = None) -> None:
        """Send frames of events as one message, and take them from the list.

        The start of the response goes before the first. This waits while the watchdog sends. If it
        is interrupted, and nothing was written, or the stream was closed meanwhile, the frames are
        still in the list, or are compressed and kept here.

        :param events: how many events the frames have; by default one each.
        """
        if self.flushing and not await self._flushed_in_time():
            return
        if not self._times.started:
            await self._send_start()
        frame, events = b"".join(held), len(held) if events is None else events
        if self.codec is not None:
            held.clear()
        try:
            await self._send_body(frame, events)
        except Exception:
            held.clear()
            raise
        held.clear()

    async def end(
        self,
        frame: bytes = b"",
        events: int = 0,
        *,
        instead: tuple[int, list[tuple[bytes, bytes]]] | None = None,
    ) -> None:
        """Send the last frame, and with it the end of the response.

        This waits while the watchdog sends. If the stream was closed meanwhile, nothing is sent.

        :param events: how many events the frame has.
        :param instead: status and header fields of a response that takes the place of the stream.
        """
        if instead is not None:
            self._status_and_headers, self._first, self.codec = instead, b"", None
        if self.flushing and not await self._flushed_in_time():
            return
        if not self._times.started:
            await self._send_start()
        if not frame and self._pads_ends and self._life.reason is CloseReason.SHUTDOWN:
            frame = PING
        self.ended = True
        await self._send_body(frame, events, more=False)

    def cut_short(self) -> None:
        """Have compressed data no end, whatever end the response gets."""
        if self.codec is not None:
            self.codec = _NOTHING_MORE

    async def flushed(self) -> None:
        """Wait until the watchdog is not sending."""
        while self.flushing:
            self._flushed = anyio.Event()
            await self._flushed.wait()

    async def _flushed_in_time(self) -> bool:
        """Wait until the watchdog is not sending. Return whether the stream is still open then.

        Whoever waited is woken, and only then interrupted: to send would tear the response.
        """
        await self.flushed()
        return self._life.state is not State.CLOSING

    # -- at once ---------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Return whether :meth:`accept` may be called."""
        times = self._times
        return (self.prompt or self.server.sends_at_once) and not (
            self.flushing
            or self.ended
            or times.sending_since is not None
            or times.finishing
            or self._life.closing
        )

    def accept(self, frame: bytes) -> None:
        """Send an event that the source has while the host waits for the source."""
        if not self.try_write(frame, 1):
            self.hand_over(frame, 1)

    def try_write(self, frame: bytes, events: int = 0) -> bool:
        """Send a frame without waiting, whatever the host waits for.

        :param events: how many events the frame has.
        :returns: whether it was sent, or is on its way. If not, nothing has happened.
        """
        times, by_task = self._times, not self.server.sends_at_once
        if (
            (by_task and (self._start is None or not self.prompt))
            or not times.started
            or self._first
            or self.flushing
            or self.ended
            or times.sending_since is not None
            or self.server.is_lost()
        ):
            return False
        if self.codec is not None:
            frame = self.codec.compress(frame)
        message: Message = {"type": "http.response.body", "body": frame, "more_body": True}
        if by_task:
            if not self._begin(message, self._taken, len(frame), events):
                self.flushing = True
                return True
            self.bytes += len(frame)
            self.events += events
            return True
        try:
            sent = send_at_once(self.send, message)
        except Exception:
            sent = False  # the next one who sends will get it again
        if not sent:
            if self.codec is None:
                return False
            self._first, self._first_events = frame, events
            self.hand_over(b"")
            return True
        self.prompt = True
        times.last_write = self.clock()
        self.bytes += len(frame)
        self.events += events
        return True

    def _taken(self, size: int, events: int, well: bool) -> None:
        """Note that a frame was sent, or has failed to be, that could not be sent at once."""
        if well:
            self.bytes += size
            self.events += events
        self.let_others_send()
        if self.flushing:
            self._times.wake(float("-inf"))

    # -- by the watchdog -------------------------------------------------------------------------

    def hand_over(self, frame: bytes, events: int = 0) -> None:
        """Have the watchdog send a frame. The host must not be sending."""
        self._backlog += frame
        self._backlog_events += events
        self._times.handed_over = True
        if not self.flushing:  # else the watchdog looks when it has sent
            self.flushing = True
            self._times.wake(float("-inf"))

    async def flush(self, frame: bytes = b"") -> None:
        """Send what was handed over, or else ``frame``. The start goes before the first."""
        times = self._times
        events, self._backlog_events = self._backlog_events, 0
        handed_over, self._backlog = self._backlog, b""
        times.handed_over = False
        self.flushing = True
        compressed = False
        try:
            self._raise()
            if not times.started:
                await self._send_start()
            compressed = self.codec is not None
            await self._send_body(handed_over or frame, events)
        except BaseException:
            # Such a send that is interrupted has written nothing.
            if self.server.sends_at_once and not compressed:
                self._backlog = handed_over + self._backlog
                self._backlog_events += events
            raise
        finally:
            self.let_others_send()

    def let_others_send(self) -> None:
        """Let others send, unless something was handed over meanwhile."""
        waits = bool(self._backlog) or self._error is not None
        self.flushing = self.begun is not None or (waits and not self._life.closing)
        if self._flushed is not None and not self.flushing:
            self._flushed.set()
            self._flushed = None

    @property
    def keeps_events(self) -> bool:
        """Whether there are events that are compressed already, and were not sent."""
        return self._first_events > 0

    def take_backlog(self) -> tuple[bytes, int]:
        """Return what was handed over and was never sent, and how many events it has."""
        backlog = self._backlog, self._backlog_events
        self._backlog, self._backlog_events = b"", 0
        return backlog

    # -- by all of them --------------------------------------------------------------------------

    def pinged(self) -> None:
        """Count a ping, if somebody wants to know."""
        if self.observed is not None:
            self.observed.stats.pings += 1

    async def _send_start(self) -> None:
        status, headers = self._status_and_headers
        times = self._times
        times.starting = True
        headers = [*headers]  # a middleware may change the list, and all streams share this one
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        times.started, times.starting = True, False
        if not self.flushing:
            times.wake(float("-inf"))  # other things are due now

    async def _send_body(self, frame: bytes, events: int, *, more: bool = True) -> None:
        # What is empty is sent, too: some servers and middlewares hold the headers back until there
        # is a body.
        codec = self.codec
        if codec is None:
            frame = self._first + frame
        else:
            if more:
                frame = self._first + codec.compress(frame)
            else:
                frame = self._first + codec.finish(frame)
                self.codec = _NOTHING_MORE  # this may be interrupted, and end a second time
            self._first, self._first_events = frame, self._first_events + events
            events = self._first_events
        await self._send({"type": "http.response.body", "body": frame, "more_body": more})
        self._first, self._first_events = b"", 0
        self.bytes += len(frame)
        self.events += events
