"""The right of a client to listen: it expires, or the application takes it back."""

from __future__ import annotations

import datetime
import gc
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from sse_asgi import CloseReason, HTTPError, SSERequest, sse_app
from sse_asgi.testing import connect

from .streams import Recorder, http_scope, on_mock_clock

pytestmark = pytest.mark.anyio


def in_seconds(seconds: float) -> float:
    return time.time() + seconds


def as_datetime(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)


def elsewhere(seconds: float) -> datetime.datetime:
    zone = datetime.timezone(datetime.timedelta(hours=-7))
    return as_datetime(seconds).astimezone(zone)


@pytest.mark.parametrize("when", [in_seconds, as_datetime, elsewhere])
def test_a_stream_ends_when_it_expires(when: Any) -> None:
    """As at its max_lifetime: the client gets a clean end, and when to come back."""

    @on_mock_clock
    async def test() -> None:
        recorder = Recorder()

        def factory(request: SSERequest) -> Any:
            request.expire_at(when(50))
            return recorder.source("a", cleanup=1)

        app = sse_app(factory, retry=1000, on_close=recorder.on_close)
        async with connect(app) as stream:
            assert [event.data async for event in stream] == ["a"]
            assert stream.complete
            assert stream.reconnection_time is not None
            assert 1000 <= stream.reconnection_time <= 2000
        assert recorder.report.reason is CloseReason.MAX_LIFETIME
        assert 50 < recorder.report.duration < 51.5

    test()


@on_mock_clock
async def test_a_source_has_its_grace_period_when_it_expires() -> None:
    recorder = Recorder()

    async def source(request: SSERequest) -> Any:
        request.expire_at(in_seconds(10))
        while not request.shutting_down:
            yield "on"
            await trio.sleep(4)
        yield "bye"

    app = sse_app(source, shutdown_grace_period=5, on_close=recorder.on_close)
    async with connect(app) as stream:
        assert [event.data async for event in stream] == ["on", "on", "on", "bye"]
    assert recorder.report.reason is CloseReason.MAX_LIFETIME
    assert 11.5 < recorder.report.duration < 12.5


@on_mock_clock
async def test_the_last_call_counts() -> None:
    """A client may renew its right, and lose it."""
    recorder = Recorder()

    async def source(request: SSERequest) -> Any:
        request.expire_at(in_seconds(10))
        await trio.sleep(5)
        request.expire_at(in_seconds(100))
        await trio.sleep(50)
        yield "still here"
        request.expire_at(in_seconds(1))
        await trio.sleep(40)
        yield "never"

    async with connect(sse_app(source, on_close=recorder.on_close)) as stream:
        assert [event.data async for event in stream] == ["still here"]
    assert 55.5 < recorder.report.duration < 56.5


@pytest.mark.parametrize("waits", [False, True])
async def test_a_right_that_is_over_already(waits: bool) -> None:
    recorder = Recorder()

    def factory(request: SSERequest) -> Any:
        request.expire_at(0)
        return recorder.source()

    async def waiting(request: SSERequest) -> Any:
        await checkpoint()
        return factory(request)

    app = sse_app(waiting if waits else factory, on_close=recorder.on_close)
    with anyio.fail_after(5):
        async with connect(app) as stream:
            assert [event async for event in stream] == []
            assert stream.complete
    assert recorder.report.reason is CloseReason.MAX_LIFETIME


async def test_a_source_in_a_thread_may_say_when_it_expires() -> None:
    recorder = Recorder()

    def source(request: SSERequest) -> Iterator[str]:
        yield "a"
        request.expire_at(time.time() + 0.2)
        while not request.shutting_down:
            time.sleep(0.01)

    app = sse_app(source, on_close=recorder.on_close, shutdown_grace_period=5)
    with anyio.fail_after(5):
        async with connect(app) as stream:
            assert [event.data async for event in stream] == ["a"]
    assert recorder.report.reason in (CloseReason.MAX_LIFETIME, CloseReason.FINISHED)


@pytest.mark.parametrize(
    ("when", "error"),
    [
        (None, TypeError),
        ("2030-01-01", TypeError),
        (True, TypeError),
        (datetime.date(2030, 1, 1), TypeError),
        (datetime.timedelta(hours=1), TypeError),
        (datetime.datetime(2030, 1, 1), ValueError),
        (float("nan"), ValueError),
    ],
)
def test_what_is_no_time(when: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"expire_at\(\) needs"):
        SSERequest(http_scope()).expire_at(when)


async def test_what_never_expires() -> None:
    def factory(request: SSERequest) -> Any:
        request.expire_at(float("inf"))
        return Recorder().source("a")

    async with connect(sse_app(factory)) as stream:
        assert (await stream.receive()).data == "a"
        with anyio.move_on_after(0.1):
            await stream.receive()
            raise AssertionError("it has ended")


# -- recheck ---------------------------------------------------------------------------------------


class Guard:
    """Says yes so many times, and then something else."""

    def __init__(self, yes: int, then: object = False, *, waits: float = 0) -> None:
        self.yes = yes
        self.then = then
        self.waits = waits
        self.asked: list[tuple[str, int]] = []

    def may_listen(self, request: SSERequest) -> object:
        self.asked.append((request.path, threading.get_ident()))
        if len(self.asked) <= self.yes:
            return True
        if isinstance(self.then, Exception):
            raise self.then
        return self.then

    async def may_listen_async(self, request: SSERequest) -> object:
        await anyio.sleep(self.waits)
        return self.may_listen(request)

    async def __call__(self, request: SSERequest) -> object:
        return await self.may_listen_async(request)


