from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import KINDS, Certificate, Server, kinds, require_package, start

StartServer = Callable[[str], Server]

_tags = itertools.count()


@pytest.fixture
def tag() -> str:
    """A name that only this test uses for its streams."""
    return f"t{next(_tags)}"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    require_package("trustme")
    import trustme

    directory = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    paths = Certificate(
        directory / "chain.pem", directory / "key.pem", directory / "ca.pem", context
    )
    issued.private_key_pem.write_to_path(paths.key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(paths.chain, append=True)
    authority.cert_pem.write_to_path(paths.authority)
    return paths


@pytest.fixture(scope="session")
def _shared_servers() -> Iterator[dict[str, Server]]:
    servers: dict[str, Server] = {}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.kill()


@pytest.fixture(params=kinds())
def server(
    request: pytest.FixtureRequest,
    _shared_servers: dict[str, Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server that tests share: they leave it running, and with nothing above info in its log.

    Every server in turn; a test that is for some of them names them with `on_servers`.
    """
    name: str = request.param
    if name not in _shared_servers or _shared_servers[name].process.poll() is not None:
        certificate = request.getfixturevalue("certificate") if KINDS[name].tls else None
        _shared_servers[name] = start(name, tmp_path_factory.mktemp("log"), certificate)
    server = _shared_servers[name]
    yield server
    server.hang_up()
    assert server.process.poll() is None, server.log()
    assert server.new_complaints() == []


@pytest.fixture
def start_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartServer]:
    """A function that starts a server for this test alone."""
    servers: list[Server] = []

    def start_one(name: str) -> Server:
        certificate = request.getfixturevalue("certificate") if KINDS[name].tls else None
        servers.append(start(name, tmp_path, certificate))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()
