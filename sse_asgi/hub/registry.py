"""Which subscriptions a hub has: to which topics, and to which patterns."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakSet

from .affinity import Affinity
from .beginning import Start
from .channel import Channel, Cursor, Notified
from .gap import gap_frame
from .names import matcher
from .presence import Member, Presence

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from weakref import ReferenceType

    from .log import Log, Record
    from .positions import Position

__all__ = ["Registry", "Subscriber"]

logger: logging.Logger = logging.getLogger("sse_asgi")


class Subscriber(Notified, Member, Protocol):
    """What the registry needs from a subscription."""

    def add(self, cursor: Cursor, start: Start) -> None:
        """Add a topic to the subscription."""
        ...


S = TypeVar("S", bound=Subscriber)


class Registry(Generic[S]):
    """The subscriptions of a hub.

    It does not keep them: one that its user has left, and not closed, is gone, and does not count.
    It keeps one while a task waits for its events, since nobody else may keep that task.

    :param log: the log of the hub. The registry passes its events to the subscribers.
    :param gap_event: the name of the event that tells a client that events are missing.
    :param on_subscribers: called with a topic and how many subscribers it has, when that changes.
    """

    def __init__(
        self, log: Log, gap_event: str, on_subscribers: Callable[[str, int], object] | None
    ) -> None:
        self.log: Log = log
        self.gap_event: str = gap_event
        self._on_subscribers = on_subscribers
        #: The topics that have subscribers.
        self.channels: dict[str, Channel] = {}
        # Those that have begun, in this order.
        self._begun: dict[ReferenceType[S], None] = {}
        #: Those of them that a task waits for.
        self.awaited: set[S] = set()
        #: The subscriptions that have not begun. One that never begins need not be closed.
        self.made: WeakSet[S] = WeakSet()
        self._by_pattern: dict[str, dict[ReferenceType[S], None]] = {}
        self._changed: list[tuple[str, int]] = []
        self._tells = False
        self.affinity: Affinity = Affinity(self._in_use)
        #: Called with how many events a subscriber has missed; ``None``: nobody wants to know.
        self.on_gap: Callable[[int | None], None] | None = None
        #: What is told of all who enter a topic and leave it; ``None``: the hub has no presence.
        self.presence: Presence | None = None
        log.attach(self._deliver, self._created, self._renewed)

    def subscriptions(self) -> list[S]:
        """Return those that have begun, in this order."""
        found = (reference() for reference in self._begun)
        return [subscription for subscription in found if subscription is not None]

    def enter(self, subscription: S, starts: Mapping[str, Start]) -> None:
        """Add a subscription that begins.

        :param starts: where it begins in the topics that are known.
        """
        self.made.discard(subscription)
        self._begun[subscription.reference] = None
        for topic, start in starts.items():
            self._enter_topic(subscription, topic, start)
        for pattern in subscription.patterns:
            self._by_pattern.setdefault(pattern, {})[subscription.reference] = None
        for topic in self.matching(subscription.patterns):
            if topic not in starts:
                self._enter_topic(subscription, topic, Start(oldest=True))
        self._tell()

    def leave(
        self,
        reference: ReferenceType[S],
        cursors: Collection[Cursor],
        patterns: Sequence[str],
    ) -> None:
        """Remove a subscription that has begun.

        :param reference: its own. It may be gone itself.
        """
        if reference not in self._begun:  # its event loop has ended, and the hub is in another
            return
        del self._begun[reference]
        for pattern in patterns:
            del self._by_pattern[pattern][reference]
            if not self._by_pattern[pattern]:
                del self._by_pattern[pattern]
        for cursor in cursors:
            channel = cursor.channel
            del channel.cursors[reference]
            if not channel.cursors:
                del self.channels[channel.topic]
                self.log.unfollow(channel.topic)
            if self.presence is not None:
                self.presence.leave(channel.topic, reference, len(channel.cursors))
            self._count(channel)
        if self.presence is not None:
            self.presence.forget(reference)
        self._tell()

    def leave_soon(
        self,
        reference: ReferenceType[S],
        cursors: Collection[Cursor],
        patterns: Sequence[str],
    ) -> None:
        """Do the same in the event loop, from wherever the interpreter frees a subscription."""
        assert self.affinity.runtime is not None
        self.affinity.runtime.from_thread(self.leave, reference, cursors, patterns)

    def _in_use(self) -> bool:
        """Return whether there is a subscription that has begun.

        If not, forget those that were left in an event loop that has ended.
        """
        if any(reference() is not None for reference in self._begun):
            return True
        for topic in self.channels:
            self.log.unfollow(topic)
        if self.presence is not None:
            self.presence.clear()
        self._begun.clear()
        self._by_pattern.clear()
        self.channels.clear()
        return False

    def subscriptions_of(self, topic: str) -> list[S]:
        """Return those of a topic that have begun."""
        channel = self.channels.get(topic)
        if channel is None:
            return []
        found = (cursor.subscription() for cursor in channel.cursors.values())
        return [subscription for subscription in found if subscription is not None]

    def subscribers(self, topic: str | None) -> int:
        """Return how many subscriptions have begun: of a topic, or of all topics together."""
        if topic is None:
            return len(self._begun)
        channel = self.channels.get(topic)
        return 0 if channel is None else len(channel.cursors)

    def may_have_ended(self, topics: Sequence[str]) -> bool:
        """Return whether it is possible that all of some topics have ended."""
        has_ended = getattr(self.log, "has_ended", None)  # a log may know nothing of that
        return has_ended is not None and False not in map(has_ended, topics)

    def gap(self, after: str, position: str, missed: int | None, topic: str | None) -> bytes:
        """Return the frame of a gap event: see :func:`gap_frame`."""
        if self.on_gap is not None:
            self.on_gap(missed)
        return gap_frame(self.gap_event, after, position, missed, topic)

    def lag(self) -> int:
        """Return how many events the slowest subscriber is behind. Any thread may call this."""
        most = 0
        for channel in list(self.channels.values()):
            window = channel.window
            if window is not None and not window.absent:  # without events, offsets are moments
                offsets = [
                    cursor.offset
                    for cursor in list(channel.cursors.values())
                    if cursor.epoch == window.epoch
                ]
                most = max(most, window.last - min(offsets, default=window.last))
        return most

    # -- patterns --------------------------------------------------------------------------------

    def knows_topics(self) -> bool:
        """Return whether the log knows all topics."""
        return self.log.topics() is not None

    async def find(self, patterns: Sequence[str]) -> Sequence[str]:
        """Have the log look up all topics, and return those that match one of some patterns."""
        await self.log.follow_topics()
        return self.matching(patterns)

    def matching(self, patterns: Sequence[str]) -> Sequence[str]:
        """Return the topics that match one of some patterns, as far as the log knows them."""
        topics = (self.log.topics() if patterns else None) or ()
        found = (filter(matcher(pattern), topics) for pattern in patterns)
        return tuple(dict.fromkeys(itertools.chain.from_iterable(found)))

    # -- topics ----------------------------------------------------------------------------------

    def _enter_topic(self, subscription: S, topic: str, start: Start) -> None:
        """Add a topic to a subscription, if it does not have it yet."""
        channel = self.channels.get(topic)
        if channel is None:
            assert self.affinity.runtime is not None
            channel = self.channels[topic] = Channel(topic, self.log, self.affinity.runtime)
        if subscription.reference not in channel.cursors:
            cursor = Cursor(topic, channel, subscription.reference)
            channel.cursors[subscription.reference] = cursor
            subscription.add(cursor, start)
            if self.presence is not None:
                self.presence.enter(topic, subscription, len(channel.cursors))
            self._count(channel)

    def _count(self, channel: Channel) -> None:
        """Note how many subscribers a topic has, for the application."""
        if self._on_subscribers is not None:
            self._changed.append((channel.topic, len(channel.cursors)))

    def _tell(self) -> None:
        """Tell the application what has changed, now that all of it has.

        What it changes itself, while it is told, comes after that.
        """
        if self._tells or self._on_subscribers is None:
            return
        self._tells = True
        try:
            while self._changed:
                try:
                    self._on_subscribers(*self._changed.pop(0))
                except Exception:
                    logger.exception("on_subscribers raised")
        finally:
            self._tells = False

    # -- for the log -----------------------------------------------------------------------------

    def _deliver(self, topic: str, records: Sequence[Record]) -> None:
        channel = self.channels.get(topic)
        if channel is not None:
            channel.deliver(records, self.affinity.clock())

    def _renewed(self, topic: str, position: Position) -> None:
        channel = self.channels.get(topic)
        if channel is not None:
            channel.renew(position)

    def _created(self, topic: str) -> None:
        for pattern, subscriptions in tuple(self._by_pattern.items()):
            if matcher(pattern)(topic):
                for reference in tuple(subscriptions):
                    if (subscription := reference()) is not None:
                        self._enter_topic(subscription, topic, Start(oldest=True))
        self._tell()
