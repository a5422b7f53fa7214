"""What the servers in Python share: sources, the publisher, and the garbage collector's settings.

Nothing here encodes or sends.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

from ..shapes import BY_NAME, PLAIN
from .texts import text_now

#: What is sent.
SHAPE = BY_NAME[os.environ.get("BENCHMARK_SHAPE", PLAIN.name)]

#: Where the stream is: one of ``places.PLACES``, or just on a server.
PLACE = os.environ.get("BENCHMARK_PLACE", "")

#: Seconds between pings; ``None``: what the peer does by itself.
PING = float(os.environ["BENCHMARK_PING"]) if "BENCHMARK_PING" in os.environ else None


async def never_waits(build: Callable[[], Any]) -> AsyncIterator[Any]:
    while True:
        yield build()


async def waits(build: Callable[[], Any]) -> AsyncIterator[Any]:
    while True:
        yield build()
        await asyncio.sleep(0)


async def idle() -> AsyncIterator[str]:
    await asyncio.get_running_loop().create_future()
    yield "never"


def sync_never_waits(build: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield build()


def sync_waits(build: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield build()
        time.sleep(0)


def sync_idle() -> Iterator[str]:
    threading.Event().wait()
    yield "never"


def set_gc(query: bytes) -> None:
    """Do what a request asks for: ``freeze`` what there is, or ``disable`` the collector."""
    if query == b"freeze":
        gc.collect()
        gc.freeze()
    elif query == b"disable":
        gc.disable()


class Queues:
    """What people build where there is no hub: a queue for each client."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[str]] = set()

    async def publish(self, text: str) -> None:
        for queue in self._queues:
            queue.put_nowait(text)

    async def listen(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)


_tasks: set[asyncio.Task[None]] = set()


def start_publishing(publish: Callable[[str], Any], query: bytes | str) -> None:
    """Publish until the server is stopped; ``query`` has the rate and the burst."""
    fields = parse_qs(query if isinstance(query, str) else query.decode())
    rate, burst = float(fields["rate"][0]), int(fields["burst"][0])
    _tasks.add(asyncio.ensure_future(_publish(publish, rate, burst)))


async def _publish(publish: Callable[[str], Any], rate: float, burst: int) -> None:
    due = time.monotonic()
    while True:
        for _ in range(burst):
            await publish(text_now())
        due += burst / rate if rate else 0
        await asyncio.sleep(max(due - time.monotonic(), 0))
