"""The life of a stream: what is sent and when, every way to end, and what is left behind."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.lowlevel
from anyio.lowlevel import checkpoint

from sse_asgi import CloseReason, CloseReport, HTTPError, Shutdown, sse_app
from sse_asgi.testing import connect

from .streams import Recorder, http_scope, never, on_mock_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("through_every_entry_point")]


# -- pings -----------------------------------------------------------------------------------------


@on_mock_clock
async def test_a_ping_comes_when_nothing_was_written_for_so_long() -> None:
    sent: list[tuple[float, bytes]] = []

    async def source() -> AsyncIterator[str]:
        await trio.sleep(12)
        yield "a"
        await trio.sleep(9)
        yield "b"
        await trio.sleep(11)
        yield "c"

    async def send(message: Any) -> None:
        sent.append((trio.current_time() - start, message.get("body")))

    start = trio.current_time()
    await sse_app(source, ping=5)(http_scope(), never, send)
    assert sent == [
        (0, None),
        (0, b""),
        (5, b":\n\n"),
        (10, b":\n\n"),
        (12, b"data: a\n\n"),
        (17, b":\n\n"),
        (21, b"data: b\n\n"),
        (26, b":\n\n"),
        (31, b":\n\n"),
        (32, b"data: c\n\n"),
        (32, b""),
    ]


@on_mock_clock
async def test_no_ping_inside_a_write_and_the_next_counts_from_its_end() -> None:
    sent: list[tuple[float, bytes]] = []

    async def source() -> AsyncIterator[str]:
        await trio.sleep(3)
        yield "slow"
        await trio.sleep(12)

    async def send(message: Any) -> None:
        if message.get("body", b"").startswith(b"data"):
            await trio.sleep(7)
        sent.append((trio.current_time() - start, message.get("body")))

    start = trio.current_time()
    await sse_app(source, ping=5)(http_scope(), never, send)
    assert sent[2:] == [
        (10, b"data: slow\n\n"),
        (15, b":\n\n"),
        (20, b":\n\n"),
        (22, b""),
    ]


@pytest.mark.parametrize("ping", [None, 0])
def test_no_ping_and_no_busy_loop(ping: float | None) -> None:
    """Regression 11: sse-starlette#206."""
    recorder = Recorder()

    @on_mock_clock
    async def test() -> None:
        steps = trio.lowlevel.current_statistics()
        assert steps.run_sync_soon_queue_size == 0
        async with connect(sse_app(lambda: recorder.source("a"), ping=ping)) as stream:
            await stream.receive()
            # Were there a loop without a wait, the clock could not jump.
            await trio.sleep(100_000)
            assert stream.comments == []

    test()
    assert recorder.closed


@on_mock_clock
async def test_ping_message_factory() -> None:
    pings: Iterator[Any] = iter([{"comment": "one"}, {"event": "ping", "data": ""}, "three"])
    app = sse_app(never_yields, ping=1, ping_message_factory=lambda: next(pings))
    async with connect(app) as stream:
        event = await stream.receive()
        assert (event.event, event.data) == ("ping", "")
        assert stream.comments == ["one"]
        assert (await stream.receive()).data == "three"


@on_mock_clock
async def test_an_error_of_ping_message_factory_ends_the_stream_as_itself() -> None:
    recorder = Recorder()

    def factory() -> Any:
        raise KeyError("ping")

    app = sse_app(
        lambda: recorder.source(), ping=1, ping_message_factory=factory, on_close=recorder.on_close
    )
    with pytest.raises(KeyError, match="ping"):
        async with connect(app) as stream:
            await stream.receive()
    assert recorder.closed
    assert recorder.report.reason is CloseReason.ERROR
    assert isinstance(recorder.report.error, KeyError)


async def never_yields() -> AsyncIterator[str]:
    await anyio.sleep_forever()
    yield "never"


# -- the start -------------------------------------------------------------------------------------


async def test_headers_leave_at_once() -> None:
    """Regression 25: granian#607. A body message follows, which some servers wait for."""
    messages: list[Any] = []
    started = anyio.Event()

    async def send(message: Any) -> None:
        messages.append(message)
        if message["type"] == "http.response.body":
            started.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sse_app(never_yields), http_scope(), never, send)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert messages[0]["type"] == "http.response.start"
    assert messages[1] == {"type": "http.response.body", "body": b"", "more_body": True}


async def test_the_reconnection_time_comes_first() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"

    for factory in (source, never_yields):
        async with connect(sse_app(factory, retry=1234)) as stream:
            while stream.reconnection_time is None:
                await checkpoint()
            assert stream.reconnection_time == 1234


async def test_an_http_error_before_the_source_waits_is_a_status() -> None:
    async def source() -> AsyncIterator[str]:
        raise HTTPError(403, "not you", headers={"X-Why": "because"})
        yield "never"

    async with connect(sse_app(source)) as stream:
        assert stream.status_code == 403
        assert b"not you" in await stream.read()
        assert stream.headers["x-why"] == "because"
        assert not stream.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("defer_start", [True, 60])
async def test_defer_start_makes_an_http_error_a_status(defer_start: float) -> None:
    """Regression 10: fastapi#15917, sglang#30341."""
    recorder = Recorder()

    async def source() -> AsyncIterator[str]:
        await anyio.sleep(0.01)
        raise HTTPError(204)
        yield "never"

    app = sse_app(source, defer_start=defer_start, on_close=recorder.on_close)
    async with connect(app) as stream:
        assert stream.status_code == 204
        assert await stream.read() == b""
        assert "content-length" not in stream.headers
    assert recorder.report.reason is CloseReason.ERROR


@on_mock_clock
async def test_defer_start_waits_so_long_and_no_longer() -> None:
    async def source() -> AsyncIterator[str]:
        await trio.sleep(10)
        yield "a"

    started_after = {}
    for defer_start in (None, False, 4, 10.5, True):
        before = trio.current_time()
        async with connect(sse_app(source, defer_start=defer_start, ping=1)) as stream:
            started_after[defer_start] = trio.current_time() - before
            assert (await stream.receive()).data == "a"
    assert started_after == {None: 0, False: 0, 4: 4, 10.5: 10, True: 10}


