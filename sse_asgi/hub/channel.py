"""A topic within this hub: the end of its log, those who have subscribed to it, and how far each
has come.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Protocol

from ..loops import soon
from .log import TIME_SLICE
from .positions import Position
from .window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .log import Log, Page, Record

__all__ = ["BATCH", "Channel", "Cursor"]

#: How many bytes are joined into one frame for a subscriber that is behind, but for a single event
#: that is larger. As much as servers buffer for a connection.
BATCH = 65536


class Notified(Protocol):
    """A subscription, as its channels see it."""

    def notify(self) -> None:
        """See whether there is something."""
        ...


class Channel:
    """A topic that has subscribers here."""

    __slots__ = (
        "_again", "_log", "_notifying", "_remaining", "_soon", "subscriptions", "topic", "window",
    )  # fmt: skip

    def __init__(self, topic: str, log: Log, loop: object) -> None:
        self.topic: str = topic
        self._log = log
        self._soon = soon(loop)
        self._remaining: Iterator[Notified] | None = None
        self._notifying = self._again = False
        #: The end of its log; ``None`` until the log was asked.
        self.window: Window | None = None
        #: In the order in which they came.
        self.subscriptions: dict[Notified, None] = {}

    def follow(self, page: Page) -> None:
        """Begin where the log ends, if this has not begun yet, or somewhere else."""
        before = self.window
        if before is None or before.epoch != page.epoch:
            self.window = Window(page.epoch, page.last)
            self._log.follow(self.topic, Position(page.epoch, page.last))
            if before is not None:  # others are still there, and nobody else tells them
                self._notify_soon()

    def deliver(self, records: Sequence[Record], now: float) -> None:
        """Have new records, and rouse the subscribers."""
        window = self.window
        if window is None:
            return  # whoever is asking the log for them will have them
        for record in records:
            if record.epoch != window.epoch or record.offset > window.last + 1:
                # Something is missing. The log knows what, and subscribers ask it.
                window = self.window = Window(record.epoch, record.offset - 1)
            if record.offset > window.last:
                window.append(record, now)
        window.trim(self._log.limits, now)
        self._notify_soon()

    def renew(self, position: Position) -> None:
        """Go on there, in a new epoch. What there is before, the log knows."""
        if self.window is not None:
            self.window = Window(position.epoch, position.offset)
            self._notify_soon()

    def _notify_soon(self) -> None:
        """Rouse all subscribers: soon, so that they have all at once that is published in a row."""
        self._again = True
        if not self._notifying:
            self._notifying = True
            self._soon(self._notify)

    def _notify(self) -> None:
        """Rouse one after another, and give others a turn where that takes long."""
        if self._remaining is None:
            self._remaining = iter(tuple(self.subscriptions))
            self._again = False
        ends = monotonic() + TIME_SLICE
        for subscription in self._remaining:
            subscription.notify()
            if monotonic() >= ends:
                self._soon(self._notify)
                return
        self._remaining = None
        if self.window is not None:
            self.window.forget_joined()
        if self._again:
            self._soon(self._notify)
        else:
            self._notifying = False


class Cursor:
    """How far a subscription has come in one topic."""

    __slots__ = ("channel", "epoch", "offset", "topic")

    def __init__(self, topic: str, channel: Channel) -> None:
        self.topic: str = topic
        self.channel: Channel = channel
        self.epoch: str = ""  # not known yet
        self.offset: int = 0

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.epoch, self.offset)

    def records(self, max_bytes: int) -> list[Record] | None:
        """What comes next; ``None`` if that is for the log to say."""
        window = self.channel.window
        if window is None or window.epoch != self.epoch:
            return None
        if self.offset >= window.last:  # as it is most of the time
            return []
        if self.offset < window.first - 1:
            return None
        return window.after(self.offset, max_bytes)

    def take(self) -> bytes | None:
        """What comes next, joined, if that is at hand; be behind it."""
        window = self.channel.window
        if window is None or window.epoch != self.epoch:
            return None
        if not window.first - 1 <= self.offset < window.last:
            return None
        frame, self.offset = window.joined_after(self.offset, BATCH)
        return frame

    def continues(self, page: Page) -> bool:
        """Whether nothing is missing between here and what the log has."""
        return self.epoch == page.epoch and page.first - 1 <= self.offset <= page.last
