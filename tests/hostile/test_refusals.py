"""Requests that get no stream: floods of them that nobody reads, and bodies."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from tests.servers.clients import HTTP1Response, wait_for

from .harness import DISTINCT, EAGER, SERVERS, Attacked, on, on_each

#: Requests that are refused. Their answers are long, so that few fill the buffers: it would take
#: 50,000 refusals of `max_connections` to do so, which are sent by the same code.
REFUSED = ["GET /guarded", "GET /behind/guarded", "HEAD /guarded", "PUT /guarded"]

#: How many of them.
FLOOD = 10_000


def flood(server: Attacked, line: str, tag: str = "") -> HTTP1Response:
    """Send as many requests as the server takes, and read nothing."""
    response = server.raw(b"", receive_buffer=4096)
    data = f"{line}?tag={tag} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * FLOOD
    response.sock.settimeout(0.3)
    try:
        response.sock.sendall(data)
    except OSError:  # the server does not take any more, or has closed
        pass
    return response


@on_each(
    "server,line",
    [
        *(("uvicorn-h11", line) for line in REFUSED),
        *(
            (name, line)
            for name in (*DISTINCT[1:], *EAGER)
            for line in ("GET /guarded", "HEAD /guarded")
        ),
    ],
)
def test_a_flood_of_refused_requests_that_nobody_reads(
    server: Attacked, tag: str, line: str
) -> None:
    """Regression 34: three of them take no place of the three that there are (found by attack)."""
    with ExitStack() as stack:
        before = server.left()
        for _ in range(3):
            stack.enter_context(flood(server, line, tag))
        with server.open(f"/guarded?tag={tag}&let-in=") as response:
            assert response.status == 200
        assert server.left()["resident KiB"] < before["resident KiB"] + 256 * 1024
        # Its send_timeout of 2 s holds for a refusal, too. granian takes each at once, and then
        # keeps the connection by itself, whatever the application is.
        if server.name != "granian":
            wait_for(
                lambda: server.left()["files"] <= before["files"],
                lambda: (before, server.left(), server.status(tag)["running"]),
            )
    wait_for(lambda: server.status(tag)["running"] == 0, lambda: server.status(tag)["running"])


@on(*SERVERS, *EAGER)
def test_a_flood_of_refused_requests_and_gone(server: Attacked, tag: str) -> None:
    """Regression 34: nothing stays behind of those who leave (found by attack)."""
    before = server.left()
    for line in ("GET /guarded", "HEAD /guarded", "PUT /guarded"):
        flood(server, line, tag).close()
    wait_for(
        lambda: server.places(tag) == 0 and server.left()["files"] <= before["files"],
        lambda: (server.places(tag), before, server.left()),
    )
    wait_for(lambda: says_nothing(server), server.log)


def says_nothing(server: Attacked) -> bool:
    """Return whether a server has nothing to do, as far as its log tells."""
    size = server.log_file.stat().st_size
    time.sleep(0.5)
    return server.log_file.stat().st_size == size


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /guarded", 403),
        ("HEAD /guarded", 200),
        ("OPTIONS /guarded", 204),
        ("PUT /guarded", 405),
    ],
)
@on(*SERVERS, *EAGER)
def test_whoever_reads_a_flood_of_refusals_gets_them_all(
    server: Attacked, line: str, status: int
) -> None:
    """Nobody is cut who reads, however many there are, and a refusal is whole."""
    # Where tasks are eager, uvicorn calls an application within the one before, if they don't wait.
    # Some fifty of them are too deep for Python.
    count = 20 if server.name in EAGER else 500
    method = line.split()[0]
    with server.raw(b"") as response:
        data = f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * (count - 1)
        data += f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        response.sock.sendall(data)
        answer = b"".join(iter(lambda: response.sock.recv(2**20), b""))
    assert answer.count(b"HTTP/1.1 %d" % status) == count
    if method == "GET":
        assert answer.count(b"not for you") == count * 5_000
    if method == "HEAD":
        assert answer.count(b"text/event-stream") == count
        assert answer.lower().count(b"x-padding-0: " + b"x" * 1_000) == count


# While the server is stopping.


@pytest.mark.parametrize("form", ["", "/behind"], ids=["sse_app", "behind"])
@on(*SERVERS, *EAGER)
def test_a_post_while_draining_is_refused(server: Attacked, tag: str, form: str) -> None:
    """It is no reconnecting EventSource: an empty stream would look like an answer."""
    path = f"{form}/posted?tag={tag}"
    with server.open(path, method="POST") as response:
        assert response.status == 200
        assert response.read_to_end() == "complete"
        assert response.body == b"data: POST\n\n"
    server.tell("drain", tag)
    with server.open(path, method="POST") as response:
        assert response.status == 503
        assert response.read_to_end() == "complete"


# Bodies of requests.


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""])
    return head.encode() + body


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


#: What `max_body` is by default.
LIMIT = 2**20

BODIES = ["/body-first", "/body-meanwhile", "/behind/body-first"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("how", ["length", "chunks"])
@pytest.mark.parametrize("size", [0, LIMIT])
@on(*SERVERS, *EAGER)
def test_a_body_is_read(server: Attacked, tag: str, path: str, how: str, size: int) -> None:
    """Regression 42: in the factory, or while the stream runs (asgiref#419)."""
    body = b"x" * size
    url = f"{path}?tag={tag}"
    if how == "length":
        data = post(url, body, f"Content-Length: {size}")
    else:
        data = post(url, chunked(body, 50_000), "Transfer-Encoding: chunked")
    with server.raw(data) as response:
        assert response.status == 200
        assert response.read_to_end() == "complete"
        assert response.body.endswith(b"data: %d\n\n" % size)
    assert "closed finished" in server.wait_for_end(tag)


@pytest.mark.parametrize("how", ["length", "chunks"])
@on(*SERVERS, *EAGER)
def test_a_body_that_is_too_long(server: Attacked, tag: str, how: str) -> None:
    """Regression 42: 413 where the response has not started; else the stream is broken off."""
    size = LIMIT + 1
    for path in BODIES:
        url = f"{path}?tag={tag}"
        if how == "length":
            data = post(url, b"", f"Content-Length: {size}")
        else:
            data = post(url, b"", "Transfer-Encoding: chunked")
        body = b"x" * size if how == "length" else chunked(b"x" * size, 50_000)
        with server.raw(data) as response:
            try:
                response.sock.sendall(body)
            except OSError:  # refused before all of it was there
                pass
            if path == "/body-meanwhile":
                assert response.status in (200, 413)
            else:
                assert response.status == 413
            ending = response.read_to_end()
            if response.status == 200 and server.kind.shows_errors:
                assert ending == "broken"
            assert b"data: %d" % size not in response.body
            if response.status == 200:
                server.wait_for_complaint("is larger than")  # why it was broken off
    server.wait_for_end(tag, len(BODIES))
    if server.name == "daphne":
        time.sleep(1.2)  # it looks once a second for exceptions of applications
    server.new_complaints()


@pytest.mark.parametrize("path", ["/body-first", "/body-meanwhile", "/idle-post"])
@on(*SERVERS, *EAGER)
def test_a_body_that_stops_in_the_middle(server: Attacked, tag: str, path: str) -> None:
    """The client leaves when it has sent half of it: all ends, and nothing is logged."""
    for leave in ("close", "reset"):
        response = server.raw(post(f"{path}?tag={tag}", b"x" * 500, "Content-Length: 1000"))
        if server.name != "daphne":  # it calls an application when it has all of the body
            wait_for(lambda: server.places(tag) == 1, lambda: server.places(tag))
        time.sleep(0.1)
        getattr(response, leave)()
        wait_for(lambda: server.places(tag) == 0, lambda: server.places(tag))
    assert "closed finished" not in server.wait_for_end(tag, 0 if server.name == "daphne" else 2)
