"""uvicorn is told to stop, and a client has not read all of a response that is over."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .clients import DEADLINE
from .harness import require_package

#: What uvicorn keeps, since the system takes no more, and the client does not read.
SIZE = 50_000

#: A server with small buffers: an argument says which parser, and another which event loop.
SERVER = f"""
import asyncio, socket, sys
import uvicorn
from sse_asgi import HTTPError, sse_app

def factory(request):
    if request.path == "/refused":
        raise HTTPError(403, "z" * {SIZE})
    return source()

async def source():
    yield "z" * {SIZE}

listener = socket.create_server(("127.0.0.1", 0))
listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
print(listener.getsockname()[1], flush=True)
app = sse_app(factory, cleanup_timeout=1)
config = uvicorn.Config(app, http=sys.argv[1], loop=sys.argv[2], log_level="warning")
uvicorn.Server(config).run(sockets=[listener])
"""

Start = Callable[[str, str], tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start_one(parser: str, loop: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, parser, loop],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def connect(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(DEADLINE)
    end = time.monotonic() + DEADLINE
    while True:
        try:
            sock.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return sock


def ask(sock: socket.socket, path: str, more: str = "") -> None:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
    assert sock.recv(1, socket.MSG_PEEK) == b"H"
    time.sleep(0.3)  # the rest of the response is with uvicorn


PARSERS = pytest.mark.parametrize(
    ("parser", "loop"),
    [("h11", "asyncio"), ("httptools", "asyncio"), ("httptools", "uvloop")],
)


@pytest.mark.parametrize("path", ["/refused", "/source"])
@pytest.mark.parametrize("more", ["", "Connection: close\r\n"], ids=["keep-alive", "close"])
@PARSERS
def test_the_server_does_not_wait_for_it(
    start: Start, parser: str, loop: str, more: str, path: str
) -> None:
    """Regression 1: it waits for a client that takes nothing, and would do so for ever."""
    for package in ("uvicorn", "httptools", "uvloop"):
        require_package(package)
    process, port = start(parser, loop)
    with connect(port) as stuck, connect(port) as slow:
        ask(stuck, path, more)
        ask(slow, path, more)
        process.terminate()
        received = bytearray()
        while data := slow.recv(4_000):
            received += data
            time.sleep(0.05)
        assert received.count(b"z") == SIZE
        _, said = process.communicate(timeout=DEADLINE)
    assert said == ""


@pytest.mark.parametrize("path", ["/refused", "/source"])
@PARSERS
def test_a_response_that_can_not_start(start: Start, parser: str, loop: str, path: str) -> None:
    """The client has not read the one before. It is cut off, and uvicorn has no error to log."""
    for package in ("uvicorn", "httptools", "uvloop"):
        require_package(package)
    process, port = start(parser, loop)
    with connect(port) as stuck:
        ask(stuck, path, f"\r\nGET {path} HTTP/1.1\r\nHost: x\r\n" * 20)
        process.terminate()
        _, said = process.communicate(timeout=DEADLINE)
    assert said == ""
