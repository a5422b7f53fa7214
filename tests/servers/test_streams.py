"""What a client gets, on every server."""

from __future__ import annotations

import pytest

from sse_asgi.decoder import EventStreamDecoder

from .apps import EVENTS
from .harness import Server, kinds, on_servers

#: Methods are a router's business, where there is one.
without_router = on_servers(kinds(lambda kind: kind.entry_point == "sse_app"))


def test_events_and_headers(server: Server, tag: str) -> None:
    with server.open(f"/events?tag={tag}") as response:
        assert response.status == 200
        assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
        store = b"no-cache" if server.kind.entry_point == "sse_app" else b"no-store"
        assert response.header(b"cache-control") == [store + b", no-transform"]
        assert response.header(b"x-accel-buffering") == [b"no"]
        assert response.header(b"content-length") == []
        assert response.header(b"connection") == []
        assert response.read_to_end() == "complete"
        assert response.body == EVENTS
    assert server.wait_for_end(tag) == [
        "source started",
        "source cleaned up on the loop",
        "closed finished",
        "app returned",
    ]


def test_events_arrive_while_the_stream_goes_on(server: Server, tag: str) -> None:
    with server.open(f"/clock?tag={tag}") as response:
        body = response.read_until(lambda body: body.count(b"\n\n") >= 5)
        assert body.startswith(b"id: 0\nevent: tick\ndata: 0\n\nid: 1\nevent: tick\ndata: 1\n\n")
    server.wait_for_end(tag)


def test_hop_by_hop_headers_of_the_user(server: Server, tag: str) -> None:
    """Regression 19: HTTP/2 forbids them (granian#917); h2 refuses a response that has one."""
    with server.open(f"/hop-by-hop?tag={tag}") as response:
        assert response.status == 200
        assert response.header(b"x-mine") == [b"stays"]
        for name in (b"keep-alive", b"proxy-connection", b"upgrade"):
            assert response.header(name) == []
        assert b"x-mine" not in b",".join(response.header(b"connection"))
        # The framing is the server's.
        assert response.header(b"transfer-encoding") == ([] if server.kind.http2 else [b"chunked"])
        assert response.read_to_end() == "complete"
        assert response.body == EVENTS
    server.wait_for_end(tag)


def test_headers_leave_before_the_first_event(server: Server, tag: str) -> None:
    """Regression 25: a stream that has nothing to say is open all the same (granian#607)."""
    with server.open(f"/idle?tag={tag}") as response:
        assert response.status == 200
        assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
        assert response.body == b""
        assert server.status(tag)["history"] == ["source started"]
    server.wait_for_end(tag)


def test_pings(server: Server, tag: str) -> None:
    with server.open(f"/ping?tag={tag}") as response:
        body = response.read_until(lambda body: len(body) >= 9)
        assert set(body.split(b"\n\n")) == {b":", b""}
    server.wait_for_end(tag)


def test_head(server: Server, tag: str) -> None:
    """Regression 12: it ends at once, and the source is not started (sse-starlette#218)."""
    with server.open(f"/idle?tag={tag}", method="HEAD") as response:
        assert response.status == 200
        assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
        assert response.read_to_end() == "complete"
        assert response.body == b""
    assert server.wait_for_end(tag) == ["app returned"]


@without_router
def test_options(server: Server, tag: str) -> None:
    with server.open(f"/idle?tag={tag}", method="OPTIONS") as response:
        assert response.status == 204
        assert response.header(b"allow") == [b"GET, HEAD, OPTIONS"]
        assert response.read_to_end() == "complete"
        assert response.body == b""
    assert server.wait_for_end(tag) == ["app returned"]


@without_router
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_other_methods(server: Server, tag: str, method: str) -> None:
    with server.open(f"/idle?tag={tag}", method=method) as response:
        assert response.status == 405
        assert response.header(b"allow") == [b"GET, HEAD, OPTIONS"]
        assert response.read_to_end() == "complete"
    assert server.wait_for_end(tag) == ["app returned"]


