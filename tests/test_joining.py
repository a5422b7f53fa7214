"""Events that are there at once are joined; nothing waits for that, is lost, or changes places."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi import CloseReason, ServerSentEvent, sse_app
from sse_asgi.decoder import EventStreamDecoder
from sse_asgi.supervisor import pump
from sse_asgi.testing import connect

from .at_once import Cycle
from .streams import Recorder, http_scope, never

pytestmark = pytest.mark.anyio


class Sent(list[bytes]):
    """A ``send`` that notes what it gets."""

    async def __call__(self, message: Any) -> None:
        if message.get("body"):
            self.append(message["body"])


def frames(count: int) -> list[bytes]:
    return [b"data: %d\n\n" % number for number in range(count)]


async def test_a_burst_takes_few_sends(anyio_backend: str) -> None:
    async def source() -> AsyncIterator[str]:
        for number in range(2000):
            yield str(number)

    sent = Sent()
    await sse_app(source)(http_scope(), never, sent)
    assert b"".join(sent) == b"".join(frames(2000))
    if anyio_backend == "asyncio":
        # As many as may be joined in one; but a busy machine may take longer than they are held.
        assert max(map(len, sent)) > 100 * len(frames(1)[0])
        assert len(sent) < 200
    else:
        assert len(sent) == 2000


async def test_large_events_are_joined_up_to_a_bound() -> None:
    async def source() -> AsyncIterator[str]:
        for _ in range(100):
            yield "x" * 10_000

    sent = Sent()
    await sse_app(source)(http_scope(), never, sent)
    assert len(b"".join(sent)) == 100 * 10_008
    assert max(map(len, sent)) < 32768 + 10_008


async def test_what_was_yielded_is_sent_before_the_source_waits() -> None:
    arrived = anyio.Semaphore(0)

    async def source() -> AsyncIterator[str]:
        for burst in range(3):
            for number in range(20):
                yield f"{burst} {number}"
            await arrived.acquire()

    async with connect(sse_app(source)) as stream:
        for burst in range(3):
            for number in range(20):
                with anyio.fail_after(5):
                    assert (await stream.receive()).data == f"{burst} {number}"
            arrived.release()


async def test_an_event_does_not_wait_for_a_source_that_blocks() -> None:
    late: list[int] = []
    sent = Sent()

    async def source() -> AsyncIterator[str]:
        for number in range(20):
            yield str(number)
            if number >= 8 and b"data: %d\n" % number not in b"".join(sent):
                late.append(number)
            if number >= 7:
                time.sleep(0.002)

    await sse_app(source)(http_scope(), never, sent)
    assert late == []


@pytest.mark.parametrize("bad", [ValueError, object()], ids=["raises", "yields nonsense"])
async def test_what_came_before_an_error_is_sent(bad: Any) -> None:
    async def source() -> AsyncIterator[Any]:
        for number in range(10):
            yield str(number)
        if bad is ValueError:
            raise bad
        yield bad

    sent = Sent()
    with pytest.raises((ValueError, TypeError)):
        await sse_app(source)(http_scope(), never, sent)
    assert b"".join(sent) == b"".join(frames(10))


async def test_a_timeout_of_the_source_does_not_touch_what_is_sent_meanwhile() -> None:
    """The source waits in a scope of its own while the client is slow with what it has yielded."""
    timeouts = 0

    async def source() -> AsyncIterator[str]:
        nonlocal timeouts
        for number in range(60):
            yield f"{number} {'x' * 5000}"
            if number % 20 == 19:
                with anyio.move_on_after(0.02):
                    await anyio.sleep_forever()
                timeouts += 1

    async with connect(sse_app(source)) as stream:
        for number in range(60):
            if number % 20 == 5:
                stream.stall()
                await anyio.sleep(0.04)
                stream.resume()
            assert (await stream.receive()).data.split()[0] == str(number)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
    assert timeouts == 3
    assert stream.complete


async def test_a_client_that_stops_reading_within_a_burst_is_noticed() -> None:
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source(*["x" * 1000] * 20_000),
        on_close=recorder.on_close,
        send_timeout=0.05,
    )
    async with connect(app) as stream:
        stream.stall()
        with anyio.fail_after(5):
            while not stream.returned:
                await anyio.sleep(0.01)
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert recorder.closed


async def test_a_client_that_leaves_within_a_burst_is_noticed() -> None:
    recorder = Recorder()
    app = sse_app(lambda: recorder.source(*["x" * 1000] * 20_000), on_close=recorder.on_close)
    async with connect(app) as stream:
        await stream.receive()
        stream.stall()
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    assert recorder.closed


# -- the bounds, to the event ----------------------------------------------------------------------


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Batches:
    """How many events each message has had, and when each event was yielded and sent."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sizes: list[int] = []
        self.bytes: list[int] = []
        self.yielded: list[float] = []
        self.sent: list[float] = []

    async def source(self, gaps: Iterable[float], size: int = 0) -> AsyncIterator[str]:
        """Take so long for each event, without waiting."""
        for gap in gaps:
            self.clock.now += gap
            self.yielded.append(self.clock.now)
            yield "x" * size

    async def send(self, message: Any) -> None:
        if body := message.get("body"):
            self.sizes.append(body.count(b"data: "))
            self.bytes.append(len(body))
            self.sent += [self.clock.now] * self.sizes[-1]


