"""A topic of a hub with its subscribers, and how far each of them has read."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from .log import TIME_SLICE
from .positions import Position
from .window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from weakref import ReferenceType

    from ..runtime.base import Runtime
    from .log import Log, Page, Record

__all__ = ["BATCH", "Channel", "Cursor", "positions_of"]

#: How many bytes of events are joined into one frame for a subscriber that is behind: as many as
#: servers buffer for a connection. A single event may be larger.
BATCH = 65536


class Notified(Protocol):
    """What a channel needs from a subscription."""

    def notify(self, cursor: Cursor) -> None:
        """Look for new events of a topic."""
        ...


class Channel:
    """A topic that has subscribers in this process.

    :param runtime: the event loop of the hub.
    """

    __slots__ = (
        "_again", "_log", "_notifying", "_remaining", "_runtime", "cursors", "topic", "window",
    )  # fmt: skip

    def __init__(self, topic: str, log: Log, runtime: Runtime) -> None:
        self.topic: str = topic
        self._log = log
        self._runtime = runtime
        self._remaining: Iterator[Cursor] | None = None
        self._notifying = self._again = False
        #: The newest events; ``None`` until the channel follows the log.
        self.window: Window | None = None
        #: How far each subscriber has read, in the order in which they came.
        self.cursors: dict[ReferenceType[Any], Cursor] = {}

    def follow(self, page: Page) -> None:
        """Follow the log from where it ends, unless the channel follows this epoch already.

        :param page: how far the log reaches.
        """
        before = self.window
        if before is None or before.epoch != page.epoch:
            check = page.checks.get(page.last)
            self.window = Window(page.epoch, page.last, check, page.absent)
            self.window.ended = page.ended
            if before is not None and page.begins_after(Position(before.epoch, before.last)):
                self._begin(before)
            self._log.follow(self.topic, page.end)
            if before is not None:  # other subscribers are still in the old epoch
                self._notify_soon()
        elif page.absent:
            before.absent, before.last = True, max(before.last, page.last)
        elif page.last == before.last:
            before.ended = page.ended

    def deliver(self, records: Sequence[Record], now: float) -> None:
        """Append new records to the window, and notify the subscribers.

        :param now: the time, for the limit ``max_age``.
        """
        window = self.window
        if window is None:
            return  # a subscriber is reading the log now, and gets them from there
        for record in records:
            if record.epoch != window.epoch or record.offset > window.last + 1:
                # Records are missing. The subscribers read them from the log.
                before = window
                window = self.window = Window(record.epoch, record.offset - 1, None)
                if before.absent and record.offset == 1:
                    self._begin(before)  # none is missing
            if record.offset > window.last:
                window.append(record, now)
        window.trim(self._log.limits, now)
        self._notify_soon()

    def renew(self, position: Position) -> None:
        """Follow a new epoch from a position. Subscribers read what is before it from the log.

        Of a topic that does not exist, the position may be a later moment of its absence.
        """
        window = self.window
        if window is not None and window.absent and window.epoch == position.epoch:
            window.last = max(window.last, position.offset)
        elif window is not None:
            self.window = Window(position.epoch, position.offset, position.check or None)
            self._notify_soon()

    def _begin(self, absent: Window) -> None:
        """Move the subscribers before the first event of the new epoch: the topic is created.

        :param absent: the window until now. It had no events.
        """
        assert self.window is not None
        for cursor in self.cursors.values():
            if cursor.epoch == absent.epoch:
                cursor.move(Position(self.window.epoch, 0))

    def moment(self) -> Position | None:
        """Return the latest moment in which the topic did not exist; ``None``: it exists."""
        window = self.window
        if window is None or not window.absent:
            return None
        position = self._log.position(self.topic)
        if position is not None and position.epoch == window.epoch:
            return position
        return Position(window.epoch, window.last)

    def _notify_soon(self) -> None:
        """Notify all subscribers: on asyncio in the next pass of the event loop, on trio at once.

        On asyncio, they get all that is published until then, joined.
        """
        self._again = True
        if not self._notifying:
            self._notifying = True
            self._runtime.soon(self._notify)

    def _notify(self) -> None:
        """Notify the subscribers one after another, and let other tasks run if that takes long."""
        if self._remaining is None:
            self._remaining = iter(tuple(self.cursors.values()))
            self._again = False
        ends = monotonic() + TIME_SLICE
        for cursor in self._remaining:
            if (subscription := cursor.subscription()) is not None:
                subscription.notify(cursor)
            if monotonic() >= ends:
                self._runtime.soon(self._notify)
                return
        self._remaining = None
        if self.window is not None:
            self.window.forget_joined()
        if self._again:
            self._runtime.soon(self._notify)
        else:
            self._notifying = False


class Cursor:
    """How far a subscription has read one topic.

    :param subscription: a weak reference: nobody here keeps a subscription that its user has left.
    """

    __slots__ = (
        "channel", "check", "epoch", "has_ended", "is_due", "offset", "subscription", "topic",
    )  # fmt: skip

    def __init__(self, topic: str, channel: Channel, subscription: ReferenceType[Any]) -> None:
        self.topic: str = topic
        self.channel: Channel = channel
        self.subscription: ReferenceType[Any] = subscription
        #: Whether the subscription has it among those that may have something new.
        self.is_due: bool = False
        self.epoch: str = ""  # not known yet
        self.offset: int = 0
        self.check: str = ""
        #: Whether the last event that was read was the final one of the topic.
        self.has_ended: bool = False

    @property
    def position(self) -> Position:
        """The position of the last event that was read.

        While the topic does not exist, it is not the moment in which the subscription began: the
        log may only say for some time what happened since.
        """
        moment = self.channel.moment()
        if moment is not None and moment.epoch == self.epoch:
            return moment
        return Position(self.epoch, self.offset, self.check)

    def move(self, position: Position) -> None:
        """Move to a position."""
        self.epoch, self.offset, self.check = position

    @property
    def is_absent(self) -> bool:
        """Whether the topic does not exist, as far as the subscription has read."""
        window = self.channel.window
        return window is not None and window.absent and window.epoch == self.epoch

    def begin(self, page: Page) -> bool:
        """Move before the first event, if the topic has not existed until then.

        :returns: whether that is so: nothing is missing, and nothing was read.
        """
        begins = page.begins_after(Position(self.epoch, self.offset))
        if begins:
            self.move(page.beginning)
        return begins

    def records(self, max_bytes: int) -> list[Record] | None:
        """Return the next records, up to ``max_bytes`` of bodies, and at least one if there is one.

        :returns: ``None``: the window does not have them, so the log has to be read.
        """
        window = self.channel.window
        if window is None or window.epoch != self.epoch:
            return None
        if self.offset >= window.last:  # most of the time
            return []
        if self.offset < window.first - 1:
            return [] if window.absent else None
        return window.after(self.offset, max_bytes)

    def take(self) -> bytes | None:
        """Join the next records into one frame, and move behind them.

        :returns: the frame; ``None``: there is nothing new, or the window does not have it.
        """
        window = self.channel.window
        if window is None or window.epoch != self.epoch:
            return None
        joined = window.joined
        if joined is None or joined[0] != self.offset:
            if not window.first - 1 <= self.offset < window.last:
                return None
            joined = window.join_after(self.offset, BATCH)
        _, frame, last = joined
        self.offset, self.check, self.has_ended = last.offset, last.check, last.final
        return frame

    def has_all(self) -> bool:
        """Return whether there is nothing new in the window."""
        window = self.channel.window
        return window is not None and window.last == self.offset and window.epoch == self.epoch

    def read(self, record: Record) -> None:
        """Move behind a record."""
        self.offset, self.check, self.has_ended = record.offset, record.check, record.final

    def continues(self, page: Page) -> bool:
        """Return whether the log has all events after the cursor, as far as the page tells.

        If the log has other events in the places of those that were read, it has lost some.
        """
        if self.epoch != page.epoch or not page.first - 1 <= self.offset <= page.last:
            return False
        return not self.check or page.checks.get(self.offset, self.check) == self.check


def positions_of(cursors: Iterable[Cursor], topics: Sequence[str]) -> Iterator[Position]:
    """Return the positions that the id of a subscription has.

    A topic that matches a pattern, and does not exist, has none: it is new when it is created.

    :param topics: the topics of the subscription, without patterns.
    """
    for cursor in cursors:
        if cursor.epoch and (not cursor.is_absent or cursor.topic in topics):
            yield cursor.position
