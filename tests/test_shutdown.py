"""How streams learn that the server stops: drain(), signals, and who gets the handlers back."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

from sse_asgi import CloseReason, Shutdown, sse_app
from sse_asgi.testing import connect

from .streams import Recorder, on_mock_clock

pytestmark = pytest.mark.anyio

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Server:
    """A server as uvicorn is one: its handlers are methods, and say what it was told."""

    def __init__(self) -> None:
        self.should_exit = False
        self.signals: list[int] = []

    def handle_exit(self, number: int, frame: Any) -> None:
        self.signals.append(number)
        self.should_exit = True

    def start(self) -> None:
        self.found = {number: signal.signal(number, self.handle_exit) for number in NUMBERS}

    def stop(self) -> None:
        for number, handler in self.found.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the process with the handlers that it had; fail where a test does not."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    after = [signal.getsignal(number) for number in NUMBERS]
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize("number", NUMBERS)
async def test_a_signal_ends_the_streams_and_reaches_the_server(number: signal.Signals) -> None:
    server = Server()
    server.start()
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
    async with connect(app) as first, connect(app) as second:
        await first.receive()
        await second.receive()
        signal.raise_signal(number)
        assert server.signals == [number]
        for stream in (first, second):
            assert [event async for event in stream] == []
            assert stream.complete
    assert {report.reason for report in recorder.reports} == {CloseReason.SHUTDOWN}
    # The last stream has ended: the server has its own handlers back.
    assert signal.getsignal(number) == server.handle_exit
    server.stop()


async def test_a_stream_between_the_signal_and_the_stop_ends_at_once() -> None:
    server = Server()
    server.start()
    app = sse_app(lambda: Recorder().source("a"))
    async with connect(app) as stream:
        await stream.receive()
        signal.raise_signal(signal.SIGTERM)
        assert [event async for event in stream] == []
    for _ in range(2):
        async with connect(app) as late:
            assert [event async for event in late] == []
            assert late.complete
    server.stop()


async def test_the_next_server_in_the_same_event_loop_starts_fresh() -> None:
    """Regression 2: modelcontextprotocol/python-sdk#3494."""
    for shutdown in (None, Shutdown()):  # the one of the event loop, and one of the application
        recorder = Recorder()
        app = sse_app(
            lambda: recorder.source("a", "b"), on_close=recorder.on_close, shutdown=shutdown
        )
        for _ in range(3):
            server = Server()
            server.start()
            async with connect(app) as stream:
                # Complete: it gets all that there is, and ends when this server is told to.
                assert [(await stream.receive()).data for _ in "ab"] == ["a", "b"]
                signal.raise_signal(signal.SIGTERM)
                assert [event async for event in stream] == []
            server.stop()
            assert recorder.reports.pop().reason is CloseReason.SHUTDOWN
        async with connect(app) as stream:  # no server at all
            assert [(await stream.receive()).data for _ in "ab"] == ["a", "b"]


async def test_a_server_that_is_replaced_while_a_stream_is_open() -> None:
    first, second = Server(), Server()
    app = sse_app(lambda: Recorder().source("a"))
    first.start()
    async with connect(app) as old:
        await old.receive()
        first.stop()  # puts back what it found, over the handler that was chained
        second.start()
        async with connect(app) as new:
            await new.receive()
            signal.raise_signal(signal.SIGTERM)
            assert second.signals == [signal.SIGTERM]
            assert first.signals == []
            for stream in (old, new):
                assert [event async for event in stream] == []
    second.stop()


async def test_no_handler_is_installed_where_there_is_none_to_chain() -> None:
    terminate = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert terminate is signal.SIG_DFL
        async with connect(sse_app(lambda: Recorder().source("a"))) as stream:
            await stream.receive()
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, interrupt)


async def test_somebody_who_chains_our_handler_is_left_alone() -> None:
    server = Server()
    server.start()
    calls: list[int] = []
    app = sse_app(lambda: Recorder().source("a"))
    async with connect(app) as stream:
        await stream.receive()
        ours: Any = signal.getsignal(signal.SIGTERM)

        def theirs(number: int, frame: Any) -> None:
            calls.append(number)
            ours(number, frame)

        signal.signal(signal.SIGTERM, theirs)
    assert signal.getsignal(signal.SIGTERM) is theirs
    signal.raise_signal(signal.SIGTERM)
    assert calls == server.signals == [signal.SIGTERM]
    server.stop()


async def test_somebody_may_chain_our_handler_between_two_streams() -> None:
    server = Server()
    server.start()
    app = sse_app(lambda: Recorder().source("a"))
    async with connect(app) as first:
        await first.receive()
        ours: Any = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda number, frame: ours(number, frame))
        async with connect(app) as second:
            await second.receive()
            signal.raise_signal(signal.SIGTERM)
            assert server.signals == [signal.SIGTERM]
            for stream in (first, second):
                assert [event async for event in stream] == []
    server.stop()


