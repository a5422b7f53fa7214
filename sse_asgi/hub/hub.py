"""The hub: publish an event once, and all subscribers get it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

from ..encoder import encode
from ..observer import check_observer
from .all_nodes import AllNodes
from .arguments import check_event_name, check_log, check_options, checked_body, checked_names
from .beginning import Beginning, Start
from .from_threads import FromThreads
from .infos import info_text
from .many import append, as_lists, checked_records, parts
from .memory import MemoryLog
from .names import check_topic
from .observed import ObservedLog
from .positions import MAX_TOPICS, Position, join
from .registry import Registry
from .runs import Runs
from .subscription import Subscription
from .work import Work

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from ..observer import Observer
    from ..types import EventLike
    from .log import Log
    from .subscription import Policy

__all__ = ["Hub"]


class Hub(AllNodes, FromThreads):
    """Publish events to topics, and subscribe to topics without missing an event.

    ::

        hub = Hub()

        async def news(request):
            return hub.subscribe("news", last_event_id=request.last_event_id)

        app = sse_app(news, lifespan=hub.lifespan)
        await hub.publish("news", {"data": "it works"})

    Each topic has a log, and the id of an event is its position in that log. A client reconnects
    with the id of the last event that it got. It gets all later events, in order, none of them
    twice. If the log no longer has all of them, a ``gap`` event tells the client so. A publisher
    never waits for a subscriber.

    A hub belongs to one event loop. A hub in memory can be used at once. A hub with another log
    must be open: use ``async with hub``, or :meth:`lifespan`. It may be entered in one task and
    left in another. If the log fails meanwhile, the hub closes, and leaving it raises the error.

    :param log: where the events are kept; by default in memory, within the limits that follow.
    :param max_events: how many events of each topic are kept (1000).
    :param max_bytes: how many bytes of them (1 MiB).
    :param max_age: for how many seconds they are kept; ``None``: without a limit.
    :param gap_event: the name of the event that tells a client that events are missing. Its data is
        JSON: ``{"after": id, "position": id, "missed": number or null}``. If the subscription has
        several topics, it also has the ``topic``.
    :param end_event: the name of the event with which the topic of a run ends: see :meth:`run`.
    :param on_subscribers: a function that is called when the number of subscribers of a topic in
        this process changes, with the topic and that number. It must return at once.
    :param presence: whether the hub keeps presence, for :meth:`presence_events`, and for what
        reaches all nodes: :meth:`presence`, :meth:`count` and :meth:`disconnect`. Then each
        ``info`` must be JSON. It must be the same in all processes.
    :param presence_grace: how many seconds an info stays present after its last subscription.
    :param observer: an :class:`~sse_asgi.Observer`, which gets the figures of the hub.
    :raises TypeError: a parameter has a wrong type, limits are given together with a log, or the
        log can't keep presence.
    :raises ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        log: Log | None = None,
        *,
        max_events: int | None = None,
        max_bytes: int | None = None,
        max_age: float | None = None,
        gap_event: str = "gap",
        end_event: str = "end",
        on_subscribers: Callable[[str, int], object] | None = None,
        presence: bool = False,
        presence_grace: float = 5.0,
        observer: Observer | None = None,
    ) -> None:
        limits = {"max_events": max_events, "max_bytes": max_bytes, "max_age": max_age}
        given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        if log is None:
            log = MemoryLog(**given)
        else:
            check_log(log, given)
        for name, event in (("gap_event", gap_event), ("end_event", end_event)):
            check_event_name(name, event)
        if on_subscribers is not None and not callable(on_subscribers):
            raise TypeError(f"on_subscribers must be callable or None, not {on_subscribers!r}")
        check_observer(observer)
        self._log_name = type(log).__name__
        observed = None if observer is None else ObservedLog(log, observer)
        self._log: Log = log if observed is None else cast("Log", observed)
        self._registry: Registry[Subscription] = Registry(self._log, gap_event, on_subscribers)
        self._affinity = self._registry.affinity
        self._keep_presence(log, presence, presence_grace)
        self._registry.presence = self._presence
        self._runs = Runs(self._log, self._affinity, end_event)
        if observed is not None:
            observed.begin(self._registry, self._runs)
        self._work: Work | None = None  # while the hub is open

    def __repr__(self) -> str:
        registry = self._registry
        return f"<Hub topics={len(registry.channels)} subscribers={registry.subscribers(None)}>"

    @property
    def gap_event(self) -> str:
        """The name of the event that tells a client that events are missing."""
        return self._registry.gap_event

    @property
    def log_name(self) -> str:
        """The class of the log, such as ``"RedisLog"``."""
        return self._log_name

    # -- publish ---------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        event: EventLike,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
        final: bool = False,
    ) -> str:
        """Append an event to a topic, and return its id. Waits for the log, never for a subscriber.

        :param topic: the topic. Its first event creates it.
        :param event: an event-like without an id: the hub gives the ids. ``bytes`` are one whole
            frame, as other encoders make it, with data and without an id.
        :param key: makes it safe to publish the event again if an attempt may have failed. If the
            log has an event of the topic with the same key, nothing is appended, and the id of that
            event is returned.
        :param collapse_key: a subscriber with the policy ``"latest"`` that is behind gets only the
            newest event of each such key.
        :param final: whether the topic ends with this event. The streams of its subscribers end
            after it, also of those who come later. A client for whom there is nothing more, such
            as one that has had it and comes back, gets 204 instead of a stream. Nothing can be
            published to the topic any more. If the event has the ``key`` of an earlier one, it is
            not published, and the topic does not end.
        :returns: the id of the event.
        :raises TypeError: the event is not an event-like.
        :raises ValueError: the event has an id, or can't be encoded; ``bytes`` are not one whole
            event; the topic is empty, longer than 255 characters, or has control characters or
            ``*``; a key is empty or longer than 255 characters.
        :raises EventTooLargeError: the event is larger than the limit ``max_bytes`` of the log.
        :raises TopicEndedError: the topic has ended.
        :raises HubClosedError: the hub is closed.
        :raises HubError: the log can't be reached.
        """
        body = checked_body(topic, event, key, collapse_key)
        self._affinity.use()
        append = partial(self._log.append, topic, body, key=key, collapse_key=collapse_key)
        # A log may know nothing of topics that end.
        return str(await (append(final=True) if final else append()))

    async def publish_many(
        self,
        topic: str,
        events: Iterable[EventLike],
        *,
        keys: Iterable[str | None] | None = None,
        collapse_keys: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Append several events to a topic, in order, and return their ids.

        All are checked before the first is stored. Up to 250 events and 256 KiB, and up to a
        quarter of what the log keeps, are stored atomically: all or none, next to each other. More
        are stored in such parts. If a call fails or is cancelled between two parts, the first ones
        are stored: call it again with the same ``keys``, and each event is stored once.

        :param topic: the topic, as in :meth:`publish`.
        :param events: event-likes, as in :meth:`publish`. Without any, nothing is done.
        :param keys: the ``key`` of each event, or ``None`` for an event that has none. By default
            no event has one.
        :param collapse_keys: the ``collapse_key`` of each event, in the same way.
        :returns: the ids of the events, in the same order.
        :raises TypeError: as :meth:`publish`, for one of the events. A note of the error says which
            one, and nothing is stored.
        :raises ValueError: as :meth:`publish`, for one of the events; there are more or fewer keys
            than events.
        :raises EventTooLargeError: an event is larger than the limit ``max_bytes`` of the log.
        :raises HubClosedError: the hub is closed.
        :raises HubError: the log can't be reached.
        """
        self._affinity.use()
        lists = as_lists(events, keys, collapse_keys)
        records = await checked_records(self._log.limits, topic, lists)
        positions: list[Position] = []
        for part in parts(records, self._log.limits):
            self._affinity.use()
            positions += await append(self._log, topic, part)
        return list(map(str, positions))

    # -- subscribe -------------------------------------------------------------------------------

    def subscribe(
        self,
        *topics: str,
        patterns: Iterable[str] = (),
        last_event_id: str | None = None,
        history: int | None = None,
        policy: Policy = "gap",
        info: Any = None,
        each: Callable[[Any], EventLike | None] | None = None,
    ) -> Subscription:
        """Subscribe to topics, and return an async iterator of frames, for a factory to return.

        :param topics: topics; they need not exist. One with ``*`` is refused: clients may send it.
        :param patterns: patterns, in which ``*`` stands for any characters: all topics that match
            one of them, also those that come later.
        :param last_event_id: the id that the client has sent: begin after it. If events after it
            are missing, the first event is a gap event. An empty id counts as ``None``.
        :param history: without an id, begin with so many of the newest events of each topic. By
            default the subscription begins with the next event.
        :param policy: what happens to a subscriber that is so slow that the log no longer has its
            next event. With ``"gap"`` it gets a gap event, and goes on with the oldest event that
            there is. With ``"disconnect"`` its stream ends, and the client reconnects with its last
            id. With ``"latest"`` a subscriber that is behind gets only the newest event of each
            ``collapse_key``, and a gap event if the log no longer has its next event.
        :param info: any value, to recognise the subscription by: see :meth:`kick` and
            :meth:`presence`.
        :param each: a function that is called with each event, a
            :class:`~sse_asgi.ServerSentEvent` without an id, before this subscriber gets it. It
            returns the event, or another event-like in its place, or ``None``: this subscriber does
            not get it. The stream ends with what it raises. Gap events do not go through it.
        :raises TypeError: a parameter has a wrong type, there is no topic and no pattern, or the
            hub keeps presence and the info can't be JSON.
        :raises ValueError: a value can't be a topic or a pattern, a parameter is out of range, or
            there are more topics than fit into an id.
        :raises HubClosedError: the hub is closed.
        """
        plain, patterns = checked_names(topics, patterns)
        check_options(last_event_id, history, policy, each)
        text = None if self._presence is None else info_text(info)
        if len(plain) > MAX_TOPICS:
            raise ValueError(f"{len(plain)} topics, where an id has room for {MAX_TOPICS}")
        self._affinity.use()
        given = last_event_id or None
        start = Start(resumed=True) if given is not None else Start(None, history or 0)
        names = dict.fromkeys((*plain, *self._registry.matching(patterns)))
        starts = {
            topic: start if start.resumed else start._replace(position=self._log.position(topic))
            for topic in names
        }
        beginning = Beginning(plain, given, starts, start if patterns else None)
        subscription = Subscription(
            self._registry, plain, patterns, beginning, policy=policy, info=info, each=each
        )
        self._registry.made.add(subscription)
        if self._presence is not None:
            self._presence.add(subscription, text)
        return subscription

    async def position(self, *topics: str) -> str:
        """Return the id that a client has after the newest event of each of some topics.

        For a page that is rendered from the current data: ask for the id before you read the data.
        The page passes it to its stream as ``last_event_id``, and misses no event in between.

        :raises TypeError: there is no topic, or one is not a ``str``.
        :raises ValueError: a value can't be a topic.
        :raises HubClosedError: the hub is closed.
        :raises HubError: the log can't be reached.
        """
        for topic in topics:
            check_topic(topic)
        if not topics:
            raise TypeError("position() needs at least one topic")
        self._affinity.use()
        positions = []
        for topic in dict.fromkeys(topics):
            position = self._log.position(topic)
            if position is None:
                page = await self._log.read(topic, None, 0)
                position = page.end
            positions.append(position)
        return join(positions)

    async def ping(self) -> None:
        """Return when the log has answered: at once if it is in this process.

        :raises HubClosedError: the hub is closed.
        :raises HubError: the log can't be reached.
        """
        self._affinity.use()
        ping: Any = getattr(self._log, "ping", None)
        if ping is not None:  # of a RemoteLog
            await ping()

    def subscribers(self, topic: str | None = None) -> int:
        """Return how many subscribers this process has: of a topic, or of all topics together.

        :param topic: the topic; ``None``: all topics.
        """
        return self._registry.subscribers(topic)

    def kick(
        self,
        predicate: Callable[[Subscription], object],
        *,
        last: EventLike | None = None,
    ) -> int:
        """Close subscriptions of this process, and so end their streams.

        :meth:`disconnect` reaches all processes. A client reconnects, unless the factory tells it
        not to, for example by ``HTTPError(204)``.

        :param predicate: called with each :class:`Subscription`, also with those that have not
            begun yet. If it returns true, the subscription is closed.
        :param last: an event to be sent before the end, to say why. What was published before comes
            before it, unless the log can't be reached, or the subscription has not begun.
        :returns: how many subscriptions were closed.
        """
        if last is not None:
            encode(last)  # so that a bad event fails before anything is closed
        ended = list(filter(predicate, (*self._registry.subscriptions(), *self._registry.made)))
        for subscription in ended:
            subscription.close(last)
        return len(ended)

    # -- open and close --------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._work is not None:
            raise RuntimeError("the hub is open already")
        self._affinity.closed = False
        self._affinity.use()
        self._work = Work(self._log, self.close)
        try:
            await self._work.ready()
        except BaseException:
            self._work = None
            raise
        self._affinity.open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        work, self._work = self._work, None
        assert work is not None
        try:
            await self._farewell()
        finally:
            self._affinity.open = False
            error = await work.end()
        if error is not None and exc is None:
            raise error

    def close(self) -> None:
        """Close all subscriptions. From now on the hub raises :class:`~sse_asgi.HubClosedError`."""
        self._affinity.closed = True
        self.kick(lambda subscription: True)
        self._runs.interrupt()
        if self._presence is not None:
            self._presence.close()

    def lifespan(self, app: object = ...) -> AbstractAsyncContextManager[None]:
        """Keep the hub open while an application runs: the ``lifespan`` of sse_app or Starlette.

        :param app: the application, which calls this.
        :raises TypeError: without an application.
        """
        if app is ...:
            raise TypeError("the application calls it: lifespan=hub.lifespan, without brackets")
        return self._while_open()

    @asynccontextmanager
    async def _while_open(self) -> AsyncGenerator[None, None]:
        async with self:
            yield
