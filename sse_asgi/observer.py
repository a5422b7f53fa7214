"""What an operator wants to know of streams and of a hub: an observer, and the figures it reads.

An observer is called a few times for each stream, never for each event. What changes with each
event is read from the figures (:class:`StreamStats`, :class:`HubStats`) when somebody wants to know
it, for example when metrics are collected.
"""

from __future__ import annotations

import inspect
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from .reasons import CloseReason, CloseReport

__all__ = ["HubStats", "Observer", "StreamStats", "check_observer", "name_with_module"]


class Counts(Protocol):
    """What knows how much was sent: the response of a stream."""

    @property
    def events(self) -> int:
        """How many events."""
        ...

    @property
    def bytes(self) -> int:
        """How many bytes of the body."""
        ...

    @property
    def prompt(self) -> bool:
        """Whether the last send that began has not waited."""
        ...


class Final(NamedTuple):
    """How much was sent when the stream ended."""

    events: int
    bytes: int
    prompt: bool = True


class StreamStats:
    """The figures of one stream, as they are now. When the stream has ended they stay.

    Any thread may read them. They do not keep the request or the source alive.
    """

    __slots__ = (
        "_clock", "_opened_at", "counts", "draining", "first_at", "method", "name", "opened",
        "path", "pings", "route", "sent", "waited", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        counts: Counts,
        *,
        name: str,
        route: str | None,
        method: str,
        path: str,
        opened_at: float,
        clock: Callable[[], float],
    ) -> None:
        #: What knows how much was sent.
        self.counts: Counts = counts
        # The clock of the event loop. Any thread may call it.
        self._clock: Callable[[], float] | None = clock
        # By that clock, as is first_at.
        self._opened_at = opened_at
        #: When the start of the last message began before there was an event.
        self.first_at: float = opened_at
        #: How many messages were sent, with the start.
        self.sent: int = 0
        #: The name of the factory, or of the endpoint that has returned the response, with its
        #: module. There are as many as the program has.
        self.name: str = name
        #: The route as the framework has it, such as ``"/orders/{id}"``. ``None``: it does not say.
        self.route: str | None = route
        #: The method of the request, in capital letters.
        self.method: str = method
        #: The path of the request. Clients choose it: it is no label for metrics.
        self.path: str = path
        #: When the request came, in seconds since 1970.
        self.opened: float = time.time()
        #: Whether the stream was told to end.
        self.draining: bool = False
        #: How many pings were sent.
        self.pings: int = 0
        #: For how many seconds the sends have waited that have returned.
        self.waited: float = 0.0
        #: That figure, and when the send began that is under way; ``None``: none is. They are one
        #: object, so that another thread sees both as they were at the same time.
        self.waiting: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"<StreamStats {self.method} {self.route or self.name} events={self.events}>"

    @property
    def events(self) -> int:
        """How many events were sent, without pings.

        What a hub joins for a subscriber that is behind counts as one.
        """
        return self.counts.events

    @property
    def bytes(self) -> int:
        """How many bytes of the body were sent, compressed if the stream is."""
        return self.counts.bytes

    @property
    def blocked(self) -> float:
        """For how many seconds ``send`` has not returned: how long the client was waited for.

        The time of a send that waits now is in it.
        """
        clock = self._clock
        if self.waiting is None or clock is None:
            return self.waited
        # Metrics take it for a restart if this ever goes back. So the time is looked at first, and
        # it counts only if one and the same send is under way before and after that.
        now, waiting = clock(), self.waiting
        if waiting is None or self.counts.prompt or self.waiting is not waiting:
            return self.waited
        before, began = waiting
        return before + max(0.0, now - began)

    @property
    def messages(self) -> int:
        """How many messages the body was sent in: ASGI ``http.response.body``."""
        return max(0, self.sent - 1)

    @property
    def first_event(self) -> float | None:
        """After how many seconds, from the request on, the first event was sent; ``None``: none was
        yet.
        """
        return max(0.0, self.first_at - self._opened_at) if self.counts.events else None

    def wait_is_over(self) -> None:
        """Add how long the send has waited. The library calls this when it has returned."""
        if self.waiting is not None and self._clock is not None:
            before, began = self.waiting
            self.waited = before + (self._clock() - began)
            self.waiting = None

    def end(self) -> None:
        """Keep the figures as they are. The library calls this when the stream has ended."""
        self.waited, self.waiting = self.blocked, None
        self.counts = Final(self.counts.events, self.counts.bytes)
        self._clock = None


#: What a hub counts: figures that only grow.
_COUNTED = (
    "published", "delivered", "gaps", "missed", "round_trips", "failures", "waited",
)  # fmt: skip