@on_mock_clock
async def test_pings_begin_with_the_first_event_if_that_starts_the_response() -> None:
    async def source() -> AsyncIterator[str]:
        await trio.sleep(3)
        yield "a"
        await trio.sleep(2.5)
        yield "b"

    options: list[dict[str, Any]] = [{}, {"send_timeout": None}]
    for option in options:
        sent: list[tuple[float, bytes]] = []

        async def send(message: Any) -> None:
            sent.append((trio.current_time() - start, message.get("body")))

        start = trio.current_time()
        await sse_app(source, defer_start=True, ping=1, **option)(http_scope(), never, send)
        assert sent == [
            (3, None),
            (3, b"data: a\n\n"),
            (4, b":\n\n"),
            (5, b":\n\n"),
            (5.5, b"data: b\n\n"),
            (5.5, b""),
        ], option


async def test_a_late_http_error_says_how_to_do_better(caplog: pytest.LogCaptureFixture) -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        raise HTTPError(403)

    with pytest.raises(HTTPError):
        async with connect(sse_app(source)) as stream:
            assert [event.data async for event in stream] == ["a"]
    assert "after the response had started" in caplog.text
    assert "defer_start" in caplog.text


async def test_a_deferred_source_without_events_is_an_empty_stream() -> None:
    async def source() -> AsyncIterator[str]:
        await checkpoint()
        return
        yield "never"

    async with connect(sse_app(source, defer_start=True)) as stream:
        assert stream.status_code == 200
        assert [event async for event in stream] == []
        assert stream.complete


# -- ways to end -----------------------------------------------------------------------------------


@pytest.mark.not_compressed
async def test_the_end_of_the_source() -> None:
    recorder = Recorder()

    async def source() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async with connect(sse_app(source, on_close=recorder.on_close)) as stream:
        assert [event.data async for event in stream] == ["a", "b"]
        assert stream.complete
    assert recorder.report == CloseReport(
        CloseReason.FINISHED, events=2, bytes=18, duration=recorder.report.duration
    )
    assert recorder.report.duration > 0
    assert recorder.report.reason == "finished"


async def test_a_disconnect_closes_an_idle_source_before_the_app_returns() -> None:
    """Regression 8: uvicorn#2271, #2276. The source may wait for something in its cleanup."""
    for spec_version in ("2.3", "2.4"):
        recorder = Recorder()
        app = sse_app(lambda: recorder.source("a", cleanup=0.02), on_close=recorder.on_close)
        scope = {"asgi": {"version": "3.0", "spec_version": spec_version}}
        async with connect(app, scope=scope) as stream:
            await stream.receive()
            await stream.disconnect()
            assert recorder.closed
            assert not stream.complete
        assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


async def test_a_disconnect_closes_a_source_that_is_suspended_at_its_yield() -> None:
    """Regression 7: lsst/daf_butler#1407."""
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source("a", "b" * 100_000, "c" * 100_000, cleanup=0.02),
        on_close=recorder.on_close,
    )
    async with connect(app) as stream:
        assert (await stream.receive()).data == "a"
        stream.stall()
        await anyio.wait_all_tasks_blocked()
        await stream.disconnect()
        assert recorder.closed
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


async def test_oserror_from_send_is_a_disconnect(caplog: pytest.LogCaptureFixture) -> None:
    """Regression 8: uvicorn#2271, #2276; 9: fastapi#15824. Nothing is logged or raised."""
    recorder = Recorder()

    async def send(message: Any) -> None:
        if message.get("body"):
            raise ConnectionResetError("gone")

    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
    await app(http_scope(), never, send)
    assert recorder.closed
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    assert caplog.records == []


async def test_oserror_of_the_source_is_its_own() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        raise ConnectionResetError("database")

    with pytest.raises(ConnectionResetError, match="database"):
        async with connect(sse_app(source)) as stream:
            await stream.receive()
            await stream.receive()


async def test_an_error_leaves_as_itself_and_does_not_look_like_an_end() -> None:
    error = KeyError("mine")
    recorder = Recorder()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await checkpoint()
        raise error

    with pytest.raises(KeyError) as caught:
        async with connect(sse_app(source, on_close=recorder.on_close)) as stream:
            await stream.receive()
            await stream.receive()
    assert caught.value is error
    assert not stream.complete
    assert recorder.report.reason is CloseReason.ERROR
    assert recorder.report.error is error


@pytest.mark.sse_app_only  # Starlette answers with 500
async def test_an_error_before_the_start_sends_nothing() -> None:
    async def source() -> AsyncIterator[str]:
        raise KeyError("early")
        yield "never"

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    with pytest.raises(KeyError, match="early"):
        await sse_app(source)(http_scope(), never, send)
    assert messages == []


async def test_what_can_not_be_sent_is_an_error_and_closes_the_source() -> None:
    recorder = Recorder()
    for wrong in ("\ud800", {"dat": "x"}, {"data": "x", "retry": -1}):
        recorder.closed = False
        app = sse_app(lambda: recorder.source("a", wrong))
        with pytest.raises((TypeError, ValueError)):
            async with connect(app) as stream:
                await stream.receive()
                await stream.receive()
        assert recorder.closed


async def test_on_error_may_turn_it_into_a_last_event() -> None:
    seen: list[Exception] = []

    async def source() -> AsyncIterator[str]:
        yield "a"
        raise ValueError("oops")

    def handler(exc: Exception) -> dict[str, str]:
        seen.append(exc)
        return {"event": "error", "data": str(exc)}

    async def async_handler(exc: Exception) -> dict[str, str]:
        await checkpoint()
        return handler(exc)

    for on_error in (handler, async_handler):
        recorder = Recorder()
        app = sse_app(source, on_error=on_error, on_close=recorder.on_close)
        async with connect(app) as stream:
            events = [(event.event, event.data) async for event in stream]
        assert events == [("message", "a"), ("error", "oops")]
        assert stream.complete
        assert recorder.report.reason is CloseReason.ERROR
        assert isinstance(recorder.report.error, ValueError)
    assert [type(exc) for exc in seen] == [ValueError, ValueError]


