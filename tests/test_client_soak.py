"""Workers that follow a stream while a network cuts every connection: nothing is lost or doubled,
and memory stays flat.

`SSE_ASGI_TEST_SOAK` is for how many seconds (10).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import pytest

from .http_peer import frames
from .servers.clients import DEADLINE
from .test_client_sockets import HEAD, chunked

SECONDS = float(os.environ.get("SSE_ASGI_TEST_SOAK", "10"))

#: How long a connection lives, in seconds.
LIFE = 0.05, 0.2

WORKERS = [("httpx2", "asyncio"), ("httpx2", "trio"), ("httpx", "asyncio"), ("httpx", "trio")]
if SECONDS < 60:
    WORKERS = [WORKERS[1], WORKERS[2]]

#: How much more there may be in the last third than in the middle one, at their least. What is
#: held in the middle of a chunk is less; what each connection left behind would be more.
SLACK = {"objects": 100, "traced": 40_000, "files": 0, "threads": 0}

pytestmark = pytest.mark.timeout(SECONDS + 6 * DEADLINE)


async def numbers(stream: anyio.abc.SocketStream) -> None:
    """Answer requests, with all numbers from that of the last event ID, in pieces."""
    chance = random.Random()
    async with stream:
        try:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive()
            last = request.lower().partition(b"last-event-id: ")[2].partition(b"\r\n")[0]
            number = int(last)
            await stream.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
            while True:
                body = frames(number + 1, number + 3)
                number += 3
                size = chance.randrange(1, len(body))
                for piece in (body[:size], body[size:]):
                    await stream.send(chunked(piece))
                    await anyio.sleep(0.003)
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            pass


class Proxy:
    """Forwards connections, and ends each a short time after the first bytes of its response."""

    def __init__(self, target: int) -> None:
        self.target = target

    async def serve(self, client: anyio.abc.SocketStream) -> None:
        how = random.choices(["reset", "closed", "half open"], [10, 10, 1])[0]
        async with client, await anyio.connect_tcp("127.0.0.1", self.target) as server:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._forward, client, server)
                with anyio.CancelScope() as life:
                    await self._forward(server, client, life)
                if how == "half open":
                    with anyio.move_on_after(DEADLINE):  # until the client has had enough
                        await self._forward(server, None)
                tasks.cancel_scope.cancel()
            if how == "reset":
                raw = client.extra(anyio.abc.SocketAttribute.raw_socket)
                with contextlib.suppress(OSError):  # the client was faster
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _forward(
        self,
        source: anyio.abc.SocketStream,
        target: anyio.abc.SocketStream | None,
        life: anyio.CancelScope | None = None,
    ) -> None:
        try:
            async for data in source:
                if target is not None:
                    await target.send(data)
                if life is not None and life.deadline == math.inf:
                    life.deadline = anyio.current_time() + random.uniform(*LIFE)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        await source.aclose()  # so that the other direction ends, too


async def follow(url: str, library: str, backend: str) -> Any:
    command = [sys.executable, "-W", "error", "-m", "tests.client_soak", "--library", library]
    command += ["--backend", backend, "--seconds", str(SECONDS), url]
    done = await anyio.run_process(command, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return json.loads(done.stdout)


async def soak() -> dict[str, Any]:
    results: dict[str, Any] = {}

    async def keep(url: str, library: str, backend: str) -> None:
        results[f"{library} on {backend}"] = await follow(url, library, backend)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        await anyio.create_tcp_listener(local_host="127.0.0.1") as front,
        anyio.create_task_group() as tasks,
    ):
        proxy = Proxy(listener.extra(anyio.abc.SocketAttribute.local_port))
        tasks.start_soon(listener.serve, numbers)
        tasks.start_soon(front.serve, proxy.serve)
        url = f"http://127.0.0.1:{front.extra(anyio.abc.SocketAttribute.local_port)}/"
        async with anyio.create_task_group() as workers:
            for library, backend in WORKERS:
                workers.start_soon(keep, url, library, backend)
        tasks.cancel_scope.cancel()
    return results


def test_a_soak(record_property: Callable[[str, object], None]) -> None:
    results = anyio.run(soak)
    for who, result in results.items():
        samples = result["samples"]
        third = len(samples) // 3
        middle, last = samples[third : 2 * third], samples[-third:]
        least = [{what: min(s[what] for s in part) for what in part[0]} for part in (middle, last)]
        said = f"{who}: {samples[-1]}, at least {least[0]} then {least[1]}"
        record_property(who, said)
        print(said)
        assert result["wrong"] == [], said
        assert samples[-1]["connections"] > SECONDS, said
        for what, slack in SLACK.items():
            assert least[1][what] <= least[0][what] + slack, f"{what}: {said}"