async def batches(gaps: Iterable[float], size: int = 0) -> Batches:
    """Run a stream whose source takes so long for each event, by a clock that it moves itself."""
    clock = Clock()
    found = Batches(clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pump, "monotonic", clock)
        app = sse_app(lambda: found.source(gaps, size))
        await app(http_scope(), never, found.send)
    return found


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_first_events_in_a_row_go_alone_and_then_so_many_together() -> None:
    found = await batches([0.0] * 1000)
    alone, joined = pump.ALONE, pump.JOINED_EVENTS
    assert (alone, joined) == (4, 256)
    rest = 1000 - alone - 3 * joined
    assert found.sizes == [1] * alone + [joined] * 3 + [rest]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("frame", [1000, 1024, 1025, 40_000])
async def test_so_many_bytes_are_sent_together(frame: int) -> None:
    """As many events as it takes to reach the bound, and not one more."""
    found = await batches([0.0] * 200, frame - len(b"data: \n\n"))
    together = math.ceil(pump.JOINED_BYTES / frame)
    assert pump.JOINED_BYTES == 32768
    whole, rest = divmod(200 - pump.ALONE, together)
    assert found.sizes == [1] * pump.ALONE + [together] * whole + [rest] * (rest > 0)
    assert max(found.bytes) < pump.JOINED_BYTES + frame


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_events_are_held_for_so_long() -> None:
    """Until one comes when the time is over."""
    gap = 2.0**-13  # a tenth of a millisecond, which adds up without an error
    found = await batches([gap] * 500)
    assert gap < pump.QUICK < pump.JOINED_FOR == 0.002
    together = math.ceil(pump.JOINED_FOR / gap) + 1
    whole, rest = divmod(500 - pump.ALONE, together)
    assert found.sizes == [1] * pump.ALONE + [together] * whole + [rest] * (rest > 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_event_that_took_its_time_takes_those_along_that_are_held() -> None:
    slow = 2 * pump.QUICK
    found = await batches([0.0] * 10 + [slow] * 3 + [0.0] * 10 + [slow])
    # After a slow one events begin a row anew.
    assert found.sizes == [1] * 4 + [7] + [1] * 2 + [1] * 3 + [8]


#: A source that never waits: so long for each of so many events.
RUNS = st.lists(
    st.tuples(st.sampled_from([0.0, 1e-5, 1e-4, 4e-4, 6e-4, 1e-3, 0.5]), st.integers(1, 40))
)


@given(runs=RUNS)
@settings(deadline=None)
def test_no_event_is_held_for_longer_whatever_a_source_does(runs: list[tuple[float, int]]) -> None:
    """What is held is sent with the first event that came too late, or that took too long.

    A source that blocks is not interrupted: what it has yielded before waits for its next event.
    """
    found = asyncio.run(batches([gap for gap, count in runs for _ in range(count)]))
    assert len(found.yielded) == len(found.sent) == sum(count for _, count in runs)
    for size in found.sizes:
        (sent,) = set(found.sent[:size])
        yielded = found.yielded[:size]
        assert sent == yielded[-1]
        in_time = yielded[:-1]
        assert all(time - in_time[0] < pump.JOINED_FOR for time in in_time)
        assert all(later - earlier <= pump.QUICK for earlier, later in itertools.pairwise(in_time))
        del found.sent[:size], found.yielded[:size]


async def test_each_event_of_a_source_that_blocks_for_each_is_sent_at_once() -> None:
    """By the real clock: no event waits until the source has the next one."""
    late: list[int] = []
    sent = Sent()

    async def source() -> AsyncIterator[str]:
        for number in range(300):
            time.sleep(0.001)
            yield str(number)
            if len(sent) != number + 1:
                late.append(number)

    await sse_app(source)(http_scope(), never, sent)
    assert late == []
    assert list(sent) == frames(300)


# -- against a model -------------------------------------------------------------------------------

#: What a source does next, and what its client does meanwhile.
STEPS = st.lists(
    st.sampled_from(["yield", "yield", "yield", "burst", "checkpoint", "wait", "timeout", "pause"]),
    max_size=30,
)


def received(cycle: Cycle) -> list[str]:
    return [event.data for event in EventStreamDecoder().feed(cycle.body)]


@given(steps=STEPS, at_once=st.booleans(), end=st.sampled_from(["return", "raise", "drop"]))
@settings(max_examples=100, deadline=None)
def test_whatever_a_source_does_its_events_come_in_order(
    steps: list[str], at_once: bool, end: str
) -> None:
    numbers = itertools.count()
    yielded: list[str] = []

    async def main() -> None:
        cycle = Cycle()
        over = asyncio.Event()
        send = cycle.send

        async def wrapped(message: Any) -> None:
            await asyncio.sleep(0)
            await cycle.send(message)

        async def source() -> AsyncIterator[Any]:
            for step in steps:
                if step == "checkpoint":
                    await asyncio.sleep(0)
                elif step == "wait":
                    await asyncio.sleep(0.001)
                elif step == "timeout":
                    with anyio.move_on_after(0.001):
                        await anyio.sleep_forever()
                elif step == "pause":
                    cycle.pause()
                    asyncio.get_running_loop().call_later(0.002, cycle.resume)
                else:
                    for _ in range(300 if step == "burst" else 1):
                        yielded.append(str(next(numbers)))
                        yield ServerSentEvent(yielded[-1])
            if end == "raise":
                raise LookupError
            over.set()
            if end == "drop":
                await anyio.sleep_forever()

        app = sse_app(source, ping=0.005)
        task = asyncio.ensure_future(app(http_scope(), cycle.receive, send if at_once else wrapped))
        if end == "drop":
            with anyio.fail_after(10):
                await over.wait()
                while received(cycle) != yielded:
                    await asyncio.sleep(0.001)
            cycle.disconnect()
        try:
            await asyncio.wait_for(task, 10)
        except LookupError:
            assert end == "raise"
        assert received(cycle) == yielded
        assert cycle.complete == (end == "return")

    asyncio.run(main())
