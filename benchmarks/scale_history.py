"""What it costs to keep many events: memory, publishing, and clients that come back.

For each length of the history a process of its own, with nothing else in it. There are uvicorn's
protocol objects, but no sockets (see ``scale_objects.py``).

``python -m benchmarks.scale_history LENGTH`` measures one, and prints it as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from sse_asgi import sse_app
from sse_asgi.hub import Hub

from .scale_clients import LAST
from .scale_objects import Transport

LENGTHS = (100, 1000, 10_000, 100_000)

#: Bytes of data in an event.
SIZE = 200

#: How many events are published to see what that takes.
PUBLISHED = 5000

#: Clients that come back at once, and how many events each has missed, if there are so many.
HERD, MISSED = 500, 10

REQUEST = b"GET / HTTP/1.1\r\nHost: benchmark\r\nLast-Event-ID: %s\r\n\r\n"

COLUMNS = {
    "bytes": ("bytes", "9.0f"),
    "bytes_sent": ("once sent", "9.0f"),
    "publish_us": ("publish", "9.1f"),
    "publish_followed_us": ("followed", "9.1f"),
    "some_us": ("some", "9.0f"),
    "herd_us": ("each", "9.0f"),
    "all_first_ms": ("first ms", "9.2f"),
    "all_ms": ("all ms", "9.2f"),
    "all_event_us": ("an event", "9.2f"),
    "all_loop_ms": ("loop ms", "9.2f"),
}


class Client:
    """One that comes back: when it has its first event, and the last."""

    def __init__(self) -> None:
        self.first = 0.0
        self.had_all = asyncio.Event()

    def piece(self, data: bytes, *, watch: bool) -> None:
        if not self.first and b"data: " in data:
            self.first = time.perf_counter()
        if data[-5:].startswith(LAST):
            self.had_all.set()

    def end(self) -> None: ...


class Server:
    """uvicorn's part of a connection."""

    def __init__(self, app: Any) -> None:
        self.config = uvicorn.Config(app, http="httptools", log_level="warning", access_log=False)
        self.config.load()
        self.state = ServerState()

    def connect(self, client: Any, last_event_id: str) -> Transport:
        make: Any = self.config.http_protocol_class
        protocol = make(config=self.config, server_state=self.state, app_state={})
        transport = Transport(client, protocol, 1, False)
        protocol.connection_made(transport)
        protocol.data_received(REQUEST % last_event_id.encode())
        return transport

    async def disconnect(self, transports: Sequence[Transport]) -> None:
        left = len(self.state.tasks) - len(transports)
        for transport in transports:
            transport.close()
        while len(self.state.tasks) > left:
            await asyncio.sleep(0.01)


class History:
    def __init__(self, length: int) -> None:
        self.length = length
        self.hub = hub = Hub(max_events=length, max_bytes=2 * length * SIZE)
        self.server = Server(
            sse_app(lambda request: hub.subscribe("t", last_event_id=request.last_event_id))
        )

    async def publish(self, count: int, end: str = "x") -> None:
        for number in range(count):
            await self.hub.publish("t", f"{number:0{SIZE - 1}}{end}")

    async def ago(self, events: int) -> str:
        """The id that a client has had that has missed so many."""
        epoch, offset = (await self.hub.position("t")).split("-")
        return f"{epoch}-{int(offset) - events}"

    async def measure(self) -> dict[str, float]:
        row: dict[str, float] = {}
        await self.hub.publish("another", "what is loaded once is then there")
        tracemalloc.start()
        empty = self.traced()
        await self.publish(self.length)
        row["bytes"] = (self.traced() - empty) / self.length
        tracemalloc.stop()

        row["publish_us"] = await self.publishing()
        # It stays: what is done for the first stream, and the last, is not what is measured.
        follower = self.server.connect(Client(), await self.ago(0))
        await asyncio.sleep(0.1)
        row["publish_followed_us"] = await self.publishing()

        await self.publish(1, LAST.decode())
        missed = min(MISSED, self.length)
        await self.come_back(1, missed)  # what is made once is then there
        row["some_us"] = (
            statistics.median([(await self.come_back(1, missed))["cpu"] for _ in range(50)]) * 1e6
        )
        row["herd_us"] = (await self.come_back(HERD, missed))["cpu"] / HERD * 1e6

        # Nobody was sent these yet.
        await self.server.disconnect([follower])
        await self.publish(self.length - 1)
        await self.publish(1, LAST.decode())
        tracemalloc.start()
        empty = self.traced()
        first = await self.come_back(1, self.length)
        row["bytes_sent"] = row["bytes"] + (self.traced() - empty) / self.length
        tracemalloc.stop()
        again = [await self.come_back(1, self.length) for _ in range(3)]
        cpu = statistics.median(each["cpu"] for each in again)
        return row | {
            "all_first_ms": statistics.median(each["first"] for each in again) * 1e3,
            "all_ms": cpu * 1e3,
            "all_event_us": cpu / self.length * 1e6,
            "all_loop_ms": max(each["loop"] for each in (first, *again)) * 1e3,
        }

    async def publishing(self) -> float:
        await self.publish(100)
        began = time.process_time()
        await self.publish(PUBLISHED)
        return (time.process_time() - began) / PUBLISHED * 1e6

    async def come_back(self, count: int, missed: int) -> dict[str, float]:
        """Have so many clients come back at once, until they have all.

        In seconds: processor time, time to the first event of the first, and the longest
        iteration of the event loop.
        """
        clients, ago = [Client() for _ in range(count)], await self.ago(missed)
        cpu, began = time.process_time(), time.perf_counter()
        transports = [self.server.connect(client, ago) for client in clients]
        longest, now = 0.0, time.perf_counter()
        while not clients[-1].had_all.is_set():
            await asyncio.sleep(0)
            before, now = now, time.perf_counter()
            longest = max(longest, now - before)
        cpu = time.process_time() - cpu
        await self.server.disconnect(transports)
        return {"cpu": cpu, "first": clients[0].first - began, "loop": longest}

    def traced(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]


def measured(length: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(length)],
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
    )
    row: dict[str, float] = json.loads(done.stdout)
    return row


def against_history(rounds: int, quick: bool) -> dict[str, Any]:
    lengths = LENGTHS[:2] if quick else LENGTHS
    samples: dict[int, list[dict[str, float]]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length, rows in samples.items():
            rows.append(measured(length))
    print("\nthe history of a topic: bytes an event takes, and once it was sent to somebody; µs of")
    print("processor time to publish one, without and with a subscriber; for a client that comes")
    print(f"back and has missed {MISSED}, and each of {HERD} that come at once; for one that has")
    print("missed all: ms to its first event and to have all, µs an event, and ms of the longest")
    print("iteration of the event loop")
    print(" " * 9 + " ".join(f"{title:>9}" for title, _ in COLUMNS.values()))
    for length, rows in samples.items():
        figures = {key: statistics.median(row[key] for row in rows) for key in COLUMNS}
        cells = (f"{figures[key]:{form}}" for key, (_, form) in COLUMNS.items())
        print(f"{length:>8,} " + " ".join(cells))
    return {str(length): rows for length, rows in samples.items()}


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    print(json.dumps(loop.run_until_complete(History(int(sys.argv[1])).measure())))
