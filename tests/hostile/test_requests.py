"""Requests that are unusual, incomplete or wrong: whatever a server makes of one, nothing stays
behind of it when its client has left.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest

from tests.servers.clients import Response, wait_for
from tests.servers.test_disconnect import leaves, reset

from .harness import EAGER, HTTP2, SERVERS, Attacked, on
from .test_leaving import Leave, everybody_has_left

ALL = [*SERVERS, *EAGER]

GET = "GET /many?tag={tag} HTTP/1.1\r\nHost: x\r\n"
POST = GET.replace("GET", "POST")

REQUESTS: dict[str, str | bytes] = {
    "a body for GET": GET + "Content-Length: 5\r\n\r\nhello",
    "half a body": GET + "Content-Length: 1000\r\n\r\nhello",
    "no body after all": GET + "Content-Length: 1000\r\n\r\n",
    "a huge length": GET + "Content-Length: 99999999999999\r\n\r\nhello",
    "two lengths": GET + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a negative length": GET + "Content-Length: -1\r\n\r\n",
    "half a chunk": GET + "Transfer-Encoding: chunked\r\n\r\n1000\r\nhello",
    "a wrong chunk": GET + "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "chunks without an end": GET + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "chunks and a length": GET + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "Expect": GET + "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    "Expect nothing": GET + "Expect: 100-continue\r\n\r\n",
    "HTTP/1.0": "GET /many?tag={tag} HTTP/1.0\r\n\r\n",
    "HTTP/1.0 kept alive": "GET /many?tag={tag} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/0.9": "GET /many?tag={tag}\r\n\r\n",
    "HTTP/3.7": "GET /many?tag={tag} HTTP/3.7\r\nHost: x\r\n\r\n",
    "Connection: close": GET + "Connection: close\r\n\r\n",
    "TE": GET + "TE: trailers, deflate;q=0.5\r\nConnection: TE\r\n\r\n",
    "Upgrade to nothing": GET + "Upgrade: nothing/1\r\nConnection: upgrade\r\n\r\n",
    "Upgrade to h2c": GET
    + "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    + "Connection: upgrade, http2-settings\r\n\r\n",
    "the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an absolute target": "GET http://x/many?tag={tag} HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long target": "GET /many?tag={tag}&" + "x" * 60_000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is no text": GET.encode().replace(b"}", b"}&\xff\xfe%ff%00") + b"\r\n",
    "no host": "GET /many?tag={tag} HTTP/1.1\r\n\r\n",
    "a thousand headers": GET + "".join(f"X-{n}: {n}\r\n" for n in range(1_000)) + "\r\n",
    "a header of 200 kB": GET + f"X: {'x' * 200_000}\r\n\r\n",
    "a header that never ends": GET + "X: " + "x" * 30_000,
    "Last-Event-ID of 64 kB": GET + f"Last-Event-ID: {'1' * 65_000}\r\n\r\n",
    "Last-Event-ID a thousand times": GET + "Last-Event-ID: 1\r\n" * 1_000 + "\r\n",
    "Last-Event-ID no UTF-8": GET.encode() + b"Last-Event-ID: \xff\xfe\xc3(\r\n\r\n",
    "Last-Event-ID NUL": GET.encode() + b"Last-Event-ID: 1\x002\r\n\r\n",
    "Last-Event-ID CR": GET.encode() + b"Last-Event-ID: 1\r2\r\n\r\n",
    "Last-Event-ID empty": GET + "Last-Event-ID:\r\n\r\n",
    "Last-Event-ID in a query": "GET /many?tag={tag}&last_event_id=%ff%00%0a"
    + "1" * 30_000
    + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "nothing": b"",
    "garbage": bytes(range(256)) * 50,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
}


def bytes_of(request: str | bytes, tag: str) -> bytes:
    data = request.encode() if isinstance(request, str) else request
    return data.replace(b"{tag}", tag.encode())


def half_close(response: Response) -> None:
    """Say that there will be no more requests, and read on for a while; then leave."""
    try:
        response.sock.shutdown(socket.SHUT_WR)
    except OSError:  # the server has closed
        pass
    response.sock.settimeout(0.01)
    try:
        response.read_some()
    except OSError:
        pass
    response.close()


@pytest.mark.parametrize("leave", [reset, half_close])
@on(*ALL)
def test_unusual_requests(server: Attacked, tag: str, leave: Leave) -> None:
    """Each of them, ten at once, and another client gets its answer meanwhile."""
    server.forgive_what_it_says_of_requests()
    if server.name == "uvicorn-eager":
        # The response has begun when h11 comes to the wrong chunk, and uvicorn wants to answer 400.
        for words in ("call failed", "Traceback", "LocalProtocolError"):
            server.forgive(words)
    names = list(REQUESTS)
    for start in range(0, len(names), 10):
        with ExitStack() as stack:
            for name in names[start : start + 10]:
                try:
                    response = server.raw(bytes_of(REQUESTS[name], f"{tag}-{start}"))
                except OSError:  # the server would not read all of it
                    continue
                stack.callback(leave, response)
            time.sleep(0.1)
            with server.open(f"/clock?tag={tag}-other") as other:
                other.read_until(lambda body: b"\n\n" in body)
        everybody_has_left(server, f"{tag}-{start}")


@on(*ALL)
def test_requests_in_small_pieces(server: Attacked, tag: str) -> None:
    """A byte at a time."""
    with server.raw(b"") as response:
        for byte in bytes_of(GET + "Last-Event-ID: 7\r\n\r\n", tag):
            response.sock.sendall(bytes([byte]))
        assert response.status == 200
    everybody_has_left(server, tag)


@pytest.mark.parametrize(("method", "status"), [("head", 200), ("options", 204), ("put", 405)])
@on(*ALL)
def test_methods_in_lower_case(server: Attacked, tag: str, method: str, status: int) -> None:
    """Methods are compared in any case. No stream begins; a server may refuse them itself."""
    server.forgive_what_it_says_of_requests()
    data = bytes_of(GET, tag).replace(b"GET", method.encode())
    with server.raw(data + b"Connection: close\r\n\r\n") as response:
        answer = b"".join(iter(lambda: response.sock.recv(65_536), b""))
    got = int(answer.split()[1])
    assert got in (status, 400, 501)
    assert "source started" not in server.status(tag)["history"]


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([(b"last-event-id", b"1" * 4_000)], 4_000),
        ([(b"last-event-id", "\u00e9\u2603".encode())], 2),
        ([(b"last-event-id", b"\xe9\xff")], 2),
        ([(b"last-event-id", b"")], 0),
        ([], 0),
    ],
    ids=["long", "UTF-8", "Latin-1", "empty", "none"],
)
@on(*ALL, *HTTP2)
def test_what_is_made_of_last_event_id(
    server: Attacked, tag: str, headers: list[tuple[bytes, bytes]], length: int
) -> None:
    """It is text whatever the client sends: UTF-8, and else Latin-1."""
    with server.open(f"/echo-id?tag={tag}", headers=headers) as response:
        response.read_until(lambda body: b"\n\n" in body)
        assert response.body == b'data: {"length":%d}\n\n' % length


@leaves
@on(*ALL)
def test_hundreds_of_clients_leave_at_once(server: Attacked, tag: str, leave: Leave) -> None:
    """No place, task, file or stream is left of them, whether they had an answer or none yet."""
    with server.open(f"/clock?tag={tag}-first"):
        before = server.left()
    data = bytes_of(GET.replace("many", "idle") + "\r\n", tag)
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(150):
                stack.callback(leave, server.raw(data))
    server.wait_for_status(tag, lambda status: status["running"] == 0)
    wait_for(
        lambda: all(
            server.left()[kind] <= before[kind] + some
            for kind, some in {"files": 2, "tasks": 5, "Stream": 0, "SSERequest": 0}.items()
        ),
        lambda: (before, server.left()),
    )
    history = server.status(tag)["history"]
    assert history.count("source started") == history.count("source cleaned up on the loop")
