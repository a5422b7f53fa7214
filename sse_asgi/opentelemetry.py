"""Metrics and traces for OpenTelemetry.

Names and attributes are those of the semantic conventions, where there are any.
:mod:`sse_asgi.prometheus` has the same metrics.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry import metrics, trace
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"{__name__} needs opentelemetry-api: pip install opentelemetry-api", name=_error.name
    ) from _error

from .metrics import BUCKETS, FIRST_EVENT, HUB, HUBS, KIND, ROUND_TRIP, STREAMS
from .tally import Kind, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .metrics import Figure
    from .observer import HubStats, StreamStats
    from .reasons import CloseReason, CloseReport

__all__ = ["OpenTelemetryObserver"]

#: All metrics of a collection are made of the same figures: those of so many seconds ago at most.
SAME = 0.05


class OpenTelemetryObserver(Tally):
    """Metrics of streams and hubs, and a span for each stream, for OpenTelemetry.

    ::

        observer = OpenTelemetryObserver()
        app = sse_app(clock, observer=observer)
        hub = Hub(observer=observer)

    One observer serves a whole process. Without an SDK it does nothing. What changes with each
    event is counted when the metrics are collected. Attributes of metrics are routes, names of
    factories and reasons, never what a client chooses, and never topics.

    The span of a stream is a child of the span of its request, if there is one. It has events for
    the first event, for the drain, and for the end, and no span for each event. Its status is an
    error if the source has raised.

    :param meter_provider: makes the metrics; by default the global one.
    :param tracer_provider: makes the spans; by default the global one.
    """

    def __init__(
        self,
        meter_provider: metrics.MeterProvider | None = None,
        tracer_provider: trace.TracerProvider | None = None,
    ) -> None:
        super().__init__()
        self._spans: dict[StreamStats, trace.Span] = {}
        self._tracer = trace.get_tracer("sse_asgi", tracer_provider=tracer_provider)
        meter = metrics.get_meter("sse_asgi", meter_provider=meter_provider)
        self._totals: dict[Kind, Any] = {}
        self._totals_are_of = float("-inf")
        for figure in (*STREAMS, *HUBS):
            create = (
                meter.create_observable_counter
                if figure.is_counter
                else meter.create_observable_gauge
                if figure.name == "sse.hub.lag"
                else meter.create_observable_up_down_counter
            )
            observe = self._of_streams(figure) if figure in STREAMS else self._of_hubs(figure)
            create(figure.name, [observe], figure.unit, figure.description)
        self._duration, self._first_event, self._round_trip = (
            meter.create_histogram(
                figure.name,
                figure.unit,
                figure.description,
                explicit_bucket_boundaries_advisory=figure.buckets,
            )
            for figure in (BUCKETS, FIRST_EVENT, ROUND_TRIP)
        )

    # -- metrics ---------------------------------------------------------------------------------

    def _of_streams(self, figure: Figure) -> Callable[..., Iterable[metrics.Observation]]:
        def observe(options: object) -> Iterable[metrics.Observation]:
            if monotonic() > self._totals_are_of + SAME:
                self._totals, self._totals_are_of = self.totals(), monotonic()
            return [
                metrics.Observation(value, {**_attributes(kind), **_reason(*labels)})
                for kind, totals in self._totals.items()
                for labels, value in figure.values(totals)
            ]

        return observe

    def _of_hubs(self, figure: Figure) -> Callable[..., Iterable[metrics.Observation]]:
        def observe(options: object) -> Iterable[metrics.Observation]:
            found: dict[str, float] = {}
            for hub in tuple(self.hubs):
                ((_, value),) = figure.values(hub)
                found[hub.log] = figure.together((found.get(hub.log, 0), value))
            return [metrics.Observation(found[log], _attributes_of(log)) for log in found]

        return observe

    def hub_round_trip(self, hub: HubStats, seconds: float, error: BaseException | None) -> None:
        """See :meth:`Observer.hub_round_trip`."""
        attributes = _attributes_of(hub.log)
        if error is not None:
            attributes["error.type"] = type(error).__qualname__
        self._round_trip.record(seconds, attributes)

    # -- both ------------------------------------------------------------------------------------

    def stream_opened(self, stream: StreamStats) -> None:
        """See :meth:`Observer.stream_opened`."""
        super().stream_opened(stream)
        span = self._tracer.start_span(
            f"SSE {stream.route or stream.name}",
            attributes={**_attributes(Kind.of(stream)), "url.path": stream.path},
            start_time=_nanoseconds(stream.opened),
        )
        if span.is_recording():
            self._spans[stream] = span

    def stream_first_event(self, stream: StreamStats) -> None:
        """See :meth:`Observer.stream_first_event`."""
        seconds = stream.first_event or 0
        self._first_event.record(seconds, _attributes(Kind.of(stream)))
        if (span := self._spans.get(stream)) is not None:
            span.add_event("sse.first_event", timestamp=_nanoseconds(stream.opened + seconds))

    def stream_draining(self, stream: StreamStats, reason: CloseReason) -> None:
        """See :meth:`Observer.stream_draining`."""
        super().stream_draining(stream, reason)
        if (span := self._spans.get(stream)) is not None:
            span.add_event("sse.drain", _reason(reason.value))

    def stream_closed(self, stream: StreamStats, report: CloseReport) -> None:
        """See :meth:`Observer.stream_closed`."""
        super().stream_closed(stream, report)
        reason = _reason(report.reason.value)
        self._duration.record(report.duration, {**_attributes(Kind.of(stream)), **reason})
        if (span := self._spans.pop(stream, None)) is None:
            return
        sent = {
            "sse.events": report.events, "sse.bytes": report.bytes, "sse.pings": stream.pings,
            "sse.blocked": stream.blocked,
        }  # fmt: skip
        span.add_event("sse.end", {**reason, **sent})
        span.set_attributes({**reason, **sent})
        if report.error is not None:
            kind = type(report.error).__qualname__
            span.record_exception(report.error)
            span.set_attribute("error.type", kind)
            span.set_status(trace.Status(trace.StatusCode.ERROR, kind))
        span.end()


def _attributes(kind: Kind) -> dict[str, Any]:
    """Return the attributes of a kind of stream: the route only if there is one."""
    return {name: value for name, value in zip(KIND, kind, strict=True) if value}


def _attributes_of(log: str) -> dict[str, Any]:
    """Return the attributes of a hub."""
    attributes = {HUB[0]: log, "messaging.system": "sse_asgi"}
    if log == "RedisLog":
        attributes["db.system.name"] = "redis"
    return attributes


def _reason(reason: str | None = None) -> dict[str, Any]:
    return {} if reason is None else {"sse.close.reason": reason}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
