"""Servers that are told to stop while they are under attack."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

from tests.servers.clients import HTTP1Response
from tests.servers.conftest import StartServer, UsualExitCode

from .harness import EAGER, SERVERS, Attacked, on_each
from .test_leaving import request
from .test_refusals import post

#: What is sent; nobody reads the answers.
ATTACKS: dict[str, list[bytes]] = {
    "clients that stall": [request("/one-second"), request("/rows"), request("/deaf")] * 3,
    "pipelined requests": [request("/limited-silent") * 2, request("/events") * 5],
    "refusals": [
        request("/full") * 60_000,
        *(
            request("/guarded", method=method) * 5_000
            for method in ("GET", "HEAD", "OPTIONS", "PUT")
        ),
    ],
    "half a body": [
        post(path, b"x" * 500, "Content-Length: 1000")
        for path in ("/body-first", "/body-meanwhile", "/idle-post")
    ],
    "a body after the start": [post("/idle-post", b"x" * 200_000, "Content-Length: 1000000")],
    "Expect": [post("/idle-post", b"", "Content-Length: 1000", "Expect: 100-continue")],
    "half a request": [b"", b"GET /idle HTTP/1.1\r\nHo", request("/idle") + b"GET /id"],
    "factories that wait": [request("/waiting-factory"), request("/behind/waiting-factory")],
    "sources that take their time": [request("/database"), request("/shielded-cleanup")],
}


# Each alone on one of them, so that what fails has a name.
@on_each(
    "name,attack",
    [
        *(("uvicorn-h11", attack) for attack in ATTACKS),
        *((name, "all of them") for name in (*SERVERS, *EAGER)),
    ],
)
def test_a_server_stops_under_attack(
    start_server: StartServer, usual_exit_code: UsualExitCode, name: str, attack: str
) -> None:
    """Regression 1: it exits; others have had the end of their streams before that
    (sse-starlette#132).
    """
    server = start_server(name)
    assert isinstance(server, Attacked)
    everything = [data for each in ATTACKS.values() for data in each]
    with ExitStack() as stack:
        clocks = [stack.enter_context(server.open("/clock")) for _ in range(3)]
        attackers = [
            stack.enter_context(blindly(server, data)) for data in ATTACKS.get(attack, everything)
        ]
        for response in clocks:
            response.read_until(lambda body: b"\n\n" in body)
        time.sleep(0.5)
        server.signal(signal.SIGTERM)
        for response in clocks:
            assert response.read_to_end() == "complete"
        if name == "granian":
            for response in attackers:  # it gives them 30 s to finish what they have to say
                response.close()
        assert server.wait() == usual_exit_code(name, signal.SIGTERM)


def blindly(server: Attacked, data: bytes) -> HTTP1Response:
    """Send it, as far as the server takes it at once."""
    response = server.raw(b"", receive_buffer=4096)
    response.sock.settimeout(0.2)
    try:
        response.sock.sendall(data)
    except OSError:
        pass
    return response