async def test_on_error_may_leave_it_or_raise_another() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        raise ValueError("oops")

    def another(exc: Exception) -> None:
        raise LookupError("other")

    async with connect(sse_app(source, on_error=lambda exc: None)) as stream:
        await stream.receive()
        with pytest.raises(ValueError, match="oops"):
            await stream.receive()
        assert not stream.complete
    async with connect(sse_app(source, on_error=another)) as stream:
        await stream.receive()
        with pytest.raises(LookupError, match="other") as caught:
            await stream.receive()
        assert isinstance(caught.value.__context__, ValueError)  # the first one is not lost


@on_mock_clock
async def test_a_client_that_stops_reading_is_given_up() -> None:
    """Regression 6: sse-starlette#89."""
    recorder = Recorder()

    async def source() -> AsyncIterator[str]:
        try:
            while True:
                yield "a"
                await trio.sleep(1)
        finally:
            await trio.lowlevel.checkpoint()
            recorder.closed = True

    began = trio.current_time()
    app = sse_app(source, send_timeout=7, on_close=recorder.on_close)
    async with connect(app) as stream:
        await stream.receive()
        stream.stall()
        while not stream.returned:
            await trio.sleep(0.5)
        # The send that began one second after the first event.
        assert trio.current_time() - began == pytest.approx(8, abs=0.5)
        assert not stream.complete
    assert recorder.closed
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert recorder.report.duration == 8


@on_mock_clock
async def test_the_send_timeout_holds_for_pings_too() -> None:
    """Regression 6: sse-starlette#89."""
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), ping=5, send_timeout=3, on_close=recorder.on_close)
    async with connect(app) as stream:
        await stream.receive()
        stream.stall()
        while not stream.returned:
            await trio.sleep(0.5)
    assert recorder.closed
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert recorder.report.duration == 8


@on_mock_clock
async def test_the_send_timeout_is_exact_however_long_the_stream_was_idle() -> None:
    for idle in (0.0, 0.5, 1, 3.3, 1000):
        recorder = Recorder()

        async def source() -> AsyncIterator[str]:
            yield "first"
            await trio.sleep(idle)
            yield "second"

        async def send(message: Any) -> None:
            if b"second" in message.get("body", b""):
                await trio.sleep_forever()

        app = sse_app(source, ping=None, send_timeout=2, on_close=recorder.on_close)
        await app(http_scope(), never, send)
        assert recorder.report.duration == pytest.approx(idle + 2)


@on_mock_clock
async def test_a_client_that_reads_again_in_time_stays() -> None:
    async def source() -> AsyncIterator[str]:
        for number in range(3):
            yield str(number) * 70_000

    async with connect(sse_app(source, send_timeout=5, ping=1)) as stream:
        for number in range(3):
            stream.stall()
            await trio.sleep(4)
            stream.resume()
            assert (await stream.receive()).data[0] == str(number)
            await trio.sleep(0.1)


@on_mock_clock
async def test_max_lifetime_ends_a_stream_as_a_shutdown_does() -> None:
    lifetimes = set()
    for _ in range(20):
        recorder = Recorder()
        app = sse_app(
            lambda: recorder.source("a"),
            max_lifetime=100,
            retry=1000,
            on_close=recorder.on_close,
        )
        async with connect(app) as stream:
            assert len([event async for event in stream]) == 1
            assert stream.complete
            # Told again at the end, so that not all come back at once.
            assert stream.reconnection_time is not None
            assert 1000 <= stream.reconnection_time <= 2000
        assert recorder.report.reason is CloseReason.MAX_LIFETIME
        assert 90 <= recorder.report.duration <= 100
        lifetimes.add(recorder.report.duration)
    assert len(lifetimes) > 10


# -- shutdown --------------------------------------------------------------------------------------


@on_mock_clock
async def test_drain_ends_an_idle_stream_with_the_last_chunk() -> None:
    shutdown = Shutdown()
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source("a", cleanup=1),
        shutdown=shutdown,
        retry=500,
        on_close=recorder.on_close,
    )
    async with connect(app) as stream:
        await stream.receive()
        shutdown.drain()
        assert [event async for event in stream] == []
        assert stream.complete
        assert stream.reconnection_time is not None
        assert 500 <= stream.reconnection_time <= 1000
    assert recorder.closed
    assert recorder.report.reason is CloseReason.SHUTDOWN
    assert recorder.report.duration == 1


@pytest.mark.sse_app_only  # shutting_down; for the others see test_starlette.py
@on_mock_clock
async def test_a_source_may_end_by_itself_within_the_grace_period() -> None:
    shutdown = Shutdown()
    recorder = Recorder()

    async def source(request: Any) -> AsyncIterator[str]:
        assert not request.shutting_down
        yield "a"
        await shutdown.wait()
        assert request.shutting_down
        await trio.sleep(2)
        yield "goodbye"

    app = sse_app(
        source, shutdown=shutdown, shutdown_grace_period=5, on_close=recorder.on_close, ping=1
    )
    async with connect(app) as stream:
        await stream.receive()
        shutdown.drain()
        assert [event.data async for event in stream] == ["goodbye"]
        assert stream.complete
    assert recorder.report.reason is CloseReason.SHUTDOWN
    assert recorder.report.duration == 2


@on_mock_clock
async def test_a_source_that_does_not_end_is_cancelled_when_the_grace_is_over() -> None:
    for grace, given, expected in ((5.0, None, 5), (5.0, 2.0, 2), (0.0, 7.0, 7)):
        shutdown = Shutdown()
        recorder = Recorder()
        app = sse_app(
            lambda: recorder.source("a"),
            shutdown=shutdown,
            shutdown_grace_period=grace,
            on_close=recorder.on_close,
        )
        async with connect(app) as stream:
            await stream.receive()
            shutdown.drain(given)
            assert [event async for event in stream] == []
            assert stream.complete
        assert recorder.report.duration == expected


@on_mock_clock
async def test_the_earlier_of_two_drains_counts() -> None:
    shutdown = Shutdown()
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), shutdown=shutdown, on_close=recorder.on_close)
    async with connect(app) as stream:
        await stream.receive()
        shutdown.drain(100)
        await trio.sleep(1)
        shutdown.drain(3)
        await trio.sleep(1)
        shutdown.drain(50)
        assert [event async for event in stream] == []
    assert recorder.report.duration == 4


