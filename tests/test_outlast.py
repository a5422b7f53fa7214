"""``on_close`` always runs to its end, whoever cancels the stream meanwhile, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import trio

from sse_asgi import CloseReason, CloseReport, sse_app

from .plain import Plain, in_a_scope
from .streams import Recorder, on_mock_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("through_every_entry_point")]


class Closing:
    """An ``on_close`` that takes its time, or waits until it may go on."""

    def __init__(self, seconds: float | None = 0.1) -> None:
        self.began, self.ended = anyio.Event(), False
        self.goes_on = anyio.Event()
        self.reports: list[CloseReport] = []
        self.cancelled = False
        self._seconds = seconds

    async def on_close(self, report: CloseReport) -> None:
        self.reports.append(report)
        self.began.set()
        try:
            if self._seconds is None:
                await self.goes_on.wait()
            else:
                await anyio.sleep(self._seconds)
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        self.ended = True


async def one_event() -> AsyncIterator[str]:
    yield "a"


async def forever() -> AsyncIterator[str]:
    yield "a"
    await anyio.sleep_forever()


only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@only_asyncio
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_on_close_outlasts_task_cancel(times: int) -> None:
    closing = Closing(None)
    async with Plain(sse_app(one_event, on_close=closing.on_close)) as server:
        await closing.began.wait()
        for _ in range(times):
            server.cancel()
            await asyncio.sleep(0.01)
        assert not server.returned
        closing.goes_on.set()
        await server.returns()
        assert closing.ended
        assert server.cancelled
        assert server.complete
    assert [report.reason for report in closing.reports] == [CloseReason.FINISHED]


@only_asyncio
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_on_close_outlasts_task_cancel_after_one_that_has_ended_the_stream(
    times: int,
) -> None:
    closing = Closing(None)
    async with Plain(sse_app(forever, on_close=closing.on_close)) as server:
        await server.has(b"data: a")
        server.cancel()
        await closing.began.wait()
        for _ in range(times):
            server.cancel()
            await asyncio.sleep(0.01)
        closing.goes_on.set()
        await server.returns()
        assert closing.ended
        assert server.cancelled
    assert [report.reason for report in closing.reports] == [CloseReason.CANCELLED]


@only_asyncio
async def test_on_close_is_bounded_against_task_cancel_too() -> None:
    closing = Closing(1000)
    app = sse_app(one_event, on_close=closing.on_close, cleanup_timeout=0.2)
    async with Plain(app) as server:
        await closing.began.wait()
        for _ in range(3):
            server.cancel()
            await asyncio.sleep(0.01)
        assert not closing.cancelled
        await server.returns()
        assert closing.cancelled
        assert server.cancelled


async def test_on_close_outlasts_a_scope_around() -> None:
    closing, scope = Closing(), anyio.CancelScope()
    app = sse_app(one_event, on_close=closing.on_close)
    async with Plain(in_a_scope(app, scope)) as server:
        await closing.began.wait()
        scope.cancel()
        await server.returns()
        assert closing.ended


@on_mock_clock
async def test_on_close_has_cleanup_timeout_and_no_more() -> None:
    for seconds, ended in ((6.9, True), (7.1, False)):
        closing = Closing(seconds)
        async with Plain(
            sse_app(one_event, on_close=closing.on_close, cleanup_timeout=7)
        ) as server:
            await server.returns(100)
        assert closing.ended is ended
        assert server.took == pytest.approx(min(seconds, 7))
        assert trio.current_time() >= 0


@only_asyncio
async def test_the_error_of_a_stream_leaves_although_on_close_was_cancelled() -> None:
    closing, error = Closing(), KeyError("mine")

    async def source() -> AsyncIterator[str]:
        yield "a"
        raise error

    async with Plain(sse_app(source, on_close=closing.on_close)) as server:
        await closing.began.wait()
        server.cancel()
        await server.returns()
        assert closing.ended
        assert server.error is error


async def test_an_on_close_that_cancels_itself_is_no_cancellation() -> None:
    """A future that somebody has cancelled, say."""
    recorder = Recorder()

    async def on_close(report: CloseReport) -> None:
        recorder.reports.append(report)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep(1)

    async with Plain(sse_app(one_event, on_close=on_close)) as server:
        await server.returns()
        assert server.error is None
        assert server.complete
    assert len(recorder.reports) == 1


@only_asyncio
async def test_context_and_result_of_on_close(caplog: pytest.LogCaptureFixture) -> None:
    """It may raise after it was cancelled around, and that is logged."""
    began = anyio.Event()

    async def on_close(report: Any) -> None:
        began.set()
        await asyncio.sleep(0.05)
        raise ValueError("late")

    async with Plain(sse_app(one_event, on_close=on_close)) as server:
        await began.wait()
        server.cancel()
        await server.returns()
        assert server.cancelled
    assert "on_close raised" in caplog.text
