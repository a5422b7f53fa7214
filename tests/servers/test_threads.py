"""Sync sources on every server: their threads hold nobody up, and stay the same."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from .conftest import StartServer, UsualExitCode
from .harness import KINDS, Server, kinds

WARNING = "was not closed within cleanup_timeout=0.5 s"


@pytest.mark.parametrize("name", [name for name in KINDS if not KINDS[name].http2])
def test_server_stops_while_a_source_waits_for_ever(
    start_server: StartServer, usual_exit_code: UsualExitCode, name: str
) -> None:
    """Regression 28: pycrdt-websocket#148, basic-memory#1345."""
    server = start_server(name)
    with ExitStack() as stack:
        responses = [stack.enter_context(server.open("/waiting-thread")) for _ in range(3)]
        for response in responses:
            # A ping comes when the source has long been asked for its second event.
            response.read_until(lambda body: body.endswith(b":\n\n"))
        server.signal(signal.SIGTERM)
        for response in responses:
            response.read_to_end()
    assert server.wait() == usual_exit_code(name, signal.SIGTERM)
    complaints = server.complaints()
    assert all(WARNING in line for line in complaints)
    # daphne's logger says it, too.
    ours = [line for line in complaints if line.startswith("WARNING sse_asgi the source ")]
    assert len(ours) == len(responses)
    assert server.summary()["source started"] == len(responses)


@pytest.mark.parametrize("name", kinds())
def test_server_stays_while_sources_wait_for_ever(
    start_server: StartServer, tag: str, name: str
) -> None:
    """Their clients have left: the streams are over, and the threads still count."""
    server = start_server(name)
    count = 3
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(server.open(f"/waiting-thread?tag={tag}"))
        server.wait_for_status(tag, lambda status: status["threads_in_sources"] == count)
    server.wait_for_end(tag, count)
    status = server.status(tag)
    assert status["threads_in_sources"] == status["thread_tokens"] == count
    with server.open("/events") as response:
        assert response.read_to_end() == "complete"


def test_connections_of_sqlite(server: Server, tag: str) -> None:
    """Regression 29: six clients at once, three of which leave (fastapi-sqlalchemy#45)."""
    whole = b"".join(b"id: %d\ndata: %d\n\n" % (number, number) for number in range(50))
    with ExitStack() as stack:
        responses = [stack.enter_context(server.open(f"/database?tag={tag}")) for _ in range(6)]
        for response in responses[::2]:
            response.read_until(lambda body: body.count(b"\n\n") >= 3)
            response.close()
        for response in responses[1::2]:
            assert response.read_to_end() == "complete"
            assert response.body == whole
        history = server.wait_for_end(tag, len(responses))
    assert history.count("source cleaned up on the thread") == len(responses)
    assert history.count("app returned") == len(responses)
    assert history.count("closed finished") == 3