@on_mock_clock
async def test_drain_does_not_wait_for_a_client_that_does_not_read() -> None:
    for ping in (None, 0.5):  # stuck in an event, stuck in a ping
        shutdown = Shutdown()
        recorder = Recorder()

        events = ["a"] if ping else ["a", "b"]
        app = sse_app(
            lambda: recorder.source(*events),
            ping=ping,
            shutdown=shutdown,
            shutdown_grace_period=2,
            cleanup_timeout=3,
            send_timeout=1000,
            on_close=recorder.on_close,
        )
        async with connect(app) as stream:
            stream.stall()
            await trio.sleep(10)
            shutdown.drain()
            while not stream.returned:
                await trio.sleep(0.1)
        assert recorder.closed
        assert recorder.report.reason is CloseReason.SHUTDOWN
        # 10, the grace period, and the attempt at a last chunk.
        assert recorder.report.duration == pytest.approx(10 + 2 + 3)


@on_mock_clock
async def test_a_client_that_leaves_within_the_grace_period() -> None:
    """The reason is the client's, and nothing is sent to it any more."""
    for events in ([], ["a"], ["a", "b"]):  # the source waits, or the client does not read
        shutdown, recorder, gone = Shutdown(), Recorder(), trio.Event()
        sent: list[Any] = []

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body") == b"data: b\n\n":
                await trio.sleep_forever()
            sent.append(message)

        app = sse_app(
            lambda: recorder.source(*events, cleanup=1),
            ping=None,
            retry=1000,
            shutdown=shutdown,
            shutdown_grace_period=10,
            on_close=recorder.on_close,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app, http_scope(), receive, send)
            await trio.sleep(1)
            shutdown.drain()
            await trio.sleep(3)
            assert not recorder.cleanup_began
            gone.set()
        assert recorder.closed
        assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
        assert recorder.report.duration == 1 + 3 + 1
        assert sent[0]["type"] == "http.response.start"
        body = b"".join(message["body"] for message in sent[1:])
        assert body == b"retry: 1000\n\n" + b"data: a\n\n" * len(events[:1])
        assert all(message["more_body"] for message in sent[1:])


@pytest.mark.parametrize("grace", [None, 0, 3600])
async def test_a_stream_that_starts_while_draining_ends_at_once(grace: float | None) -> None:
    shutdown = Shutdown()
    shutdown.drain(grace)
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source("a"),
        shutdown=shutdown,
        shutdown_grace_period=3600,
        on_close=recorder.on_close,
    )
    async with connect(app) as stream:
        assert stream.status_code == 200
        assert [event async for event in stream] == []
        assert stream.complete
    assert not recorder.cleanup_began  # nothing was begun
    assert recorder.report.reason is CloseReason.SHUTDOWN


@on_mock_clock
async def test_a_shutdown_waits_for_a_start_that_is_on_its_way() -> None:
    """A middleware may take its time with it; then comes the last chunk, and nothing twice."""
    for ready in (True, False):  # the host starts the response, or the watchdog
        shutdown = Shutdown()
        recorder = Recorder()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                shutdown.drain()
                await trio.sleep(2)
            sent.append((message["type"], message.get("more_body")))

        events = ["a"] if ready else []
        app = sse_app(
            lambda: recorder.source(*events), shutdown=shutdown, on_close=recorder.on_close
        )
        await app(http_scope(), never, send)
        assert sent[0] == ("http.response.start", None)
        assert sent[-1] == ("http.response.body", False)
        assert [kind for kind, _ in sent].count("http.response.start") == 1
        assert recorder.report.reason is CloseReason.SHUTDOWN
        assert recorder.report.duration == 2


@on_mock_clock
async def test_a_start_that_is_not_accepted_is_a_send_timeout() -> None:
    for ready in (True, False):
        recorder = Recorder()
        events = ["a"] if ready else []

        async def send(message: Any) -> None:
            await trio.sleep_forever()

        app = sse_app(lambda: recorder.source(*events), send_timeout=3, on_close=recorder.on_close)
        await app(http_scope(), never, send)
        assert recorder.closed
        assert recorder.report.reason is CloseReason.SEND_TIMEOUT
        assert recorder.report.duration == 3


# -- closing the source ----------------------------------------------------------------------------


@on_mock_clock
async def test_cleanup_may_wait_but_not_longer_than_cleanup_timeout(
    # on_mock_clock: no fixtures
) -> None:
    for cleanup, duration in ((2.0, 2), (4.9, 4.9), (1000.0, 5)):
        for way in ("disconnect", "stalled", "drain", "end"):
            shutdown = Shutdown()
            recorder = Recorder()

            def source() -> AsyncIterator[Any]:
                return recorder.source("a", "b" * 10, cleanup=cleanup)

            app = sse_app(source, shutdown=shutdown, on_close=recorder.on_close, ping=None)
            async with connect(app) as stream:
                await stream.receive()
                if way == "stalled":
                    stream.stall()
                if way == "drain":
                    shutdown.drain()
                    async for _ in stream:
                        pass
                await stream.disconnect()
            assert recorder.cleanup_began
            assert recorder.closed is (duration == cleanup)
            assert recorder.report.duration == pytest.approx(duration)


@on_mock_clock
async def test_no_cleanup_timeout_means_no_limit() -> None:
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a", cleanup=3600), cleanup_timeout=None)
    async with connect(app) as stream:
        await stream.receive()
    assert recorder.closed


async def test_a_slow_cleanup_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a", cleanup=30), cleanup_timeout=0.02)
    async with connect(app) as stream:
        await stream.receive()
    assert not recorder.closed
    assert "cleanup_timeout=0.02" in caplog.text


async def test_the_source_runs_in_the_task_and_context_of_the_caller() -> None:
    """Regression 17: phoenix#11362, sse-starlette#103. Its context variables can be reset."""
    var: ContextVar[str] = ContextVar("var", default="unset")
    tasks: list[int] = []
    reset = False

    async def source() -> AsyncIterator[str]:
        nonlocal reset
        token = var.set("inside")
        tasks.append(anyio.get_current_task().id)
        try:
            yield "a"
            await checkpoint()
            yield "b"
            await anyio.sleep_forever()
        finally:
            tasks.append(anyio.get_current_task().id)
            await checkpoint()
            var.reset(token)
            reset = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(anyio.get_current_task().id)
        await sse_app(source)(scope, receive, send)

    async with connect(app) as stream:
        await stream.receive()
        await stream.receive()
    assert reset
    assert len(tasks) == 3
    assert len(set(tasks)) == 1


