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
    from ..runtime.base import CancelScope

__all__ = ["Deadlines", "Due"]


class Due(Enum):
    """What the watchdog has to do, the most urgent first."""

    MAX_LIFETIME = auto()  #: tell the stream to end: it is old enough
    CLOSE = auto()  #: close the stream: its grace period is over
    SEND_TIMEOUT = auto()  #: close the stream: a send takes too long
    HANDED_OVER = auto()  #: send what the host could not send
    START = auto()  #: start the response, although there is no event yet
    PING = auto()  #: send a ping: nothing was written for so long
    NOTHING = auto()


class Deadlines:
    """The deadlines of one stream, and the facts that they follow from.

    The facts are attributes. The response, the pump, the host and the watchdog set them. Whoever
    makes a deadline earlier calls :meth:`wake`.
    """

    __slots__ = (
        "drain_deadline", "finishing", "handed_over", "last_write", "lifetime", "pings_by_timer",
        "sending_since", "start_by", "started", "starting", "timing", "wait_scope", "wakes",
    )  # fmt: skip

    def __init__(self, timing: Timing, now: float) -> None:
        self.timing: Timing = timing
        #: When a message was sent last. Pings are counted from here.
        self.last_write: float = now
        #: When the send began that is under way. It stays if that send is interrupted by the client
        #: or by a cancellation of the host: then nobody knows how far the send came.
        self.sending_since: float | None = None
        #: Whether the watchdog has something to send that the host could not.
        self.handed_over: bool = False
        #: When the response is started at the latest.
        self.start_by: float = now + timing.defer_start if timing.defer_start else now
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
        self.drain_deadline: float = math.inf
        #: When the watchdog looks again, and the scope in which it waits until then.
        self.wakes: float = math.inf
        self.wait_scope: CancelScope | None = None

    # -- told ------------------------------------------------------------------------------------

    def wake(self, at: float) -> None:
        """Have the watchdog look at a time, if it would not look earlier."""
        if at < self.wakes:
            self.wakes = at
            if self.wait_scope is not None:
                self.wait_scope.deadline = at

    def tell(self, now: float, grace: float) -> None:
        """Note that the stream is told to end within ``grace`` seconds. The earlier end counts."""
        self.drain_deadline = min(self.drain_deadline, now + grace)
        self.wake(self._closes_at())

    def has_started(self) -> None:
        """Note that the start of the response was sent, after which other things are due."""
        self.started, self.starting = True, False
        self.wake(self._closes_at())

    # -- asked -----------------------------------------------------------------------------------

    def due(self, now: float) -> Due:
        """Return what has to be done now."""
        if now >= self.lifetime:
            return Due.MAX_LIFETIME
        if now >= self._closes_at():
            return Due.CLOSE
        if self.sending_since is not None:
            late = now >= self.sending_since + self.timing.send_timeout
            return Due.SEND_TIMEOUT if late else Due.NOTHING
        if self.handed_over:
            return Due.HANDED_OVER
        if not self.started:
            return Due.START if now >= self.start_by else Due.NOTHING
        return Due.PING if now >= self._next_ping() else Due.NOTHING

    def next(self, now: float) -> float:
        """Return when something is due next, as far as is known now."""
        deadline = min(self.lifetime, self._closes_at())
        if self.sending_since is not None:
            # It is not known when this send ends. If it ended now, the next ping would be due then.
            ends = self.sending_since + self.timing.send_timeout
            return min(deadline, ends, now + self.timing.ping)
        if self.handed_over:
            return min(deadline, now)
        return min(deadline, self._next_ping() if self.started else self.start_by)

    def of_a_send(self, since: float) -> tuple[float, CloseReason | None]:
        """Return how long a send of the watchdog's may take, and why the stream ends if it is late.

        The reason is ``None`` if the stream was told to end: then it ends for that reason.
        """
        return min(
            # A start is not interrupted because the stream is told to end.
            (self._closes_at() if self.started else math.inf, None),
            (self.lifetime + self.timing.grace, CloseReason.MAX_LIFETIME),
            (since + self.timing.send_timeout, CloseReason.SEND_TIMEOUT),
            key=lambda late: late[0],
        )

    def _closes_at(self) -> float:
        """Return when a stream that was told to end is closed, if it has not ended by then."""
        if self.starting:
            # If a start is interrupted nobody knows whether it has taken place, so nothing could
            # be sent after it.
            return math.inf
        if self.finishing:  # the stream is doing what it was told
            return self.drain_deadline + self.timing.cleanup_timeout
        return self.drain_deadline

    def _next_ping(self) -> float:
        return math.inf if self.pings_by_timer else self.last_write + self.timing.ping
