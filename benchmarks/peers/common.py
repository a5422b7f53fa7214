"""What the servers in Python share: sources, and the publisher. Nothing here encodes or sends."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs

from .texts import TEXT, text_now

#: Seconds between pings; ``None``: what the peer does by itself.
PING = float(os.environ["BENCHMARK_PING"]) if "BENCHMARK_PING" in os.environ else None


async def never_waits() -> AsyncIterator[str]:
    while True:
        yield TEXT


async def waits() -> AsyncIterator[str]:
    while True:
        yield TEXT
        await asyncio.sleep(0)


async def idle() -> AsyncIterator[str]:
    await asyncio.get_running_loop().create_future()
    yield "never"


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