async def test_a_task_group_around_the_yield_is_closed_in_the_same_task() -> None:
    """Regression 20: claude-agent-sdk-python#4, PEP 789."""
    closed = []

    async def source() -> AsyncIterator[str]:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                yield "a"
                await anyio.sleep_forever()
        finally:
            closed.append("idle")

    async def busy() -> AsyncIterator[str]:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                while True:
                    yield "a" * 1000
        finally:
            closed.append("busy")

    for factory in (source, busy):
        async with connect(sse_app(factory)) as stream:
            await stream.receive()
    assert closed == ["idle", "busy"]


async def test_an_error_in_a_task_group_around_the_yield_comes_out() -> None:
    """Regression 20: the task group cancels us at the yield, and what its task raised is told."""

    async def fail() -> None:
        await anyio.sleep(0.01)
        raise KeyError("child")

    async def source() -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            yield "a"
            await anyio.sleep_forever()

    async def stuck() -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            while True:
                yield "a" * 100_000

    for factory in (source, stuck):
        async with connect(sse_app(factory)) as stream:
            await anyio.sleep(0.05)
            with pytest.raises(BaseException) as caught:
                while True:
                    await stream.receive()
        group: Any = caught.value
        assert [type(exc) for exc in group.exceptions] == [KeyError]


async def test_a_scope_around_the_yield_that_cancels_us_gets_a_clear_message() -> None:
    """Regression 20: PEP 789."""
    around = anyio.CancelScope()

    async def source() -> AsyncIterator[str]:
        with around:
            while True:
                yield "a" * 100_000

    async with connect(sse_app(source)) as stream:
        stream.stall()
        await anyio.sleep(0.05)
        around.cancel()
        await anyio.sleep(0.05)
        stream.resume()
        with pytest.raises(RuntimeError, match=r"around the yield .*PEP 789"):
            while True:
                await stream.receive()


async def test_a_scope_between_two_yields_is_the_sources_own_business() -> None:
    async def source() -> AsyncIterator[str]:
        for _ in range(3):
            with anyio.move_on_after(0.01):
                await anyio.sleep_forever()
            yield "timed out"

    async with connect(sse_app(source, cleanup_timeout=0.005)) as stream:
        assert len([event async for event in stream]) == 3
        assert stream.complete


async def test_a_source_may_poll_with_timeouts_of_its_own_for_longer_than_a_cleanup() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        for _ in range(10):
            with anyio.move_on_after(0.01):
                await anyio.sleep_forever()
        yield "late"

    recorder = Recorder()
    app = sse_app(source, cleanup_timeout=0.02, on_close=recorder.on_close)
    async with connect(app) as stream:
        assert [event.data async for event in stream] == ["a", "late"]
    assert recorder.report.reason is CloseReason.FINISHED


async def test_a_source_that_awaits_something_cancelled_gets_a_clear_message() -> None:
    if isinstance(anyio.lowlevel.current_token().native_token, trio.lowlevel.TrioToken):
        pytest.skip("trio has nothing that could be awaited when it is cancelled")

    async def source() -> AsyncIterator[str]:
        yield "a"
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, future.cancel)
        await future

    async with connect(sse_app(source)) as stream:
        await stream.receive()
        with pytest.raises(RuntimeError, match="awaited a cancelled task"):
            await stream.receive()


async def test_a_yield_while_closing_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Regression 21: OrcaRouter-Lite#50."""

    async def at_yield() -> AsyncIterator[str]:
        try:
            while True:
                yield "a" * 100_000
        finally:
            yield "too late"

    async def while_waiting() -> AsyncIterator[str]:
        try:
            yield "a" * 100_000
            await anyio.sleep_forever()
        finally:
            yield "too late"

    for source in (at_yield, while_waiting):
        caplog.clear()
        async with connect(sse_app(source)) as stream:
            await stream.receive()
            stream.stall()
            await anyio.wait_all_tasks_blocked()
            await stream.disconnect()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "yielded while it was being closed" in record.message
        assert record.exc_info is None


async def test_a_source_that_yields_on_while_it_is_closed_holds_nobody_up() -> None:
    """Regression 7 (found by the fuzz): others run, and cleanup_timeout holds."""
    yielded = 0

    class Stubborn(AsyncIterator[str]):
        """As a generator that yields whatever happens."""

        async def __anext__(self) -> str:
            nonlocal yielded
            yielded += 1
            time.sleep(0.001)
            return "a"

        async def aclose(self) -> None:
            raise RuntimeError("async generator ignored GeneratorExit")

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        async with connect(sse_app(Stubborn, cleanup_timeout=0.2)) as stream:
            await stream.receive()
            tasks.start_soon(other)
            turns, before = 0, yielded
            await stream.disconnect()
            during = yielded - before
            tasks.cancel_scope.cancel()
    assert during < 1_000  # it would be 10,000
    assert turns > during / 2


