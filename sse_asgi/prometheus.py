"""Metrics for Prometheus: an observer that is a collector of ``prometheus-client``.

The names are those of OpenTelemetry's semantic conventions, where there are any, in the form that
Prometheus gives them. :mod:`sse_asgi.opentelemetry` has the same metrics.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"{__name__} needs prometheus-client: pip install prometheus-client", name=_error.name
    ) from _error

from .metrics import BUCKETS, FIRST_EVENT, HUBS, ROUND_TRIP, STREAMS, label_of, unit_of
from .tally import Kind, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .metrics import Figure
    from .observer import HubStats, StreamStats
    from .reasons import CloseReport

__all__ = ["PrometheusObserver"]


class PrometheusObserver(Tally):
    """Metrics of streams and hubs, for Prometheus.

    ::

        observer = PrometheusObserver()
        app = sse_app(clock, observer=observer)
        hub = Hub(observer=observer)

    One observer serves a whole process. What changes with each event is counted when the metrics
    are scraped. Labels are routes, names of factories and reasons, never what a client chooses, and
    never topics. The multiprocess mode of ``prometheus-client`` does not know collectors: let each
    process be scraped by itself, or use :mod:`sse_asgi.opentelemetry`.

    :param registry: where the metrics are registered; by default that of ``prometheus-client``.
        ``None``: nowhere. The observer is a collector, with the method ``collect``.
    :param namespace: what the names of the metrics begin with that have no name in the semantic
        conventions: ``sse`` makes ``sse_server_events_total``. Names that begin with ``messaging_``
        or ``db_`` are the same in each namespace, so one registry takes one such observer.
    :raises TypeError: the namespace is no ``str``.
    :raises ValueError: the namespace can't begin a name; or the registry has such an observer,
        in whatever namespace.
    """

    def __init__(
        self, registry: CollectorRegistry | None = REGISTRY, namespace: str = "sse"
    ) -> None:
        super().__init__()
        if not isinstance(namespace, str):
            raise TypeError(f"namespace must be a str, not {namespace!r:.80}")
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", namespace):
            raise ValueError(f"namespace must be letters, digits and _, not {namespace!r:.80}")
        self._namespace = namespace
        kind = tuple(map(label_of, STREAMS[0].labels))
        self._duration = self._histogram(BUCKETS, (*kind, "sse_close_reason"))
        self._first_event = self._histogram(FIRST_EVENT, kind)
        self._round_trip = self._histogram(ROUND_TRIP, ("sse_hub_log", "error_type"))
        if registry is not None:
            registry.register(self)

    def stream_first_event(self, stream: StreamStats) -> None:
        """See :meth:`Observer.stream_first_event`."""
        self._first_event.labels(*Kind.of(stream)).observe(stream.first_event or 0)

    def stream_closed(self, stream: StreamStats, report: CloseReport) -> None:
        """See :meth:`Observer.stream_closed`."""
        super().stream_closed(stream, report)
        self._duration.labels(*Kind.of(stream), report.reason.value).observe(report.duration)

    def hub_round_trip(self, hub: HubStats, seconds: float, error: BaseException | None) -> None:
        """See :meth:`Observer.hub_round_trip`."""
        why = "" if error is None else type(error).__qualname__
        self._round_trip.labels(hub.log, why).observe(seconds)

    def describe(self) -> list[Metric]:
        """Return the metrics without values, so that a registry knows their names."""
        histograms = (self._duration, self._first_event, self._round_trip)
        return [
            *(self._family(figure) for figure in (*STREAMS, *HUBS)),
            *(family for histogram in histograms for family in histogram.describe()),
        ]

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now. A registry calls this when it is scraped."""
        totals = self.totals()
        for figure in STREAMS:
            family = self._family(figure)
            for kind, each in totals.items():
                for labels, value in figure.values(each):
                    family.add_metric([*kind, *labels], value)
            yield family
        for figure in HUBS:
            family = self._family(figure)
            sums: dict[str, float] = {}
            for hub in self.hubs:
                ((_, value),) = figure.values(hub)
                sums[hub.log] = figure.together((sums.get(hub.log, 0), value))
            for log, value in sums.items():
                family.add_metric([log], value)
            yield family
        for histogram in (self._duration, self._first_event, self._round_trip):
            yield from histogram.collect()

    def _name(self, figure: Figure) -> str:
        name = label_of(figure.name)
        if name.startswith("sse_"):
            name = name.replace("sse", self._namespace, 1)
        return name + unit_of(figure)

    def _family(self, figure: Figure) -> Any:
        labels = [label_of(label) for label in figure.labels]
        family = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
        return family(self._name(figure), figure.description, labels=labels)

    def _histogram(self, figure: Figure, labels: tuple[str, ...]) -> Histogram:
        return Histogram(
            self._name(figure), figure.description, labels, registry=None, buckets=figure.buckets
        )
