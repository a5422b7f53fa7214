"""Metrics and traces of OpenTelemetry; and streams beside its instrumentation of frameworks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sse_asgi import HTTPError, Shutdown, sse_app
from sse_asgi.hub import Hub
from sse_asgi.testing import connect

from .entry_points import ENTRY_POINTS

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from opentelemetry.trace import StatusCode

from sse_asgi.opentelemetry import OpenTelemetryObserver

pytestmark = pytest.mark.anyio


class Telemetry:
    """Providers of their own, and what they were given."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observer = OpenTelemetryObserver(self.meters, self.tracers)

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def values(self, name: str) -> list[Any]:
        return [point.value for point in self.points(name)]

    @property
    def span(self) -> ReadableSpan:
        (span,) = (s for s in self.exporter.get_finished_spans() if s.name.startswith("SSE "))
        return span


async def two() -> AsyncIterator[str]:
    yield "a"
    await anyio.lowlevel.checkpoint()
    yield "b"


async def one_and_waits() -> AsyncIterator[str]:
    yield "a"
    await anyio.sleep_forever()


async def fails() -> AsyncIterator[str]:
    yield "a"
    await anyio.lowlevel.checkpoint()
    raise OSError("broken")


@pytest.mark.parametrize("entry", ENTRY_POINTS)
async def test_metrics_of_streams(entry: str) -> None:
    of = Telemetry()
    app = ENTRY_POINTS[entry](one_and_waits, observer=of.observer)
    async with connect(app, "/x") as stream:
        await stream.receive()
        await anyio.wait_all_tasks_blocked()
        (active,) = of.points("sse.server.active_streams")
        assert active.value == 1
        assert active.attributes["http.request.method"] == "GET"
        assert ("http.route" in active.attributes) == (entry in ("starlette", "fastapi"))
        assert active.attributes["code.function.name"].startswith("tests.")
        await anyio.sleep(0.06)  # figures are kept for a moment
        assert of.values("sse.server.events") == [1]
        assert of.values("sse.server.body")[0] >= 9  # it may be compressed
    await anyio.sleep(0.06)
    assert of.values("sse.server.active_streams") == [0]
    (closed,) = of.points("sse.server.closed")
    assert (closed.value, closed.attributes["sse.close.reason"]) == (1, "client_disconnected")
    (duration,) = of.points("sse.server.stream.duration")
    assert duration.count == 1
    assert duration.explicit_bounds[-1] == 86400
    (first,) = of.points("sse.server.first_event.duration")
    assert first.count == 1


async def test_metrics_of_a_hub() -> None:
    of = Telemetry()
    hub = Hub(observer=of.observer)
    subscription = hub.subscribe("t", last_event_id="unknown")
    await anext(subscription)
    await hub.publish("t", {"data": 1})
    for name in ("sse.hub.subscribers", "sse.hub.gaps", "sse.hub.lag"):
        assert of.values(name) == [1], name
    (sent,) = of.points("messaging.client.sent.messages")
    assert sent.attributes == {"messaging.system": "sse_asgi", "sse.hub.log": "MemoryLog"}
    await subscription.aclose()


@pytest.mark.parametrize("entry", ENTRY_POINTS)
async def test_the_span_of_a_stream_is_a_child_of_that_of_its_request(entry: str) -> None:
    of, shutdown = Telemetry(), Shutdown()
    app = ENTRY_POINTS[entry](one_and_waits, observer=of.observer, shutdown=shutdown)

    async def instrumented(*exchange: Any) -> None:
        with of.tracers.get_tracer("server").start_as_current_span("request"):
            await app(*exchange)

    async with connect(instrumented, "/x") as stream:
        await stream.receive()
        shutdown.drain()
        await stream.read()
    span = of.span
    (request,) = (s for s in of.exporter.get_finished_spans() if s.name == "request")
    assert span.parent is not None
    assert request.context is not None
    assert span.parent.span_id == request.context.span_id
    assert len(of.exporter.get_finished_spans()) == 2  # and none for each send
    assert {event.name for event in span.events} == {"sse.first_event", "sse.drain", "sse.end"}
    (end,) = (event for event in span.events if event.name == "sse.end")
    assert end.attributes is not None
    assert end.attributes["sse.close.reason"] == "shutdown"
    assert end.attributes["sse.events"] == 1
    assert span.attributes is not None
    assert span.attributes["url.path"] == "/x"
    assert span.attributes["sse.bytes"] == end.attributes["sse.bytes"]
    assert span.status.status_code is StatusCode.UNSET


