"""Clients that leave at a bad moment, and clients that have others cut off."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.servers.clients import Response, wait_for
from tests.servers.test_disconnect import GONE, close, leaves, reset

from .harness import (
    EAGER,
    HTTP2,
    SERVERS,
    Attacked,
    every_form,
    on,
    on_each,
    wait_until_stalled,
)

Leave = Callable[[Response], None]

ALL = [*SERVERS, *EAGER]


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


# Pipelined requests: a server of HTTP/1.1 reads the second while it answers the first.


#: With pings a server can find out that a client is gone; without, it has to be seen.
pings = pytest.mark.parametrize("path", ["/limited", "/limited-silent"], ids=["pings", "silence"])


@pings
@leaves
@on(*ALL)
def test_pipelined_requests_and_gone(server: Attacked, tag: str, path: str, leave: Leave) -> None:
    """Regression 31: all of them end, nothing is logged, and the places come back (found by attack
    on uvicorn with httptools).
    """
    for _ in range(3):
        leave(server.raw(request(f"{path}?tag={tag}") * 2))
    everybody_has_left(server, tag)
    with server.open(f"{path}?tag={tag}") as response:
        assert response.status == 200


def everybody_has_left(server: Attacked, tag: str) -> None:
    """Wait until all is as if nobody had been there."""
    # A stream that is still to begin would be taken for one that is over.
    server.wait_for_status(tag, lambda status: status["running"] == 0)
    time.sleep(0.1)
    server.wait_for_status(tag, lambda status: status["running"] == 0)
    wait_for(lambda: server.places(tag) == 0, lambda: server.places(tag))
    history = server.status(tag)["history"]
    started, cleaned = "source started", "source cleaned up on the loop"
    assert history.count(started) == history.count(cleaned)


#: What comes after a request. A large flood is more than servers and the system take: the end of
#: the connection waits behind it, and only a ping can find that out.
AFTER = {
    "half a request": (b"GET /limi", ["/limited", "/limited-silent"]),
    "garbage": (b"\x00\xff garbage \r\n\r\n", ["/limited", "/limited-silent"]),
    "a flood": (b"x" * 40_000, ["/limited-silent"]),
    "a large flood": (b"x" * 200_000, ["/limited"]),
}


@pytest.mark.parametrize(
    ("path", "after"),
    [
        pytest.param(path, after, id=f"{name}-{'silence' if 'silent' in path else 'pings'}")
        for name, (after, paths) in AFTER.items()
        for path in paths
    ],
)
@on(*ALL)
def test_something_after_the_request_and_gone(
    server: Attacked, tag: str, path: str, after: bytes
) -> None:
    """Regression 31: the same, with what is no request (found by attack)."""
    server.forgive_what_it_says_of_requests()
    response = server.raw(request(f"{path}?tag={tag}"))
    assert response.status == 200
    response.sock.settimeout(0.3)
    try:
        response.sock.sendall(after)
    except OSError:  # the server does not read it, or has closed
        pass
    time.sleep(0.1)
    response.close()
    everybody_has_left(server, tag)


# Connections of others.


@on_each(
    "server,header",
    [
        *((name, "X-Forwarded-For: ") for name in (*ALL, "daphne-proxied")),
        *((name, "X-Forwarded-For: 10.0.0.1, ") for name in ("uvicorn-h11", "uvicorn-httptools")),
    ],
)
def test_whoever_stops_reading_has_only_himself_cut(
    server: Attacked, tag: str, header: str
) -> None:
    """Regression 32: not the one whose address he gives for his own (found by attack on uvicorn's
    proxy headers).
    """
    with server.open(f"/clock?tag={tag}-victim") as victim:
        victim.read_until(lambda body: b"\n\n" in body)
        host, port = victim.sock.getsockname()
        headers = [f"{header}{host}:{port}"]
        if server.name == "daphne-proxied":
            headers.append(f"X-Forwarded-Port: {port}")
        attacker = server.raw(request(f"/one-second?tag={tag}", *headers), receive_buffer=4096)
        with attacker:
            assert attacker.status == 200
            before = server.left()["files"]
            assert "closed send_timeout" in server.wait_for_end(tag)
            # Its connection is gone, though it has not read what was sent.
            wait_for(lambda: server.left()["files"] < before, server.left)
            assert attacker.read_to_end() == "broken"
        now = server.status(f"{tag}-victim")["yielded"]
        victim.read_until(lambda body: b"data: %d\n\n" % (now + 5) in body)
    assert server.wait_for_end(f"{tag}-victim") == GONE


# What must not be interrupted.


@pytest.mark.parametrize("path", ["/database", "/shielded", "/shielded-cleanup"])
@on(*ALL)
def test_a_shield_of_the_source_is_not_broken(server: Attacked, tag: str, path: str) -> None:
    """Regression 35: a thread is waited for before the `finally` that closes what it works with
    runs, however long it takes (found by attack: it was a segmentation fault of the server).
    """
    shield(server, tag, path, close)


@every_form
@on("uvicorn-h11", "hypercorn-trio")
def test_a_shield_through_every_entry_point(server: Attacked, tag: str, form: str) -> None:
    """Regression 35, with other tasks and scopes around it (found by attack)."""
    shield(server, tag, f"{form}/database", reset)


def shield(server: Attacked, tag: str, path: str, leave: Leave) -> None:
    response = server.open(f"{path}?tag={tag}")
    assert response.status == 200
    server.wait_for_status(tag, lambda status: "query begins" in status["history"])
    leave(response)
    history = server.wait_for_end(tag)
    assert [what for what in history if not what.startswith(("closed", "app "))] == [
        "source started",
        "query begins",
        "query ends",
        "source cleaned up on the loop",
    ]
    assert "closed client_disconnected" in history
    server.wait_for_complaint("cleanup_timeout")


@on(*ALL)
def test_a_shield_and_the_lifetime(server: Attacked, tag: str) -> None:
    """Regression 35: another way in which a source is interrupted (found by attack)."""
    with server.open(f"/database-short?tag={tag}") as response:
        assert response.read_to_end() == "complete"
        assert response.body.count(b"data: ") == 1
    history = server.wait_for_end(tag)
    assert history.index("query ends") < history.index("source cleaned up on the loop")
    assert "closed max_lifetime" in history
    server.wait_for_complaint("cleanup_timeout")


@every_form
@on("uvicorn-h11", "hypercorn", "hypercorn-trio", "uvicorn-eager")
def test_a_source_that_swallows_its_cancellation(server: Attacked, tag: str, form: str) -> None:
    """The log says so when `cleanup_timeout` is over, and not when the source has ended, which may
    be never.
    """
    response = server.open(f"{form}/swallow?tag={tag}")
    response.read_until(lambda body: b"begun" in body)
    response.close()
    server.wait_for_complaint("cleanup_timeout")
    assert server.status(tag)["running"] == 1
    server.tell("release", tag)
    history = server.wait_for_end(tag)
    assert "source cleaned up on the loop" in history
    assert "closed client_disconnected" in history


# While something is being sent, or awaited.


@leaves
@on(*ALL)
def test_gone_while_a_ping_is_being_sent(server: Attacked, tag: str, leave: Leave) -> None:
    """A disconnect is seen at once, though the watchdog's own `send` waits, and there is no
    `send_timeout`.
    """
    gone_while_a_ping_is_being_sent(server, tag, "", leave)


@every_form
@on("uvicorn-h11", "uvicorn-httptools", "hypercorn-trio")
def test_gone_while_a_ping_is_being_sent_through_every_entry_point(
    server: Attacked, tag: str, form: str
) -> None:
    gone_while_a_ping_is_being_sent(server, tag, form, close)


def gone_while_a_ping_is_being_sent(server: Attacked, tag: str, form: str, leave: Leave) -> None:
    response = server.open(f"{form}/deaf?tag={tag}", receive_buffer=4096)
    assert response.status == 200
    wait_until_stalled(server, tag, 0.7)
    leave(response)
    history = server.wait_for_end(tag)
    assert history[:-1] == GONE[:-1]


@on(*HTTP2)
def test_a_stream_is_reset_while_a_ping_is_being_sent(server: Attacked, tag: str) -> None:
    """The same by HTTP/2, and the connection stays."""
    with server.open(f"/deaf?tag={tag}", receive_buffer=4096) as response:
        assert response.status == 200
        wait_until_stalled(server, tag, 0.7)
        response.reset_stream()  # type: ignore[attr-defined]
        assert server.wait_for_end(tag) == GONE


@pytest.mark.parametrize("form", ["", "/behind"], ids=["sse_app", "behind"])
@on(*ALL)
def test_gone_while_the_factory_waits(server: Attacked, tag: str, form: str) -> None:
    """The factory is cancelled: nobody waits for what it would give."""
    response = server.raw(request(f"{form}/waiting-factory?tag={tag}"))
    server.wait_for_status(tag, lambda status: "factory begins" in status["history"])
    response.close()
    history = server.wait_for_end(tag)
    assert history[:2] == ["factory begins", "factory ends"]


@leaves
@on(*ALL)
def test_gone_before_the_answer(server: Attacked, tag: str, leave: Leave) -> None:
    """Two hundred clients that leave as soon as they have asked: nothing stays behind."""
    before = server.left()
    for _ in range(200):
        leave(server.raw(request(f"/limited?tag={tag}")))
    everybody_has_left(server, tag)
    wait_for(
        lambda: (
            server.left()["files"] <= before["files"]
            and server.left()["tasks"] <= before["tasks"] + 3
            and server.left()["Stream"] <= before["Stream"]
        ),
        lambda: (before, server.left()),
    )
