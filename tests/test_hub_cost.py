"""What the hub may cost: counts and memory, so that a busy machine changes nothing."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from sse_asgi import SSERequest, sse_app
from sse_asgi.encoder import encode
from sse_asgi.hub import Hub
from sse_asgi.hub.channel import Cursor
from sse_asgi.runtime import current
from sse_asgi.runtime.asyncio import AsyncioRuntime
from sse_asgi.runtime.trio import TrioRuntime
from sse_asgi.types import ASGIApp

from .streams import http_scope, on_mock_clock

pytestmark = pytest.mark.anyio

STREAMS = 500


def woken(count: int, anyio_backend: object) -> dict[str, int]:
    """Return how often subscribers wake and park if so many get an event.

    None does on asyncio: a task begins at once for each, and has ended when its first step has.
    """
    if "asyncio" in str(anyio_backend) and sys.version_info >= (3, 12):
        count = 0
    return {"wake": count, "park": count} if count else {}


def stream_of(hub: Hub, **options: Any) -> ASGIApp:
    def subscribe(request: SSERequest) -> Any:
        return hub.subscribe("news", last_event_id=request.last_event_id, **options)

    return sse_app(subscribe)


class Client:
    """A client that notes what it is sent, and may stall."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.stalled = False
        self.gone = anyio.Event()
        self.goes_on = anyio.Event()

    async def visit(self, app: ASGIApp, headers: list[tuple[bytes, bytes]]) -> None:
        await app(http_scope(headers=headers), self.receive, self.send)

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if body := message.get("body"):
            self.bodies.append(body)
        if self.stalled:
            await self.goes_on.wait()


@asynccontextmanager
async def clients_of(
    app: ASGIApp, count: int = STREAMS, last_event_id: str | None = None
) -> AsyncIterator[list[Client]]:
    """So many streams, all of which wait for an event."""
    headers = [] if last_event_id is None else [(b"last-event-id", last_event_id.encode())]
    clients = [Client() for _ in range(count)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.visit, app, headers)
        await anyio.wait_all_tasks_blocked()
        yield clients
        for client in clients:
            client.goes_on.set()
            client.gone.set()


async def bodies(clients: Iterable[Client], count: int) -> None:
    """Wait until each has had so many."""
    await until(lambda: all(len(client.bodies) >= count for client in clients))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a hub has delivered, which lets others run if that takes long."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)
    await anyio.wait_all_tasks_blocked()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, anyio_backend: object) -> Counter[str]:
    """How often the hub encodes an event, and a subscription parks and is woken."""
    counts: Counter[str] = Counter()

    def counting_encode(event: Any, sep: str = "\n") -> bytes:
        counts["encode"] += 1
        return encode(event, sep)

    kind: Any = TrioRuntime if "trio" in str(anyio_backend) else AsyncioRuntime
    parked = kind.parked

    async def counting_parked(
        runtime: Any, hand_over: Callable[[Callable[[], object]], object]
    ) -> None:
        def count(wake: Callable[[], object]) -> None:
            def counted() -> None:
                counts["wake"] += 1
                wake()

            hand_over(counted)

        counts["park"] += 1
        await parked(runtime, count)

    for module in ("hub", "body", "subscription"):
        monkeypatch.setattr(f"sse_asgi.hub.{module}.encode", counting_encode)
    monkeypatch.setattr(kind, "parked", counting_parked)
    return counts


async def test_an_event_is_encoded_once_and_wakes_each_once(
    calls: Counter[str], anyio_backend: object
) -> None:
    hub = Hub()
    calls.clear()
    async with clients_of(stream_of(hub)) as clients:
        assert calls == {"park": STREAMS}
        calls.clear()
        await hub.publish("news", "hello")
        await bodies(clients, 1)
        assert calls == {"encode": 1, **woken(STREAMS, anyio_backend)}
        sent = [body for client in clients for body in client.bodies]
        assert len(sent) == STREAMS
        # Not even copied: they share one frame.
        assert len({id(body) for body in sent}) == 1


async def test_one_that_stalls_changes_nothing_for_499(
    calls: Counter[str], anyio_backend: object
) -> None:
    hub = Hub()
    async with clients_of(stream_of(hub)) as clients:
        first, *others = clients
        first.stalled = True
        await hub.publish("news", "on its way")
        await bodies(clients, 1)
        await hub.publish("news", "waits behind that")
        await bodies(others, 2)
        for number in range(10):
            calls.clear()
            await hub.publish("news", f"event {number}")
            await bodies(others, number + 3)
            assert calls == {"encode": 1, **woken(STREAMS - 1, anyio_backend)}
            assert all(len(client.bodies) == number + 3 for client in others)
        assert len(first.bodies) == 1
        first.goes_on.set()
        await until(lambda: len(b"".join(first.bodies)) == len(b"".join(others[0].bodies)))
        assert len(first.bodies) <= 3  # all that it missed, at once, but for what was on its way
        assert b"".join(first.bodies) == b"".join(others[0].bodies)