@pytest.mark.parametrize("no", [False, None, 0, ""])
def test_a_stream_ends_when_the_application_says_no(no: object) -> None:
    @on_mock_clock
    async def test() -> None:
        guard, recorder = Guard(3, no), Recorder()
        app = sse_app(
            lambda request: recorder.source("a", cleanup=1),
            recheck=guard.may_listen_async,
            recheck_every=10,
            retry=1000,
            on_close=recorder.on_close,
        )
        async with connect(app, "/secret") as stream:
            assert [event.data async for event in stream] == ["a"]
            assert stream.complete
            assert stream.reconnection_time is not None
            assert stream.reconnection_time >= 1000
        assert recorder.report.reason is CloseReason.MAX_LIFETIME
        assert [path for path, _ in guard.asked] == ["/secret"] * 4
        assert 36 <= recorder.report.duration <= 42

    test()


@on_mock_clock
async def test_streams_that_were_opened_together_do_not_ask_together() -> None:
    times = []

    async def may_listen(request: SSERequest) -> bool:
        times.append(trio.current_time())
        return False

    async with trio.open_nursery() as nursery:

        async def visit() -> None:
            app = sse_app(lambda: Recorder().source(), recheck=may_listen, recheck_every=100)
            async with connect(app) as stream:
                assert [event async for event in stream] == []

        for _ in range(20):
            nursery.start_soon(visit)
    assert len(set(times)) > 10
    assert max(times) - min(times) > 3


@pytest.mark.parametrize("kind", ["function", "partial", "async", "object"])
@pytest.mark.usefixtures("through_every_entry_point")
async def test_what_may_answer(kind: str) -> None:
    """A function that is not async may wait for a database: it runs in a thread."""
    guard, recorder = Guard(1), Recorder()
    recheck: Any = {
        "function": guard.may_listen,
        "partial": partial(Guard.may_listen, guard),
        "async": guard.may_listen_async,
        "object": guard,
    }[kind]
    app = sse_app(
        lambda: recorder.source(), recheck=recheck, recheck_every=0.3, on_close=recorder.on_close
    )
    with anyio.fail_after(10):
        async with connect(app) as stream:
            assert [event async for event in stream] == []
    in_thread = {ident != threading.get_ident() for _, ident in guard.asked}
    assert in_thread == {kind in ("function", "partial")}
    assert recorder.report.reason is CloseReason.MAX_LIFETIME


@on_mock_clock
async def test_an_answer_that_takes_its_time_holds_nothing_up() -> None:
    guard, recorder = Guard(1, waits=5), Recorder()

    async def source() -> Any:
        while True:
            yield str(trio.current_time())
            await trio.sleep(1)

    app = sse_app(
        source, recheck=guard.may_listen_async, recheck_every=10, on_close=recorder.on_close
    )
    start = trio.current_time()
    async with connect(app) as stream:
        events = [float(event.data) - start async for event in stream]
    assert events == pytest.approx(list(range(len(events))))
    assert 27 < len(events) < 32


@pytest.mark.parametrize("then", [RuntimeError("no database"), HTTPError(403)])
@pytest.mark.usefixtures("through_every_entry_point")
async def test_an_error_instead_of_an_answer(then: Exception) -> None:
    """Who can't be asked must not be taken to have said yes."""
    guard, recorder, seen = Guard(1, then), Recorder(), list[Exception]()

    def on_error(error: Exception) -> dict[str, str]:
        seen.append(error)
        return {"event": "error", "data": "come back later"}

    app = sse_app(
        lambda: recorder.source("a"),
        recheck=guard.may_listen_async,
        recheck_every=0.05,
        on_error=on_error,
        on_close=recorder.on_close,
    )
    with anyio.fail_after(10):
        async with connect(app) as stream:
            assert [event.data async for event in stream] == ["a", "come back later"]
    assert seen == [then]
    assert recorder.report.reason is CloseReason.ERROR
    assert recorder.closed


async def test_an_answer_that_never_comes() -> None:
    recorder = Recorder()

    async def may_listen(request: SSERequest) -> bool:
        await anyio.sleep_forever()
        return True

    app = sse_app(
        lambda: recorder.source(),
        recheck=may_listen,
        recheck_every=0.05,
        on_close=recorder.on_close,
    )
    with anyio.fail_after(10), pytest.raises(TimeoutError):
        async with connect(app) as stream:
            await stream.receive()
    assert recorder.report.reason is CloseReason.ERROR
    assert isinstance(recorder.report.error, TimeoutError)


@pytest.mark.parametrize("how", ["async", "in a thread"])
async def test_nothing_is_left_of_a_question_whose_client_leaves(how: str) -> None:
    asked = threading.Event()
    goes_on = threading.Event()
    recorder = Recorder()

    def in_thread(request: SSERequest) -> bool:
        asked.set()
        goes_on.wait(10)
        return True

    async def waits(request: SSERequest) -> bool:
        asked.set()
        await anyio.sleep_forever()
        return True

    recheck: Any = waits if how == "async" else in_thread
    app = sse_app(
        lambda: recorder.source(), recheck=recheck, recheck_every=5, on_close=recorder.on_close
    )
    # As if the time had come.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sse_asgi.supervisor.recheck.uniform", lambda low, high: 0.01)
        with anyio.fail_after(5):
            async with connect(app):
                while not asked.is_set():
                    await anyio.sleep(0.001)
            assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    goes_on.set()
    await checkpoint()
    gc.collect()
    assert app.connections == 0


async def test_a_stream_without_recheck_knows_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sse_asgi.supervisor.recheck.Recheck.__init__", None)
    async with connect(sse_app(lambda: Recorder().source("a"))) as stream:
        assert (await stream.receive()).data == "a"
