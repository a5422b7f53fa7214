"""The endpoint for probes: whether the process answers, and the logs of its hubs."""

from __future__ import annotations

import json
import logging
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from sse_asgi.hub import Hub, HubError, MemoryLog, health_app
from sse_asgi.testing import transport

from .streams import http_scope, never, on_mock_clock

pytestmark = pytest.mark.anyio


class Remote(MemoryLog):
    """A log on a server that may be gone, slow or broken."""

    def __init__(self, error: Exception | None = None, seconds: float = 0) -> None:
        super().__init__()
        self.error, self.seconds, self.pings = error, seconds, 0

    async def ping(self) -> None:
        self.pings += 1
        await anyio.sleep(self.seconds)
        if self.error is not None:
            raise self.error


async def nothing(message: Any) -> None:
    """A ``send`` that nobody is to call."""


async def ask(app: Any, method: str = "GET", path: str = "/") -> httpx.Response:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://probe"
    ) as client:
        return await client.request(method, path)


async def test_liveness_asks_nobody() -> None:
    response = await ask(health_app())
    assert (response.status_code, response.json()) == (200, {"status": "pass"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"


async def test_a_hub_in_memory_is_ready_until_it_is_closed() -> None:
    hub = Hub()
    app = health_app(hub)
    response = await ask(app)
    passed = {"status": "pass", "hubs": [{"log": "MemoryLog", "status": "pass"}]}
    assert (response.status_code, response.json()) == (200, passed)
    hub.close()
    response = await ask(app)
    failed = {"status": "fail", "hubs": [{"log": "MemoryLog", "status": "fail"}]}
    assert (response.status_code, response.json()) == (503, failed)


@pytest.mark.parametrize("observed", [False, True])
async def test_a_log_that_can_not_be_reached(observed: bool) -> None:
    from sse_asgi import Observer

    log = Remote(HubError("redis://secret@host is gone"))
    hub = Hub(log, observer=Observer() if observed else None)
    response = await ask(health_app(Hub(), hub))
    assert response.status_code == 503
    assert [each["status"] for each in response.json()["hubs"]] == ["pass", "fail"]
    assert [each["log"] for each in response.json()["hubs"]] == ["MemoryLog", "Remote"]
    assert "secret" not in response.text
    log.error = None
    assert (await ask(health_app(hub))).status_code == 200
    assert log.pings == 2


@on_mock_clock
async def test_a_log_that_does_not_answer_is_waited_for_so_long() -> None:
    hubs = [Hub(Remote(seconds=1000)), Hub(Remote(seconds=1)), Hub(Remote(seconds=1000))]
    began = anyio.current_time()
    response = await ask(health_app(*hubs, timeout=3))
    assert anyio.current_time() - began == 3
    assert [each["status"] for each in response.json()["hubs"]] == ["fail", "pass", "fail"]


@on_mock_clock
async def test_a_client_that_does_not_read_is_not_waited_for() -> None:
    async def send(message: Any) -> None:
        await anyio.sleep_forever()

    began = anyio.current_time()
    await health_app(timeout=3)(http_scope(), never, send)
    assert anyio.current_time() - began == 3


async def test_head_has_no_body() -> None:
    response = await ask(health_app(Hub()), "HEAD")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
async def test_other_methods(method: str) -> None:
    response = await ask(health_app(Hub()), method)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


async def test_within_a_framework() -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/live", health_app()), Route("/ready", health_app(hub))])
    async with httpx.AsyncClient(transport=transport(app), base_url="http://probe") as client:
        for path in ("/live/", "/ready"):
            assert (await client.get(path)).json()["status"] == "pass"


async def test_a_log_may_raise_anything_and_each_change_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_asgi")
    log = Remote(OSError("no route\nto host"))
    app = health_app(Hub(), Hub(log))
    for error in (None, log.error, log.error, HubError("gone"), None, None):
        log.error = error
        assert (await ask(app)).status_code == (200 if error is None else 503)
    assert [(each.levelname, each.getMessage()) for each in ours(caplog)] == [
        ("WARNING", r"not ready: a hub with Remote: OSError: 'no route\nto host'"),
        ("INFO", "ready again: a hub with Remote"),
    ]


async def test_why_it_is_not_ready_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    closed = Hub()
    closed.close()
    app = health_app(closed, Hub(Remote(seconds=1000)), timeout=0.02)
    for _ in range(3):
        assert (await ask(app)).status_code == 503
    assert [each.getMessage() for each in ours(caplog)] == [
        "not ready: a hub with MemoryLog: HubClosedError: "
        + repr("the hub is closed: async with hub, or lifespan=hub.lifespan, opens it"),
        "not ready: a hub with Remote: its log has not answered within 0.02 s",
    ]


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "sse_asgi"]


def test_a_hub_of_another_event_loop_is_not_ready() -> None:
    hub = Hub()

    async def elsewhere() -> None:
        async with hub:
            answers = await anyio.to_thread.run_sync(lambda: anyio.run(ask, health_app(hub)))
            assert answers.status_code == 503
            assert (await ask(health_app(hub))).status_code == 200

    anyio.run(elsewhere)


async def test_it_answers_http_only() -> None:
    with pytest.raises(ValueError, match="not the scope 'websocket'"):
        await health_app()({"type": "websocket"}, never, nothing)


@pytest.mark.parametrize(
    ("hubs", "timeout", "error"),
    [
        (["hub"], 1, TypeError),
        ([], 0, ValueError),
        ([], float("inf"), ValueError),
        ([], None, TypeError),
        ([], True, TypeError),
    ],
)
def test_what_is_refused(hubs: Any, timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"hubs|timeout"):
        health_app(*hubs, timeout=timeout)


def test_the_body_is_json() -> None:
    response = anyio.run(ask, health_app())
    assert json.loads(response.text) == {"status": "pass"}
