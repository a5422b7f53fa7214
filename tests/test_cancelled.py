"""Streams that the server cancels by ``Task.cancel()``, and what may come at the same time."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import anyio
import pytest

from sse_asgi import CloseReason, Shutdown, sse_app
from sse_asgi.starlette import EventSourceResponse

from .at_once import Cycle
from .streams import Recorder, http_scope, never

# Tasks as servers make them, which anyio does not know.
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


async def send(message: Any) -> None:
    await asyncio.sleep(0)


class Source:
    """An iterator whose step fails in its cleanup; it knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> str:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.02)
            raise KeyError("the cleanup has failed")

    async def aclose(self) -> None:
        self.closed = True


async def test_a_source_is_closed_although_what_feeds_it_takes_too_long() -> None:
    source = Source()

    async def feed() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.15)

    response = EventSourceResponse(source, data_sender_callable=feed, cleanup_timeout=0.1)
    task = asyncio.ensure_future(response(http_scope(), never, send))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert isinstance(task.exception(), KeyError)
    assert source.closed


async def test_what_feeds_a_source_is_cancelled_at_once_while_a_ping_is_stuck() -> None:
    cycle, cancelled = Cycle(), asyncio.Event()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(100)

    async def feed() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            cancelled.set()

    response = EventSourceResponse(
        source(), ping=0.02, data_sender_callable=feed, cleanup_timeout=20
    )
    task = asyncio.ensure_future(response(http_scope(), cycle.receive, cycle.send))
    await asyncio.sleep(0.01)
    cycle.pause()
    await asyncio.sleep(0.1)
    task.cancel()
    async with asyncio.timeout(10):
        await cancelled.wait()
    cycle.disconnect()
    with suppress(asyncio.CancelledError):
        await task


async def test_nothing_is_received_when_the_time_for_a_cleanup_is_over() -> None:
    """What ``receive`` raises then would take the place of the cancellation."""
    recorder = Recorder()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await asyncio.sleep(100)
        finally:
            try:
                await asyncio.sleep(100)
            finally:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.1)

    async def receive() -> Any:
        await asyncio.sleep(0.15)
        raise ValueError("receive")

    app = sse_app(source, cleanup_timeout=0.1, on_close=recorder.on_close)
    task = asyncio.ensure_future(app(http_scope(), receive, send))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    assert recorder.report.reason is CloseReason.CANCELLED
    assert recorder.report.error is None


@pytest.mark.parametrize("then", ["disconnect", "drain"])
async def test_another_end_gives_the_cleanup_a_time_of_its_own(then: str) -> None:
    recorder, shutdown, gone = Recorder(), Shutdown(), asyncio.Event()
    began = time.monotonic()
    took = 0.0

    async def source() -> AsyncIterator[str]:
        nonlocal took
        yield "a"
        try:
            await asyncio.sleep(100)
        finally:
            try:
                await asyncio.sleep(100)
            finally:
                took = time.monotonic() - began

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    app = sse_app(source, cleanup_timeout=0.4, shutdown=shutdown, on_close=recorder.on_close)
    task = asyncio.ensure_future(app(http_scope(), receive, send))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.2)
    gone.set() if then == "disconnect" else shutdown.drain()
    await asyncio.wait([task], timeout=10)
    assert took >= 0.6  # not 0.4 after the first of the two


async def test_a_source_that_swallows_it_and_ends_is_bounded_as_others() -> None:
    """The client stalls when the end is sent: the send timeout ends that."""
    cycle, recorder = Cycle(), Recorder()

    async def source() -> AsyncIterator[str]:
        yield "a"
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(100)
        await asyncio.sleep(0.05)

    app = sse_app(source, cleanup_timeout=0.1, send_timeout=0.2, on_close=recorder.on_close)
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    await asyncio.sleep(0.02)
    cycle.pause()
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.done()
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT


async def test_streams_of_all_tasks_are_told_at_one_rate() -> None:
    """Of bare tasks and of tasks within anyio's, together so many a second."""
    shutdown = Shutdown(streams_per_second=50)
    ends: list[float] = []

    async def source() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(100)

    app = sse_app(source, shutdown=shutdown, on_close=lambda report: ends.append(time.monotonic()))

    async def within() -> None:
        async with anyio.create_task_group():
            await app(http_scope(), never, send)

    async def bare() -> None:
        await app(http_scope(), never, send)

    tasks = [asyncio.ensure_future(each()) for each in (bare, within) for _ in range(10)]
    await asyncio.sleep(0.05)
    began = time.monotonic()
    shutdown.drain()
    await asyncio.wait(tasks, timeout=20)
    assert max(ends) - began > 0.3  # 19 / 50 s, and a tick


async def test_daphne_that_is_only_imported_cancels_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server may give no version of the specification, too."""
    monkeypatch.setitem(sys.modules, "daphne.server", ModuleType("daphne.server"))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    recorder = Recorder()
    try:
        app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
        task = asyncio.ensure_future(app(http_scope(asgi={"version": "3.0"}), never, send))
        await asyncio.sleep(0.02)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait([task], timeout=10)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert recorder.report.reason is CloseReason.SHUTDOWN


async def test_a_loop_whose_time_was_replaced_has_that_time() -> None:
    """As test suites do that let time fly."""
    loop: Any = asyncio.get_running_loop()
    sent: list[bytes] = []
    listened = 0

    async def receive() -> Any:
        nonlocal listened
        listened += 1
        await asyncio.sleep(100)

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    recorder = Recorder()
    app = sse_app(lambda: recorder.source(), ping=0.02, on_close=recorder.on_close)
    loop.time = lambda: time.monotonic() + 1e6
    try:
        task = asyncio.ensure_future(app(http_scope(), receive, send))
        await asyncio.sleep(0.3)
        assert 2 <= len(sent) <= 17  # start, body and pings
        assert listened <= 40  # no busy loop
        task.cancel()
        await asyncio.wait([task], timeout=10)
    finally:
        del loop.time
    assert recorder.closed
