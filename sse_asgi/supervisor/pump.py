"""From the source to the response: step, encode, send; and join the events that are there at once.

The host drives the pump, and sees when it waits: see :meth:`Pump.about_to_wait`. The pump awaits
nothing except the source, the response and :func:`anyio.lowlevel.checkpoint`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from anyio.lowlevel import checkpoint

from .response import ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..opening import Opening
    from ..source import OpenSource
    from .deadlines import Deadlines
    from .life import Life
    from .response import Response

__all__ = ["Pump"]

#: Let the event loop run after so many seconds without having waited. A source that never waits
#: would starve everybody else. This is short against what people and other requests notice.
LOOP_RUNS = 0.005

#: Which events are joined: those that a source yields without waiting in between, since a ``send``
#: costs ten times what an event does. The first ones go on their own, and so does an event that
#: takes so many seconds: a source may block, although it should not, and what it has yielded
#: before is not to wait for that.
ALONE, QUICK = 4, 0.0005

#: So many events are joined, or so many bytes, or as many as come in so many seconds.
JOINED_EVENTS, JOINED_BYTES, JOINED_FOR = 256, 32768, 0.002

#: No event.
NOTHING: Any = object()


class Pump:
    """Moves events from the source to the response."""

    __slots__ = (
        "_life", "_response", "_source", "_times", "awaits_cancelled", "cancelled", "held",
        "stepping", "unsent", "waited",
    )  # fmt: skip

    def __init__(
        self, source: OpenSource, response: Response, life: Life, times: Deadlines
    ) -> None:
        self._source = source
        self._response = response
        self._life = life
        self._times = times
        #: Frames that are to be joined with the next.
        self.held: list[bytes] = []
        #: Whether the source is on its way to the next event, and whether it has waited there.
        self.stepping: bool = False
        self.waited: bool = False
        #: Whether somebody outside has cancelled the source there.
        self.cancelled: bool = False
        #: Whether it has waited there for a task that it knows to be cancelled.
        self.awaits_cancelled: bool = False
        #: The event that the source has yielded when the stream was closing already.
        self.unsent: Any = NOTHING

    async def run(self, encode: Callable[[Any, str], bytes], sep: str, *, joins: bool) -> None:
        """Send what the source yields, until it ends or the stream is closing.

        The source is asked for the next event when the last one was accepted, or is held to be
        joined with the next.

        :param encode: makes a frame of an event.
        :param sep: how the lines of the frame end.
        :param joins: whether events are joined at all.
        """
        # Looked up once.
        held, life, times, response = self.held, self._life, self._times, self._response
        send, clock = response.send, response.clock
        if clock() >= times.drain_deadline:
            return
        if times.opening:
            await self._open()
        step = self._source.step
        server = response.server
        as_it_is = response.codec is None
        at_once = server.sends_at_once and as_it_is
        in_row = size = 0  # events that were there at once; bytes that are held
        now = came = held_since = loop_ran = 0.0  # when the last one came, and the event loop ran
        try:
            while not life.closing:
                self.stepping = True
                event = await step()
                self.stepping = False
                if self.waited:
                    self.waited = False
                    # If it was cancelled, or waited for a task that was, it goes on.
                    self.cancelled = self.awaits_cancelled = False
                    in_row, loop_ran = 0, 0.0
                    if life.closing:
                        self.unsent = event
                        return
                    if (
                        as_it_is
                        and response.prompt
                        and not response.flushing
                        and not server.is_lost()
                    ):
                        # What Response.write() does, without a coroutine more: here it is felt.
                        frame = encode(event, sep)
                        times.sending_since = times.last_write = now = clock()
                        if now + times.timing.looks < times.wakes:
                            times.wake(now + times.timing.looks)
                        try:
                            await send(
                                {"type": "http.response.body", "body": frame, "more_body": True}
                            )
                        except Exception as exc:
                            response.fail(exc)
                            raise
                        except BaseException:
                            response.interrupted()
                            held.append(frame)
                            raise
                        times.sending_since = None
                        response.events += 1
                        response.bytes += len(frame)
                        continue
                else:
                    in_row += 1
                frame = encode(event, sep)
                held.append(frame)
                if in_row:
                    now = monotonic()  # the clock of uvloop stands still within an iteration
                    if joins:
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
                if not (at_once and self._write_held_at_once()):
                    await response.write(held)
                if in_row and now - loop_ran >= LOOP_RUNS:
                    if loop_ran:
                        await checkpoint()
                        now = monotonic()
                    loop_ran = now
        except ClientGone:
            raise
        except Exception as exc:
            self.stepping = self.waited = self.cancelled = False
            if held and not self._write_held_at_once():  # it came before
                await response.write(held)
            if not isinstance(exc, StopAsyncIteration):
                raise

    @property
    def events(self) -> int:
        """The number of events that were sent or are held."""
        return self._response.events + len(self.held)

    async def _open(self) -> None:
        self.stepping = True
        await cast("Opening", self._source).open()
        self.stepping = self.waited = self.cancelled = False
        self._times.open(self._response.clock())

    def about_to_wait(self) -> None:
        """Send what is held before the source waits for something."""
        if not self._write_held_at_once():
            # Not here: what the source has around it, such as a timeout, would cancel the send.
            self._response.hand_over(b"".join(self.held), len(self.held))
            self.held.clear()

    def take_held(self) -> tuple[bytes, int]:
        """Return what is held and was never sent, and how many events it has."""
        held = b"".join(self.held), len(self.held)
        self.held.clear()
        return held

    def _write_held_at_once(self) -> bool:
        held = self.held
        frame = held[0] if len(held) == 1 else b"".join(held)
        if not self._response.try_write(frame, len(held)):
            return False
        held.clear()
        return True
