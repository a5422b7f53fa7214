"""A stream is never deaf: whatever its watchdog sends, and however long that waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import trio

from sse_asgi import CloseReason, Shutdown, sse_app
from sse_asgi.servers.base import Server
from sse_asgi.starlette import EventSourceResponse

from .at_once import Cycle
from .plain import Plain, in_a_scope, is_an_event
from .streams import Recorder, http_scope, on_mock_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("through_every_entry_point")]


def is_a_ping(message: Any) -> bool:
    return bool(message.get("body") == b":\n\n")


def a_ping_after_all() -> Any:
    """Tell the first ping after the last event: a ping before it has to be let through."""
    seen = False

    def is_it(message: Any) -> bool:
        nonlocal seen
        seen = seen or b"data: 7" in message.get("body", b"")
        return seen and is_a_ping(message)

    return is_it


#: What the watchdog sends, and what tells that message.
SENDS: dict[str, Any] = {
    "the start": lambda: lambda message: message["type"] == "http.response.start",
    "a ping": a_ping_after_all,
    "what was handed over": lambda: lambda message: b"data: 7" in message.get("body", b""),
}


class Talkative(Recorder):
    """A source that yields more in a row than is sent one by one, and then waits."""

    async def talk(self) -> AsyncIterator[str]:
        try:
            await anyio.sleep(0.01)
            for number in range(8):
                yield str(number)
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            self.closed = True

    def source_for(self, sends: str) -> Any:
        if sends == "the start":
            return self.source()
        return self.talk()


def app_for(sends: str, recorder: Talkative, **options: Any) -> Any:
    options = {"send_timeout": None, "cleanup_timeout": 100, **options}
    ping = 0.05 if sends == "a ping" else None
    return sse_app(
        lambda: recorder.source_for(sends), ping=ping, on_close=recorder.on_close, **options
    )


@pytest.fixture(params=list(SENDS))
def sends(
    request: pytest.FixtureRequest, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    what: str = request.param
    if what == "what was handed over":
        if anyio_backend == "trio":
            pytest.skip("on trio nothing is handed over: events are not joined there")
        # On a busy machine the last event may come too late to be joined; the host sends it, then.
        monkeypatch.setattr("sse_asgi.supervisor.pump.monotonic", lambda: 1.0)
    return what


def tasks_of(backend: str) -> int:
    if backend == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


@pytest.fixture
async def nothing_left(anyio_backend: str) -> AsyncIterator[None]:
    """Look that there is no task more than before."""
    before = tasks_of(anyio_backend)
    yield
    for _ in range(100):  # a timer of trio's takes a moment
        if tasks_of(anyio_backend) <= before:
            break
        await anyio.sleep(0.001)
    assert tasks_of(anyio_backend) <= before


@pytest.mark.usefixtures("nothing_left")
async def test_a_disconnect_is_seen_while_the_watchdog_sends(sends: str) -> None:
    recorder = Talkative()
    async with Plain(app_for(sends, recorder), stuck=SENDS[sends]()) as server:
        await server.gets_stuck()
        server.disconnect()
        await server.returns()
        assert recorder.closed
        assert not server.complete
        assert server.error is None
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("then", ["the client reads on", "it does not", "it leaves"])
async def test_a_drain_is_seen_while_the_watchdog_sends(sends: str, then: str) -> None:
    """The source is closed at once, and what is being sent may come to its end."""
    recorder, shutdown = Talkative(), Shutdown()
    patience = 0.2 if then == "it does not" else 100
    app = app_for(sends, recorder, shutdown=shutdown, cleanup_timeout=patience)
    async with Plain(app, stuck=SENDS[sends]()) as server:
        await server.gets_stuck()
        shutdown.drain()
        with anyio.fail_after(5):
            while not recorder.closed:
                await anyio.sleep(0.001)
        if then == "it leaves":
            server.disconnect()
        elif then == "the client reads on":
            assert not server.returned
            server.resume()
        await server.returns()
        assert server.error is None
        assert server.complete is (then == "the client reads on")
    if then == "the client reads on" and sends != "the start":
        assert server.body.replace(b":\n\n", b"") == b"".join(
            b"data: %d\n\n" % number for number in range(8)
        )
        assert recorder.report.events == 8
    if then != "it leaves":
        assert recorder.report.reason is CloseReason.SHUTDOWN


@pytest.mark.usefixtures("nothing_left")
async def test_a_scope_around_is_seen_while_the_watchdog_sends(sends: str) -> None:
    recorder, scope = Talkative(), anyio.CancelScope()
    app = in_a_scope(app_for(sends, recorder), scope)
    async with Plain(app, stuck=SENDS[sends]()) as server:
        await server.gets_stuck()
        scope.cancel()
        await server.returns()
        assert recorder.closed
        assert scope.cancelled_caught
        assert not server.complete  # nobody knows what has become of the message
    assert recorder.report.reason is CloseReason.CANCELLED


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_task_is_seen_while_the_watchdog_sends(sends: str) -> None:
    recorder = Talkative()
    async with Plain(app_for(sends, recorder), stuck=SENDS[sends]()) as server:
        await server.gets_stuck()
        server.cancel()
        await server.returns()
        assert recorder.closed
        assert not server.complete
    assert recorder.report.reason is CloseReason.CANCELLED


async def test_the_end_of_its_grace_period_comes_while_the_watchdog_sends(sends: str) -> None:
    recorder, shutdown = Talkative(), Shutdown()
    app = app_for(sends, recorder, shutdown=shutdown, shutdown_grace_period=0.1)
    async with Plain(app, stuck=SENDS[sends]()) as server:
        await server.gets_stuck()
        shutdown.drain()
        await anyio.sleep(0.02)
        assert not recorder.closed
        with anyio.fail_after(5):
            while not recorder.closed:
                await anyio.sleep(0.001)
        assert not server.returned


async def test_max_lifetime_comes_while_the_watchdog_sends(sends: str) -> None:
    recorder = Talkative()
    app = app_for(sends, recorder, max_lifetime=1)  # long after what is sent
    async with Plain(app, stuck=SENDS[sends]()) as server:
        await server.gets_stuck()
        with anyio.fail_after(5):
            while not recorder.closed:
                await anyio.sleep(0.001)
        server.resume()
        await server.returns()
        assert server.complete
    assert recorder.report.reason is CloseReason.MAX_LIFETIME


async def test_what_receive_raises_comes_while_the_watchdog_sends(sends: str) -> None:
    recorder, raises = Talkative(), anyio.Event()

    async def receive() -> Any:
        await raises.wait()
        raise ValueError("middleware")

    app = app_for(sends, recorder, cleanup_timeout=0.1)
    async with Plain(app, stuck=SENDS[sends](), receive=receive) as server:
        await server.gets_stuck()
        raises.set()
        await server.returns()
        error = server.error
        assert isinstance(error, ValueError)
        assert not server.complete
    assert recorder.closed
    assert recorder.report.error is error


@on_mock_clock
async def test_who_reads_on_gets_pings_again_and_there_are_two_tasks_as_before() -> None:
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), ping=1, send_timeout=None)
    async with Plain(app, stuck=is_a_ping) as server:
        await trio.sleep(0.5)
        before = tasks_of("trio")
        await trio.sleep(10)
        assert tasks_of("trio") == before + 1  # only as long as it waits
        assert server.body == b"data: a\n\n"
        server.resume()
        await trio.sleep(3.6)
        assert tasks_of("trio") == before
        assert server.body == b"data: a\n\n" + b":\n\n" * 4


@on_mock_clock
async def test_a_disconnect_is_heard_once_and_the_time_is_that_of_the_disconnect() -> None:
    for sends in ("the start", "a ping"):
        recorder, calls = Talkative(), 0
        gone = anyio.Event()

        async def receive() -> Any:
            nonlocal calls
            await gone.wait()
            calls += 1
            return {"type": "http.disconnect"}

        app = app_for(sends, recorder)
        async with Plain(app, stuck=SENDS[sends](), receive=receive) as server:
            await trio.sleep(1000)
            gone.set()
            await server.returns()
        assert server.took == 1000
        assert calls == 1


@on_mock_clock
async def test_only_one_task_receives_at_a_time() -> None:
    """A server may answer two at once with an error."""
    receiving = most = 0

    async def receive() -> Any:
        nonlocal receiving, most
        receiving += 1
        most = max(most, receiving)
        try:
            await trio.sleep(0.7)
            return {"type": "http.request", "body": b"", "more_body": False}
        finally:
            receiving -= 1

    async def source() -> AsyncIterator[str]:
        for number in range(30):
            yield str(number)
            await trio.sleep(1.9)

    async def send(message: Any) -> None:
        await trio.sleep(0.9)

    await sse_app(source, ping=1)(http_scope(), receive, send)
    assert most == 1


# -- what the host sends, and the end --------------------------------------------------------------


async def test_a_disconnect_is_seen_while_the_host_sends() -> None:
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source("a"), send_timeout=None, cleanup_timeout=100,
        on_close=recorder.on_close,
    )  # fmt: skip
    async with Plain(app, stuck=is_an_event) as server:
        await server.gets_stuck()
        server.disconnect()
        await server.returns()
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    assert recorder.closed


async def test_a_scope_around_is_seen_while_the_host_sends() -> None:
    recorder, scope = Recorder(), anyio.CancelScope()
    app = sse_app(
        lambda: recorder.source("a"), send_timeout=None, cleanup_timeout=100,
        on_close=recorder.on_close,
    )  # fmt: skip
    async with Plain(in_a_scope(app, scope), stuck=is_an_event) as server:
        await server.gets_stuck()
        scope.cancel()
        await server.returns()
        assert not server.complete
    assert recorder.report.reason is CloseReason.CANCELLED
    assert recorder.closed


@on_mock_clock
async def test_a_cancelled_stream_tries_its_last_chunk_for_a_second() -> None:
    recorder, scope = Recorder(), anyio.CancelScope()
    app = sse_app(
        lambda: recorder.source("a", cleanup=3), send_timeout=None, cleanup_timeout=100,
        on_close=recorder.on_close,
    )  # fmt: skip

    def is_the_end(message: Any) -> bool:
        return message.get("more_body") is False

    async with Plain(in_a_scope(app, scope), stuck=is_the_end) as server:
        await trio.sleep(5)
        scope.cancel()
        await server.returns(within=50)
    assert server.took == 5 + 3 + 1


@pytest.mark.not_compressed
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("cancels", ["a scope around", "Task.cancel()"])
async def test_a_cancelled_stream_tries_for_a_second_where_sends_are_at_once(cancels: str) -> None:
    """Where it is known that nothing was written, it is sent again, but not for long."""
    cycle, recorder, scope = Cycle(), Talkative(), anyio.CancelScope()
    app = in_a_scope(app_for("a ping", recorder), scope)
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    await cycle.has(b"data: 7")
    cycle.pause()
    await asyncio.sleep(0.1)  # there is a ping that waits
    began = time.monotonic()
    if cancels == "a scope around":
        scope.cancel()
    else:
        task.cancel()
    await asyncio.wait([task], timeout=20)
    assert time.monotonic() - began > 0.5
    assert task.done()
    assert recorder.closed
    assert not cycle.complete
    cycle.resume()


@pytest.mark.parametrize("sent", ["taken", "not taken"])
async def test_a_disconnect_that_comes_while_the_last_chunk_is_on_its_way(sent: str) -> None:
    """It may mean that the response is complete: what is on its way has its time."""
    recorder = Recorder()
    said = anyio.Event()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await anyio.lowlevel.checkpoint()

    async def receive() -> Any:
        await said.wait()
        return {"type": "http.disconnect"}

    def is_the_end(message: Any) -> bool:
        return message.get("more_body") is False

    app = sse_app(source, send_timeout=None, cleanup_timeout=0.2, on_close=recorder.on_close)
    async with Plain(app, stuck=is_the_end, receive=receive) as server:
        await server.gets_stuck()
        said.set()
        await anyio.sleep(0.05)
        assert not server.returned
        if sent == "taken":
            server.resume()
        await server.returns()
        assert server.complete is (sent == "taken")
        assert server.error is None
    assert recorder.report.reason is (
        CloseReason.FINISHED if sent == "taken" else CloseReason.CLIENT_DISCONNECTED
    )


@on_mock_clock
async def test_a_last_chunk_after_a_disconnect_has_cleanup_timeout() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        await trio.sleep(1)

    def is_the_end(message: Any) -> bool:
        return message.get("more_body") is False

    app = sse_app(source, send_timeout=None, cleanup_timeout=7)
    async with Plain(app, stuck=is_the_end) as server:
        await trio.sleep(10)
        assert not server.returned
        server.disconnect()
        await server.returns(within=50)
    assert server.took == 10 + 7


# -- who takes something, however slowly -----------------------------------------------------------


async def served_by(progress: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Serve a client that takes no message, but something of it, as ``progress`` tells."""
    monkeypatch.setattr(Server, "progress", lambda self: progress())
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), ping=None, on_close=recorder.on_close, **options)
    began = trio.current_time()
    async with Plain(app, stuck=is_an_event) as server:
        await server.returns(within=100_000)
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert recorder.closed
    return trio.current_time() - began


