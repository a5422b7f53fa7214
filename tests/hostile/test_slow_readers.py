"""Clients that read all the time, slowly, and clients that pause at a bad moment."""

from __future__ import annotations

import time

from tests.servers.clients import Response

from .apps import HUGE, ROWS, row
from .harness import (
    DISTINCT,
    EAGER,
    FEW,
    HTTP2,
    SERVERS,
    Attacked,
    every_form,
    forget_traceback,
    on,
    on_each,
    wait_until_stalled,
)

#: What is on its way to a client of these is bounded by the window of TCP.
SMALL = 16_384


def read_slowly(response: Response, rate: int, seconds: float) -> None:
    """Read `rate` bytes a second, five times a second, without a pause."""
    pause = 0.2
    response.most = int(rate * pause)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        before = response.taken
        while response.taken == before:
            assert response.ending is None, f"{response.ending} after {response.taken} bytes"
            response.read_some()
        time.sleep(pause)
    response.most = 65_536


def stream_of(count: int, size: int) -> bytes:
    return b"".join(b"data: %s\n\n" % row(number, size).encode() for number in range(count))


def reads_slowly(server: Attacked, path: str, tag: str, rate: int, events: tuple[int, int]) -> None:
    with server.open(f"{path}?tag={tag}", receive_buffer=SMALL) as response:
        read_slowly(response, rate, 4.5)
        assert response.read_to_end() == "complete"
        assert response.body.replace(b"\r\n", b"\n") == stream_of(*events)
    assert "closed finished" in server.wait_for_end(tag)


# Not granian on HTTP/2: what a client takes can't be seen there, and `send_timeout` bounds each
# send.
@on(*DISTINCT, "hypercorn-h2", "daphne-h2", *EAGER)
def test_a_client_that_reads_slowly_is_never_cut(server: Attacked, tag: str) -> None:
    """Regression 26: what was sent before takes it longer than `send_timeout` (2 s), at 20 kB/s
    (h2o#3610, opencode#36343). Then it reads on, and has lost nothing.
    """
    reads_slowly(server, "/rows", tag, 20_000, ROWS)


@on(*FEW, "uvicorn-httptools", "hypercorn-h2")
def test_a_client_that_reads_a_large_event_slowly_is_never_cut(server: Attacked, tag: str) -> None:
    """Regression 26: an event of 3 MiB takes it longer than `send_timeout`, at 500 kB/s (h2o#3610,
    opencode#36343).
    """
    reads_slowly(server, "/huge", tag, 500_000, HUGE)


@every_form
@on("uvicorn-h11")
def test_a_client_that_reads_slowly_through_every_entry_point(
    server: Attacked, tag: str, form: str
) -> None:
    """Regression 26, with other tasks and scopes around it (h2o#3610)."""
    reads_slowly(server, f"{form}/rows", tag, 20_000, ROWS)


@on(*DISTINCT, *EAGER)
def test_a_client_that_reads_slowly_and_then_nothing_is_cut(server: Attacked, tag: str) -> None:
    """Regression 26, the other half: the clock of `send_timeout` starts again, and runs out."""
    with server.open(f"/rows?tag={tag}", receive_buffer=SMALL) as response:
        read_slowly(response, 20_000, 3)
        begin = time.monotonic()
        assert "closed send_timeout" in server.wait_for_end(tag)
        assert time.monotonic() - begin > 1  # 2 s after the last progress
        assert response.read_to_end() == "broken"
    assert stream_of(*ROWS).startswith(response.body)


def numbers(body: bytes) -> list[int]:
    """The events that there are in full. A ping is none."""
    frames = body.split(b"\n\n")[:-1]
    return [int(frame.split()[1]) for frame in frames if frame.startswith(b"data")]


def nothing_lost(response: Response, accepted: int) -> None:
    """Where the end is clean, whatever the source was resumed after is there. In any case what is
    there is in order, and without a gap.
    """
    body = bytes(response.body).replace(b"\r\n", b"\n")
    there = numbers(body)
    assert there == list(range(1, len(there) + 1))
    if response.ending == "complete":
        assert len(there) >= accepted


@on_each(
    "server,path",
    [
        *((name, "/burst") for name in (*SERVERS, *HTTP2, *EAGER)),
        *((name, "/burst-in-thread") for name in FEW),
    ],
)
def test_a_burst_a_pause_a_drain(server: Attacked, tag: str, path: str) -> None:
    """Regression 33: events that a source was resumed after do not vanish from a stream whose end
    is clean (found by attack).
    """
    with server.open(f"{path}?tag={tag}", receive_buffer=SMALL) as response:
        assert response.status == 200
        wait_until_stalled(server, tag)
        server.tell("drain", tag)
        time.sleep(0.2)
        assert response.read_to_end() == "complete"
        history = server.wait_for_end(tag)
        assert "closed shutdown" in history
        nothing_lost(response, server.status(tag)["yielded"])


@every_form
@on("uvicorn-h11", "hypercorn-trio")
def test_a_burst_through_every_entry_point(server: Attacked, tag: str, form: str) -> None:
    """Regression 33, with other tasks and scopes around it (found by attack)."""
    with server.open(f"{form}/burst?tag={tag}", receive_buffer=SMALL) as response:
        assert response.status == 200
        wait_until_stalled(server, tag)
        server.tell("drain", tag)
        time.sleep(0.2)
        assert response.read_to_end() == "complete"
        assert "closed shutdown" in server.wait_for_end(tag)
        nothing_lost(response, server.status(tag)["yielded"])


@on(*FEW)
def test_a_burst_that_is_told_to_end_by_its_lifetime(server: Attacked, tag: str) -> None:
    """Regression 33: the other way in which a stream is told to end (found by attack)."""
    with server.open(f"/burst-short?tag={tag}", receive_buffer=SMALL) as response:
        assert response.status == 200
        wait_until_stalled(server, tag)
        time.sleep(1.5)
        assert response.read_to_end() == "complete"
        assert "closed max_lifetime" in server.wait_for_end(tag)
        nothing_lost(response, server.status(tag)["yielded"])


@on(*SERVERS)
def test_a_burst_that_fails(server: Attacked, tag: str) -> None:
    """Regression 33: what was accepted before an error is there, in order; and the end is none
    (found by attack).
    """
    with server.open(f"/burst-and-error?tag={tag}", receive_buffer=SMALL) as response:
        assert response.status == 200
        wait_until_stalled(server, tag)
        server.tell("release", tag)
        time.sleep(0.2)
        ending = response.read_to_end()
        assert ending == ("broken" if server.kind.shows_errors else "complete")
        assert "closed error" in server.wait_for_end(tag)
        nothing_lost(response, server.status(tag)["yielded"])
    server.wait_for_complaint("RuntimeError: meant")
    forget_traceback(server)