@pytest.mark.parametrize("end", ["shutdown", "cancelled", "disconnect", "finally"])
async def test_a_source_that_is_cancelled_may_say_one_last_thing(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutdown, recorder, cleaned_up = Shutdown(), Recorder(), []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            if end != "finally":
                yield "last event"
            raise
        finally:
            if end == "finally":
                yield "last event"
            cleaned_up.append(True)

    app = sse_app(source, shutdown=shutdown, on_close=recorder.on_close)
    scope = anyio.CancelScope()

    async def in_scope(*args: Any) -> None:
        with scope:
            await app(*args)

    async with connect(in_scope) as stream:
        await stream.receive()
        await anyio.wait_all_tasks_blocked()  # the source is past its yield
        if end != "disconnect":
            scope.cancel() if end == "cancelled" else shutdown.drain()
            assert (await stream.receive()).data == "last event"
            await stream.read()
            assert stream.complete
            assert recorder.report.events == 2
    assert cleaned_up == ([] if end == "finally" else [True])
    not_sent = [record for record in caplog.records if "is not sent" in record.getMessage()]
    assert len(not_sent) == (end == "disconnect")


async def test_an_error_in_the_cleanup_leaves_as_itself() -> None:
    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            raise LookupError("rollback failed")

    with pytest.raises(LookupError, match="rollback"):
        async with connect(sse_app(source)) as stream:
            await stream.receive()


async def test_an_async_generator_of_somebody_elses_making() -> None:
    class Generator(AsyncGenerator[str, None]):
        """By its methods an async generator; its awaitables are no coroutines."""

        def __init__(self) -> None:
            self.left = ["a", "b"]
            self.closed = False

        def __anext__(self) -> Any:
            return Soon(self.left.pop(0)) if self.left else End()

        async def asend(self, value: None) -> str:
            raise AssertionError

        async def athrow(self, *exc: Any) -> Any:
            raise AssertionError

        async def aclose(self) -> None:
            self.closed = True

    class Soon:
        def __init__(self, value: str) -> None:
            self.value = value

        def __await__(self) -> Any:
            yield from checkpoint().__await__()
            return self.value

    class End:
        def __await__(self) -> Any:
            raise StopAsyncIteration
            yield

    made = Generator()
    async with connect(sse_app(lambda: made)) as stream:
        assert [event.data async for event in stream] == ["a", "b"]
    assert made.closed


async def test_iterables_of_every_kind_are_closed() -> None:
    closed: list[str] = []

    class AsyncIterable:
        async def __aiter__(self) -> AsyncIterator[str]:
            try:
                yield "a"
                await anyio.sleep_forever()
            finally:
                closed.append("iterable")

    class AsyncIter:
        def __aiter__(self) -> AsyncIterator[str]:
            return self

        async def __anext__(self) -> str:
            await checkpoint()
            return "a"

        async def aclose(self) -> None:
            closed.append("iterator")

    for source in (AsyncIterable, AsyncIter):
        async with connect(sse_app(partial(lambda source: source(), source))) as stream:
            assert (await stream.receive()).data == "a"
    assert closed == ["iterable", "iterator"]


async def test_a_memory_channel_is_a_source() -> None:
    sender, receiver = anyio.create_memory_object_stream[str](10)
    async with sender, connect(sse_app(lambda: receiver)) as stream:
        await sender.send("a")
        assert (await stream.receive()).data == "a"
        await stream.disconnect()
        with pytest.raises(anyio.BrokenResourceError):
            await sender.send("b")


# -- cancellation from outside ---------------------------------------------------------------------


async def test_a_scope_around_the_app_ends_the_stream_in_order() -> None:
    recorder = Recorder()
    messages: list[Any] = []

    async def send(message: Any) -> None:
        await checkpoint()
        messages.append(message)

    app = sse_app(lambda: recorder.source("a", cleanup=0.02), on_close=recorder.on_close)
    with anyio.move_on_after(0.05) as scope:
        await app(http_scope(), never, send)
    assert scope.cancelled_caught
    assert recorder.closed
    assert recorder.report.reason is CloseReason.CANCELLED
    assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("where", ["waiting", "sending", "ignoring"])
async def test_a_native_cancellation_ends_the_stream_in_order(where: str) -> None:
    """What hypercorn and daphne do at the end: Task.cancel()."""
    recorder = Recorder()
    messages: list[Any] = []

    async def ignoring() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            recorder.cleanup_began = True
            await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if where == "sending" and b"b" in message.get("body", b""):
            await anyio.sleep_forever()
        messages.append(message)

    def factory() -> AsyncIterator[Any]:
        if where == "ignoring":
            return ignoring()
        return recorder.source("a", *(["b"] if where == "sending" else []), cleanup=0.01)

    patience = 0.05 if where == "ignoring" else 10
    app = sse_app(factory, on_close=recorder.on_close, cleanup_timeout=patience)
    task = asyncio.ensure_future(app(http_scope(), never, send))
    while len(messages) < 2:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    task.cancel()
    with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.cleanup_began
    assert recorder.closed is (where != "ignoring")
    assert recorder.report.reason is CloseReason.CANCELLED
    # Nobody knows what has become of what was being sent: that must not look complete.
    assert messages[-1]["more_body"] is (where == "sending")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("then", ["disconnect", "drain"])
async def test_a_native_cancellation_and_another_end_leave_the_cleanup_alone(then: str) -> None:
    recorder = Recorder()
    shutdown = Shutdown()
    gone = anyio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    app = sse_app(
        lambda: recorder.source("a", cleanup=0.1), on_close=recorder.on_close, shutdown=shutdown
    )
    task = asyncio.ensure_future(app(http_scope(), receive, send))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    assert recorder.cleanup_began
    if then == "drain":
        shutdown.drain()
    gone.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.closed
    assert len(recorder.reports) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("pings", "send_timeout"), [("go out", None), ("are stuck", 0.2)])
async def test_a_native_cancellation_then_a_ping_then_a_cleanup_that_hangs(
    pings: str, send_timeout: float | None
) -> None:
    """The watchdog has other things to do meanwhile; all of it takes a bounded time."""
    # Cancelled at the end of the cleanup, or given up by a client that takes nothing.
    assert await cancelled_before_a_ping(pings == "are stuck", send_timeout, 20) in (
        CloseReason.CANCELLED,
        CloseReason.SEND_TIMEOUT,
    )


@pytest.mark.sse_app_only
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_then_a_ping_that_may_be_stuck_for_ever() -> None:
    assert await cancelled_before_a_ping(True, None, 20) is CloseReason.CANCELLED


async def cancelled_before_a_ping(
    stuck: bool, send_timeout: float | None, patience: float
) -> CloseReason | None:
    """Cancel a stream whose source hangs in its cleanup; return why it has ended, if it has."""
    recorder, taken = Recorder(), anyio.Event()
    sent: list[bytes] = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            recorder.cleanup_began = True
            await anyio.sleep_forever()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if stuck and recorder.cleanup_began:
            await taken.wait()

    app = sse_app(
        source,
        ping=0.02,
        send_timeout=send_timeout,
        cleanup_timeout=0.5,
        on_close=recorder.on_close,
    )
    task = asyncio.ensure_future(app(http_scope(), never, send))
    while b"data: a\n\n" not in sent:
        await asyncio.sleep(0.001)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=patience)
    reason = recorder.report.reason if done else None
    taken.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert recorder.cleanup_began
    assert b":\n\n" in sent
    return reason


