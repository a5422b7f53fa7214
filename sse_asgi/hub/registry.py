"""Which subscriptions a hub has: to which topics, and to which patterns."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakSet

from .affinity import Affinity
from .beginning import Start
from .channel import Channel, Cursor, Notified
from .names import matcher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .log import Log, Record
    from .positions import Position

__all__ = ["Registry", "Subscriber"]


class Subscriber(Notified, Protocol):
    """What the registry needs from a subscription."""

    @property
    def patterns(self) -> Sequence[str]:
        """The patterns that it subscribes to."""
        ...

    @property
    def cursors(self) -> Collection[Cursor]:
        """How far it has read each of its topics."""
        ...

    def add(self, cursor: Cursor, start: Start) -> None:
        """Add a topic to the subscription."""
        ...


S = TypeVar("S", bound=Subscriber)


class Registry(Generic[S]):
    """The subscriptions of a hub.

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
        #: The subscriptions that have begun, in this order.
        self.subscriptions: dict[S, None] = {}
        #: The subscriptions that have not begun. One that never begins need not be closed.
        self.made: WeakSet[S] = WeakSet()
        self._by_pattern: dict[str, dict[S, None]] = {}
        self.affinity: Affinity = Affinity(self.subscriptions)
        log.attach(self._deliver, self._created, self._renewed)

    def enter(self, subscription: S, starts: Mapping[str, Start]) -> None:
        """Add a subscription that begins.

        :param starts: where it begins in the topics that are known.
        :raises HubClosedError: the hub is closed.
        :raises RuntimeError: the hub is in use in another event loop.
        """
        self.affinity.use()
        self.made.discard(subscription)
        self.subscriptions[subscription] = None
        for topic, start in starts.items():
            self._enter_topic(subscription, topic, start)
        for pattern in subscription.patterns:
            self._by_pattern.setdefault(pattern, {})[subscription] = None
        for topic in self.matching(subscription.patterns):
            if topic not in starts:
                self._enter_topic(subscription, topic, Start(oldest=True))

    def leave(self, subscription: S) -> None:
        """Remove a subscription that has begun."""
        del self.subscriptions[subscription]
        for pattern in subscription.patterns:
            del self._by_pattern[pattern][subscription]
            if not self._by_pattern[pattern]:
                del self._by_pattern[pattern]
        for cursor in subscription.cursors:
            channel = cursor.channel
            del channel.subscriptions[subscription]
            if not channel.subscriptions:
                del self.channels[channel.topic]
                self.log.unfollow(channel.topic)
            self._count(channel)

    def subscribers(self, topic: str | None) -> int:
        """Return how many subscriptions have begun: of a topic, or of all topics together."""
        if topic is None:
            return len(self.subscriptions)
        channel = self.channels.get(topic)
        return 0 if channel is None else len(channel.subscriptions)

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
        if subscription not in channel.subscriptions:
            channel.subscriptions[subscription] = None
            subscription.add(Cursor(topic, channel), start)
            self._count(channel)

    def _count(self, channel: Channel) -> None:
        """Tell the application how many subscribers a topic has."""
        if self._on_subscribers is not None:
            self._on_subscribers(channel.topic, len(channel.subscriptions))

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
                for subscription in tuple(subscriptions):
                    self._enter_topic(subscription, topic, Start(oldest=True))
