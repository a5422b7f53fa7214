"""Compressed streams, on every server."""

from __future__ import annotations

import signal

import pytest

from sse_asgi.decoder import EventStreamDecoder
from tests.test_compression import Decompressor

from .clients import Response
from .conftest import StartServer
from .harness import Server, kinds, on_servers

codings = pytest.mark.parametrize("coding", ["gzip", "zstd", "br"])


class Reader:
    """Decompresses what of a response is there."""

    def __init__(self, response: Response) -> None:
        self._response = response
        (coding,) = response.header(b"content-encoding")
        self._decompressor = Decompressor(coding.decode())
        self._size = 0

    def text(self, body: bytes) -> bytes:
        text = self._decompressor.feed(body[self._size :])
        self._size = len(body)
        return text

    @property
    def ended(self) -> bool:
        self.text(bytes(self._response.body))
        return self._decompressor.ended


def accepts(coding: str) -> list[tuple[bytes, bytes]]:
    return [(b"accept-encoding", coding.encode())]


@codings
def test_each_event_before_the_next(server: Server, tag: str, coding: str) -> None:
    """The source goes on when it is told to, and that is when the client has read the event."""
    with server.open(f"/told?tag={tag}", headers=accepts(coding)) as response:
        assert response.status == 200
        assert response.header(b"content-encoding") == [coding.encode()]
        assert b"accept-encoding" in b", ".join(response.header(b"vary"))
        reader = Reader(response)
        for number in range(10):
            response.read_until(lambda body: reader.text(body).count(b"event: told\n") > number)
            with server.open(f"/tell?tag={tag}") as told:
                assert told.read_to_end() == "complete"
        assert response.read_to_end() == "complete"
        assert reader.ended
        decoder = EventStreamDecoder()
        events = decoder.feed(reader.text(bytes(response.body)))
        assert [event.json()["number"] for event in events] == list(range(10))
        assert decoder.reconnection_time == 5
    server.wait_for_end(tag)


def test_a_client_that_stops_reading(server: Server, tag: str) -> None:
    path = f"/big-compressed?tag={tag}"
    with server.open(path, headers=accepts("gzip"), receive_buffer=4096) as response:
        assert response.status == 200
        assert "closed send_timeout" in server.wait_for_end(tag)


@on_servers(kinds(lambda kind: kind.entry_point == "sse_app"))
def test_head_and_not_acceptable(server: Server, tag: str) -> None:
    for method, accepted, status in (("HEAD", "br", 200), ("GET", "identity;q=0", 406)):
        with server.open(f"/told?tag={tag}", method=method, headers=accepts(accepted)) as response:
            assert response.status == status
            assert response.header(b"content-encoding") == ([b"br"] if status == 200 else [])
            assert response.read_to_end() == "complete"


@pytest.mark.parametrize("name", kinds())
def test_the_server_stops(start_server: StartServer, name: str) -> None:
    """The compressed data comes to its regular end, too."""
    server = start_server(name)
    with server.open("/clock-compressed?tag=t", headers=accepts("gzip")) as response:
        reader = Reader(response)
        response.read_until(lambda body: reader.text(body).count(b"event: tick\n") > 3)
        server.signal(signal.SIGTERM)
        assert response.read_to_end() == "complete"
        assert reader.ended
    server.wait()