async def test_two_servers_in_one_event_loop_both_hear_the_signal() -> None:
    """The second one puts back what it found, our handler, and sends the signal again."""
    first, second = Server(), Server()
    app = sse_app(lambda: Recorder().source("a"))
    first.start()
    async with connect(app) as one:
        await one.receive()
        second.start()
        async with connect(app) as two:
            await two.receive()
            signal.raise_signal(signal.SIGTERM)
            assert second.signals == [signal.SIGTERM]
            assert [event async for event in two] == []
        second.stop()
        signal.raise_signal(signal.SIGTERM)
        assert first.signals == [signal.SIGTERM]
        assert [event async for event in one] == []
    first.stop()


@pytest.mark.parametrize("signalled", [False, True])
async def test_the_handlers_after_a_stream_are_those_before_it(signalled: bool) -> None:
    """The very same objects; and what is ignored, or not handled at all, stays so."""
    received: list[int] = []

    def terminate(number: int, frame: Any) -> None:
        received.append(number)

    found = [signal.getsignal(number) for number in NUMBERS]
    try:
        for interrupt in (signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signal.SIGTERM, terminate)
            signal.signal(signal.SIGINT, interrupt)
            async with connect(sse_app(lambda: Recorder().source("a"))) as stream:
                await stream.receive()
                assert signal.getsignal(signal.SIGTERM) is not terminate
                assert signal.getsignal(signal.SIGINT) is interrupt
                if interrupt is signal.SIG_IGN:
                    signal.raise_signal(signal.SIGINT)
                    with anyio.move_on_after(0.02):
                        raise AssertionError(await stream.receive())
                if signalled:
                    signal.raise_signal(signal.SIGTERM)
                    assert [event async for event in stream] == []
            assert signal.getsignal(signal.SIGTERM) is terminate
            assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        for number, handler in zip(NUMBERS, found, strict=True):
            signal.signal(number, handler)
    assert received == [signal.SIGTERM] * 3 * signalled


async def test_a_server_that_handles_only_one_of_the_signals() -> None:
    signals: list[int] = []
    found = signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
    app = sse_app(lambda: Recorder().source("a"), shutdown_grace_period=20)
    async with connect(app) as first:
        await first.receive()
        signal.raise_signal(signal.SIGINT)
        async with connect(app) as late:
            assert [event async for event in late] == []
    assert signals == [signal.SIGINT]
    signal.signal(signal.SIGINT, found)


async def test_drain_from_another_thread() -> None:
    shutdown = Shutdown()
    app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown)
    async with connect(app) as stream:
        await stream.receive()
        await anyio.to_thread.run_sync(shutdown.drain)
        assert [event async for event in stream] == []
        assert stream.complete
    assert shutdown.draining


def test_one_shutdown_for_several_event_loops(anyio_backend: str) -> None:
    shutdown = Shutdown()
    app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown)
    open_streams = threading.Barrier(4, timeout=20)
    complete: list[bool] = []

    async def client() -> None:
        async with connect(app) as stream:
            await stream.receive()
            await anyio.to_thread.run_sync(open_streams.wait)
            assert [event async for event in stream] == []
            complete.append(stream.complete)

    threads = [
        threading.Thread(target=anyio.run, args=(client,), kwargs={"backend": anyio_backend})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    open_streams.wait()
    shutdown.drain()
    for thread in threads:
        thread.join(20)
    assert complete == [True] * 3
    shutdown.drain()  # their event loops are gone


async def test_another_thread_does_not_take_back_what_the_main_thread_was_told(
    anyio_backend: str,
) -> None:
    """A server in a thread hears of no signal: that is no reason to go on."""
    server, shutdown = Server(), Shutdown()
    server.start()
    app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown, shutdown_grace_period=20)
    seen: list[bool] = []

    async def client() -> None:
        with anyio.fail_after(5):
            async with connect(app) as late:
                assert [event async for event in late] == []
                seen.append(late.complete)

    async with connect(app) as stream:
        await stream.receive()
        signal.raise_signal(signal.SIGTERM)
        for _ in range(2):
            await anyio.to_thread.run_sync(partial(anyio.run, client, backend=anyio_backend))
            assert shutdown.draining
        async with connect(app) as late:
            assert [event async for event in late] == []
    assert seen == [True, True]
    server.stop()


async def test_wait() -> None:
    shutdown = Shutdown()
    woken: list[str] = []

    async def waiter(name: str) -> None:
        await shutdown.wait()
        woken.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter, "a")
        tasks.start_soon(waiter, "b")
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        assert not shutdown.draining
        shutdown.drain()
    assert sorted(woken) == ["a", "b"]
    await shutdown.wait()  # at once
    assert repr(shutdown) == "<Shutdown draining=True streams=0>"


