"""What a stream may cost that waits: tasks and memory, so that a busy machine changes nothing."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

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


async def cost(app: ASGIApp) -> tuple[float, float]:
    """KiB and tasks of each stream, in tasks of asyncio's as servers make them."""
    cycles = [Cycle() for _ in range(2 * STREAMS)]

    async def run(some: list[Cycle]) -> tuple[float, float]:
        gc.collect()
        tasks, memory = len(asyncio.all_tasks()), tracemalloc.get_traced_memory()[0]
        streams = [
            asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send)) for cycle in some
        ]
        await asyncio.sleep(0.1)
        gc.collect()
        cost = (
            (tracemalloc.get_traced_memory()[0] - memory) / len(some) / 1024,
            (len(asyncio.all_tasks()) - tasks) / len(some),
        )
        for cycle in some:
            cycle.disconnect()
        await asyncio.gather(*streams)
        return cost

    await run(cycles[:STREAMS])  # what is made at the first use
    return await run(cycles[STREAMS:])


@pytest.fixture(autouse=True)
def traced() -> Any:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["generator", "hub"])
def test_an_idle_stream_takes_one_task_and_little_memory(kind: str) -> None:
    hub = Hub()
    app = sse_app(forever if kind == "generator" else lambda: hub.subscribe("t"))
    least, _ = asyncio.run(cost(bare))
    kib, tasks = asyncio.run(cost(app))
    assert tasks == 2
    assert kib - least < 7.5


def test_within_a_scope_it_takes_one_task_too() -> None:
    async def app(*args: Any) -> None:
        with anyio.CancelScope():
            await sse_app(forever)(*args)

    _, tasks = asyncio.run(cost(app))
    assert tasks == 2
