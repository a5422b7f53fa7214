"""Clients that go away, and clients that stop reading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from .clients import HTTP2Response, Response, wait_for
from .harness import KINDS, Server, kinds, on_servers

GONE = [
    "source started",
    "source cleaned up on the loop",
    "closed client_disconnected",
    "app returned",
]
STALLED = [
    "source started",
    "source cleaned up on the loop",
    "closed send_timeout",
    "app returned",
]

#: Events of `big`, 64 KiB each. The buffers of kernels, and the windows of HTTP/2, take much less.
MOST = 8192


def close(response: Response) -> None:
    response.close()


def reset(response: Response) -> None:
    response.reset()


#: Ways to leave.
leaves = pytest.mark.parametrize("leave", [close, reset])


@leaves
@pytest.mark.parametrize("path", ["/idle", "/clock", "/ping"])
def test_client_leaves(
    server: Server, tag: str, path: str, leave: Callable[[Response], None]
) -> None:
    """Regression 9: the source is cleaned up and the log is silent (fastapi#15824)."""
    response = server.open(f"{path}?tag={tag}")
    assert response.status == 200
    if path != "/idle":
        response.read_until(lambda body: body.count(b"\n\n") >= 2)
    leave(response)
    assert server.wait_for_end(tag) == GONE


@on_servers(kinds(lambda kind: kind.http2))
@pytest.mark.parametrize("path", ["/idle", "/clock"])
def test_client_resets_one_stream(server: Server, tag: str, path: str) -> None:
    """Regression 19: a client of HTTP/2 resets a stream, not its connection (granian#917)."""
    with server.open(f"{path}?tag={tag}") as response:
        assert response.status == 200
        assert isinstance(response, HTTP2Response)
        response.reset_stream()
        assert server.wait_for_end(tag) == GONE


def wait_until_stalled(server: Server, tag: str) -> None:
    """Wait until the source is not asked for more, because nobody takes what it has yielded."""
    last, same = -1, 0

    def stalled() -> bool:
        nonlocal last, same
        yielded = server.status(tag)["yielded"]
        assert yielded < MOST, "there is no back-pressure"
        same = same + 1 if yielded == last else 0
        last = yielded
        return same >= 5 and yielded > 0

    wait_for(stalled, lambda: f"{last} events and still no back-pressure")


@leaves
def test_client_leaves_while_the_source_is_suspended_at_yield(
    server: Server, tag: str, leave: Callable[[Response], None]
) -> None:
    """Regression 7: the source is closed before the application returns, though it is in no
    position to notice anything (daf_butler#1407). Regression 9: nobody logs it.
    """
    response = server.open(f"/big-patient?tag={tag}", receive_buffer=4096)
    assert response.status == 200
    wait_until_stalled(server, tag)
    leave(response)
    assert server.wait_for_end(tag) == GONE


@pytest.mark.parametrize("path", ["/big", "/big-ping"])
def test_client_stops_reading(server: Server, tag: str, path: str) -> None:
    """Regression 6: `send_timeout` ends the stream, be it events or pings (sse-starlette#89)."""
    with server.open(f"{path}?tag={tag}", receive_buffer=4096) as response:
        assert response.status == 200
        before = server.left()["files"]
        assert server.wait_for_end(tag) == STALLED
        # Its connection is aborted too, though the client is still there, unless it may have other
        # streams.
        if not server.kind.http2:
            wait_for(lambda: server.left()["files"] < before, lambda: server.left()["files"])
            assert response.read_to_end() == "broken"


@on_servers([name for name in KINDS if name.startswith("daphne")])
def test_client_stops_reading_behind_a_middleware(server: Server, tag: str) -> None:
    """The request is found, whoever is in between, and broken off with all that is buffered."""
    with server.open(f"/big-behind?tag={tag}", receive_buffer=4096) as response:
        assert response.status == 200
        assert server.wait_for_end(tag) == STALLED
        assert response.read_to_end() == "broken"


def test_clients_that_do_not_read_cost_little(server: Server, tag: str) -> None:
    """What is sent to them is not kept without a bound in the server."""
    clients = 4
    before = server.left()["resident KiB"]
    with ExitStack() as stack:
        for _ in range(clients):
            url = f"/big-patient?tag={tag}"
            response = stack.enter_context(server.open(url, receive_buffer=4096))
            assert response.status == 200
        wait_until_stalled(server, tag)
        assert server.left()["resident KiB"] < before + 128 * 1024
    assert sorted(server.wait_for_end(tag, clients)) == sorted(GONE * clients)


@contextmanager
def reading(response: Response) -> Iterator[None]:
    """Read all there is, in a thread."""

    def read() -> None:
        while response.ending is None and not left.is_set():
            response.read_some()
            response.body.clear()

    left = threading.Event()
    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def test_source_that_never_waits(server: Server, tag: str) -> None:
    """Regression 16: others are served meanwhile, and it ends with its client (fastapi#14680)."""
    # asyncio's complaint about those who write to a connection in the moment when it is lost, and
    # before they can be told.
    server.forgive("socket.send() raised exception.")
    with server.open(f"/spin?tag={tag}") as response:
        assert response.status == 200
        with reading(response):
            yielded = 0
            for _ in range(3):
                status = server.wait_for_status(tag, lambda status: status["yielded"] > yielded)
                yielded = status["yielded"]
    assert server.wait_for_end(tag) == GONE


def test_threads_of_sync_sources(server: Server, tag: str) -> None:
    """Regression 14: threads are given back, `close()` does not run on the event loop, others are
    served meanwhile (django-bolt#25, daf_butler#1023).
    """
    clients = 64
    for opened in (clients, 2 * clients):
        with ExitStack() as stack:
            responses = [
                stack.enter_context(server.open(f"/thread?tag={tag}")) for _ in range(clients)
            ]
            for response in responses:
                assert response.status == 200
                response.read_until(lambda body: body.count(b"\n\n") >= 2)
            status = server.status(tag)
            assert status["thread_tokens"] == clients
        history = server.wait_for_end(tag, opened)
        assert history.count("source cleaned up on the thread") == opened
        assert history.count("closed client_disconnected") == opened
        status = server.wait_for_status(tag, lambda status: status["thread_tokens"] == 0)
        assert status["threads_in_sources"] == 0
        server.wait_for_status(tag, lambda status: status["threads"] < clients)


def test_many_connections(server: Server, tag: str) -> None:
    """Regression 3: the tasks of a stream end with it (sse-starlette#152, #142)."""
    clients = 100
    with server.open(f"/idle?tag={tag}") as response:  # what comes with the first stream, and stays
        assert response.status == 200
    server.wait_for_end(tag)
    before = server.wait_for_status(tag, lambda status: status["connections"] == 0)
    with ExitStack() as stack:
        for path in ("/idle", "/clock"):
            responses = [
                stack.enter_context(server.open(f"{path}?tag={tag}")) for _ in range(clients // 2)
            ]
            for response in responses:
                assert response.status == 200
        assert server.status(tag)["connections"] == clients
    history = server.wait_for_end(tag, clients + 1)
    assert history.count("closed client_disconnected") == clients + 1
    # A server may have a few of its own for a connection that it keeps.
    server.wait_for_status(
        tag, lambda now: now["tasks"] < before["tasks"] + 10 and not now["connections"]
    )