async def test_an_event_costs_no_more_if_a_pattern_matches_thousands_of_topics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression 39: nothing is done for the topics that have no event."""
    hub = Hub()
    looks = 0
    records = Cursor.records

    def counting(cursor: Cursor, max_bytes: int) -> Any:
        nonlocal looks
        looks += 1
        return records(cursor, max_bytes)

    for number in range(2000):
        await hub.publish(f"t/{number}", "x")
    async with clients_of(sse_app(lambda: hub.subscribe(patterns=["t/*"])), 2) as clients:
        monkeypatch.setattr(Cursor, "records", counting)
        for number in range(10):
            await hub.publish(f"t/{number}", "y")
            await bodies(clients, number + 1)
        assert [len(client.bodies) for client in clients] == [10, 10]
        assert looks <= 10 * 2 * 4


async def test_catching_up_with_ten_thousand_events() -> None:
    hub = Hub(max_events=20_000, max_bytes=2**24)
    first = await hub.publish("news", "0")
    for number in range(1, 10_001):
        await hub.publish("news", str(number))
    async with clients_of(stream_of(hub), count=1, last_event_id=first) as (client,):
        assert b"".join(client.bodies).count(b"\ndata: ") == 10_000
        assert client.bodies[-1].endswith(b"\ndata: 10000\n\n")
        assert len(client.bodies) <= 10


async def test_many_events_flat_out() -> None:
    """Whoever takes what it can gets them joined, and does not fall off, however short the log."""
    for max_events, sends in ((1000, 200), (10, 1000)):
        hub = Hub(max_events=max_events)
        async with clients_of(stream_of(hub), 10) as clients:
            for number in range(1000):
                await hub.publish("news", str(number))
            await until(lambda: all(b": 999\n" in client.bodies[-1] for client in clients))
            for client in clients:
                body = b"".join(client.bodies)
                assert body.count(b"\ndata: ") == 1000
                assert b"event: gap" not in body
                assert len(client.bodies) <= sends


# -- memory ----------------------------------------------------------------------------------------


@pytest.fixture
def traced() -> Any:
    """Trace memory; returns how much there is in use."""

    def in_use() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    yield in_use
    tracemalloc.stop()


class Never(AsyncIterator[bytes]):
    """Waits for ever, with nothing around it."""

    async def __anext__(self) -> bytes:
        await current().parked(lambda wake: None)
        raise AssertionError

    async def aclose(self) -> None:
        pass


async def test_memory_of_a_subscription(traced: Callable[[], int]) -> None:
    """What it has beyond its stream."""
    hub, count = Hub(), 100

    async def memory(app: ASGIApp) -> float:
        """Return the median: tables of all tasks grow and shrink at times, by half a megabyte."""
        async with clients_of(app, 20):
            pass  # what is made at the first use
        took = []
        for _ in range(5):
            before = traced()
            async with clients_of(app, count):
                took.append((traced() - before) / count)
        return median(took)

    def never(request: SSERequest) -> Never:
        assert request.last_event_id is None  # looked at as there
        return Never()

    bare = await memory(sse_app(never))
    assert await memory(stream_of(hub)) - bare < 1024


@pytest.mark.parametrize("way", ["disconnect", "cancel", "close", "never begun"])
async def test_nothing_is_left_of_those_who_leave(way: str) -> None:
    async with clients_of(stream_of(Hub()), 1):
        pass  # what is made at the first use
    hub = Hub()
    app = stream_of(hub)

    def count() -> Counter[str]:
        return Counter(
            type(thing).__name__
            for thing in gc.get_objects()
            if str(type(thing).__module__).startswith("sse_asgi.")
        )

    async def come_and_go() -> None:
        if way == "never begun":
            for _ in range(20):
                hub.subscribe("news", patterns=["n*"])
            return
        with anyio.CancelScope() as scope:
            async with clients_of(app, 20):
                assert count()["Subscription"] == count()["Cursor"] == 20
                assert count()["Channel"] == 1
                await hub.publish("news", "y")
                await anyio.wait_all_tasks_blocked()
                if way == "cancel":
                    scope.cancel()
                elif way == "close":
                    hub.kick(lambda subscription: True)
                await checkpoint()

    gc.collect()
    before = count()
    await come_and_go()
    await anyio.wait_all_tasks_blocked()
    gc.collect()
    left = count() - before
    kept = {"Record", "Position", "_Topic", "Window"}  # of the log
    assert left.keys() <= kept | {"Timing"}, left  # which is of the application's options
    assert max(left.values(), default=0) <= 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    "limits", [{"max_events": 500}, {"max_bytes": 50_000, "max_events": 10**6}]
)
async def test_the_log_grows_no_larger_than_its_limits(
    limits: Any, traced: Callable[[], int]
) -> None:
    """Not for those who don't read, either."""
    hub = Hub(**limits)

    async def publish(events: range) -> int:
        for number in events:
            text = f"{number:099}"
            await hub.publish("news", text, key=f"key {number}", collapse_key=text)
        return traced()

    async with clients_of(stream_of(hub), 2) as clients:
        for client in clients:
            client.stalled = True
        before = await publish(range(2_000))
        assert await publish(range(2_000, 8_000)) < before + 100_000


@on_mock_clock
async def test_the_log_forgets_what_is_old() -> None:
    hub = Hub(max_age=100, max_events=10**6, max_bytes=2**30)

    async def publish(events: int) -> int:
        for number in range(events):
            await hub.publish("news", f"{number:099}")
            await trio.sleep(1)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        async with clients_of(stream_of(hub), 2) as clients:
            for client in clients:
                client.stalled = True
            before = await publish(300)
            assert await publish(1_000) < before + 100_000
    finally:
        tracemalloc.stop()
