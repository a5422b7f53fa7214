"""The hub: publish once, and every subscriber has it, in order, as soon as it can take it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio

from ..encoder import encode
from .beginning import Beginning, Start
from .memory import MemoryLog
from .names import check_key, check_topic, is_pattern
from .positions import MAX_TOPICS, Position, join
from .registry import Registry
from .subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from ..types import EventLike
    from .log import Log
    from .subscription import Policy

__all__ = ["Hub"]

_POLICIES = ("gap", "disconnect", "latest")


class Hub:
    """Publish events to topics; subscribe to them, and miss none.

    ::

        hub = Hub()

        async def news(request):
            return hub.subscribe("news", last_event_id=request.last_event_id)

        app = sse_app(news, lifespan=hub.lifespan)

        await hub.publish("news", {"data": "it works"})

    Each topic is a log, and an event's id is its position there. A client that comes back with the
    id of the last event that it had gets all that came after, in order, nothing twice; where the
    log does not reach back so far, it is told so by a ``gap`` event. A publisher never waits for a
    subscriber.

    A hub belongs to one event loop. In memory it can be used as it is; on another log it has to be
    open: ``async with hub``, or :meth:`lifespan`.

    :param log: where the events are kept; by default in memory, within the limits that follow.
    :param max_events: how many events of each topic are kept (1000).
    :param max_bytes: how many bytes of them (1 MiB).
    :param max_age: for how many seconds; ``None``: without a limit.
    :param gap_event: the name of the event that tells a client that events are missing. Its data is
        JSON, ``{"after": id, "position": id, "missed": number or null}``, and ``topic`` where the
        subscription has several.
    :param on_subscribers: called with a topic and how many subscribers it has here, when that
        changes; a function that returns at once.
    :raises TypeError: a parameter of a wrong type, limits together with a log.
    :raises ValueError: a parameter out of range.
    """

    def __init__(
        self,
        log: Log | None = None,
        *,
        max_events: int | None = None,
        max_bytes: int | None = None,
        max_age: float | None = None,
        gap_event: str = "gap",
        on_subscribers: Callable[[str, int], object] | None = None,
    ) -> None:
        limits = {"max_events": max_events, "max_bytes": max_bytes, "max_age": max_age}
        given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        if log is None:
            log = MemoryLog(**given)
        elif given:
            raise TypeError(f"{', '.join(given)}: the limits are those of the log that is given")
        if not gap_event or not isinstance(gap_event, str):
            raise TypeError(f"gap_event must be a str, and not empty, not {gap_event!r}")
        if on_subscribers is not None and not callable(on_subscribers):
            raise TypeError(f"on_subscribers must be callable or None, not {on_subscribers!r}")
        encode({"event": gap_event})
        self._log = log
        self._registry: Registry[Subscription] = Registry(log, gap_event, on_subscribers)
        self._affinity = self._registry.affinity
        self._tasks: anyio.abc.TaskGroup | None = None

    def __repr__(self) -> str:
        registry = self._registry
        return f"<Hub topics={len(registry.channels)} subscribers={registry.subscribers(None)}>"

    @property
    def gap_event(self) -> str:
        """The name of the event that tells a client that events are missing."""
        return self._registry.gap_event

    # -- publish ---------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        event: EventLike,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
    ) -> str:
        """Append an event to a topic. Waits for the log, and for no subscriber.

        :param topic: the topic; it comes into being at its first use.
        :param event: an event-like without an id: the hub gives the ids.
        :param key: where the same event may be published again, because nobody knows whether the
            first attempt took place: of several with the same key one is stored, for as long as
            that is in the log.
        :param collapse_key: a subscriber with the policy ``"latest"`` that is behind gets only the
            newest event of each such key.
        :returns: the id of the event.
        :raises TypeError: for ``bytes``, and what is no event-like.
        :raises ValueError: for an event with an id, and what can't be an event; for a topic that is
            empty, longer than 255 characters, or has control characters or ``*``; for a key that is
            empty or longer than 255 characters.
        :raises EventTooLargeError: for an event that is larger than all that the log may keep.
        :raises HubClosedError: after :meth:`close`.
        """
        body = _checked(topic, event, key, collapse_key)
        self._affinity.use()
        return str(await self._log.append(topic, body, key=key, collapse_key=collapse_key))

    def publish_from_thread(
        self,
        topic: str,
        event: EventLike,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
    ) -> str:
        """:meth:`publish` from any thread but that of the event loop; blocks until it is done.

        :raises RuntimeError: in the thread of the event loop, which can't wait for itself.
        :raises HubClosedError: before the hub was used in its event loop, or when that is closed.
        """
        _checked(topic, event, key, collapse_key)  # refused here, if at all
        publish = partial(self.publish, topic, event, key=key, collapse_key=collapse_key)
        return self._affinity.run_from_thread(publish)

    # -- subscribe -------------------------------------------------------------------------------

    def subscribe(
        self,
        *topics: str,
        last_event_id: str | None = None,
        history: int | None = None,
        policy: Policy = "gap",
        info: Any = None,
    ) -> Subscription:
        """Subscribe to topics: an async iterator of frames, for a factory to return.

        :param topics: topics, or patterns, in which ``*`` stands for any characters.
        :param last_event_id: the id that the client has had last, as it says: begin after it. If
            something is missing there, the first event is a gap. An empty one is none.
        :param history: without an id, begin with so many of the newest events of each topic; by
            default with what comes from now on.
        :param policy: what becomes of a subscriber that is so slow that the log no longer has what
            comes next: ``"gap"``, it is told so, and goes on with the oldest event that there is;
            or ``"disconnect"``, its stream ends, and the client comes back with its last id. With
            ``"latest"`` a subscriber that is behind gets only the newest event of each
            ``collapse_key``, and a gap where even that does not help.
        :param info: what you like to know the subscription by, as its ``info``: see :meth:`kick`.
        :raises TypeError: a parameter of a wrong type; no topic.
        :raises ValueError: a parameter out of range; more topics than an id has room for.
        :raises HubClosedError: after :meth:`close`.
        """
        if not topics:
            raise TypeError("subscribe to at least one topic")
        plain = tuple(dict.fromkeys(topic for topic in topics if not is_pattern(topic)))
        patterns = tuple(dict.fromkeys(topic for topic in topics if is_pattern(topic)))
        for topic in plain:
            check_topic(topic)
        _check_options(last_event_id, history, policy)
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
            self._registry, plain, patterns, beginning, policy=policy, info=info
        )
        self._registry.made.add(subscription)
        return subscription

    async def position(self, *topics: str) -> str:
        """Where topics are now, as the id that a client would have that has had everything.

        For a page that is made from what there is: its stream begins with ``last_event_id`` here,
        and misses nothing that happens in between.
        """
        for topic in topics:
            check_topic(topic)
        if not topics:
            raise TypeError("the position of which topic?")
        self._affinity.use()
        positions = []
        for topic in dict.fromkeys(topics):
            position = self._log.position(topic)
            if position is None:
                page = await self._log.read(topic, None, 0)
                position = Position(page.epoch, page.last)
            positions.append(position)
        return join(positions)

    def subscribers(self, topic: str | None = None) -> int:
        """How many subscriptions there are here, of a topic or of all together."""
        return self._registry.subscribers(topic)

    def kick(
        self,
        predicate: Callable[[Subscription], object],
        *,
        last: EventLike | None = None,
    ) -> int:
        """End subscriptions, and with them their streams.

        A client comes back, unless the factory tells it not to, by ``HTTPError(204)``, say.

        :param predicate: called with each :class:`Subscription`, be it that it has not begun yet;
            those for which it is true end.
        :param last: an event that they are still sent, to say why.
        :returns: how many.
        """
        if last is not None:
            encode(last)  # refused here, if at all
        ended = list(filter(predicate, (*self._registry.subscriptions, *self._registry.made)))
        for subscription in ended:
            subscription.close(last)
        return len(ended)

    # -- open and close --------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("the hub is open already")
        self._affinity.closed = False
        self._affinity.use()
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        try:
            await tasks.start(self._log.run)
        except BaseException:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)
            raise
        self._tasks = tasks
        self._affinity.open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        tasks, self._tasks = self._tasks, None
        self._affinity.open = False
        assert tasks is not None
        tasks.cancel_scope.cancel()
        await tasks.__aexit__(exc_type, exc, traceback)

    def close(self) -> None:
        """End all subscriptions; from now on the hub refuses everything."""
        self._affinity.closed = True
        self.kick(lambda subscription: True)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncGenerator[None, None]:
        """Be open while an application runs: for the ``lifespan`` of sse_app, or of Starlette."""
        async with self:
            yield


def _check_options(last_event_id: object, history: object, policy: object) -> None:
    """Refuse what a subscription can't begin with."""
    if last_event_id is not None and not isinstance(last_event_id, str):
        raise TypeError(f"last_event_id must be a str or None, not {last_event_id!r}")
    if history is not None:
        if not isinstance(history, int) or isinstance(history, bool):
            raise TypeError(f"history must be an int or None, not {history!r}")
        if history < 0:
            raise ValueError(f"history must be at least 0, not {history}")
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, not {policy!r}")


def _checked(topic: object, event: EventLike, key: object, collapse_key: object) -> bytes:
    """The frame of an event that may be published so."""
    check_topic(topic)
    check_key("key", key)
    check_key("collapse_key", collapse_key)
    return _body(event)


def _body(event: EventLike) -> bytes:
    """The frame of an event that has no id."""
    if isinstance(event, (bytes, bytearray, memoryview)):
        raise TypeError("the hub gives the ids: publish an event, not a frame that is encoded")
    own = event.get("id") if isinstance(event, Mapping) else getattr(event, "id", None)
    if own is not None:
        raise ValueError(f"the hub gives the ids: publish the event without its id, {own!r:.80}")
    return encode(event)