async def test_a_source_that_waits_for_its_shutdown_learns_of_a_signal() -> None:
    shutdown = Shutdown()
    server = Server()
    server.start()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await shutdown.wait()
        yield "goodbye"

    async with connect(sse_app(source, shutdown=shutdown, shutdown_grace_period=20)) as stream:
        await stream.receive()
        signal.raise_signal(signal.SIGTERM)
        assert [event.data async for event in stream] == ["goodbye"]
    server.stop()


@pytest.mark.parametrize("grace", [-1, float("nan")])
def test_a_wrong_grace_is_refused(grace: float) -> None:
    shutdown = Shutdown()
    with pytest.raises(ValueError, match="grace must be"):
        shutdown.drain(grace)
    assert not shutdown.draining


# -- not all at once -------------------------------------------------------------------------------


@on_mock_clock
async def test_streams_are_told_to_end_one_after_another() -> None:
    """The oldest first; never more than the limit in any second, and nothing is left behind."""
    shutdown = Shutdown(streams_per_second=10)
    ended: list[tuple[float, int]] = []

    async def client(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown, ping=None)
        async with connect(app) as stream:
            await stream.receive()
            task_status.started()
            assert [event async for event in stream] == []
            assert stream.complete
            ended.append((trio.current_time() - begin, number))

    async with trio.open_nursery() as nursery:
        for number in range(35):
            await nursery.start(client, number)
        begin = trio.current_time()
        shutdown.drain()
        await trio.sleep(2)
        shutdown.drain(0)  # does not tell anybody earlier
        assert 19 <= len(ended) <= 20
    assert [number for _, number in ended] == list(range(35))
    times = [time for time, _ in ended]
    assert times[-1] == pytest.approx(3.45, abs=0.06)  # a tick, or two
    assert all(later - earlier > 0.9 for earlier, later in zip(times, times[10:], strict=False))
    assert repr(shutdown) == "<Shutdown draining=True streams=0>"


@on_mock_clock
async def test_a_stream_that_has_left_takes_no_turn() -> None:
    shutdown = Shutdown(streams_per_second=1)
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), shutdown=shutdown, on_close=recorder.on_close)
    async with connect(app) as first, connect(app) as second, connect(app) as third:
        for stream in (first, second, third):
            await stream.receive()
        begin = trio.current_time()
        shutdown.drain()
        await first.disconnect()
        await second.disconnect()
        assert [event async for event in third] == []
        assert trio.current_time() - begin < 0.5
    *gone, told = [report.reason for report in recorder.reports]
    assert gone == [CloseReason.CLIENT_DISCONNECTED] * 2
    assert told is CloseReason.SHUTDOWN


@on_mock_clock
async def test_the_grace_period_begins_when_a_stream_is_told() -> None:
    shutdown = Shutdown(streams_per_second=1)
    app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown, shutdown_grace_period=100)
    async with connect(app) as first, connect(app) as second:
        for stream in (first, second):
            await stream.receive()
        begin = trio.current_time()
        shutdown.drain(5)
        for stream, seconds in ((first, 5), (second, 6)):
            assert [event async for event in stream] == []
            assert trio.current_time() - begin == pytest.approx(seconds, abs=0.2)


@on_mock_clock
async def test_an_infinite_limit_is_none() -> None:
    shutdown = Shutdown(streams_per_second=math.inf)
    async with connect(sse_app(lambda: Recorder().source("a"), shutdown=shutdown)) as stream:
        await stream.receive()
        shutdown.drain()
        with anyio.fail_after(5):
            assert [event async for event in stream] == []


async def test_who_waits_for_the_shutdown_hears_of_it_at_once() -> None:
    shutdown = Shutdown(streams_per_second=0.001)
    heard = anyio.Event()

    async def wait() -> None:
        await shutdown.wait()
        heard.set()

    app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown)
    async with anyio.create_task_group() as tasks:
        async with connect(app) as old, connect(app) as older:
            await old.receive()
            await older.receive()
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert repr(shutdown) == "<Shutdown draining=False streams=2>"  # that is no stream
            shutdown.drain()
            await heard.wait()
            # A stream that comes now is not let in, and one that was there is not pushed out.
            async with connect(app) as late:
                assert [event async for event in late] == []
            # The first of them is told a moment after that, which may have passed.
            streams = repr(shutdown).removeprefix("<Shutdown draining=True streams=")
            assert streams in ("1>", "2>")


async def test_the_limit_holds_for_signals_too() -> None:
    server = Server()
    server.start()
    shutdown = Shutdown(streams_per_second=0.001)
    app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown)
    async with connect(app) as first, connect(app) as second:
        for stream in (first, second):
            await stream.receive()
        signal.raise_signal(signal.SIGTERM)
        assert [event async for event in first] == []
        with anyio.move_on_after(0.1) as waited:
            await second.receive()
        assert waited.cancelled_caught
    server.stop()


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)]
)
async def test_a_limit_that_is_none(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="streams_per_second must be"):
        Shutdown(streams_per_second=limit)
