"""What it costs to ask whether 10,000 streams may go on: a function, or a coroutine function.

Each stream is asked for about every five seconds. The server is a ``send`` that does nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from sse_asgi import sse_app

from .fanout import Clients

STREAMS, ROUNDS = 10_000, 3

#: In seconds: how often a stream is asked for, and for how long it is measured.
EVERY, MEASURED = 5.0, 10.0


class Asked:
    """Answers that each stream may go on, and counts the questions."""

    def __init__(self) -> None:
        self.times = 0

    def sync(self, request: object) -> bool:
        self.times += 1
        return True

    async def coroutine(self, request: object) -> bool:
        self.times += 1
        return True


async def idle() -> AsyncIterator[str]:
    yield "a"
    await asyncio.Event().wait()


async def processor(recheck: Callable[[Any], Any] | None) -> float:
    """Return how long the processor was busy, in seconds, with streams that wait."""
    app = sse_app(idle, ping=None, recheck=recheck, recheck_every=EVERY)
    clients = Clients(STREAMS)
    await clients.open(lambda: app)
    await asyncio.sleep(EVERY)  # until each has been asked for once
    began = time.process_time()
    await asyncio.sleep(MEASURED)
    busy = time.process_time() - began
    await clients.close()
    return busy


def main() -> None:
    found: dict[str, list[float]] = {"a function": [], "a coroutine function": []}
    for _ in range(ROUNDS):
        rest = asyncio.run(processor(None))
        for name, samples in found.items():
            asked = Asked()
            recheck = asked.sync if name == "a function" else asked.coroutine
            busy = asyncio.run(processor(recheck))
            share = MEASURED / (EVERY + MEASURED)  # of the questions, as of the time
            samples.append((busy - rest) / (asked.times * share) * 1e6)
    print(f"\n{STREAMS:,} streams; µs of the processor for each question")
    for name, samples in found.items():
        median = statistics.median(samples)
        each_minute = median * STREAMS / 60 / 1e3
        print(f"  {name:<22}{median:8.1f}   recheck_every=60: {each_minute:.1f} ms a second")
