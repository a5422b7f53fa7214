"""What a stream that waits costs: memory, tasks, and the time to open and to close it.

In process: no server, no socket. The memory is what tracemalloc counts.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio

from sse_asgi import sse_app
from sse_asgi.hub import Hub
from sse_asgi.starlette import EventSourceResponse

from .measure import side_by_side, table
from .pump import SCOPE, send

STREAMS = 1000


async def source() -> AsyncIterator[str]:
    await anyio.sleep_forever()
    yield "never"


def candidates() -> dict[str, Callable[[], Any]]:
    """Makes of an ASGI application, each good for one request."""
    app, hub = sse_app(source), Hub()
    subscribed = sse_app(lambda: hub.subscribe("news"))
    apps: dict[str, Callable[[], Any]] = {
        "sse_app": lambda: app,
        "sse_app, hub": lambda: subscribed,
        "EventSourceResponse": lambda: EventSourceResponse(source()),
    }
    try:
        import sse_starlette
    except ImportError:
        print("(sse-starlette is not installed: no comparison with it)")
    else:
        apps["sse-starlette"] = lambda: sse_starlette.EventSourceResponse(source())
    return apps


async def open_and_close(make: Callable[[], Any], count: int) -> tuple[float, float]:
    """KiB and tasks of a stream, with so many open at once."""
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    tasks_before, memory_before = len(asyncio.all_tasks()), tracemalloc.get_traced_memory()[0]
    streams = [asyncio.ensure_future(make()(dict(SCOPE), receive, send)) for _ in range(count)]
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0] - memory_before
    tasks = len(asyncio.all_tasks()) - tasks_before
    gone.set()
    await asyncio.gather(*streams)
    return memory / count / 1024, tasks / count


def main() -> None:
    print(f"idle, {STREAMS} streams in one process (asyncio), each:")
    for name, make in candidates().items():
        tracemalloc.start()
        kib, tasks = asyncio.run(open_and_close(make, STREAMS))
        tracemalloc.stop()
        print(f"  {name:<34} {kib:7.1f} KiB   {tasks:.1f} tasks")

    def opening(make: Callable[[], Any]) -> Callable[[int], object]:
        return lambda operations: asyncio.run(open_and_close(make, operations))

    figures = side_by_side({name: opening(make) for name, make in candidates().items()}, STREAMS)
    print(table("open and close", figures, base="sse_app", operation="a stream"))
