"""Clients that connect, stall, vanish and come back at random, for some time, while the server is
drained and started again; and what is left when they have gone.

`SSE_ASGI_TEST_SOAK` is how many seconds that goes on (4), `SSE_ASGI_TEST_SOAK_CLIENTS` how many
clients there are at any time (100). Thousands need `ulimit -n`.
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
from .harness import KINDS, Server, kinds, require_package, steady_port

SECONDS = float(os.environ.get("SSE_ASGI_TEST_SOAK", "4"))
CLIENTS = int(os.environ.get("SSE_ASGI_TEST_SOAK_CLIENTS", "100"))

#: How often all clients come and go while there is one server.
ROUNDS = 3

#: More clients each do less, for the machine does no more than this.
PACE = max(1.0, CLIENTS / 100)

#: HTTP/1.1, as the clients.
SERVERS = kinds(lambda kind: not kind.http2 and kind.entry_point == "sse_app")

#: Streams that end by themselves, and one that does nothing.
QUIET = ["/events", "/idle", "/echo"]

#: Those with more events, one of them from a thread, and one with more than a client can take.
LIVELY = ["/clock", "/ping", "/thread", "/big-patient"]

pytestmark = pytest.mark.timeout(SECONDS + (4 + ROUNDS) * DEADLINE)


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
                await self.pause(0.1)
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
            await asyncio.wait_for(self.over.wait(), self.chance.uniform(0, most * PACE))
        except TimeoutError:
            pass

    def ask(self, writer: asyncio.StreamWriter) -> None:
        lively = self.chance.random() < 0.6 / PACE
        path = self.chance.choice(LIVELY if lively else QUIET)
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
        writer.write(b"GET /first?tag=soak HTTP/1.1\r\nho")
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
    forgiven = ["socket.send() raised"]
    if server.name == "hypercorn":
        # It leaves those who come while it stops. Python 3.13 stumbles over them at its own end.
        forgiven += [
            "ResourceWarning",
            "Exception ignored in: <function _SelectorTransport.__del__",
            "Traceback",
            "TypeError: 'NoneType' object is not iterable",
        ]
    if server.name == "daphne":
        forgiven.append("summary of")  # tells of applications that it has cancelled
    return [line for line in server.complaints() if not any(what in line for what in forgiven)]


#: What is there while there are streams, and not when they are over.
OF_STREAMS = (
    "Stream",
    "AsyncSource",
    "ThreadSource",
    "SSERequest",
    "running",
    "threads in sources",
    "thread tokens",
)


def settled(server: Server, bounds: dict[str, float]) -> dict[str, int]:
    """What is left when everybody has gone, and the server has noticed: of some things no more
    than `bounds`.
    """
    left = server.left()

    def nothing() -> bool:
        nonlocal left
        left = server.left()
        return all(left[what] <= bound for what, bound in bounds.items())

    wait_for(nothing, lambda: {"left": left, "expected": bounds})
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


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_left(
    tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    for package in KINDS[name].packages:
        require_package(package)
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    port = steady_port()
    done: Counter[str] = Counter()

    def start() -> Server:
        server = Server(name, tmp_path, None, port)
        assert server.ready(), server.log()
        return server

    async def soak(first: Server) -> Server:
        """Half of the time with one server; then another takes its place, for the first round."""
        async with crowd(port, chance) as clients:
            await asyncio.sleep(SECONDS / 2)
            first.signal(signal.SIGTERM)
            await asyncio.to_thread(first.wait)
            second = await asyncio.to_thread(start)
            await asyncio.sleep(SECONDS / 2 / ROUNDS)
        done.update(clients.done)
        return second

    async def once_more() -> None:
        async with crowd(port, chance) as clients:
            await asyncio.sleep(SECONDS / 2 / ROUNDS)
        done.update(clients.done)

    first = start()
    second: Server | None = None
    try:
        fresh = first.left()
        second = asyncio.run(soak(first))
        summary = first.summary()
        assert summary["source started"] > CLIENTS / 10
        cleaned_up = [n for what, n in summary.items() if what.startswith("source cleaned up")]
        # daphne cancels what is there: a cleanup that waits at that moment, too, and a stream that
        # has just ended. Those are few, and on a busy machine more.
        # granian may leave a few that come while it stops; why is not known.
        cut_short = {"daphne": CLIENTS, "granian": CLIENTS // 10}.get(name, 0)
        assert summary["source started"] - sum(cleaned_up) <= cut_short
        reasons = [n for what, n in summary.items() if what.startswith("closed ")]
        assert sum(reasons) - summary["app returned"] <= cut_short
        assert complaints(first) == []

        bounds = dict.fromkeys(OF_STREAMS, 0.0)
        # What connects, and what the server has opened for itself meanwhile.
        bounds.update(files=fresh["files"] + 5, tasks=fresh["tasks"] + 5)
        left = [settled(second, bounds)]
        # After the first round there is what the first streams bring, and stays.
        bounds.update(objects=left[0]["objects"] * 1.02, StreamOptions=left[0]["StreamOptions"])
        for _ in range(ROUNDS - 1):
            asyncio.run(once_more())
            left.append(settled(second, bounds))
        record_property("clients", dict(done))
        record_property("first", summary)
        record_property("left", [fresh, *left])
        assert all(done[what] > 0 for what in ("read", "stall", "vanish", "hesitate"))
        # Not since the first round: many of that one's clients have not met this server.
        assert left[-1]["resident KiB"] < left[-2]["resident KiB"] * 1.25
        assert complaints(second) == []
    finally:
        first.kill()
        if second is not None:
            second.kill()
