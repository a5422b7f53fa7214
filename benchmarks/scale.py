"""What a process carries: thousands of subscribers on a real server, idle and fed.

uvicorn in a process of its own, the clients in this one. The figures are of the server's process:
its memory, and its processor time. Each client has a file on both sides: the limit on open files
(``ulimit -n``) bounds how many there can be.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

COUNTS = (1000, 5000, 15_000)

#: Events a second, and for how many seconds they are published.
RATE, SECONDS = 10, 5

PING = 5.0

REQUEST = b"GET /%s HTTP/1.1\r\nHost: benchmark\r\n\r\n"


class Client(asyncio.Protocol):
    """Reads, and counts what there is to count."""

    events = open = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(REQUEST % b"events")

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 200"):
            Client.open += 1
        Client.events += data.count(b"data: ")


@contextlib.contextmanager
def serving() -> Iterator[tuple[psutil.Process, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["uvicorn", "benchmarks.scale_app:app", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--log-level", "warning", "--backlog", "4096"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PING": str(PING)},
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield psutil.Process(process.pid), port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def ask(port: int, path: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST % path)
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()


def cpu(server: psutil.Process) -> float:
    times = server.cpu_times()
    return times.user + times.system


async def measure(server: psutil.Process, port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    Client.events = Client.open = 0
    await ask(port, b"nothing")
    empty = server.memory_info().rss
    began = cpu(server)
    for number in range(count):
        # Ports of one address do not suffice for all.
        source = (f"127.0.{1 + number % 4}.1", 0)
        await loop.create_connection(Client, "127.0.0.1", port, local_addr=source)
    while Client.open < count:
        await asyncio.sleep(0.1)
    connecting = (cpu(server) - began) / count
    memory = (server.memory_info().rss - empty) / count

    await asyncio.sleep(1)
    began = cpu(server)
    await asyncio.sleep(2 * PING)
    pinging = (cpu(server) - began) / count / 2

    began = cpu(server)
    await ask(port, b"publish")
    deadline = time.monotonic() + 60
    while Client.events < count * RATE * SECONDS and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    events = Client.events
    delivering = (cpu(server) - began) / max(events, 1)
    lost = "" if events == count * RATE * SECONDS else f"   only {events:,} had come after 60 s"

    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    server.wait()
    print(
        f"  {count:>7,} {memory / 1024:12.1f} {connecting * 1e6:12.0f} {pinging * 1e6:12.1f}"
        f" {delivering * 1e6:14.1f} {time.monotonic() - began:10.2f}{lost}"
    )


def main() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    print("subscribers of one process (uvicorn), each")
    print("             KiB of RSS   to connect       a ping    a delivery   SIGTERM to")
    print("                               (µs of processor time)               exit (s)")
    for count in COUNTS:
        if count > limit - 500:
            print(f"  {count:>7,} are more than the {limit:,} files that may be open")
            continue
        with serving() as (server, port):
            asyncio.run(measure(server, port, count))
