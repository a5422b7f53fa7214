"""A worker that follows a stream of numbers, and measures itself.

python -m tests.client_soak --library httpx2 --backend trio --seconds 60 URL
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import time
import tracemalloc
from typing import Any

import anyio
import psutil

from sse_asgi.client import EventSource, State, StateChange

#: How often it measures.
SAMPLES = 12


class Worker:
    """What it has seen, and what it has cost."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.library: Any = importlib.import_module(arguments.library)
        self.began: float | None = None
        self.connections = 0
        self.events = 0
        #: What came instead of the next number.
        self.wrong: list[tuple[int, str]] = []
        self.samples: list[dict[str, int]] = []

    def count(self, change: StateChange) -> None:
        self.connections += change.state is State.OPEN

    async def run(self) -> None:
        over = False
        while not over:
            # A program that runs for hours makes sources again, too, and cancels steps.
            async with self.library.AsyncClient(trust_env=False) as client:
                async with EventSource(
                    self.arguments.url,
                    client=client,
                    headers=self._headers,
                    last_event_id=str(self.events),
                    retry=0,
                    idle_timeout=0.5,
                    on_state_change=self.count,
                ) as source:
                    over = await self._follow(source)

    async def _headers(self) -> dict[str, str]:
        return {"x-connections": str(self.connections)}

    async def _follow(self, source: EventSource) -> bool:
        """Read so many connections; return whether the time is over."""
        until = self.connections + 1000
        while self.connections < until:
            with anyio.move_on_after(2.0):
                async for event in source:
                    self.events += 1
                    if event.data != str(self.events) or event.id != event.data:
                        self.wrong.append((self.events, event.data))
                        self.events = int(event.id)
                    if self.began is None:
                        self.began = time.monotonic()
                        gc.freeze()  # what there is already need not be counted again and again
                    passed = (time.monotonic() - self.began) / self.arguments.seconds
                    if passed * SAMPLES >= len(self.samples) + 1:
                        self._measure()
                    if passed >= 1:
                        return True
        return False

    def _measure(self) -> None:
        gc.collect()
        process = psutil.Process()
        self.samples.append(
            {
                "connections": self.connections,
                "events": self.events,
                "objects": len(gc.get_objects()),
                "traced": tracemalloc.get_traced_memory()[0],
                "resident": process.memory_info().rss,
                "files": process.num_fds(),
                "threads": process.num_threads(),
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", default="httpx2")
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("url")
    worker = Worker(parser.parse_args())
    tracemalloc.start()
    anyio.run(worker.run, backend=worker.arguments.backend)
    print(json.dumps({"wrong": worker.wrong[:10], "samples": worker.samples}))


if __name__ == "__main__":
    main()
