"""Figures of all streams and hubs together, which metrics are made of."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .observer import HubStats, Observer, StreamStats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .reasons import CloseReason, CloseReport

__all__ = ["Kind", "Tally", "Totals"]

#: The methods that have a name in metrics (OpenTelemetry, semantic conventions of HTTP). Clients
#: may send others, and each would be a label.
METHODS = {
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE",
}  # fmt: skip


class Kind(NamedTuple):
    """What streams are told apart by. There are as many as the program has endpoints."""

    #: The route as the framework has it, such as ``"/orders/{id}"``; empty: it does not say.
    route: str
    #: The name of the factory or the endpoint, with its module.
    name: str
    #: The method of the request; ``"_OTHER"`` for one that is not known.
    method: str

    @classmethod
    def of(cls, stream: StreamStats) -> Kind:
        """Return the kind of a stream."""
        method = stream.method if stream.method in METHODS else "_OTHER"
        return cls(stream.route or "", stream.name, method)


@dataclass
class Totals:
    """The figures of all streams of a kind, since the program started."""

    #: How many are open, and how many of these were told to end.
    open: int = 0
    draining: int = 0
    #: How many were opened.
    opened: int = 0
    #: How many have ended, by the reason.
    closed: Counter[str] = field(default_factory=Counter)
    #: How many were told to end, by the reason.
    drained: Counter[str] = field(default_factory=Counter)
    #: How many events, messages, bytes of the body and pings were sent, and for how long clients
    #: were waited for: see :class:`~sse_asgi.StreamStats`. A sum of seconds could shrink, since it
    #: depends on the order.
    events: int = 0
    messages: int = 0
    bytes: int = 0
    pings: int = 0
    nanoseconds: int = 0

    @property
    def blocked(self) -> float:
        """For how many seconds clients were waited for."""
        return self.nanoseconds / 1e9

    def add(self, streams: Iterable[StreamStats]) -> None:
        """Add what some streams have sent. They may be many, so this does it with local names."""
        events = messages = size = pings = 0
        nanoseconds = 0
        for stream in streams:
            counts = stream.counts
            events += counts.events
            size += counts.bytes
            messages += stream.sent - 1  # the start
            pings += stream.pings
            waited = stream.waited if stream.waiting is None else stream.blocked
            nanoseconds += int(waited * 1e9)
        self.events += events
        self.messages += messages
        self.bytes += size
        self.pings += pings
        self.nanoseconds += nanoseconds


class Tally(Observer):
    """An observer that adds up. Metrics are made of it, and so is a page with live figures.

    ::

        tally = Tally()
        app = sse_app(clock, observer=tally)
        hub = Hub(observer=tally)

        tally.figures()  # {"open": 3, "events": 1234, ...}

    Any thread may ask it. To ask takes a moment for each stream that is open.
    """

    def __init__(self) -> None:
        # Garbage may end a stream while this thread holds it.
        self._lock = threading.RLock()
        self._open: dict[Kind, set[StreamStats]] = {}
        self._ended: dict[Kind, Totals] = {}
        self._hubs: list[HubStats] = []
        # Of the hubs that are gone, by the class of their logs.
        self._gone: dict[str, HubStats] = {}

    def stream_opened(self, stream: StreamStats) -> None:
        """See :meth:`Observer.stream_opened`."""
        with self._lock:
            kind = Kind.of(stream)
            self._open.setdefault(kind, set()).add(stream)
            self._of(kind).opened += 1

    def stream_draining(self, stream: StreamStats, reason: CloseReason) -> None:
        """See :meth:`Observer.stream_draining`."""
        with self._lock:
            self._of(Kind.of(stream)).drained[reason.value] += 1

    def stream_closed(self, stream: StreamStats, report: CloseReport) -> None:
        """See :meth:`Observer.stream_closed`."""
        with self._lock:
            kind = Kind.of(stream)
            self._open[kind].discard(stream)
            totals = self._of(kind)
            totals.closed[report.reason.value] += 1
            totals.add((stream,))

    def hub_created(self, hub: HubStats) -> None:
        """See :meth:`Observer.hub_created`."""
        with self._lock:
            self._add_up()
            self._hubs.append(hub)

    @property
    def hubs(self) -> list[HubStats]:
        """The figures of the hubs. Those of hubs that are gone are added up: they are one for each
        class of a log.
        """
        with self._lock:
            self._add_up()
            return [*self._hubs, *self._gone.values()]

    def _add_up(self) -> None:
        """Add up the figures of the hubs that are gone, and keep only those."""
        gone = [hub for hub in list(self._hubs) if hub.gone]
        for hub in gone:
            self._hubs.remove(hub)
            if (total := self._gone.get(hub.log)) is None:
                total = self._gone[hub.log] = HubStats(hub.log, lambda: (0, 0, 0), int)
            total.add(hub)

    def streams(self) -> list[StreamStats]:
        """Return the streams that are open."""
        with self._lock:
            return [stream for streams in list(self._open.values()) for stream in list(streams)]

    def totals(self) -> dict[Kind, Totals]:
        """Return the figures of each kind of stream, of those that are open and those that ended.

        They belong to the caller, and do not change any more.
        """
        with self._lock:
            found = {
                kind: Totals(
                    opened=ended.opened,
                    closed=Counter(ended.closed),
                    drained=Counter(ended.drained),
                    events=ended.events,
                    messages=ended.messages,
                    bytes=ended.bytes,
                    pings=ended.pings,
                    nanoseconds=ended.nanoseconds,
                )
                for kind, ended in list(self._ended.items())
            }
            for kind, streams in list(self._open.items()):
                totals, copied = found[kind], list(streams)
                totals.open = len(copied)
                totals.draining = sum([stream.draining for stream in copied])
                totals.add(copied)
        return found

    def figures(self) -> dict[str, Any]:
        """Return the figures of all streams together, and of each hub, for a page: JSON can be made
        of them.
        """
        totals = list(self.totals().values())
        names = ("open", "draining", "opened", "events", "messages", "bytes", "pings", "blocked")
        of_hubs = (
            "log", "published", "delivered", "subscribers", "topics", "runs", "lag", "gaps",
            "missed", "round_trips", "failures",
        )  # fmt: skip
        return {
            **{name: sum(getattr(each, name) for each in totals) for name in names},
            "closed": dict(sum((each.closed for each in totals), Counter())),
            "hubs": [{name: getattr(hub, name) for name in of_hubs} for hub in self.hubs],
        }

    def _of(self, kind: Kind) -> Totals:
        totals = self._ended.get(kind)
        if totals is None:
            totals = self._ended[kind] = Totals()
        return totals
