"""Clients that connect, stall, vanish and come back at random, for some time, while the server is
drained and started again; and what is left when they have gone.

`SSE_ASGI_TEST_SOAK` is how many seconds that goes on (10), `SSE_ASGI_TEST_SOAK_CLIENTS` how many
clients there are at any time (100).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from .clients import DEADLINE, wait_for
from .harness import Server, require_package, steady_port

SECONDS = float(os.environ.get("SSE_ASGI_TEST_SOAK", "10"))
CLIENTS = int(os.environ.get("SSE_ASGI_TEST_SOAK_CLIENTS", "100"))

#: Streams that end by themselves, that never do, from threads, and more than a client can take.
PATHS = ["/events", "/clock", "/idle", "/ping", "/thread", "/big-patient", "/echo"]

pytestmark = pytest.mark.timeout(SECONDS + 4 * DEADLINE)


class Crowd:
    """So many clients, each of which does something else all the time."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self.port = port
        self.chance = chance
        self.done: Counter[str] = Counter()
        self.over = asyncio.Event()

    async def client(self) -> None:
        while not self.over.is_set():
            behaviour = self.chance.choice([self.read, self.stall, self.vanish, self.hesitate])
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=4096)
            except OSError:  # the server is away
                self.done["refused"] += 1
                await asyncio.sleep(0.05)
                continue
            try:
                await behaviour(reader, writer)
                self.done[behaviour.__name__] += 1
                if self.chance.random() < 0.5:
                    self.reset(writer)
            except (OSError, EOFError):  # the server was faster
                self.done["broken"] += 1
            finally:
                writer.close()

    async def pause(self, most: float) -> None:
        try:
            await asyncio.wait_for(self.over.wait(), self.chance.uniform(0, most))
        except asyncio.TimeoutError:
            pass

    def ask(self, writer: asyncio.StreamWriter) -> None:
        path = self.chance.choice(PATHS)
        writer.write(f"GET {path}?tag=soak HTTP/1.1\r\nhost: test\r\n\r\n".encode())

    async def read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ask(writer)
        reading = asyncio.ensure_future(self.read_all(reader))
        await self.pause(1)
        reading.cancel()
        await asyncio.wait([reading])

    async def read_all(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass

    async def stall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ask(writer)
        await self.pause(1)

    async def vanish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ask(writer)
        await self.pause(0.01)

    async def hesitate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Half of a request, and perhaps never the rest."""
        writer.write(b"GET /clock?tag=soak HTTP/1.1\r\nho")
        await self.pause(0.2)
        if self.chance.random() < 0.5:
            writer.write(b"st: test\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")

    def reset(self, writer: asyncio.StreamWriter) -> None:
        """Have the connection end with TCP RST."""
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def complaints(server: Server) -> list[str]:
    # What asyncio says of a source that never waits, until it hears that its client has left.
    return [line for line in server.complaints() if "socket.send() raised" not in line]


def settled(server: Server) -> dict[str, int]:
    """What is left when everybody has gone, and the server has noticed."""
    server.wait_for_status(
        "soak", lambda status: not status["running"] and not status["thread_tokens"]
    )
    left = server.left()

    def nothing() -> bool:
        nonlocal left
        left = server.left()
        streams = left["Stream"], left["AsyncSource"], left["ThreadSource"], left["SSERequest"]
        # A server may keep some connections for a while, but not those of all who have been there.
        return not any(streams) and left["files"] < CLIENTS / 2

    wait_for(nothing, lambda: left)
    return left


@asynccontextmanager
async def crowd(port: int, chance: random.Random) -> AsyncIterator[Crowd]:
    clients = Crowd(port, chance)
    tasks = [asyncio.create_task(clients.client()) for _ in range(CLIENTS)]
    try:
        yield clients
    finally:
        clients.over.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("name", ["uvicorn-h11", "uvicorn-httptools", "hypercorn-trio"])
def test_nothing_is_left(
    tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    if name == "uvicorn-httptools":
        require_package("uvloop")
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    port = steady_port()

    def start() -> Server:
        server = Server(name, tmp_path, None, port)
        assert server.ready(), server.log()
        return server

    async def soak(first: Server) -> Server:
        """Half of the time with one server, half with another that takes its place."""
        async with crowd(port, chance) as clients:
            await asyncio.sleep(SECONDS / 2)
            first.signal(signal.SIGTERM)
            await asyncio.to_thread(first.wait)
            second = await asyncio.to_thread(start)
            await asyncio.sleep(SECONDS / 2)
        record_property("clients", dict(clients.done))
        assert all(clients.done[what] > 0 for what in ("read", "stall", "vanish", "hesitate"))
        return second

    async def once_more() -> None:
        async with crowd(port, chance):
            await asyncio.sleep(SECONDS / 2)

    first = start()
    second: Server | None = None
    try:
        second = asyncio.run(soak(first))
        summary = first.summary()
        assert summary["source started"] > CLIENTS / 10
        cleaned_up = [n for what, n in summary.items() if what.startswith("source cleaned up")]
        assert sum(cleaned_up) == summary["source started"]
        assert complaints(first) == []

        before = settled(second)  # with what the first streams have brought, and stays
        asyncio.run(once_more())
        after = settled(second)
        record_property("left", {"before": before, "after": after})
        assert second.status("soak")["threads_in_sources"] == 0
        assert after["StreamOptions"] == before["StreamOptions"]
        assert after["resident KiB"] < before["resident KiB"] * 1.5
        assert complaints(second) == []
    finally:
        first.kill()
        if second is not None:
            second.kill()
