"""Regression 13: behind middlewares that put themselves between the stream and the server.

vllm#10087, sse-starlette#164, kubently#65.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from sse_asgi import CloseReason, Shutdown, SSERequest, sse_app
from sse_asgi.testing import connect

from .streams import Recorder, http_scope, never

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("through_every_entry_point"),
    # Some versions of Starlette leave a generator of their own to the collector, which trio minds.
    pytest.mark.filterwarnings("ignore:.*Request.stream.*was garbage collected:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*Request.stream:pytest.PytestUnraisableExceptionWarning"),
]


class PassThrough(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


class ReadsBody(BaseHTTPMiddleware):
    """Reads the body, which Starlette then gives the application once more."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        assert await request.body() == b"the body"
        return await call_next(request)


class ReplaysBody:
    """Gives the application the body again at each ``receive()``, and then waits."""

    def __init__(self, app: Any, times: int = 5) -> None:
        self.app = app
        self.times = times

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        given = 0

        async def replay() -> Any:
            nonlocal given
            given += 1
            return message if given <= self.times else await receive()

        await self.app(scope, replay, send)


MIDDLEWARES: list[Any] = [
    PassThrough,
    ReadsBody,
    ReplaysBody,
    lambda app: PassThrough(PassThrough(app)),
    lambda app: PassThrough(ReplaysBody(app)),
]
IDS = ["pass-through", "reads the body", "replays the body", "two", "mixed"]


@pytest.mark.parametrize("middleware", MIDDLEWARES, ids=IDS)
@pytest.mark.parametrize("stalled", [False, True], ids=["idle", "stalled"])
async def test_a_disconnect_ends_the_stream(middleware: Any, stalled: bool) -> None:
    recorder = Recorder()
    events = ["a", "b" * 100_000, "c", "d", "e", "f"] if stalled else ["a"]
    app = middleware(
        sse_app(lambda: recorder.source(*events, cleanup=0.02), on_close=recorder.on_close)
    )
    with anyio.fail_after(10):
        async with connect(app, body=b"the body") as stream:
            assert (await stream.receive()).data == "a"
            if stalled:
                stream.stall()
            await anyio.wait_all_tasks_blocked()
            assert not recorder.reports
            await stream.disconnect()
            assert recorder.closed
    assert recorder.report.reason in (CloseReason.CLIENT_DISCONNECTED, CloseReason.CANCELLED)


@pytest.mark.parametrize("middleware", MIDDLEWARES, ids=IDS)
async def test_a_drain_ends_the_stream(middleware: Any) -> None:
    recorder = Recorder()
    shutdown = Shutdown()
    app = middleware(
        sse_app(lambda: recorder.source("a"), shutdown=shutdown, on_close=recorder.on_close)
    )
    with anyio.fail_after(10):
        async with connect(app, body=b"the body") as stream:
            await stream.receive()
            shutdown.drain()
            assert [event async for event in stream] == []
            assert stream.complete
    assert recorder.report.reason is CloseReason.SHUTDOWN


@pytest.mark.parametrize("middleware", MIDDLEWARES, ids=IDS)
async def test_headers_leave_at_once(middleware: Any) -> None:
    app = middleware(sse_app(lambda: Recorder().source()))
    with anyio.fail_after(10):
        async with connect(app, body=b"the body") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")


class AddsInPlace:
    """Adds a header field to the list that it is given, as starlette-compress 2.0 does."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        number = self.requests

        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"set-cookie", b"session=%d" % number))
            await send(message)

        await self.app(scope, receive, add)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_header_field_of_one_client_reaches_no_other(method: str) -> None:
    """It may be a cookie."""

    async def source(request: Any) -> Any:
        yield "a"

    app = AddsInPlace(sse_app(source))
    for number in range(1, 4):
        fields: list[Any] = []

        async def send(message: Any, fields: list[Any] = fields) -> None:
            fields.extend(message.get("headers", ()))

        await app(http_scope(method=method), never, send)
        assert [v for n, v in fields if n == b"set-cookie"] == [b"session=%d" % number]


async def test_behind_base_http_middleware_an_error_looks_like_an_end() -> None:
    async def breaks(request: SSERequest) -> AsyncIterator[str]:
        yield "first"
        await anyio.sleep(0.01)
        raise RuntimeError("out of paper")

    def tell(exc: Exception) -> Any:
        return {"event": "failure", "data": str(exc)}

    with anyio.fail_after(10):
        with pytest.raises(RuntimeError, match="out of paper"):
            async with connect(PassThrough(sse_app(breaks))) as stream:
                assert (await stream.receive()).data == "first"
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
                assert stream.complete
        async with connect(PassThrough(sse_app(breaks, on_error=tell))) as stream:
            assert [event.event async for event in stream] == ["message", "failure"]