async def test_an_exception_of_the_source_is_an_error() -> None:
    of = Telemetry()
    with pytest.raises(OSError, match="broken"):
        async with connect(sse_app(fails, observer=of.observer)) as stream:
            await stream.read()
    assert of.span.status.status_code is StatusCode.ERROR
    assert of.span.attributes is not None
    assert of.span.attributes["error.type"] == "OSError"
    assert "exception" in {event.name for event in of.span.events}


async def test_a_refusal_has_no_span() -> None:
    def refuses() -> AsyncIterator[str]:
        raise HTTPError(403)

    of = Telemetry()
    async with connect(sse_app(refuses, observer=of.observer)) as stream:
        assert stream.status_code == 403
    assert not of.exporter.get_finished_spans()
    assert not of.points("sse.server.opened")


async def test_without_an_sdk_it_does_nothing() -> None:
    observer = OpenTelemetryObserver()
    async with connect(sse_app(two, observer=observer)) as stream:
        assert [event.data async for event in stream] == ["a", "b"]
    assert observer.figures()["opened"] == 1


# Streams and the latencies of requests: what docs/how-to/observability.md says to do.


def durations(of: Telemetry) -> int:
    """How many requests are in the histograms of latency."""
    names = ("http.server.duration", "http.server.request.duration")
    return sum(point.count for name in names for point in of.points(name))


async def ask_both(app: Any) -> None:
    async with connect(app, "/plain") as plain:
        await plain.read()
    async with connect(app, "/events") as stream:
        await stream.read()


async def test_streams_are_kept_out_of_the_instrumentation_of_asgi() -> None:
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    from opentelemetry.util.http import parse_excluded_urls

    events = sse_app(two)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/events":
            await events(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    for excluded, expected in (("", 2), ("/events$", 1)):
        of = Telemetry()
        instrumented = asgi.OpenTelemetryMiddleware(
            app,
            excluded_urls=parse_excluded_urls(excluded),
            meter_provider=of.meters,
            tracer_provider=of.tracers,
        )
        await ask_both(instrumented)
        assert durations(of) == expected


async def test_streams_are_kept_out_of_the_instrumentation_of_starlette() -> None:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.starlette")
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    from sse_asgi.starlette import EventSourceResponse

    async def events(request: Request) -> Response:
        return EventSourceResponse(two())

    async def plain(request: Request) -> Response:
        return PlainTextResponse("")

    for excluded, expected in (("", 2), ("/events$", 1)):
        with pytest.MonkeyPatch.context() as patch:
            of = Telemetry()
            patch.setattr(instrumentation, "_excluded_urls", parsed(excluded))
            app = Starlette(routes=[Route("/events", events), Route("/plain", plain)])
            instrumentation.StarletteInstrumentor.instrument_app(
                app, meter_provider=of.meters, tracer_provider=of.tracers
            )
            await ask_both(app)
            assert durations(of) == expected


def parsed(excluded: str) -> Any:
    from opentelemetry.util.http import parse_excluded_urls

    return parse_excluded_urls(excluded)


async def test_streams_are_kept_out_of_the_instrumentation_of_fastapi() -> None:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.fastapi")
    from fastapi import FastAPI

    from sse_asgi.fastapi import EventSourceResponse

    for excluded, expected in (("", 2), ("/events$", 1)):
        app, of = FastAPI(), Telemetry()

        @app.get("/events")
        async def events() -> EventSourceResponse:
            return EventSourceResponse(two())

        @app.get("/plain")
        async def plain() -> str:
            return ""

        instrumentation.FastAPIInstrumentor.instrument_app(
            app, excluded_urls=excluded, meter_provider=of.meters, tracer_provider=of.tracers
        )
        await ask_both(app)
        assert durations(of) == expected


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it works on no other
async def test_streams_are_kept_out_of_prometheus_fastapi_instrumentator() -> None:
    instrumentator = pytest.importorskip("prometheus_fastapi_instrumentator")
    from fastapi import FastAPI
    from prometheus_client import CollectorRegistry

    from sse_asgi.fastapi import EventSourceResponse

    for excluded, expected in (([], 2), (["/events$"], 1)):
        app, registry = FastAPI(), CollectorRegistry()

        @app.get("/events")
        async def events() -> EventSourceResponse:
            return EventSourceResponse(two())

        @app.get("/plain")
        async def plain() -> str:
            return ""

        instrumentator.Instrumentator(excluded_handlers=excluded, registry=registry).instrument(app)
        await ask_both(app)
        count = sum(
            sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "http_request_duration_seconds_count"
        )
        assert count == expected
