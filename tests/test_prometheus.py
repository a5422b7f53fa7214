"""The metrics of Prometheus, from real streams and hubs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from sse_asgi import Shutdown, sse_app
from sse_asgi.hub import Hub
from sse_asgi.testing import connect

from .entry_points import ENTRY_POINTS
from .servers.harness import free_port

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from sse_asgi.prometheus import PrometheusObserver  # noqa: E402

pytestmark = pytest.mark.anyio

#: What is in the labels of a stream of ``sse_app``.
OURS = {"http_route": "", "http_request_method": "GET"}


class Scraped:
    """A registry, and the values in what a scrape of it gives."""

    def __init__(self, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.observer = PrometheusObserver(self.registry, **options)

    def scrape(self) -> str:
        text: str = generate_latest(self.registry).decode()
        return text

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.scrape())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


async def two() -> AsyncIterator[str]:
    yield "a"
    await anyio.lowlevel.checkpoint()
    yield "b"


async def one_and_waits() -> AsyncIterator[str]:
    yield "a"
    await anyio.sleep_forever()


@pytest.mark.parametrize("entry", ENTRY_POINTS)
async def test_streams(entry: str) -> None:
    of, shutdown = Scraped(), Shutdown()
    app = ENTRY_POINTS[entry](one_and_waits, observer=of.observer, shutdown=shutdown)
    done = ENTRY_POINTS[entry](two, observer=of.observer)
    async with connect(done) as stream:
        await stream.read()
    async with connect(app) as stream, connect(app) as other:
        await stream.receive()
        await other.receive()
        await anyio.wait_all_tasks_blocked()
        assert of.value("sse_server_active_streams") == 2
        assert of.value("sse_server_events_total") == 4  # 2 of them of streams that are open
        assert of.value("sse_server_body_bytes_total") >= 4 * len("data: a\n\n")
        await other.disconnect()
        shutdown.drain()
        await stream.read()
    assert of.value("sse_server_active_streams") == 0
    assert of.value("sse_server_opened_total") == 3
    assert of.value("sse_server_closed_total") == 3
    for reason in ("finished", "client_disconnected", "shutdown"):
        assert of.value("sse_server_closed_total", sse_close_reason=reason) == 1
        name = "sse_server_stream_duration_seconds_count"
        assert of.value(name, sse_close_reason=reason) == 1
    assert of.value("sse_server_drained_total", sse_close_reason="shutdown") == 1
    assert of.value("sse_server_first_event_duration_seconds_count") == 3
    assert of.value("sse_server_events_total") == 4  # those that have ended stay
    assert of.value("sse_server_messages_total") >= 4
    assert of.value("sse_server_blocked_seconds_total") > 0


async def test_the_labels_are_not_what_clients_choose() -> None:
    of = Scraped()
    app = sse_app(two, observer=of.observer, methods=["GET", "FORGED"])
    for number in range(20):
        method = "FORGED" if number % 2 else "GET"
        async with connect(app, f"/{number}?x={number}", method=method) as stream:
            await stream.read()
    samples = [
        sample.labels
        for family in text_string_to_metric_families(of.scrape())
        for sample in family.samples
        if sample.name == "sse_server_opened_total"
    ]
    name = f"{__name__}.two"
    assert [{**OURS, "code_function_name": name}] == [
        labels for labels in samples if labels["http_request_method"] == "GET"
    ]
    assert [labels["http_request_method"] for labels in samples] in (
        ["GET", "_OTHER"], ["_OTHER", "GET"],
    )  # fmt: skip


async def test_a_route_of_a_framework_is_a_label() -> None:
    from fastapi import FastAPI

    from sse_asgi.fastapi import EventSourceResponse

    of, app = Scraped(), FastAPI()

    @app.get("/orders/{order}")
    async def orders(order: str) -> EventSourceResponse:
        return EventSourceResponse(two(), observer=of.observer)

    for order in ("1", "2"):
        async with connect(app, f"/orders/{order}") as stream:
            await stream.read()
    assert of.value("sse_server_opened_total", http_route="/orders/{order}") == 2


async def test_hubs() -> None:
    of = Scraped()
    hub = Hub(max_events=3, observer=of.observer)
    app = sse_app(lambda: hub.subscribe("t"), observer=of.observer)
    async with connect(app) as one, connect(app) as two:
        await anyio.wait_all_tasks_blocked()
        assert of.value("sse_hub_subscribers", sse_hub_log="MemoryLog") == 2
        assert of.value("sse_hub_topics") == 1
        await hub.publish("t", {"data": 1})
        await hub.publish_many("t", [{"data": 2}])
        for stream in (one, two):
            await stream.receive()
    await hub.publish("other", {"data": 1})
    assert of.value("messaging_client_sent_messages_total") == 3
    assert of.value("messaging_client_consumed_messages_total") == 4
    assert of.value("sse_hub_subscribers") == of.value("sse_hub_topics") == 0


async def test_a_gap_and_the_lag() -> None:
    of = Scraped()
    hub = Hub(max_events=3, observer=of.observer)
    first = await hub.publish("t", {"data": 0})
    for number in range(1, 8):
        await hub.publish("t", {"data": number})
    behind = hub.subscribe("t", last_event_id=first)
    await anext(behind)  # the gap
    assert of.value("sse_hub_gaps_total") == 1
    assert of.value("sse_hub_missed_total") == 4
    await anext(behind)
    for number in range(2):
        await hub.publish("t", {"data": number})
    assert of.value("sse_hub_lag") == 2
    await anext(behind)
    assert of.value("sse_hub_lag") == 0
    await behind.aclose()


async def test_a_run_counts_what_it_publishes() -> None:
    of = Scraped()
    async with Hub(observer=of.observer) as hub:
        run = await hub.run("t", one_and_waits())
        await anyio.wait_all_tasks_blocked()
        assert of.value("sse_hub_runs") == 1
        assert of.value("messaging_client_sent_messages_total") == 1
        run.stop()
        await run.wait()
    assert of.value("sse_hub_runs") == 0


async def test_hubs_that_are_gone_are_one_figure() -> None:
    import gc

    of = Scraped()
    kept = Hub(observer=of.observer)
    await kept.publish("t", {"data": 1})
    for number in range(30):
        hub = Hub(observer=of.observer)
        await hub.publish_many("t", [{"data": number}, {"data": number}])
        del hub
    gc.collect()
    assert [stats.published for stats in of.observer.hubs] == [1, 60]
    assert of.value("messaging_client_sent_messages_total") == 61
    (here, gone) = of.observer.figures()["hubs"]
    assert (here["published"], gone["published"], gone["subscribers"]) == (1, 60, 0)
    del kept
    gc.collect()
    assert [(stats.log, stats.published) for stats in of.observer.hubs] == [("MemoryLog", 61)]


async def test_a_hub_that_is_gone_is_not_kept() -> None:
    import gc
    import weakref

    of = Scraped()
    hub = Hub(observer=of.observer)
    await hub.publish("t", {"data": 1})
    gone = weakref.ref(hub)
    del hub
    gc.collect()
    assert gone() is None
    assert of.value("messaging_client_sent_messages_total") == 1
    assert of.value("sse_hub_subscribers") == 0


def test_what_is_scraped_from_other_threads_always_adds_up() -> None:
    of = Scraped()
    app = sse_app(two, observer=of.observer)
    over = threading.Event()
    wrong: list[tuple[float, ...]] = []

    async def streams() -> None:
        async def one() -> None:
            for _ in range(30):
                async with connect(app) as stream:
                    await stream.read()

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)

    def scrape() -> None:
        events = 0.0
        while not over.is_set():
            found = of.observer.totals()
            for totals in found.values():
                closed = sum(totals.closed.values())
                if totals.opened != totals.open + closed or totals.events < events:
                    wrong.append((totals.opened, totals.open, closed, totals.events, events))
                events = totals.events

    scraping = threading.Thread(target=scrape)
    scraping.start()
    threads = [threading.Thread(target=anyio.run, args=(streams,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    scraping.join()
    assert not wrong
    assert of.value("sse_server_opened_total") == 300
    assert of.value("sse_server_events_total") == 600


def test_a_scrape_of_a_real_server() -> None:
    """As the how-to has it: the metrics beside the stream, on uvicorn."""
    import uvicorn

    of = Scraped()
    metrics = prometheus_client.make_asgi_app(registry=of.registry)
    events = sse_app(one_and_waits, observer=of.observer)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (metrics if scope["path"] == "/metrics" else events)(scope, receive, send)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))

    async def main() -> str:
        serving = asyncio.ensure_future(server.serve())
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(trust_env=False) as client:
            while not server.started:
                await asyncio.sleep(0.01)
            async with client.stream("GET", url) as stream:
                async for line in stream.aiter_lines():
                    if line == "data: a":
                        break
                text = (await client.get(f"{url}/metrics")).text
        server.should_exit = True
        await serving
        return text

    text = asyncio.run(main())
    name = f'code_function_name="{__name__}.one_and_waits"'
    labels = f'{{{name},http_request_method="GET",http_route=""}}'
    assert f"sse_server_active_streams{labels} 1.0" in text
    assert f"sse_server_events_total{labels} 1.0" in text


def test_another_namespace() -> None:
    of = Scraped(namespace="shop_sse")
    assert "# TYPE shop_sse_server_events_total counter" in of.scrape()
    assert "# TYPE sse_server" not in of.scrape()


@pytest.mark.parametrize(
    ("namespace", "error"), [("1x", ValueError), ("", ValueError), (5, TypeError)]
)
def test_a_namespace_that_is_none(namespace: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="namespace must be"):
        PrometheusObserver(None, namespace)


def test_a_registry_knows_all_names() -> None:
    observer = PrometheusObserver(None)
    described = {family.name for family in observer.describe()}
    assert described == {family.name for family in observer.collect()}
    assert "db_client_operation_duration_seconds" in described


def test_a_name_of_a_histogram_that_is_taken_is_refused() -> None:
    of = Scraped()
    for name in ("sse_server_stream_duration_seconds", "db_client_operation_duration_seconds"):
        with pytest.raises(ValueError, match="Duplicated"):
            prometheus_client.Histogram(name, "of somebody else", registry=of.registry)


def test_two_in_one_registry_are_refused() -> None:
    of = Scraped()
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusObserver(of.registry)
