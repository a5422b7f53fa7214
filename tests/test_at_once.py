"""Where a server's ``send`` can be called from anywhere, events and pings wake no task."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi import CloseReason, Shutdown, sse_app
from sse_asgi.decoder import EventStreamDecoder
from sse_asgi.hub import Hub, MemoryLog, Page, Position
from sse_asgi.types import FrameReceiver

from .at_once import Cycle
from .entry_points import ENTRY_POINTS
from .hub_model import subscribe
from .streams import Recorder, http_scope

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """On trio nothing can be sent without a task."""
    backend: str = request.param
    return backend


class Counted(AsyncIterator[bytes]):
    """A subscription, and how often it was asked for something."""

    def __init__(self, subscription: Any) -> None:
        self._subscription = subscription
        self.steps = 0

    async def __anext__(self) -> bytes:
        self.steps += 1
        frame: bytes = await self._subscription.__anext__()
        return frame

    def give_to(self, receiver: FrameReceiver) -> None:
        self._subscription.give_to(receiver)

    async def aclose(self) -> None:
        await self._subscription.aclose()


@asynccontextmanager
async def serving(app: Any, cycle: Cycle) -> AsyncIterator[asyncio.Task[None]]:
    """An application as a server runs it; at the end the client goes."""
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    while not cycle.messages and not task.done():
        await asyncio.sleep(0)
    try:
        yield task
    finally:
        cycle.disconnect()
        await asyncio.wait([task])
    if not task.cancelled():
        await task


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await asyncio.sleep(0.001)


def data(cycle: Cycle) -> list[str]:
    return [event.data for event in EventStreamDecoder().feed(cycle.body)]


async def test_an_event_of_a_hub_wakes_no_task(entry_point: str) -> None:
    hub = Hub()
    sources: list[Counted] = []

    def factory() -> Counted:
        sources.append(Counted(hub.subscribe("t")))
        return sources[-1]

    cycle = Cycle()
    async with serving(ENTRY_POINTS[entry_point](factory), cycle):
        await until(lambda: hub.subscribers("t"))
        for number in range(10):
            await hub.publish("t", str(number))
            await asyncio.sleep(0.001)
        assert data(cycle) == list(map(str, range(10)))
        assert len(cycle.sent) == 10
        assert sources.pop().steps == 1  # FastAPI keeps the function, which has the list


async def test_events_published_in_a_row_are_joined_once_for_all() -> None:
    hub = Hub(max_events=10_000)
    app = sse_app(lambda: hub.subscribe("t"))
    cycles = [Cycle() for _ in range(3)]
    async with serving(app, cycles[0]), serving(app, cycles[1]), serving(app, cycles[2]):
        await until(lambda: hub.subscribers("t") == 3)
        for number in range(50):
            await hub.publish("t", str(number))
        await asyncio.sleep(0.01)
        for cycle in cycles:
            assert data(cycle) == list(map(str, range(50)))
            # One send, unless the machine is so busy that other tasks ran in between.
            assert len(cycle.sent) < 10
        for first, second, third in zip(*(cycle.sent for cycle in cycles), strict=True):
            assert first is second is third


async def test_a_client_that_is_slow_has_its_events_when_it_reads_again() -> None:
    hub, recorder = Hub(), Recorder()
    app = sse_app(lambda: hub.subscribe("t"), on_close=recorder.on_close)
    slow, quick = Cycle(), Cycle()
    async with serving(app, slow), serving(app, quick):
        await until(lambda: hub.subscribers("t") == 2)
        slow.pause()
        for number in range(10):
            await hub.publish("t", str(number))
            await asyncio.sleep(0.001)
        assert len(quick.sent) == 10
        assert slow.sent == []
        slow.resume()
        await until(lambda: len(data(slow)) == 10)
        await hub.publish("t", "10")
        await until(lambda: len(data(slow)) == 11)
        assert data(slow) == list(map(str, range(11)))
    assert {report.events for report in recorder.reports} <= set(range(1, 12))
    assert {report.bytes for report in recorder.reports} == {len(quick.body)}


async def test_a_client_that_takes_nothing_any_more_is_given_up() -> None:
    hub, recorder = Hub(), Recorder()
    app = sse_app(lambda: hub.subscribe("t"), on_close=recorder.on_close, send_timeout=0.05)
    cycle = Cycle()
    async with serving(app, cycle) as task:
        await until(lambda: hub.subscribers("t"))
        cycle.pause()
        await hub.publish("t", "a")
        await asyncio.sleep(0.01)
        await hub.publish("t", "b")
        await asyncio.wait([task], timeout=5)
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert hub.subscribers() == 0


@pytest.mark.parametrize("end", ["kick", "close", "drain", "disconnect"])
async def test_what_was_published_before_the_end_comes_before_the_end(end: str) -> None:
    hub, recorder, shutdown = Hub(), Recorder(), Shutdown()
    app = sse_app(lambda: hub.subscribe("t"), on_close=recorder.on_close, shutdown=shutdown)
    cycle = Cycle()
    async with serving(app, cycle) as task:
        await until(lambda: hub.subscribers("t"))
        await hub.publish("t", "a")
        await asyncio.sleep(0.005)
        if end == "kick":
            hub.kick(lambda subscription: True, last="bye")
        elif end == "close":
            hub.close()
        elif end == "drain":
            shutdown.drain()
        else:
            cycle.disconnect()
        await asyncio.wait([task], timeout=5)
        assert data(cycle) == (["a", "bye"] if end == "kick" else ["a"])
        assert cycle.complete == (end != "disconnect")
    assert hub.subscribers() == 0
    assert len(recorder.reports) == 1


class Renewable(MemoryLog):
    """A log that can say that it was begun anew, and counts how often it is asked."""

    reads = 0
    renewed: Any

    def attach(self, deliver: Any, created: Any, renewed: Any) -> None:
        self.renewed = renewed
        super().attach(deliver, created, renewed)

    async def read(self, topic: str, after: int | None, max_bytes: int) -> Page:
        self.reads += 1
        return await super().read(topic, after, max_bytes)


async def test_a_subscriber_that_has_to_ask_the_log_wakes() -> None:
    log, cycle = Renewable(), Cycle()
    hub = Hub(log)
    async with serving(sse_app(lambda: hub.subscribe("t")), cycle):
        await until(lambda: hub.subscribers("t"))
        await hub.publish("t", "a")
        await cycle.has(b"data: a")
        reads = log.reads
        log.renewed("t", Position("another", 0))
        await until(lambda: log.reads > reads)
        await hub.publish("t", "b")
        await cycle.has(b"data: b")


# -- pings -----------------------------------------------------------------------------------------


async def test_pings_come_when_nothing_else_does_and_none_after_the_end() -> None:
    resumed = 0

    async def source() -> AsyncIterator[str]:
        nonlocal resumed
        await asyncio.sleep(0.1)
        resumed += 1
        yield "a"

    cycle = Cycle()
    async with serving(sse_app(source, ping=0.02), cycle):
        await until(lambda: cycle.complete)
        await asyncio.sleep(0.05)
    assert cycle.sent[-1] == b"data: a\n\n"
    assert 1 <= cycle.sent.count(b":\n\n") <= 5
    assert cycle.body == b":\n\n" * cycle.sent.count(b":\n\n") + b"data: a\n\n"
    assert resumed == 1


async def test_no_ping_comes_right_after_an_event_that_had_to_wait() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0)
        yield "b"
        await asyncio.sleep(0.05)
        yield "c"
        await asyncio.sleep(10)

    cycle = Cycle()
    async with serving(sse_app(source, ping=0.2), cycle):
        await cycle.has(b"b")
        cycle.pause()
        await asyncio.sleep(0.5)
        cycle.resume()
        await cycle.has(b"c")
        written = time.monotonic()
        await cycle.has(b":\n\n")
        assert time.monotonic() - written >= 0.15
    assert cycle.body.endswith(b"data: c\n\n:\n\n")


async def test_a_ping_to_a_client_that_does_not_read_is_bounded_like_any_send() -> None:
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source(), ping=0.01, send_timeout=0.05, on_close=recorder.on_close
    )
    cycle = Cycle()
    async with serving(app, cycle) as task:
        await until(lambda: cycle.sent)
        cycle.pause()
        await asyncio.wait([task], timeout=5)
        assert task.done()
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert recorder.closed


async def test_a_ping_that_can_not_be_made_ends_the_stream_with_its_error() -> None:
    recorder = Recorder()

    def no_ping() -> str:
        raise LookupError("no ping")

    app = sse_app(
        lambda: recorder.source(),
        ping=0.01,
        ping_message_factory=no_ping,
        on_close=recorder.on_close,
    )
    with pytest.raises(LookupError, match="no ping"):
        async with serving(app, Cycle()) as task:
            await asyncio.wait([task], timeout=5)
    assert recorder.report.reason is CloseReason.ERROR


async def test_no_ping_holds_up_the_end_of_a_client_that_does_not_read() -> None:
    recorder, shutdown = Recorder(), Shutdown()
    app = sse_app(
        lambda: recorder.source(cleanup=0.1),
        ping=0.02,
        send_timeout=None,
        shutdown=shutdown,
        cleanup_timeout=20,
    )
    cycle = Cycle()
    async with serving(app, cycle) as task:
        cycle.pause()
        shutdown.drain()
        await until(lambda: recorder.closed)
        cycle.resume()
        await asyncio.wait([task], timeout=5)
        assert task.done()
        assert cycle.complete


async def test_nothing_stays_when_a_stream_has_ended() -> None:
    async def source() -> AsyncIterator[str]:
        await asyncio.sleep(0.01)
        yield "a"

    made = [source()]
    left = weakref.ref(made[0])
    cycle = Cycle()
    async with serving(sse_app(made.pop), cycle):
        await until(lambda: cycle.complete)
    await asyncio.sleep(0)
    gc.collect()
    assert left() is None


# -- ends, while the watchdog sends or is about to -------------------------------------------------


@asynccontextmanager
async def with_a_ping_waiting(app: Any) -> AsyncIterator[tuple[Cycle, asyncio.Task[None]]]:
    """A client that does not read, and a ping that waits for it."""
    cycle = Cycle()
    async with serving(app, cycle) as task:
        await until(lambda: cycle.sent)
        cycle.pause()
        await asyncio.sleep(0.05)
        yield cycle, task


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "yields nonsense"])
async def test_an_error_of_the_source_is_not_taken_for_one_of_a_ping(raises: bool) -> None:
    recorder = Recorder()
    fails = asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        yield "a"
        await fails.wait()
        if raises:
            raise ConnectionError("of the database")
        yield object()

    app = sse_app(source, ping=0.02, on_close=recorder.on_close, on_error=lambda exc: "sorry")
    async with with_a_ping_waiting(app) as (cycle, task):
        fails.set()
        await asyncio.sleep(0.01)
        cycle.resume()
        await asyncio.wait([task], timeout=5)
    assert recorder.report.reason is CloseReason.ERROR
    assert data(cycle) == ["a", "sorry"]
    assert cycle.complete


async def test_a_cancellation_does_not_wait_for_a_client_that_does_not_read() -> None:
    recorder = Recorder()
    goes_on = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await goes_on.wait()
        yield "b"

    app = sse_app(
        source, ping=0.02, send_timeout=None, cleanup_timeout=0.1, on_close=recorder.on_close
    )
    async with with_a_ping_waiting(app) as (_, task):
        goes_on.set()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
    assert recorder.report.reason is CloseReason.CANCELLED


async def test_a_stream_is_not_older_than_it_may_be_for_a_client_that_does_not_read() -> None:
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source("a"),
        ping=0.02,
        send_timeout=None,
        max_lifetime=0.5,
        cleanup_timeout=0.1,
        on_close=recorder.on_close,
    )
    async with with_a_ping_waiting(app) as (_, task):
        await asyncio.wait([task], timeout=5)
        assert task.done()
    assert recorder.report.reason is CloseReason.MAX_LIFETIME


async def test_a_shutdown_is_none_of_a_client_that_does_not_read_whatever_the_clock() -> None:
    shutdown, recorder = Shutdown(), Recorder()
    app = sse_app(
        lambda: recorder.source("a"),
        ping=0.02,
        cleanup_timeout=0.1,
        shutdown=shutdown,
        on_close=recorder.on_close,
    )
    async with with_a_ping_waiting(app) as (cycle, task):
        shutdown.drain(0.05)
        await until(lambda: recorder.closed)
        cycle.resume()
        await asyncio.wait([task], timeout=5)
    assert recorder.report.reason is CloseReason.SHUTDOWN
    assert cycle.complete


async def test_events_that_wait_for_the_watchdog_come_before_what_ends_the_stream() -> None:
    """On a server whose send has to be in a task."""
    cycle, recorder = Cycle(), Recorder()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0.02)
        for number in range(8):
            yield str(number)
        await asyncio.sleep(0)
        raise ValueError

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        await cycle.send(message)

    app = sse_app(source, on_error=lambda exc: "sorry", on_close=recorder.on_close)
    await app(http_scope(), cycle.receive, send)
    assert data(cycle) == ["a", *map(str, range(8)), "sorry"]
    assert recorder.report.events == 10


@pytest.mark.parametrize("first", ["the ping", "the cancellation"])
async def test_a_cancelled_source_has_its_time_to_clean_up_while_a_ping_waits(first: str) -> None:
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source("a", cleanup=0.6),
        ping=0.02 if first == "the ping" else 0.1,
        send_timeout=10,
        cleanup_timeout=0.2,
        on_close=recorder.on_close,
    )
    async with with_a_ping_waiting(app) as (_, task):
        task.cancel()
        await asyncio.wait([task], timeout=5)
    assert recorder.report.reason is CloseReason.CANCELLED
    assert not recorder.closed  # its cleanup takes longer than it may


class Giving(AsyncIterator[str]):
    """A source with one event, that gives all others away while it waits."""

    def __init__(self) -> None:
        self.events = ["a"]
        self.receiver: FrameReceiver | None = None

    async def __anext__(self) -> str:
        if not self.events:
            await asyncio.sleep(1000)
        return self.events.pop()

    def give_to(self, receiver: FrameReceiver) -> None:
        self.receiver = receiver


@pytest.mark.parametrize("sends", ["a ping", "an event"])
async def test_what_comes_while_the_watchdog_sends_is_not_lost_with_that(sends: str) -> None:
    source, recorder, shutdown = Giving(), Recorder(), Shutdown()
    app = sse_app(
        lambda: source,
        ping=0.02 if sends == "a ping" else None,
        send_timeout=None,
        shutdown=shutdown,
        on_close=recorder.on_close,
    )
    events = ["b", "c", "d"]
    async with with_a_ping_waiting(app) as (cycle, task):
        receiver = source.receiver
        assert receiver is not None
        if sends == "an event":
            assert receiver.ready()
            receiver.accept(b"data: %s\n\n" % events.pop(0).encode())
        await until(lambda: not receiver.ready())
        await asyncio.sleep(0.01)  # the watchdog begins
        for event in events:
            receiver.accept(b"data: %s\n\n" % event.encode())
        shutdown.drain()
        await asyncio.sleep(0.01)
        assert not task.done()
        assert data(cycle) == ["a"]
        cycle.resume()
        await asyncio.wait([task], timeout=5)
        assert task.done()
    assert data(cycle) == ["a", "b", "c", "d"]
    assert cycle.complete
    assert recorder.report.reason is CloseReason.SHUTDOWN
    assert recorder.report.events == 4


async def test_a_function_that_makes_pings_has_a_task_around_it() -> None:
    def ping() -> dict[str, str]:
        return {"comment": str(anyio.current_time())}

    cycle = Cycle()
    app = sse_app(lambda: Recorder().source("a"), ping=0.02, ping_message_factory=ping)
    async with serving(app, cycle):
        await cycle.has(b"\n: ")


async def test_one_that_is_kicked_before_it_begins_is_freed_at_once() -> None:
    hub = Hub()
    subscriptions = [hub.subscribe("t")]
    left = weakref.ref(subscriptions[0])
    hub.kick(lambda subscription: True, last="bye")
    cycle = Cycle()
    gc.disable()
    try:
        async with serving(sse_app(subscriptions.pop), cycle):
            await until(lambda: cycle.complete)
        await asyncio.sleep(0.01)
        assert left() is None
    finally:
        gc.enable()
    assert data(cycle) == ["bye"]


# -- against a model -------------------------------------------------------------------------------


@given(
    steps=st.lists(
        st.sampled_from(
            ["publish", "publish", "burst", "checkpoint", "wait", "pause", "resume", "come"]
        ),
        max_size=40,
    ),
    topics=st.sampled_from([("t",), ("t", "u"), ("*",)]),
)
@settings(max_examples=75, deadline=None)
def test_every_subscriber_has_every_event_once_and_in_order(
    steps: list[str], topics: tuple[str, ...]
) -> None:
    async def main() -> None:
        hub = Hub(max_events=10_000)
        app = sse_app(lambda: subscribe(hub, topics), ping=0.003)
        clients: list[tuple[Cycle, asyncio.Task[None], int]] = []
        published: list[str] = []

        async def publish() -> None:
            published.append(str(len(published)))
            await hub.publish("t", published[-1])

        async def come() -> None:
            cycle = Cycle()
            task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
            await until(lambda: hub.subscribers() == len(clients) + 1)
            clients.append((cycle, task, len(published)))

        await publish()  # so that a pattern has something to match
        await come()
        for step in steps:
            if step == "publish":
                await publish()
            elif step == "burst":
                for _ in range(200):
                    await publish()
            elif step == "checkpoint":
                await asyncio.sleep(0)
            elif step == "wait":
                await asyncio.sleep(0.004)
            elif step == "come":
                await come()
            else:
                cycle = clients[len(published) % len(clients)][0]
                cycle.pause() if step == "pause" else cycle.resume()
        for cycle, task, after in clients:
            cycle.resume()
            await until(lambda: len(data(cycle)) >= len(published) - after)
            assert data(cycle) == published[after:]
            cycle.disconnect()
            await asyncio.wait([task])
        assert hub.subscribers() == 0

    asyncio.run(main())


async def test_a_source_is_closed_when_its_coroutine_is() -> None:
    """As with a task that is destroyed with its event loop."""
    recorder = Recorder()
    closed: list[bool] = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(10)
        finally:
            closed.append(True)

    app = sse_app(source, on_close=recorder.on_close)
    cycle = Cycle()
    stream = app(http_scope(), cycle.receive, cycle.send)
    task = asyncio.ensure_future(stream)
    await cycle.has(b"a")
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):  # it waits for the watchdog
        stream.close()
    assert closed == [True]
    await until(lambda: recorder.reports)
    assert recorder.report.reason is CloseReason.CANCELLED
    task.cancel()
    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        await task
