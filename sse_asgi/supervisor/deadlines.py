"""What is due in a stream, and when. Pure, no I/O: it is told what happens and what time it is.

Times are those of the event loop's clock, in seconds. ``inf`` is never.
"""

from __future__ import annotations

import math
from enum import Enum, auto
from typing import TYPE_CHECKING

from ..reasons import CloseReason

if TYPE_CHECKING:
    from ..options import Timing
    from ..runtime.base import Scope

__all__ = ["Deadlines", "Due"]


class Due(Enum):
    """What the watchdog has to do, the most urgent first."""

    MAX_LIFETIME = auto()  #: tell the stream to end: it is old enough
    END = auto()  #: close the stream: its grace period is over
    SEND_TIMEOUT = auto()  #: close the stream: a send takes too long
    HANDED_OVER = auto()  #: send what the host could not send
    START = auto()  #: start the response, although there is no event yet
    PING = auto()  #: send a ping: nothing was written for so long
    NOTHING = auto()


class Deadlines:
    """The deadlines of one stream, and the facts that they follow from.

    Facts are attributes that others set. Whoever makes a deadline earlier calls :meth:`wake`.
    """

    __slots__ = (
        "drain", "finishing", "handed_over", "last_write", "lifetime",
        "pings_by_timer", "sending_since", "start", "started", "starting", "timing", "wait",
        "wakes",
    )  # fmt: skip

    def __init__(self, timing: Timing, now: float) -> None:
        self.timing: Timing = timing
        #: When a message was sent last.
        self.last_write: float = now
        #: When the send began that is under way.
        self.sending_since: float | None = None
        #: Whether the watchdog has something to send that the host could not.
        self.handed_over: bool = False
        #: When the response is started at the latest.
        self.start: float = now + timing.defer_start if timing.defer_start else now
        #: Whether the start is being sent, and whether it was sent.
        self.starting: bool = False
        self.started: bool = False
        #: Whether the host is sending the end of the response.
        self.finishing: bool = False
        #: Whether pings are sent by a timer of their own.
        self.pings_by_timer: bool = False
        #: When the stream is told that it is old enough. This is spread, so that streams that were
        #: opened together do not end together.
        self.lifetime: float = math.inf
        if timing.max_lifetime < math.inf:
            from random import uniform  # slow to import, and few ask

            self.lifetime = now + timing.max_lifetime * uniform(0.9, 1)
        #: When a stream that was told to end is closed.
        self.drain: float = math.inf
        #: When the watchdog looks again, and the scope in which it waits until then.
        self.wakes: float = math.inf
        self.wait: Scope | None = None

    # -- told ------------------------------------------------------------------------------------

    def wake(self, at: float) -> None:
        """Have the watchdog look at a time, if it would not look earlier."""
        if at < self.wakes:
            self.wakes = at
            if self.wait is not None:
                self.wait.deadline = at

    def tell(self, now: float, grace: float) -> None:
        """Note that the stream is told to end within ``grace`` seconds. The earlier end counts."""
        self.drain = min(self.drain, now + grace)
        self.wake(self._drained())

    def has_started(self) -> None:
        """Note that the start of the response was sent, after which other things are due."""
        self.started, self.starting = True, False
        self.wake(self._drained())

    # -- asked -----------------------------------------------------------------------------------

    def due(self, now: float) -> Due:
        """Return what has to be done now."""
        if now >= self.lifetime:
            return Due.MAX_LIFETIME
        if now >= self._drained():
            return Due.END
        if self.sending_since is not None:
            late = now >= self.sending_since + self.timing.send_timeout
            return Due.SEND_TIMEOUT if late else Due.NOTHING
        if self.handed_over:
            return Due.HANDED_OVER
        if not self.started:
            return Due.START if now >= self.start else Due.NOTHING
        return Due.PING if now >= self._next_ping() else Due.NOTHING

    def next(self, now: float) -> float:
        """Return when something is due next, as far as is known now."""
        deadline = min(self.lifetime, self._drained())
        if self.sending_since is not None:
            # It is not known when this send ends, so neither is when the next ping is due. It is
            # not earlier than this.
            ends = self.sending_since + self.timing.send_timeout
            return min(deadline, ends, now + self.timing.ping)
        if self.handed_over:
            return min(deadline, now)
        return min(deadline, self._next_ping() if self.started else self.start)

    def of_a_send(self, since: float) -> tuple[float, CloseReason | None]:
        """Return how long a send of the watchdog's may take, and why the stream ends if it is late.

        The reason is ``None`` if the stream was told to end: then it ends for that reason.
        """
        return min(
            # A start is not interrupted because the stream is told to end.
            (self._drained() if self.started else math.inf, None),
            (self.lifetime + self.timing.grace, CloseReason.MAX_LIFETIME),
            (since + self.timing.send_timeout, CloseReason.SEND_TIMEOUT),
            key=lambda late: late[0],
        )

    def _drained(self) -> float:
        """Return when a stream that was told to end is closed, if it has not ended by then."""
        if self.starting:
            # If a start is interrupted nobody knows whether it has taken place, so nothing could
            # be sent after it.
            return math.inf
        if self.finishing:  # the stream is doing what it was told
            return self.drain + self.timing.cleanup_timeout
        return self.drain

    def _next_ping(self) -> float:
        return math.inf if self.pings_by_timer else self.last_write + self.timing.ping
