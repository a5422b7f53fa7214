"""One timer of an event loop for the pings of all its streams, where a ping takes no task."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi import sse_app
from sse_asgi.runtime import current
from sse_asgi.runtime.base import Runtime
from sse_asgi.supervisor import pings
from sse_asgi.supervisor.pings import Pings, pings_of

from .at_once import Cycle
from .streams import http_scope
from .test_event_cost import steps

PING = b":\n\n"


async def idle() -> AsyncIterator[str]:
    await asyncio.get_running_loop().create_future()
    yield "never"


class Clock:
    """An event loop of which the test says what time it is, for :class:`Pings` alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.set = 0

    def clock(self) -> float:
        return self.now

    def after(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        timer = (self.now + seconds, function)
        self.timers.append(timer)
        self.set += 1
        return lambda: self.timers.remove(timer) if timer in self.timers else None

    def run_one(self) -> None:
        timer = min(self.timers, key=lambda timer: timer[0])
        self.timers.remove(timer)
        self.now = max(self.now, timer[0])
        timer[1]()

    def run(self, until: float) -> None:
        while any(at <= until for at, _ in self.timers):
            self.run_one()
        self.now = until


class Stream:
    """What is pinged ``interval`` after it has written, and notes when."""

    def __init__(self, clock: Clock, interval: float) -> None:
        self.asked_with: Any = None
        self.written = clock.now
        self.pings: list[float] = []
        self.waited: list[float] = []
        self._interval = interval

    def ping(self, now: float) -> float:
        due = self.written + self._interval
        if now < due:
            return due
        self.pings.append(now)
        self.waited.append(now - self.written)
        self.written = now
        return now + self._interval


def one(interval: float) -> tuple[Clock, Pings]:
    clock = Clock()
    return clock, Pings(cast("Runtime", clock), interval)


@settings(deadline=None)
@given(st.sampled_from([0.02, 1.0, 15.0, 100.0]), st.data())
def test_a_ping_is_never_early_and_hardly_late(interval: float, data: st.DataObject) -> None:
    clock, asks = one(interval)
    streams: list[Stream] = []
    for _ in range(data.draw(st.integers(1, 30))):
        clock.run(clock.now + interval * data.draw(st.floats(0, 0.3)))
        what = data.draw(st.sampled_from(["comes", "comes", "writes", "goes"]))
        if what == "comes":
            streams.append(Stream(clock, interval))
            asks.ask(streams[-1], clock.now + interval)
        elif streams and what == "writes":
            data.draw(st.sampled_from(streams)).written = clock.now
        elif streams:
            asks.forget(streams.pop())
        assert len(clock.timers) == bool(streams)
    part, most = pings.GRID
    slack = min(interval * part, most) + pings.EARLY
    before = {stream: len(stream.pings) for stream in streams}
    clock.run(clock.now + 3 * interval + 3 * slack)
    for stream in streams:
        assert len(stream.pings) >= before[stream] + 2
        assert all(interval <= waited <= interval + slack + 1e-9 for waited in stream.waited)
    for stream in streams:
        asks.forget(stream)
    assert not clock.timers


def test_many_streams_share_few_calls_of_the_timer() -> None:
    clock, asks = one(15.0)
    for number in range(1000):
        clock.now = number / 100
        asks.ask(Stream(clock, 15.0), clock.now + 15)
    clock.set = 0
    clock.run(25.0)
    assert clock.set <= 103  # a call for each tenth of a second, and not for each stream


def test_other_tasks_run_while_many_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that ends in between is not asked any more."""
    clock, asks = one(1.0)
    streams = [Stream(clock, 1.0) for _ in range(10)]
    for stream in streams:
        asks.ask(stream, 1.0)
    monkeypatch.setattr(pings, "SLICE", -1)  # one is longer than that
    for asked in range(1, 6):
        clock.run_one()
        assert sum(len(stream.pings) for stream in streams) == asked
        assert len(clock.timers) == 1
    left = next(stream for stream in streams if not stream.pings)
    asks.forget(left)
    clock.run(1.5)
    assert sorted(len(stream.pings) for stream in streams) == [0] + 9 * [1]
    assert not left.pings


def test_one_that_raises_is_not_in_the_way_of_others() -> None:
    clock, asks = one(1.0)

    class Broken(Stream):
        def ping(self, now: float) -> float:
            raise OSError

    streams = [kind(clock, 1.0) for kind in (Stream, Broken, Stream)]
    for stream in streams:
        asks.ask(stream, 1.0)
    for _ in range(4):
        try:
            clock.run(2.5)
        except OSError:
            continue
    assert [len(stream.pings) for stream in streams] == [2, 0, 2]


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts timers, except those of tasks that sleep: the test's own."""

    timers = 0

    def call_at(self, when: Any, callback: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        self.timers += hasattr(callback, "__self__")
        return super().call_at(when, callback, *args, **options)


async def serve(cycles: list[Cycle], *, note: Callable[[], object] = int) -> None:
    """Serve streams until each has had four pings, and call a function before and after three."""
    app = sse_app(idle, ping=0.02)
    streams = [
        asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send)) for cycle in cycles
    ]
    for pinged in (1, 4):
        while any(cycle.sent.count(PING) < pinged for cycle in cycles):
            await asyncio.sleep(0.001)
        note()
    for cycle in cycles:
        cycle.disconnect()
    await asyncio.gather(*streams)


def test_streams_have_no_timers_of_their_own() -> None:
    loop = CountingLoop()
    counts: list[int] = []
    cycles = [Cycle() for _ in range(300)]

    async def run() -> None:
        await serve(cycles, note=lambda: counts.append(loop.timers))

    try:
        loop.run_until_complete(run())
        first, last = counts
        assert last - first < len(cycles)  # where a timer for each would be set for each ping
    finally:
        loop.close()


def test_steps_to_a_ping() -> None:
    """All that the library does for one more ping, in calls of its functions."""
    cycles = [Cycle() for _ in range(200)]
    called = steps(lambda: asyncio.run(serve(cycles)))
    begins = [number for number, name in enumerate(called) if name == "ping"]
    assert len(begins) >= sum(cycle.sent.count(PING) for cycle in cycles)
    for begin in begins:
        assert called.index("ask", begin) - begin < 5, called[begin : begin + 10]


def test_event_loops_in_threads_have_each_their_own() -> None:
    served: list[bool] = []

    def run() -> None:
        asyncio.run(serve([Cycle() for _ in range(10)]))
        served.append(True)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served) == 4


def test_nothing_is_left_when_streams_have_ended() -> None:
    def there() -> list[Pings]:
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, Pings)]

    others = there()  # of other tests in this process, whose event loops are kept

    async def run() -> None:
        await serve([Cycle() for _ in range(10)])
        assert [each for each in there() if each not in others] == []

    asyncio.run(run())


def test_a_closed_event_loop_with_streams_in_it_is_freed() -> None:
    loop = asyncio.new_event_loop()
    kept: list[weakref.ref[object]] = [weakref.ref(loop)]

    class Waits:
        """A stream that is still there, and holds its event loop."""

        def __init__(self) -> None:
            self.asked_with: Any = None
            self.loop, self.asks = asyncio.get_running_loop(), pings_of(current(), 1.0)
            self.asks.ask(self, self.loop.time() + 1)

        def ping(self, now: float) -> float:
            return math.inf

    async def run() -> None:
        kept.append(weakref.ref(Waits()))

    loop.run_until_complete(run())
    gc.collect()
    assert kept[-1]() is not None  # it is held as long as it is to be asked
    loop.close()
    del loop
    gc.collect()
    assert [each() for each in kept] == [None, None]
