"""Where tasks begin at once, when they are made, things happen in the same order."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from sse_asgi import CloseReason, HTTPError, Shutdown, sse_app
from sse_asgi.starlette import EventSourceResponse

from .plain import Plain, in_a_scope
from .streams import Recorder

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("through_every_entry_point", "tasks"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]


@pytest.fixture(params=["lazy", "eager"])
async def tasks(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Run every test with both kinds of tasks."""
    loop = asyncio.get_running_loop()
    if request.param == "eager":
        if sys.version_info < (3, 12):
            pytest.skip("asyncio.eager_task_factory is new in Python 3.12")
        loop.set_task_factory(asyncio.eager_task_factory)
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def test_an_http_error_before_the_source_waits_is_a_status() -> None:
    async def source() -> AsyncIterator[str]:
        raise HTTPError(403, "not you")
        yield "never"

    async with Plain(sse_app(source)) as server:
        await server.returns()
        assert server.error is None
        assert server.status == 403
        assert b"not you" in server.body
        assert server.complete


@pytest.mark.sse_app_only  # Starlette answers with 500
async def test_an_error_before_the_source_waits_sends_nothing() -> None:
    error = KeyError("early")

    async def source() -> AsyncIterator[str]:
        raise error
        yield "never"

    async with Plain(sse_app(source)) as server:
        await server.returns()
        assert server.error is error
        assert server.messages == []


@pytest.mark.parametrize("waits", [False, True])
async def test_what_is_sent_and_in_which_order(waits: bool) -> None:
    async def source() -> AsyncIterator[str]:
        for number in range(20):
            yield str(number)
            if waits:
                await asyncio.sleep(0.001)

    recorder = Recorder()
    async with Plain(sse_app(source, retry=1000, on_close=recorder.on_close)) as server:
        await server.returns()
        assert server.complete
        assert server.body == b"retry: 1000\n\n" + b"".join(
            b"data: %d\n\n" % number for number in range(20)
        )
        starts = [m for m in server.messages if m["type"] == "http.response.start"]
        assert server.messages[:1] == starts
    assert recorder.report.reason is CloseReason.FINISHED
    assert recorder.report.events == 20


async def test_an_event_that_is_there_at_once_comes_with_the_start() -> None:
    """There is no empty message between them."""

    async def source() -> AsyncIterator[str]:
        yield "a"
        await anyio.sleep_forever()

    async with Plain(sse_app(source)) as server:
        await server.has(b"data: a")
        assert [m.get("body") for m in server.messages] == [None, b"data: a\n\n"]


@pytest.mark.parametrize("ends", ["disconnect", "drain", "scope", "Task.cancel()"])
async def test_every_end(ends: str) -> None:
    recorder, shutdown, scope = Recorder(), Shutdown(), anyio.CancelScope()
    app = sse_app(
        lambda: recorder.source("a", cleanup=0.01), shutdown=shutdown, on_close=recorder.on_close
    )
    async with Plain(in_a_scope(app, scope) if ends == "scope" else app) as server:
        await server.has(b"data: a")
        if ends == "disconnect":
            server.disconnect()
        elif ends == "drain":
            shutdown.drain()
        elif ends == "scope":
            scope.cancel()
        else:
            server.cancel()
        await server.returns()
        assert server.error is None
        assert recorder.closed
        assert server.complete is (ends != "disconnect")
    assert recorder.report.reason is {
        "disconnect": CloseReason.CLIENT_DISCONNECTED,
        "drain": CloseReason.SHUTDOWN,
    }.get(ends, CloseReason.CANCELLED)


async def test_a_client_that_has_left_before_the_stream_begins() -> None:
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
    server = Plain(app)
    server.disconnect()
    async with server:
        await server.returns()
        assert server.error is None
        assert recorder.closed or not recorder.cleanup_began
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


async def test_a_stream_that_begins_while_draining() -> None:
    shutdown, began = Shutdown(), False
    shutdown.drain()

    async def source() -> AsyncIterator[str]:
        nonlocal began
        began = True
        yield "a"

    async with Plain(sse_app(source, shutdown=shutdown)) as server:
        await server.returns()
        assert server.status == 200
        assert server.body == b""
        assert server.complete
    assert not began


async def test_what_feeds_a_source_begins_after_the_source() -> None:
    order: list[str] = []
    sender, receiver = anyio.create_memory_object_stream[str](10)

    async def source() -> AsyncIterator[str]:
        order.append("source")
        async with receiver:
            async for item in receiver:
                yield item

    async def feed() -> None:
        order.append("feed")
        async with sender:
            await sender.send("a")

    response = EventSourceResponse(source(), data_sender_callable=feed, sep="\n")
    async with Plain(response) as server:
        await server.returns()
        assert server.error is None
        assert server.body == b"data: a\n\n"
        assert server.complete
    assert order == ["source", "feed"]


async def test_a_feed_that_fails_at_once() -> None:
    error = ValueError("feed")
    recorder = Recorder()

    async def feed() -> None:
        raise error

    response = EventSourceResponse(
        recorder.source("a"), data_sender_callable=feed, sep="\n", on_close=recorder.on_close
    )
    async with Plain(response) as server:
        await server.returns()
        assert server.error is error
        assert server.body == b"data: a\n\n"
        assert not server.complete
    assert recorder.closed
    assert recorder.report.reason is CloseReason.ERROR


async def test_an_awaited_factory() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"

    async def factory() -> Any:
        await asyncio.sleep(0.001)
        return source()

    async with Plain(sse_app(factory)) as server:
        await server.returns()
        assert server.body == b"data: a\n\n"
        assert server.complete


async def test_on_close_that_never_waits() -> None:
    """Its task has ended when it is made."""
    recorder = Recorder()

    async def on_close(report: Any) -> None:
        recorder.reports.append(report)

    async def source() -> AsyncIterator[str]:
        yield "a"

    async with Plain(sse_app(source, on_close=on_close)) as server:
        await server.returns()
        assert server.error is None
    assert recorder.report.reason is CloseReason.FINISHED


async def test_a_source_and_what_feeds_it_may_wait_for_the_same_future() -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def source() -> AsyncIterator[str]:
        await ready
        yield "ready"

    async def feed() -> None:
        await ready

    app = EventSourceResponse(source(), data_sender_callable=feed)
    async with Plain(app) as server:
        await anyio.sleep(0.01)
        ready.set_result(None)
        await server.returns()
        assert server.error is None
        assert server.body == b"data: ready\r\n\r\n"
        assert server.complete