def test_the_send_timeout_is_exact_where_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_mock_clock
    async def test() -> None:
        for seconds in (0.5, 8, 30):
            took = await served_by(lambda: None, monkeypatch, send_timeout=seconds)
            assert took == pytest.approx(seconds)

    test()


def test_the_send_timeout_of_who_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_mock_clock
    async def test() -> None:
        for seconds in (0.5, 8, 30):
            took = await served_by(lambda: 17, monkeypatch, send_timeout=seconds)
            assert seconds <= took <= 1.25 * seconds + 1e-9

    test()


def test_who_takes_something_stays_as_long_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks: the least that a slow reader may do in a ``send_timeout``."""

    @on_mock_clock
    async def test() -> None:
        began = trio.current_time()

        def taken() -> int:
            # Something every 7 seconds, until 1000 seconds have passed.
            return int(min(trio.current_time() - began, 1000) // 7)

        took = await served_by(taken, monkeypatch, send_timeout=8)
        assert 994 + 8 <= took <= 1000 + 1.25 * 8

    test()


def test_the_send_timeout_of_a_ping_begins_anew_too(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_mock_clock
    async def test() -> None:
        began = trio.current_time()
        monkeypatch.setattr(
            Server, "progress", lambda self: int(min(trio.current_time() - began, 100))
        )
        recorder = Recorder()
        app = sse_app(
            lambda: recorder.source("a"), ping=1, send_timeout=4, on_close=recorder.on_close
        )
        async with Plain(app, stuck=is_a_ping) as server:
            await server.returns(within=1000)
        assert 104 <= server.took <= 106
        assert recorder.report.reason is CloseReason.SEND_TIMEOUT

    test()


def test_progress_is_not_asked_for_without_a_send_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_mock_clock
    async def test() -> None:
        asked = 0

        def progress(self: Server) -> None:
            nonlocal asked
            asked += 1

        monkeypatch.setattr(Server, "progress", progress)
        recorder = Recorder()
        async with Plain(
            sse_app(lambda: recorder.source("a"), ping=None, send_timeout=None),
            stuck=is_an_event,
        ) as server:
            await trio.sleep(10_000)
            assert not server.returned
        assert asked == 0

    test()


def test_who_takes_something_when_the_stream_is_told_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is being sent then has ``cleanup_timeout``, and not a time without end."""

    @on_mock_clock
    async def test() -> None:
        monkeypatch.setattr(Server, "progress", lambda self: trio.current_time())
        recorder, shutdown = Recorder(), Shutdown()
        app = sse_app(
            lambda: recorder.source("a"), ping=None, send_timeout=4, cleanup_timeout=9,
            shutdown=shutdown, on_close=recorder.on_close,
        )  # fmt: skip
        async with Plain(app, stuck=is_an_event) as server:
            await trio.sleep(50)
            shutdown.drain()
            await server.returns(within=1000)
            assert not server.complete
        assert server.took == pytest.approx(59)
        assert recorder.report.reason is CloseReason.SHUTDOWN

    test()


# -- the client's close handler --------------------------------------------------------------------


async def test_the_close_handler_is_told_while_the_watchdog_sends(sends: str) -> None:
    recorder, told = Talkative(), anyio.Event()

    async def handler(message: Any) -> None:
        told.set()

    response = EventSourceResponse(
        recorder.source_for(sends), ping=0.05 if sends == "a ping" else 1000, sep="\n",
        client_close_handler_callable=handler,
    )  # fmt: skip
    async with Plain(response, stuck=SENDS[sends]()) as server:
        await server.gets_stuck()
        server.disconnect()
        await server.returns()
    assert told.is_set()
    assert recorder.closed