class HubStats:
    """The figures of one hub in this process, as they are now. Any thread may read them.

    :param log: the class of the log, such as ``"RedisLog"``.
    :param counts: returns how many subscribers, topics and runs there are.
    :param lag: returns the lag.
    """

    def __init__(
        self, log: str, counts: Callable[[], tuple[int, int, int]], lag: Callable[[], int]
    ) -> None:
        self.read_from(counts, lag)
        #: The class of the log, such as ``"RedisLog"``.
        self.log: str = log
        #: How many events this process has published.
        self.published: int = 0
        #: How many events subscribers have got as they came, counted once for each subscriber.
        #: Those that a client has missed, and gets when it comes back, are not among them.
        self.delivered: int = 0
        #: How many subscribers were told that events are missing, and how many events these were,
        #: as far as that is known.
        self.gaps: int = 0
        self.missed: int = 0
        #: How many commands were sent to the server of the log (Redis), how many of them have
        #: failed, and how many seconds all of them took. Those that wait for events do not count.
        self.round_trips: int = 0
        self.failures: int = 0
        self.waited: float = 0.0

    def read_from(
        self,
        counts: Callable[[], tuple[int, int, int]],
        lag: Callable[[], int],
        gone: Callable[[], bool] = bool,
    ) -> None:
        """Read from these functions what there is now."""
        self._counts, self._lag, self._gone = counts, lag, gone

    def add(self, other: HubStats) -> None:
        """Add what another hub has counted. The library calls this when that hub is gone.

        :param other: the figures of that hub.
        """
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __repr__(self) -> str:
        return f"<HubStats {self.log} published={self.published} subscribers={self.subscribers}>"

    @property
    def gone(self) -> bool:
        """Whether the hub is no more, so that its figures stay as they are."""
        return self._gone()

    @property
    def subscribers(self) -> int:
        """How many subscribers the hub has in this process."""
        return self._counts()[0]

    @property
    def topics(self) -> int:
        """How many topics have subscribers in this process."""
        return self._counts()[1]

    @property
    def runs(self) -> int:
        """How many runs this process has."""
        return self._counts()[2]

    @property
    def lag(self) -> int:
        """How many events the slowest subscriber is behind."""
        return self._lag()


class Observer:
    """Told what happens to streams and hubs. Override what you want to know; the rest does nothing.

    ::

        class Slow(Observer):
            def stream_closed(self, stream, report):
                if stream.blocked > 10:
                    print(stream.route, "waited for its client", stream.blocked, "s")

        app = sse_app(clock, observer=Slow())

    One observer may serve several applications and hubs, in several event loops and threads. It is
    called in the event loop of the stream or hub, and must return at once. The calls for a stream
    are made in the context (``contextvars``) of its request. What it raises is logged, and the
    stream goes on. A request that gets no stream (HEAD, a refusal, an exception before the start)
    is not told.

    :raises TypeError: when a subclass is defined in which one of the methods is a coroutine
        function: nobody would await it.
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        for name in _METHODS:
            if inspect.iscoroutinefunction(getattr(cls, name)):
                raise TypeError(f"{cls.__name__}.{name} must be a plain function, not async def")

    def stream_opened(self, stream: StreamStats) -> None:
        """Called when the response of a stream has started.

        :param stream: its figures, in this call and in all later ones.
        """

    def stream_first_event(self, stream: StreamStats) -> None:
        """Called when it is seen that the first event was sent: with the next message, or a ping.

        :param stream: the figures; their ``first_event`` says when that was.
        """

    def stream_draining(self, stream: StreamStats, reason: CloseReason) -> None:
        """Called when an open stream is told to end, by a shutdown or at its ``max_lifetime``.

        :param stream: the figures.
        :param reason: why it was told so.
        """

    def stream_closed(self, stream: StreamStats, report: CloseReport) -> None:
        """Called once for each stream that was opened, when it has ended, before ``on_close``.

        :param stream: the figures, which do not change any more.
        :param report: what ``on_close`` gets.
        """

    def hub_created(self, hub: HubStats) -> None:
        """Called when a hub is made with this observer.

        :param hub: its figures.
        """

    def hub_round_trip(self, hub: HubStats, seconds: float, error: BaseException | None) -> None:
        """Called when the server of a hub's log (Redis) has answered a command.

        :param hub: the figures of the hub.
        :param seconds: how long that took.
        :param error: why the command has failed; ``None``: it has not.
        """


def name_with_module(function: object) -> str:
    """Return the name of a function, also within a partial, with its module."""
    while isinstance(function, partial):
        function = function.func
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)  # a generator has none
    return f"{module}.{named.__qualname__}" if module else str(named.__qualname__)


_METHODS = [name for name in vars(Observer) if name.startswith(("stream_", "hub_"))]


def check_observer(value: object) -> None:
    """Check that the option ``observer`` is ``None`` or an observer.

    :raises TypeError: if it is neither.
    """
    if not isinstance(value, Observer | None):
        hint = f": make one, {value.__name__}()" if isinstance(value, type) else ""
        raise TypeError(f"observer must be an Observer or None, not {value!r:.80}{hint}")
