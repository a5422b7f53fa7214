"""What a stream may cost that waits: tasks and memory, so that a busy machine changes nothing."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio
import pytest

from sse_asgi import sse_app
from sse_asgi.hub import Hub
from sse_asgi.types import ASGIApp

from .at_once import Cycle
from .streams import http_scope

STREAMS = 300


async def forever() -> AsyncIterator[str]:
    await asyncio.get_running_loop().create_future()
    yield "never"


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least that there can be: the task of the server, which waits for the client."""
    await receive()


class Cost(NamedTuple):
    """What each stream takes."""

    kib: float
    tasks: float
    #: What the garbage collector looks at: so many make connecting dearer, the more are open.
    objects: float
    timers: float


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that knows how many timers wait, except those of tasks that sleep."""

    def __init__(self) -> None:
        super().__init__()
        self._timers: list[asyncio.TimerHandle] = []

    def call_at(self, when: Any, callback: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        handle = super().call_at(when, callback, *args, **options)
        if hasattr(callback, "__self__"):
            self._timers.append(handle)
        return handle

    def waiting(self) -> int:
        self._timers = [each for each in self._timers if not each.cancelled()]
        return len(self._timers)


async def cost(app: ASGIApp) -> Cost:
    """What each stream takes, in tasks of asyncio's as servers make them."""
    cycles = [Cycle() for _ in range(2 * STREAMS)]

    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)

    def now() -> Cost:
        gc.collect()
        kib = tracemalloc.get_traced_memory()[0] / 1024
        return Cost(kib, len(asyncio.all_tasks()), len(gc.get_objects()), loop.waiting())

    async def run(some: list[Cycle]) -> Cost:
        before = now()
        streams = [
            asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send)) for cycle in some
        ]
        await asyncio.sleep(0.1)
        after = now()
        for cycle in some:
            cycle.disconnect()
        await asyncio.gather(*streams)
        return Cost(
            *((later - first) / len(some) for first, later in zip(before, after, strict=True))
        )

    await run(cycles[:STREAMS])  # what is made at the first use
    return await run(cycles[STREAMS:])


@pytest.fixture(autouse=True)
def traced() -> Any:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def cost_of(app: ASGIApp) -> Cost:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        return runner.run(cost(app))


#: What a stream may take beyond the task of a server that waits for the client. These are a tenth
#: more than it takes now.
AT_MOST = {"generator": Cost(5.0, 1, 36.3, 0.1), "hub": Cost(6.0, 1, 41.9, 0.1)}


@pytest.mark.parametrize("kind", AT_MOST)
def test_an_idle_stream_takes_one_task_and_little_memory(kind: str) -> None:
    # In a process of its own: what others have left in this one changes what is allocated.
    code = f"from tests.test_idle_cost import more; print(*more({kind!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cost = Cost(*map(float, run.stdout.split()))
    assert all(is_ <= may for is_, may in zip(cost, AT_MOST[kind], strict=True)), cost


def more(kind: str) -> Cost:
    """What a stream takes beyond the task of a server."""
    hub = Hub()
    app = sse_app(forever if kind == "generator" else lambda: hub.subscribe("t"))
    tracemalloc.start()
    least, cost = cost_of(bare), cost_of(app)
    return Cost(*(ours - its for ours, its in zip(cost, least, strict=True)))


def test_within_a_scope_it_takes_one_task_too() -> None:
    async def app(*args: Any) -> None:
        with anyio.CancelScope():
            await sse_app(forever)(*args)

    assert cost_of(app).tasks == 2
