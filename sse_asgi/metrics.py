"""The metrics, as OpenTelemetry names them: one list for all that implement them.

Names are those of the semantic conventions of HTTP, messaging and databases, where these have one;
else they begin with ``sse``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

__all__ = [
    "BUCKETS", "FIRST_EVENT", "HUB", "HUBS", "KIND", "ROUND_TRIP", "STREAMS", "Figure", "label_of",
    "unit_of",
]  # fmt: skip

#: Values, with the labels that a stream has beside those of its kind.
Values: TypeAlias = Iterable[tuple[tuple[str, ...], float]]

#: The labels of a kind of stream, and of a hub.
KIND = ("http.route", "code.function.name", "http.request.method")
HUB = ("sse.hub.log",)


@dataclass(frozen=True)
class Figure:
    """A metric."""

    name: str
    #: The unit, as UCUM has it, or a thing that is counted, in braces.
    unit: str
    description: str
    labels: tuple[str, ...]
    #: Return the values of :class:`Totals` or :class:`HubStats`.
    values: Callable[[Any], Values] = lambda source: ()
    is_counter: bool = True
    #: What the values of several hubs give together.
    together: Callable[[Iterable[float]], float] = sum
    #: The upper bounds of a histogram.
    buckets: tuple[float, ...] = ()


def _one(name: str) -> Callable[[Any], Values]:
    value = attrgetter(name)
    return lambda source: [((), value(source))]


def _by_reason(name: str) -> Callable[[Any], Values]:
    value = attrgetter(name)
    return lambda source: [((reason,), count) for reason, count in value(source).items()]


STREAMS = (
    Figure(
        "sse.server.active_streams", "{stream}", "Streams that are open", KIND,
        _one("open"), is_counter=False,
    ),
    Figure(
        "sse.server.draining_streams", "{stream}", "Open streams that were told to end", KIND,
        _one("draining"), is_counter=False,
    ),
    Figure("sse.server.opened", "{stream}", "Streams that were opened", KIND, _one("opened")),
    Figure(
        "sse.server.closed", "{stream}", "Streams that have ended, and why",
        (*KIND, "sse.close.reason"), _by_reason("closed"),
    ),
    Figure(
        "sse.server.drained", "{stream}", "Streams that were told to end, and why",
        (*KIND, "sse.close.reason"), _by_reason("drained"),
    ),
    Figure("sse.server.events", "{event}", "Events that were sent", KIND, _one("events")),
    Figure("sse.server.messages", "{message}", "Messages they were sent in", KIND,
        _one("messages")),
    Figure("sse.server.body", "By", "Bytes of the bodies that were sent", KIND, _one("bytes")),
    Figure("sse.server.pings", "{ping}", "Pings that were sent", KIND, _one("pings")),
    Figure("sse.server.blocked", "s", "How long clients were waited for", KIND, _one("blocked")),
)  # fmt: skip

HUBS = (
    Figure(
        "messaging.client.sent.messages", "{message}", "Events that were published", HUB,
        _one("published"),
    ),
    Figure(
        "messaging.client.consumed.messages", "{message}",
        "Events that subscribers got, once for each", HUB, _one("delivered"),
    ),
    Figure("sse.hub.gaps", "{gap}", "Gaps that subscribers were told of", HUB, _one("gaps")),
    Figure("sse.hub.missed", "{event}", "Events that were missing there", HUB, _one("missed")),
    Figure(
        "sse.hub.subscribers", "{subscriber}", "Subscribers", HUB, _one("subscribers"),
        is_counter=False,
    ),
    Figure(
        "sse.hub.topics", "{topic}", "Topics with subscribers", HUB, _one("topics"),
        is_counter=False,
    ),
    Figure("sse.hub.runs", "{run}", "Runs", HUB, _one("runs"), is_counter=False),
    Figure(
        "sse.hub.lag", "{event}", "Events that the slowest subscriber is behind", HUB, _one("lag"),
        is_counter=False, together=max,
    ),
)  # fmt: skip

#: Streams live for a moment or for days.
BUCKETS = Figure(
    "sse.server.stream.duration", "s", "How long streams were open", (*KIND, "sse.close.reason"),
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
)  # fmt: skip

FIRST_EVENT = Figure(
    "sse.server.first_event.duration", "s", "From the request to the first event", KIND,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)  # fmt: skip

#: The bounds are those that the semantic conventions advise.
ROUND_TRIP = Figure(
    "db.client.operation.duration", "s", "Commands to the server of a log", (*HUB, "error.type"),
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
)  # fmt: skip


def label_of(name: str) -> str:
    """Return a name in the form that Prometheus gives it."""
    return name.replace(".", "_")


def unit_of(figure: Figure) -> str:
    """Return how the name of a metric ends in Prometheus."""
    return {"s": "_seconds", "By": "_bytes"}.get(figure.unit, "")
