"""What is seen of a connection by the objects of its server, and what is cut of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from .clients import DEADLINE, HTTP2Response, Response, wait_for
from .harness import KINDS, Server, kinds, on_servers
from .test_disconnect import STALLED

#: Those that have no entry point of ours in them: it is not used here.
EACH = [name for name in kinds() if "starlette" not in name] + ["uvicorn-zttp"]
HTTP1 = [name for name in EACH if not KINDS[name].http2]
UVICORN = [name for name in HTTP1 if name.startswith("uvicorn")]

#: For how long a client is watched, in seconds.
WHILE = 2.0


def look(server: Server, tag: str) -> dict[str, Any]:
    seen: dict[str, Any] = server._client.get(f"/looks?tag={tag}").raise_for_status().json()
    return seen


def wait_until(server: Server, tag: str, condition: Callable[[dict[str, Any]], object]) -> None:
    wait_for(lambda: bool(condition(look(server, tag))), lambda: look(server, tag))


def wait_until_stuck(server: Server, tag: str) -> None:
    """Wait until a send waits and the client has taken all that it will."""
    before: tuple[Any, ...] = ()
    same = 0

    def stuck() -> bool:
        nonlocal before, same
        seen = look(server, tag)
        now = seen["waits"], seen["changes"]
        same = same + 1 if now == before and seen["waits"] else 0
        before = now
        return same >= 8

    wait_for(stuck, lambda: look(server, tag))


def read_slowly(response: Response, until: Callable[[], bool]) -> None:
    """Take 80 kB/s or less."""
    ends = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < ends
        if isinstance(response, HTTP2Response):
            response.read_some()
            del response.body[:]
        else:
            response.sock.recv(4096)
        time.sleep(0.05)


@on_servers(EACH)
@pytest.mark.parametrize("behind", ["", "-behind"])
def test_progress_of_a_client(server: Server, tag: str, behind: str) -> None:
    """Regression 26: a client that reads slowly is told from one that takes nothing."""
    url = f"/looked-at{behind}?tag={tag}"
    with server.open(url, receive_buffer=4096) as response:
        assert response.status == 200
        if server.name == "granian-h2":
            wait_until(server, tag, lambda seen: seen["waits"] and seen["looked"] > 5)
            assert not look(server, tag)["seen"]
            return
        wait_until_stuck(server, tag)
        before = look(server, tag)
        assert before["seen"]
        wait_until(server, tag, lambda seen: seen["looked"] > before["looked"] + 10)
        after = look(server, tag)
        assert (after["waits"], after["changes"]) == (before["waits"], before["changes"])

        def progressed() -> bool:
            now = look(server, tag)
            assert not now["gone"]
            return any(now[what] > after[what] + 3 for what in ("changes", "waits"))

        read_slowly(response, progressed)
    wait_until(server, tag, lambda seen: seen["over"])


@on_servers(["hypercorn-h2", "hypercorn-h3-trio", "daphne-h2"])
def test_a_stream_that_is_stuck_beside_one_that_is_read(server: Server, tag: str) -> None:
    """What others of the connection take is no progress of this one."""
    # Its window stays closed, and that of the connection open. hypercorn only waits in the end.
    with by_http2(server, f"/looked-at?tag={tag}&most=300") as response:
        assert isinstance(response, HTTP2Response)
        assert response.status == 200
        connection, stuck = response._connection, response._stream
        connection.increment_flow_control_window(2**24)

        def read() -> None:
            data = response._without_goaway(response._receive())
            events: Any = connection.receive_data(data)
            for event in events:
                size = getattr(event, "flow_controlled_length", 0)
                if size and event.stream_id != stuck:
                    connection.acknowledge_received_data(size, event.stream_id)
                elif size:
                    connection.increment_flow_control_window(size)
            response._flush()

        response.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):  # its window is closed then
            while True:
                read()
        response.sock.settimeout(30)
        wait_until_stuck(server, tag)
        other = connection.get_next_available_stream_id()
        path = f"/clock?tag={tag}-other".encode()
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost")]
        connection.send_headers(other, [*fields, (b":path", path)], end_stream=True)
        response._flush()
        before = look(server, tag)
        ends = time.monotonic() + WHILE
        while time.monotonic() < ends:
            read()
        after = look(server, tag)
        assert after["looked"] > before["looked"] + 10
        assert (after["waits"], after["changes"]) == (before["waits"], before["changes"])
        connection.increment_flow_control_window(2**16, stuck)
        response._flush()
        for _ in range(5):
            read()
        wait_until(
            server,
            tag,
            lambda seen: (seen["waits"], seen["changes"]) > (after["waits"], after["changes"]),
        )
    wait_until(server, tag, lambda seen: seen["over"])
    server.wait_for_end(f"{tag}-other")


def by_http2(server: Server, path: str) -> Response:
    """Open a stream by HTTP/2, also on a server that has HTTP/3 as well."""
    return replace(server.address, http3=False).open(path)


def pipelined(path: str, size: int = 0) -> bytes:
    request = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()
    return request * (1 + max(1, size // len(request)))


def close(sock: socket.socket) -> None:
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


@on_servers(HTTP1)
@pytest.mark.parametrize(
    ("pieces", "leave", "behind"),
    [
        ("one", close, ""),
        ("one", close, "-behind"),
        ("two", close, ""),
        ("two", close, "-behind"),
        ("two", reset, ""),
        ("two", half_close, ""),
        ("many", close, ""),
    ],
)
def test_pipelined_requests(
    server: Server, tag: str, pieces: str, leave: Callable[[socket.socket], None], behind: str
) -> None:
    """Regression 31: somebody notices that the client has gone, and nothing is left of it."""
    before = server.left()["files"]
    path = f"/looked-at-idle{behind}?tag={tag}"
    with ExitStack() as stack:
        sock = stack.enter_context(server.address.connect())
        requests = pipelined(path, 40_000 if pieces == "many" else 0)
        first, rest = requests, b""
        if pieces == "two":
            first, rest = requests[: len(requests) // 2], requests[len(requests) // 2 :]
        sock.sendall(first)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        if rest:
            time.sleep(0.1)
            sock.sendall(rest)
        time.sleep(0.1)
        leave(sock)
        wait_until(server, tag, lambda seen: seen["over"])
        seen = look(server, tag)
        assert seen["told"] or seen["lost"]
        wait_for(
            lambda: server.left()["files"] <= before + (leave is half_close and 1),
            lambda: (server.left()["files"], before),
        )


@on_servers(UVICORN)
@pytest.mark.parametrize("path", ["/big", "/big-behind"])
def test_an_address_of_somebody_else(server: Server, tag: str, path: str) -> None:
    """Regression 32: uvicorn takes the address of a client from X-Forwarded-For. Only the client
    that stalls loses its connection, not the one whose address it has named.
    """
    with server.open(f"/clock?tag={tag}-victim") as victim:
        assert victim.status == 200
        host, port = victim.sock.getsockname()
        header = (b"x-forwarded-for", f"{host}:{port}".encode())
        with server.open(f"{path}?tag={tag}", headers=[header], receive_buffer=4096) as attacker:
            assert attacker.status == 200
            assert server.wait_for_end(tag) == STALLED
            assert attacker.read_to_end() == "broken"
        victim.body.clear()
        victim.read_until(lambda body: body.count(b"\n\n") > 100)
    server.wait_for_end(f"{tag}-victim")


@on_servers(["hypercorn-h3", "hypercorn-h3-trio"])
@pytest.mark.parametrize("behind", ["", "-behind"])
def test_a_client_of_http3_leaves(server: Server, tag: str, behind: str) -> None:
    """Nobody is told of it, and the timer sees it."""
    with server.open(f"/looked-at-idle{behind}?tag={tag}") as response:
        assert response.status == 200
    wait_until(server, tag, lambda seen: seen["over"])
    assert look(server, tag)["lost"]


@on_servers(["hypercorn-h2", "hypercorn-h3-trio", "daphne-h2"])
def test_a_stream_is_reset_and_its_connection_stays(server: Server, tag: str) -> None:
    """Its client takes nothing of the one stream, and goes on to read others."""
    with by_http2(server, f"/looked-at?tag={tag}&seconds=1&most=300") as response:
        assert isinstance(response, HTTP2Response)
        assert response.status == 200
        wait_until(server, tag, lambda seen: seen["over"])
        assert look(server, tag)["aborted"]
        assert response.read_to_end() == "broken"
        connection = response._connection
        other = connection.get_next_available_stream_id()
        path = f"/events?tag={tag}-other".encode()
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost")]
        connection.send_headers(other, [*fields, (b":path", path)], end_stream=True)
        response._flush()
        response.ending = None
        assert response.read_to_end() == "complete"
