"""Servers that are told to stop while streams are open."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

from .clients import DEADLINE, Response
from .conftest import StartServer, UsualExitCode
from .harness import KINDS, Kind, Server

UVICORN = ["uvicorn-h11", "uvicorn-httptools", "uvicorn-zttp", "uvicorn-starlette"]


def open_streams(server: Server, stack: ExitStack, path: str, count: int) -> list[Response]:
    responses = [stack.enter_context(server.open(path)) for _ in range(count)]
    for response in responses:
        assert response.status == 200
    return responses


def stop(server: Server, number: signal.Signals) -> tuple[int, float]:
    """Have the server stop; its exit code, and the seconds that it took."""
    begin = time.monotonic()
    server.signal(number)
    code = server.wait()
    return code, time.monotonic() - begin


def ended_by_shutdown(count: int, in_threads: int = 0) -> dict[str, int]:
    """The summary of so many streams whose sources have had their cleanup."""
    summary = dict.fromkeys(("source started", "closed shutdown", "app returned"), count)
    summary["source cleaned up on the loop"] = count - in_threads
    if in_threads:
        summary["source cleaned up on the thread"] = in_threads
    return summary


def has_own_signals(kind: Kind) -> bool:
    """Whether no other kind is the same process, with another version of HTTP or entry point."""
    return not kind.only_stops and not kind.http2 and kind.entry_point == "sse_app"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (name, number)
        for name, kind in KINDS.items()
        for number in (kind.signals if has_own_signals(kind) else kind.signals[:1])
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_server_stops(
    start_server: StartServer,
    usual_exit_code: UsualExitCode,
    record_property: Callable[[str, object], None],
    name: str,
    number: signal.Signals,
) -> None:
    """Regression 1: idle and busy streams end as they should, and the process with them
    (sse-starlette#132).
    """
    server = start_server(name)
    with ExitStack() as stack:
        responses = [
            response
            for path in ("/idle", "/clock")
            for response in open_streams(server, stack, path, 10)
        ]
        begin = time.monotonic()
        server.signal(number)
        for response in responses:
            assert response.read_to_end() == "complete"
            assert server.kind.http2 or response.tail.endswith(b"0\r\n\r\n")
    code, seconds = server.wait(), time.monotonic() - begin
    record_property("seconds until exit", seconds)
    assert code == usual_exit_code(name, number)
    assert server.complaints() == []
    assert server.summary() == ended_by_shutdown(20)


@pytest.mark.parametrize("name", [name for name in KINDS if not KINDS[name].http2])
def test_server_stops_with_many_clients(
    start_server: StartServer,
    usual_exit_code: UsualExitCode,
    record_property: Callable[[str, object], None],
    name: str,
) -> None:
    """Regression 1, with clients that all read at the same time, and one that does not finish what
    it has to say.
    """
    server = start_server(name)
    clients, in_threads = 200, 2

    async def main() -> tuple[int, float]:
        open_clients = 0
        all_open = asyncio.Event()

        async def client(path: str) -> bytes:
            nonlocal open_clients
            reader, writer = await asyncio.open_connection("127.0.0.1", server.address.port)
            writer.write(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
            data = await reader.readuntil(b"\r\n\r\n")
            open_clients += 1
            if open_clients == clients:
                all_open.set()
            data += await reader.read()
            writer.close()
            await writer.wait_closed()
            return data

        _, half = await asyncio.open_connection("127.0.0.1", server.address.port)
        half.write(b"GET /clock HTTP/1.1\r\nho")
        paths = ["/thread"] * in_threads + ["/idle", "/clock"] * ((clients - in_threads) // 2)
        answers = asyncio.gather(*map(client, paths))
        await asyncio.wait_for(all_open.wait(), DEADLINE)
        stopping = asyncio.create_task(asyncio.to_thread(stop, server, signal.SIGTERM))
        for answer in await answers:
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"0\r\n\r\n")
        if name == "granian":
            half.close()  # it gives it 30 s to finish
        stopped = await stopping
        half.close()
        with suppress(ConnectionError):
            await half.wait_closed()
        return stopped

    code, seconds = asyncio.run(main())
    record_property("seconds until exit", seconds)
    assert code == usual_exit_code(name, signal.SIGTERM)
    assert server.complaints() == []
    assert server.summary() == ended_by_shutdown(clients, in_threads)


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("name", UVICORN)
def test_requests_that_race_the_signal(
    start_server: StartServer, usual_exit_code: UsualExitCode, name: str, others: int
) -> None:
    """Regression 1: a request just before the signal, and one just after it, be it the first
    stream of the server or one more. It ends, or is not taken at all.
    """
    server = start_server(name)
    with ExitStack() as stack:
        responses = open_streams(server, stack, "/idle", others)
        before, after = (stack.enter_context(server.address.connect()) for _ in range(2))
        request = b"GET /clock HTTP/1.1\r\nhost: test\r\n\r\n"
        before.sendall(request)
        server.signal(signal.SIGTERM)
        try:
            after.sendall(request)
        except ConnectionError:
            pass
        for sock in (before, after):
            answer = read_all(sock)
            assert answer == b"" or answer.endswith(b"\r\n0\r\n\r\n")
        for response in responses:
            assert response.read_to_end() == "complete"
        assert server.wait() == usual_exit_code(name, signal.SIGTERM)
    assert server.complaints() == []


def read_all(sock: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionError:
        pass
    return data
