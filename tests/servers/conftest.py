from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import (
    Certificate,
    Server,
    exit_code,
    kinds,
    make_certificate,
    require_package,
    start,
)

StartServer = Callable[[str], Server]

UsualExitCode = Callable[[str, signal.Signals], int]

_tags = itertools.count()


@pytest.fixture(scope="session")
def make_server() -> type[Server]:
    """What the servers of these tests are; other tests have their own kinds and applications."""
    return Server


@pytest.fixture
def tag() -> str:
    """A name that only this test uses for its streams."""
    return f"t{next(_tags)}"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    require_package("trustme")
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="package")
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
    make_server: type[Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server that tests share: they leave it running, and with nothing above info in its log.

    Every server in turn; a test that is for some of them names them with `on_servers`.
    """
    name: str = request.param
    if name not in _shared_servers or _shared_servers[name].process.poll() is not None:
        certificate = (
            request.getfixturevalue("certificate") if make_server.kinds[name].tls else None
        )
        _shared_servers[name] = start(
            name, tmp_path_factory.mktemp("log"), certificate, make_server
        )
    server = _shared_servers[name]
    yield server
    server.hang_up()
    assert server.process.poll() is None, server.log()
    assert server.new_complaints() == []


@pytest.fixture
def start_server(
    request: pytest.FixtureRequest, make_server: type[Server], tmp_path: Path
) -> Iterator[StartServer]:
    """A function that starts a server for this test alone."""
    servers: list[Server] = []

    def start_one(name: str) -> Server:
        certificate = (
            request.getfixturevalue("certificate") if make_server.kinds[name].tls else None
        )
        servers.append(start(name, tmp_path, certificate, make_server))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def usual_exit_code(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, make_server: type[Server]
) -> UsualExitCode:
    """The exit code of a server that has no streams when it gets a signal."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of them finds out for all
        directory = directory.parent

    def usual(name: str, number: signal.Signals) -> int:
        known = directory / f"exit code of {name} after {number.name}"
        if not known.exists():
            code = exit_code(name, number, tmp_path_factory.mktemp("log"), certificate, make_server)
            mine = directory / f"{known.name}, by {os.getpid()}"
            mine.write_text(str(code))
            mine.rename(known)  # whole, for those who look at this moment
        return int(known.read_text())

    return usual