async def test_pings_that_take_longer_than_their_interval_starve_nobody() -> None:
    """The send of this server never lets others run."""
    others = 0
    sent: list[Any] = []

    async def source() -> AsyncIterator[str]:
        nonlocal others
        while others < 99:
            others += 1
            await anyio.lowlevel.checkpoint()
        yield "done"

    async def send(message: Any) -> None:
        sent.append(message)

    app = sse_app(source, ping=1e-9, ping_message_factory=lambda: {"comment": "ping"})
    with anyio.fail_after(20):
        await app(http_scope(), never, send)
    assert others == 99
    assert b": ping\n\n" in [message.get("body") for message in sent]


async def test_an_oserror_of_the_ping_factory_is_an_error() -> None:
    """It is no client that has left: only ``receive`` and ``send`` can tell that."""
    recorder = Recorder()

    def ping() -> Any:
        raise ConnectionError("the database is away")

    app = sse_app(
        lambda: recorder.source("a"),
        ping=0.01,
        ping_message_factory=ping,
        on_close=recorder.on_close,
    )
    with pytest.raises(ConnectionError, match="the database"):
        async with connect(app) as stream:
            await stream.receive()
            await stream.receive()
    assert recorder.report.reason is CloseReason.ERROR
    assert recorder.closed


# -- the last chunk --------------------------------------------------------------------------------


@on_mock_clock
async def test_a_last_chunk_that_is_not_accepted_can_be_ended_in_every_way() -> None:
    for way in ("timeout", "disconnect", "drain", "outer"):
        recorder = Recorder()
        shutdown = Shutdown()
        gone = trio.Event()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("more_body") is False:
                await trio.sleep_forever()

        async def source() -> AsyncIterator[str]:
            yield "a"

        app = sse_app(
            source,
            shutdown=shutdown,
            send_timeout=100 if way == "timeout" else None,
            on_close=recorder.on_close,
        )
        with trio.CancelScope() as outer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(app, http_scope(), receive, send)
                await trio.sleep(7)
                if way == "disconnect":
                    gone.set()
                elif way == "drain":
                    shutdown.drain()
                elif way == "outer":
                    outer.cancel()
        reason, duration = {
            "timeout": (CloseReason.SEND_TIMEOUT, 100),
            "disconnect": (CloseReason.CLIENT_DISCONNECTED, 7 + 5),
            "drain": (CloseReason.SHUTDOWN, 7 + 5),
            "outer": (CloseReason.CANCELLED, 7),
        }[way]
        assert recorder.report.reason is reason
        assert recorder.report.duration == pytest.approx(duration, abs=0.1)


@on_mock_clock
async def test_a_disconnect_that_only_says_that_the_response_is_complete() -> None:
    """Some servers (hypercorn) give it while ``send`` of the last chunk has not returned."""
    recorder = Recorder()
    complete = trio.Event()

    async def source() -> AsyncIterator[str]:
        yield "a"

    async def receive() -> Any:
        await complete.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("more_body") is False:
            complete.set()
            await trio.sleep(1)

    await sse_app(source, on_close=recorder.on_close)(http_scope(), receive, send)
    assert recorder.report.reason is CloseReason.FINISHED
    assert recorder.report.duration == 1


@on_mock_clock
async def test_nothing_is_sent_twice_where_a_start_is_stuck() -> None:
    sent: list[str] = []

    async def source() -> AsyncIterator[str]:
        await trio.sleep(1)
        raise HTTPError(403)
        yield "never"

    async def send(message: Any) -> None:
        sent.append(message["type"])
        await trio.sleep(1000)

    with pytest.raises(HTTPError):
        await sse_app(source, send_timeout=None)(http_scope(), never, send)
    assert sent == ["http.response.start"]


async def test_what_send_raises_leaves_as_itself_and_ends_all_sending() -> None:
    sent: list[Any] = []
    asked: list[Exception] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body"):
            raise KeyError("the server is broken")

    def on_error(exc: Exception) -> str:
        asked.append(exc)
        return "sorry"

    with pytest.raises(KeyError, match="the server is broken"):
        await sse_app(lambda: ["a", "b"], on_error=on_error)(http_scope(), never, send)
    assert [message.get("body") for message in sent if message.get("body")] == [b"data: a\n\n"]
    assert asked == []


# -- fairness and order ----------------------------------------------------------------------------


async def test_a_source_that_never_waits_does_not_starve_the_others() -> None:
    """Regression 16: fastapi#14680. And it still ends when the client leaves."""
    recorder = Recorder()
    gone = anyio.Event()
    sends = 0

    async def source() -> AsyncIterator[str]:
        while True:
            yield "a"

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sends
        sends += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sse_app(source, on_close=recorder.on_close), http_scope(), receive, send)
        for _ in range(10):
            await checkpoint()
        gone.set()
    assert sends > 10
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


async def test_the_source_is_asked_for_the_next_event_when_the_last_was_accepted() -> None:
    asked: list[int] = []

    async def source() -> AsyncIterator[str]:
        for number in range(10):
            asked.append(number)
            yield "x"

    async with connect(sse_app(source)) as stream:
        stream.stall()
        for _ in range(100):
            await checkpoint()
        seen = len(asked)
        assert seen <= 2
        stream.resume()
        assert len([event async for event in stream]) == 10


async def test_two_tasks_a_stream() -> None:
    """An idle stream costs its own task and the watchdog."""
    recorder = Recorder()
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = count_tasks()

        async def counting_receive() -> Any:
            seen.append(count_tasks() - before)
            return await receive()

        await sse_app(lambda: recorder.source("a"), ping=0.01)(scope, counting_receive, send)

    async with connect(app) as stream:
        await stream.receive()
        while len(seen) < 5:
            await anyio.sleep(0.01)
    assert set(seen) == {1}


def count_tasks() -> int:
    return len(anyio.get_running_tasks())


