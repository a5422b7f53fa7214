"""Clients by others: httpx-sse, curl, and the EventSource of npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.peers import NODE_DIR, missing, require_node

from .apps import EVENTS
from .clients import DEADLINE
from .harness import Certificate, Server, kinds, on_servers, require_package

#: What a client makes of /events: event, data, id.
DISPATCHED = [
    ("message", "hello", ""),
    ("lines", "one\ntwo\nthree", "1"),
    ("grüße", "snow ☃ and 🎉\u2028here", "ü"),
    ("message", '{"a":[1,null]}', "3"),
    ("message", "raw", "3"),
]


def test_httpx_sse(server: Server, tag: str) -> None:
    require_package("httpx_sse")
    import httpx_sse

    with server.address.client() as client:
        with httpx_sse.connect_sse(client, "GET", f"/events?tag={tag}") as source:
            assert source.response.http_version == ("HTTP/2" if server.kind.http2 else "HTTP/1.1")
            events = list(source.iter_sse())
    # It dispatches an event for a retry alone, which a browser does not.
    retry = events.pop(4)
    assert (retry.data, retry.retry) == ("", 1500)
    assert [(event.event, event.data, event.id) for event in events] == DISPATCHED
    server.wait_for_end(tag)


def test_httpx_sse_leaves(server: Server, tag: str) -> None:
    require_package("httpx_sse")
    import httpx_sse

    with server.address.client() as client:
        with httpx_sse.connect_sse(client, "GET", f"/clock?tag={tag}") as source:
            for number, event in enumerate(source.iter_sse()):
                assert (event.event, event.data) == ("tick", f"{number}")
                if number == 5:
                    break
    assert "closed client_disconnected" in server.wait_for_end(tag)


@contextmanager
def curl(
    server: Server, path: str, authority: Path, *more: str
) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which("curl")
    if program is None:
        missing("curl", "there is no curl on the PATH")
    arguments = ["--no-buffer", "--silent", "--cacert", str(authority), *more]
    if server.kind.http2:
        if b" HTTP2" not in subprocess.check_output([program, "--version"]):
            missing("curl", "this curl knows no HTTP/2")
        arguments.append("--http2" if server.kind.tls else "--http2-prior-knowledge")
    process = subprocess.Popen(
        [program, *arguments, server.address.url(path)], stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_curl(server: Server, tag: str, certificate: Certificate) -> None:
    with curl(server, f"/events?tag={tag}", certificate.authority) as process:
        body, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
        assert body == EVENTS
    server.wait_for_end(tag)


def test_curl_decompresses(server: Server, tag: str, certificate: Certificate) -> None:
    path = f"/clock-compressed?tag={tag}"
    with curl(server, path, certificate.authority, "--compressed") as process:
        assert process.stdout is not None
        for line in (b"id: 0\n", b"event: tick\n", b"data: 0\n", b"\n", b"id: 1\n"):
            assert process.stdout.readline() == line
    assert "closed client_disconnected" in server.wait_for_end(tag)


def test_curl_is_interrupted(server: Server, tag: str, certificate: Certificate) -> None:
    with curl(server, f"/clock?tag={tag}", certificate.authority) as process:
        assert process.stdout is not None
        for line in (b"id: 0\n", b"event: tick\n", b"data: 0\n", b"\n", b"id: 1\n"):
            assert process.stdout.readline() == line
    assert "closed client_disconnected" in server.wait_for_end(tag)


def test_curl_sees_an_error(server: Server, tag: str, certificate: Certificate) -> None:
    with curl(server, f"/broken?tag={tag}", certificate.authority) as process:
        body, _ = process.communicate(timeout=DEADLINE)
        assert (process.returncode != 0) == server.kind.shows_errors
        # HTTP/2 resets the stream, and what was under way goes with it.
        if not (server.kind.http2 and server.kind.shows_errors):
            assert body == b"data: before\n\ndata: the end\n\n"
    server.wait_for_complaint("RuntimeError: meant to happen")
    server.wait_for_end(tag)


# Node speaks HTTP/1.1 to a server that offers both, and only HTTP/1.1 without TLS.
on_servers_for_node = on_servers(kinds(lambda kind: kind.tls or not kind.http2))


def eventsource(
    server: Server, path: str, authority: Path, count: int = 0, names: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """What an EventSource says that closes after `count` events, or when the server wants it."""
    node = require_node()
    with Path(__file__).with_name("eventsource.mjs").open("rb") as script:
        output = subprocess.check_output(
            [node, "--input-type=module", "-", server.address.url(path), str(count), *names],
            stdin=script,
            cwd=NODE_DIR,  # where it finds its packages
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(authority)},
            timeout=DEADLINE,
        )
    return [json.loads(line) for line in output.splitlines()]


@on_servers_for_node
def test_eventsource(server: Server, tag: str, certificate: Certificate) -> None:
    said = eventsource(
        server, f"/events?tag={tag}", certificate.authority, len(DISPATCHED), ("lines", "grüße")
    )
    assert said.pop(0) == {"type": "open"}
    assert [(event["type"], event["data"], event["lastEventId"]) for event in said] == DISPATCHED
    server.wait_for_end(tag)


@on_servers_for_node
def test_eventsource_reconnects(server: Server, tag: str, certificate: Certificate) -> None:
    """It comes back with the last id, after the time that the server gave, until it gets 204."""
    said = eventsource(server, f"/countdown?tag={tag}", certificate.authority, names=("number",))
    expected: list[dict[str, Any]] = []
    for number in (1, 3, 5):
        expected += [
            {"type": "open"},
            {"type": "number", "data": f"number\n{number} ☃", "lastEventId": f"{number}"},
            {"type": "message", "data": f"{number + 1}", "lastEventId": f"{number + 1}"},
            {"type": "error", "closed": False},
        ]
    assert said == [*expected, {"type": "error", "closed": True, "code": 204}]
    history = server.wait_for_end(tag, 4)
    assert [what for what in history if what.startswith("last_event_id")] == [
        "last_event_id None",
        "last_event_id '2'",
        "last_event_id '4'",
        "last_event_id '6'",
    ]


@on_servers_for_node
def test_eventsource_with_an_id_beyond_ascii(
    server: Server, tag: str, certificate: Certificate
) -> None:
    """Node's fetch sends it as Latin-1; the source gets what it gave."""
    eventsource(server, f"/unicode-id?tag={tag}", certificate.authority)
    history = server.wait_for_end(tag, 2)
    assert "last_event_id 'é-ü-ÿ'" in history
