from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tests.servers.clients import Address
from tests.servers.conftest import certificate, make_server, start_server, tag  # noqa: F401
from tests.servers.harness import Certificate, Server, require_package, steady_port
from tests.servers.harness import start as start_node

from .harness import KINDS, Proxy, start


@pytest.fixture(scope="module")
def _shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_node("uvicorn-h11", tmp_path_factory.mktemp("log"), None, Server)
    yield server
    server.kill()


@pytest.fixture
def node(_shared_node: Server) -> Iterator[Server]:
    """The server behind `proxy`. Tests share it, and leave nothing above info in its log."""
    yield _shared_node
    assert _shared_node.process.poll() is None, _shared_node.log()
    assert _shared_node.new_complaints() == []


@pytest.fixture(scope="module", params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    """Every proxy in turn."""
    name: str = request.param
    return name


@pytest.fixture(params=["http1", "http2"])
def protocol(request: pytest.FixtureRequest) -> str:
    """What the client speaks, over TLS."""
    protocol: str = request.param
    return protocol


@pytest.fixture(scope="module")
def proxy(
    name: str,
    _shared_node: Server,
    certificate: Certificate,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """A proxy in front of `node`, with the configuration of the page."""
    port = _shared_node.address.port
    proxy = start(name, tmp_path_factory.mktemp("proxy"), certificate, (port, port))
    yield proxy
    proxy.kill()


@pytest.fixture
def address(proxy: Proxy, protocol: str) -> Iterator[Address]:
    """Where `proxy` answers to a client of `protocol`."""
    yield proxy.addresses[protocol]
    assert proxy.process.poll() is None, proxy.log()


class StartProxy(Protocol):
    def __call__(self, *ports: int, changes: Mapping[str, str] | None = None) -> Proxy: ...


@pytest.fixture
def start_proxy(
    name: str,
    certificate: Certificate,  # noqa: F811
    tmp_path: Path,
) -> Iterator[StartProxy]:
    """A function that starts a proxy for this test alone, in front of the servers on two ports.

    `changes` are strings of the page's configuration, and what to put in their place.
    """
    proxies: list[Proxy] = []

    def start_one(*ports: int, changes: Mapping[str, str] | None = None) -> Proxy:
        directory = tmp_path / f"proxy{len(proxies)}"
        directory.mkdir()
        proxies.append(start(name, directory, certificate, (ports[0], ports[-1]), changes))
        return proxies[-1]

    yield start_one
    for proxy in proxies:
        proxy.kill()


StartNode = Callable[[int], Server]


@pytest.fixture
def start_again(tmp_path: Path) -> Iterator[StartNode]:
    """A function that starts a server for this test alone, on a port that it may come back to."""
    require_package("uvicorn")
    servers: list[Server] = []

    def start_one(port: int) -> Server:
        servers.append(Server("uvicorn-h11", tmp_path, None, port))
        assert servers[-1].ready(), servers[-1].log()
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two ports for `start_again`."""
    first = second = steady_port()
    while second == first:
        second = steady_port()
    return first, second