async def test_a_replayed_request_body_is_no_disconnect_and_no_busy_loop() -> None:
    """Regression 13: kubently#65. A middleware answers every receive() with the body again."""
    calls = 0
    gone = False

    async def receive() -> Any:
        nonlocal calls
        calls += 1
        return {"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"x"}

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, http_scope(), receive, send)
        await anyio.sleep(0.2)
        assert not recorder.closed
        assert calls < 10
        gone = True
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


@on_mock_clock
async def test_a_replayed_body_does_not_hide_the_disconnect_behind_pings() -> None:
    for ping in (0.05, 1.0, 15.0, None):
        recorder = Recorder()
        gone = False

        async def receive() -> Any:
            if gone:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message: Any) -> None:
            pass

        app = sse_app(lambda: recorder.source("a"), ping=ping, on_close=recorder.on_close)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app, http_scope(), receive, send)
            await trio.sleep(100)
            gone = True
        assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
        assert recorder.report.duration <= 101


@on_mock_clock
async def test_a_body_may_be_replayed_for_days() -> None:
    calls = 0

    async def receive() -> Any:
        nonlocal calls
        calls += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    async def source() -> AsyncIterator[str]:
        await trio.sleep(3600)
        yield "a"

    async def send(message: Any) -> None:
        pass

    await sse_app(source)(http_scope(), receive, send)
    assert 2500 < calls < 4000


# -- on_close --------------------------------------------------------------------------------------


@on_mock_clock
async def test_on_close_is_bounded_and_may_be_async() -> None:
    reports: list[CloseReport] = []

    async def on_close(report: CloseReport) -> None:
        await trio.sleep(1)
        reports.append(report)
        await trio.sleep(1000)

    began = trio.current_time()
    async with connect(sse_app(never_yields, on_close=on_close)) as stream:
        await stream.disconnect()
    assert len(reports) == 1
    assert trio.current_time() - began == 5


async def test_an_error_in_on_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def on_close(report: CloseReport) -> None:
        raise KeyError("report")

    async with connect(sse_app(lambda: ["a"], on_close=on_close)) as stream:
        assert len([event async for event in stream]) == 1
    assert "on_close raised" in caplog.text


@pytest.mark.not_compressed
async def test_bytes_count_everything_in_the_body() -> None:
    recorder = Recorder()

    def source() -> Iterator[Any]:
        yield "a"
        yield b"data: b\n\n"

    async with connect(sse_app(source, retry=5, on_close=recorder.on_close)) as stream:
        assert [event.data async for event in stream] == ["a", "b"]
    assert recorder.report.events == 2
    assert recorder.report.bytes == len(b"retry: 5\n\ndata: a\n\ndata: b\n\n")
    assert math.isfinite(recorder.report.duration)


@pytest.mark.not_compressed
@pytest.mark.parametrize("way", ["finish", "drain", "disconnect", "error", "on_error", "stall"])
def test_bytes_count_what_the_watchdog_has_sent(way: str) -> None:
    """The start of the body, pings and a farewell, whichever way the stream ends."""

    @on_mock_clock
    async def test() -> None:
        recorder, shutdown, gone = Recorder(), Shutdown(), trio.Event()
        bodies: list[bytes] = []

        async def source() -> AsyncIterator[str]:
            await trio.sleep(12)
            yield "a"
            await trio.sleep(8)
            if way in ("error", "on_error"):
                raise LookupError
            if way == "stall":
                yield "too much"
            if way != "finish":
                await trio.sleep_forever()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"too much" in message.get("body", b""):
                await trio.sleep_forever()
            bodies.append(message.get("body", b""))

        app = sse_app(
            source,
            ping=5,
            retry=1000,
            shutdown=shutdown,
            on_close=recorder.on_close,
            on_error=(lambda exc: "sorry") if way == "on_error" else None,
        )
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                with pytest.raises(LookupError) if way == "error" else nullcontext():
                    await app(http_scope(), receive, send)

            nursery.start_soon(client)
            await trio.sleep(21)
            if way == "disconnect":
                gone.set()
            elif way == "drain":
                shutdown.drain()
        body = b"".join(bodies)
        assert body.startswith(b"retry: 1000\n\n:\n\n:\n\ndata: a\n\n:\n\n")
        farewell, _, rest = body.partition(b"data: a\n\n:\n\n")[2].partition(b": ")
        expected = {"drain": (b"retry", 6), "on_error": (b"data", 7)}.get(way, (b"", 0))
        assert (farewell, len(rest)) == expected
        assert recorder.report.bytes == len(body)
        assert recorder.report.events == 1 + (way == "on_error")

    test()


@pytest.mark.not_compressed
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("ends", ["finish", "drain"])
async def test_bytes_count_what_was_handed_over_to_the_watchdog(ends: str) -> None:
    """Events that the source has yielded in a row, before it waits."""
    recorder, shutdown = Recorder(), Shutdown()
    bodies: list[bytes] = []
    handed_over = anyio.Event()

    async def source() -> AsyncIterator[str]:
        for number in range(100):
            yield str(number)
        await handed_over.wait()
        if ends == "drain":
            await anyio.sleep_forever()

    async def send(message: Any) -> None:
        await checkpoint()
        bodies.append(message.get("body", b""))
        if b"data: 99\n" in bodies[-1]:
            handed_over.set()

    app = sse_app(source, shutdown=shutdown, retry=7, ping=None, on_close=recorder.on_close)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, http_scope(), never, send)
        await handed_over.wait()
        if ends == "drain":
            shutdown.drain()
    assert b"".join(bodies).count(b"data: ") == 100
    assert recorder.report.bytes == len(b"".join(bodies))
    assert recorder.report.events == 100


async def test_what_a_source_has_handled_is_not_the_context_of_what_it_raises_later() -> None:
    handled: list[object] = []

    async def source() -> AsyncIterator[str]:
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()
        yield "a"
        handled.append(sys.exc_info()[1])
        raise ValueError("unrelated")

    with pytest.raises(ValueError, match="unrelated") as caught:
        await sse_app(source)(http_scope(), never, _ignore)
    assert handled == [None]
    assert caught.value.__context__ is None


async def _ignore(message: object) -> None:
    pass
