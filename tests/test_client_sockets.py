"""The client on connections that break in all ways, byte by byte."""

from __future__ import annotations

import importlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import psutil
import pytest

from sse_asgi.client import EventSource, TooManyReconnectsError, backoff

from .http_peer import LIBRARIES, collect, frames
from .redis.faulty_proxy import FaultyProxy

pytestmark = pytest.mark.anyio

HANG = 60

#: What a server does with a connection, after a request with this last event ID.
Serve: TypeAlias = Callable[[anyio.abc.SocketStream, int], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
GONE = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "LEAST", 0.0)


class Server:
    """Serves one connection after another, each in its own way; the last way is kept."""

    def __init__(self, *ways: Serve) -> None:
        self.ways = list(ways)
        self.url = ""
        self.had: list[int] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        with anyio.fail_after(HANG):
            async with (
                await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
                anyio.create_task_group() as tasks,
            ):
                port = listener.extra(anyio.abc.SocketAttribute.local_port)
                tasks.start_soon(listener.serve, self._serve)
                yield f"http://127.0.0.1:{port}/"
                tasks.cancel_scope.cancel()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += await stream.receive()
                found = re.search(rb"(?i)last-event-id: (\d+)", request)
                had = int(found[1]) if found else 0
                self.had.append(had)
                await (self.ways.pop(0) if len(self.ways) > 1 else self.ways[0])(stream, had)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


async def rest(stream: anyio.abc.SocketStream, had: int) -> None:
    """Send what came after an id, of three events; then that there is no more."""
    body = frames(had + 1, 3)
    await stream.send(HEAD + b"connection: close\r\n\r\n" + body if body else GONE)


def cut_off(response: bytes, size: int, how: str) -> Serve:
    async def serve(stream: anyio.abc.SocketStream, had: int) -> None:
        await stream.send(response[:size])
        if how == "reset":
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half closed":
            await stream.send_eof()
            await stream.receive()  # until the client leaves

    return serve


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
@pytest.mark.parametrize("framing", ["chunked", "until it ends"])
async def test_cut_at_every_byte_of_a_response(
    library: Any, anyio_backend: str, how: str, framing: str
) -> None:
    """The libraries and the event loops share the bytes among them."""
    first = 2 * (library.__name__ == "httpx") + (anyio_backend == "trio")
    if framing == "chunked":
        chunks = b"".join(chunked(frames(n, n)) for n in (1, 2, 3))
        response = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        response = HEAD + b"connection: close\r\n\r\n" + frames(1, 3)
    server = Server(rest)
    async with server.running() as url, library.AsyncClient(trust_env=False) as client:
        for size in range(first, len(response) + 1, 4):
            server.ways = [cut_off(response, size, how), rest]
            async with EventSource(url, client=client, retry=0) as source:
                assert await collect(source) == ["1", "2", "3"], size


async def test_a_network_that_fails_in_all_ways(library: Any) -> None:
    """Three hundred events, while connections are reset, refused, silent and half open."""
    last = 300

    async def numbers(stream: anyio.abc.SocketStream, had: int) -> None:
        if had == last:
            await stream.send(GONE)
            return
        await stream.send(HEAD + b"connection: close\r\n\r\n")
        for number in range(had + 1, last + 1):
            await stream.send(frames(number, number))
            await anyio.sleep(0.002)

    data: list[int] = []

    async def fail(proxy: FaultyProxy) -> None:
        in_thread = anyio.to_thread.run_sync
        faults: list[list[Callable[[], None]]] = [
            [proxy.cut],
            [proxy.strand],
            [proxy.refuse, proxy.cut],
            [proxy.silence],
            [proxy.silence, proxy.cut],
        ]
        for number, steps in enumerate(faults * 3):
            while len(data) < min(15 * (number + 1), last):
                await anyio.sleep(0.01)
            for step in steps:
                await in_thread(step)
            await anyio.sleep(0.05)
            await in_thread(proxy.resume)

    async with Server(numbers).running() as url:
        with FaultyProxy(int(url.rstrip("/").rpartition(":")[2])) as proxy:
            async with (
                library.AsyncClient(trust_env=False) as client,
                EventSource(
                    f"http://127.0.0.1:{proxy.port}/", client=client, retry=0, idle_timeout=0.5
                ) as source,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(fail, proxy)
                async for event in source:
                    data.append(int(event.data))  # noqa: PERF401  others watch it grow
                tasks.cancel_scope.cancel()
            assert proxy.connections > 10
    assert data == list(range(1, last + 1))


async def test_bytes_that_come_one_by_one(library: Any) -> None:
    async def slowly(stream: anyio.abc.SocketStream, had: int) -> None:
        for byte in HEAD + b"connection: close\r\n\r\n" + frames(1, 3):
            await stream.send(bytes([byte]))
            await anyio.lowlevel.checkpoint()

    async with Server(slowly, rest).running() as url:
        async with library.AsyncClient(trust_env=False) as client:
            async with EventSource(url, client=client, retry=0) as source:
                assert await collect(source) == ["1", "2", "3"]


@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEAD + b"\r\n", HEAD + b"\r\n" + frames(1, 1)])
async def test_a_server_that_falls_silent(library: Any, sent: bytes) -> None:
    async def silent(stream: anyio.abc.SocketStream, had: int) -> None:
        await stream.send(sent)
        await stream.receive()  # until the client leaves

    server = Server(silent, rest)
    async with server.running() as url:
        async with library.AsyncClient(trust_env=False) as client:
            async with EventSource(url, client=client, retry=0, idle_timeout=0.3) as source:
                assert await collect(source) == ["1", "2", "3"]
    assert len(server.had) >= 3


async def test_a_server_that_is_not_there(library: Any) -> None:
    async with Server(rest).running() as url:
        pass
    async with library.AsyncClient(trust_env=False) as client:
        async with EventSource(url, client=client, retry=0, max_reconnects=3) as source:
            with pytest.raises(TooManyReconnectsError) as caught:
                await anext(source)
            assert isinstance(caught.value.__cause__, library.ConnectError)


@pytest.mark.parametrize("way", ["break", "cancel", "end"])
async def test_no_socket_is_left(library: Any, way: str) -> None:
    """Not in the pool of a client that lives on, either."""

    async def endless(stream: anyio.abc.SocketStream, had: int) -> None:
        head = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        await stream.send(head + chunked(frames(1, 2)) + (b"0\r\n\r\n" if way == "end" else b""))
        await stream.receive()

    server = Server(endless)
    async with server.running() as url:
        async with library.AsyncClient(trust_env=False) as client:
            for _ in range(5):
                async with EventSource(url, client=client, max_reconnects=0) as source:
                    with anyio.CancelScope() as scope:
                        async for event in source:
                            if way == "break":
                                break
                            if event.data == "2" and way == "cancel":
                                scope.cancel()
            port = int(url.rstrip("/").rpartition(":")[2])
            assert not connections_to(port)


def connections_to(port: int) -> list[Any]:
    return [
        each
        for each in psutil.Process().net_connections("tcp")
        if each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED
    ]


async def test_a_client_of_its_own() -> None:
    """It is of httpx2, and closed with the source."""
    server = Server(rest)
    async with server.running() as url:
        async with EventSource(url, retry=0) as source:
            assert await collect(source) == ["1", "2", "3"]
            client = source._client
            assert type(client).__module__ == "httpx2"
        assert client.is_closed
        assert server.had == [0, 3]