def test_a_stream_that_is_asked_for_by_post(server: Server, tag: str) -> None:
    with server.open(f"/post?tag={tag}", method="POST") as response:
        assert response.status == 200
        assert response.read_to_end() == "complete"
        assert response.body == b"data: POST\n\n"
    with server.open(f"/post?tag={tag}") as response:
        assert response.status == 405
        assert response.read_to_end() == "complete"
    server.wait_for_end(tag, 2)


def test_http_error_before_the_first_event(server: Server, tag: str) -> None:
    """Regression 10: the real status, with `defer_start` (fastapi#15917, sglang#30341)."""
    with server.open(f"/forbidden?tag={tag}") as response:
        assert response.status == 403
        assert response.header(b"content-type") == [b"text/plain; charset=utf-8"]
        assert response.read_to_end() == "complete"
        assert response.body == b"not for you"
    assert server.wait_for_end(tag) == [
        "source started",
        "source cleaned up on the loop",
        "closed error",
        "app returned",
    ]


def test_no_content(server: Server, tag: str) -> None:
    """204 tells an EventSource not to come back (WHATWG HTML 9.2.3)."""
    with server.open(f"/gone?tag={tag}") as response:
        assert response.status == 204
        assert response.header(b"content-type") == []
        assert response.read_to_end() == "complete"
        assert response.body == b""
    server.wait_for_end(tag)


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (b"42", '"42"'),
        ("grüße-☃".encode(), '"grüße-☃"'),  # a browser: UTF-8
        ("grüße".encode("latin-1"), '"grüße"'),  # fetch of node: Latin-1
        (b"\xff\xfe\x80", '"ÿþ\x80"'),  # neither; no id of ours, and no error
        (b"x" * 5000, f'"{"x" * 5000}"'),
        (b"\xc3" * 5000, f'"{"Ã" * 5000}"'),
    ],
    ids=["ascii", "utf-8", "latin-1", "invalid-utf-8", "long", "long-latin-1"],
)
def test_last_event_id(server: Server, tag: str, sent: bytes, seen: str) -> None:
    """Whatever a client sends as its last id, it gets its stream."""
    with server.open(f"/echo?tag={tag}", headers=[(b"last-event-id", sent)]) as response:
        assert response.status == 200
        assert response.read_to_end() == "complete"
        assert response.body.decode() == f"data: {seen}\n\n"
    server.wait_for_end(tag)


@pytest.mark.parametrize("value", ["caf%C3%A9", "%FF%00%0A", "x" * 5000])
def test_last_event_id_in_the_query(server: Server, tag: str, value: str) -> None:
    with server.open(f"/echo?tag={tag}&last_event_id={value}") as response:
        assert response.status == 200
        assert response.read_to_end() == "complete"
        (event,) = EventStreamDecoder().feed(bytes(response.body))
    if value.startswith("caf"):
        assert event.data == '"café"'
    server.wait_for_end(tag)


def test_error_in_mid_stream(server: Server, tag: str) -> None:
    """The client does not wait for more; where the server can show that this was no regular end,
    it does.
    """
    with server.open(f"/broken?tag={tag}") as response:
        assert response.status == 200
        assert response.read_to_end() == ("broken" if server.kind.shows_errors else "complete")
        # HTTP/2 resets the stream, and what was under way goes with it.
        if not (server.kind.http2 and server.kind.shows_errors):
            assert response.body == b"data: before\n\ndata: the end\n\n"
    assert server.wait_for_end(tag) == [
        "source started",
        "source cleaned up on the loop",
        "closed error",
        "app raised RuntimeError",
    ]
    # The one error that a server should log.
    server.wait_for_complaint("RuntimeError: meant to happen")


@on_servers(kinds(lambda kind: not kind.http2))
def test_next_request_on_the_same_connection(server: Server, tag: str) -> None:
    """A stream that has ended leaves the connection as any response does."""
    request = f"GET /events?tag={tag} HTTP/1.1\r\nhost: test\r\n\r\n".encode()
    with server.address.connect() as sock:
        for _ in range(2):
            sock.sendall(request)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                data = sock.recv(65536)
                assert data
                answer += data
            assert answer.startswith(b"HTTP/1.1 200 ")
    server.wait_for_end(tag, 2)
