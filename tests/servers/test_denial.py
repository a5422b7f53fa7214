"""A websocket that is denied with a stream, before it is accepted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .clients import Address, wait_for
from .harness import Process, free_port, require_package, started

UPGRADE = [
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]

SERVERS = {
    "uvicorn": ["-m", "uvicorn", "--ws", "wsproto", "--port", "{port}"],
    "hypercorn": ["-m", "hypercorn", "--bind", "127.0.0.1:{port}"],
}


class Denying(Process):
    def __init__(self, name: str, directory: Path) -> None:
        self.address = Address(free_port())
        arguments = [part.format(port=self.address.port) for part in SERVERS[name]]
        super().__init__([*arguments, "tests.servers.denial:app"], directory / "log")

    def ready(self) -> bool:
        wait_for(lambda: self.address.answers() or self.process.poll() is not None, self.log)
        return self.process.poll() is None


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Denying]:
    require_package(request.param)
    require_package("wsproto")
    server = started(lambda: Denying(request.param, tmp_path))
    yield server
    server.kill()


def test_a_websocket_is_denied_with_a_stream(server: Denying) -> None:
    with server.address.open("/", headers=UPGRADE) as response:
        assert response.status == 403
        assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
        assert response.read_to_end() == "complete"
        assert response.body == b"event: denied\r\ndata: not you\r\n\r\n"


def test_a_client_that_leaves_meanwhile(server: Denying) -> None:
    with server.address.open("/endless", headers=UPGRADE) as response:
        response.read_until(lambda body: b"not you" in body)
        assert "closed" not in server.log()
    wait_for(lambda: "closed client_disconnected" in server.log(), server.log)
