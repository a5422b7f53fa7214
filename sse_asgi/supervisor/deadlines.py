"""What is due in a stream, and when. Pure, no I/O: it is told what happens and what time it is.

Times are those of the event loop's clock, in seconds. ``inf`` is never.
"""

from __future__ import annotations

import math
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..options import Timing
    from ..runtime.base import CancelScope

__all__ = ["TRY_AGAIN", "Deadlines", "Due"]

#: How long, in seconds, the last message is tried when the stream was cancelled, or when its client
#: has not taken what was sent before.
TRY_AGAIN = 1.0


class Due(Enum):
    """What the watchdog has to do, the most urgent first."""

    MAX_LIFETIME = auto()  #: tell the stream to end: it is old enough, or has expired
    CLOSE = auto()  #: close the stream: its grace period is over
    RECHECK = auto()  #: ask the application whether the client may still listen
    SEND_TIMEOUT = auto()  #: close the stream: its client has taken nothing for too long
    PROGRESS = auto()  #: look whether the client has taken something since the last look
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
        "drain_deadline", "expires", "finishing", "handed_over", "last_write", "lifetime", "looked",
        "opening", "pings_by_timer", "recheck_at", "sending_since", "spared_in_vain",
        "spared_until", "start_by", "started", "starting", "timing", "wait_scope", "wakes",
    )  # fmt: skip

    def __init__(self, timing: Timing, now: float) -> None:
        self.timing: Timing = timing
        #: When a message was sent last. Pings are counted from here.
        self.last_write: float = now
        #: When the send began that is under way, or the client was last seen to take something.
        self.sending_since: float | None = None
        #: When the watchdog looked last whether the client takes something.
        self.looked: float = -math.inf
        #: Whether the factory is still awaited, so that there is no source yet.
        self.opening: bool = False
        #: Whether the watchdog has something to send that the host could not.
        self.handed_over: bool = False
        #: When the response is started at the latest.
        self.start_by: float = now + timing.defer_start
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
        #: When the right of the client to listen expires.
        self.expires: float = math.inf
        #: When to ask next whether it still has that right.
        self.recheck_at: float = math.inf
        #: When a stream that was told to end is closed.
        self.drain_deadline: float = math.inf
        #: How long a send may go on that was under way when the stream was closed; ``None`` if
        #: there was none.
        self.spared_until: float | None = None
        #: Whether that was not enough.
        self.spared_in_vain: bool = False
        #: When the watchdog looks again, and the scope in which it waits until then.
        self.wakes: float = math.inf
        self.wait_scope: CancelScope | None = None

    # -- told ------------------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Note that the factory has returned a source, after which the response may start."""
        self.opening = False
        self.start_by = now + self.timing.defer_start
        self.wake(self.start_by)

    def wake(self, at: float) -> None:
        """Have the watchdog look at a time, if it would not look earlier."""
        if at < self.wakes:
            self.wakes = at
            if self.wait_scope is not None:
                self.wait_scope.deadline = at

    def expire(self, at: float) -> None:
        """Note when the right of the client to listen expires. The last word counts."""
        self.expires = at
        self.wake(at)

    def recheck(self, at: float) -> None:
        """Note when to ask whether the client still has that right."""
        self.recheck_at = at
        self.wake(at)

    def tell(self, now: float, grace: float) -> None:
        """Note that the stream is told to end within ``grace`` seconds. The earlier end counts."""
        self.drain_deadline = min(self.drain_deadline, now + grace)
        self.wake(self.drain_deadline)

    def spare(self, now: float) -> None:
        """Note that the stream is closed, and that the send under way may come to its end.

        If that was noted before, the earlier time counts.
        """
        if self.spared_until is None:
            self.spared_until = now + self.timing.cleanup_timeout
            self.wake(self.spared_until)

    def look(self, now: float, *, progress: bool) -> None:
        """Note that the watchdog looks at the client, and whether it may have taken something."""
        self.looked = now
        if progress:
            self.sending_since = now

    # -- asked -----------------------------------------------------------------------------------

    def due(self, now: float) -> Due:
        """Return what has to be done now."""
        if now >= self.lifetime or now >= self.expires:
            return Due.MAX_LIFETIME
        if now >= self._closes_at():
            return Due.CLOSE
        if now >= self.recheck_at:
            return Due.RECHECK
        if self.sending_since is not None:
            ends = self.sending_since + self.timing.send_timeout
            if now >= ends and self.looked >= ends:  # not without a last look
                return Due.SEND_TIMEOUT
            looks = min(ends, self._looks_at(self.sending_since))
            return Due.PROGRESS if now >= looks else Due.NOTHING
        if self.opening:
            return Due.NOTHING
        if self.handed_over:
            return Due.HANDED_OVER
        if not self.started:
            return Due.START if now >= self.start_by else Due.NOTHING
        return Due.PING if now >= self._next_ping() else Due.NOTHING

    def next(self, now: float) -> float:
        """Return when something is due next, as far as is known now."""
        deadline = min(self.lifetime, self.expires, self.recheck_at, self._closes_at())
        if self.sending_since is not None:
            # It is not known when this send ends. If it ended now, the next ping would be due then.
            ends = self.sending_since + self.timing.send_timeout
            looks = self._looks_at(self.sending_since)
            return min(deadline, ends, looks, now + self.timing.ping)
        if self.opening:
            return deadline
        if self.handed_over:
            return min(deadline, now)
        return min(deadline, self._next_ping() if self.started else self.start_by)

    def _closes_at(self) -> float:
        """Return when a stream that was told to end is closed, or is not spared any longer."""
        return self.drain_deadline if self.spared_until is None else self.spared_until

    def _looks_at(self, sending_since: float) -> float:
        """Return when to look again whether the client takes something.

        Nobody looks when a send begins: most of them do not wait. So what the client took before
        the first look is not known, and its time begins anew then.
        """
        return max(sending_since, self.looked) + self.timing.looks

    def _next_ping(self) -> float:
        return math.inf if self.pings_by_timer else self.last_write + self.timing.ping
