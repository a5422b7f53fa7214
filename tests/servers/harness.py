"""Servers under test, started through their command lines as users start them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx
import pytest

from tests.peers import missing

from .clients import DEADLINE, Address, Response, wait_for

ROOT = Path(__file__).parents[2]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As for a job in the background. The servers would inherit it, and some leave it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_serial = itertools.count()


@dataclass(frozen=True)
class Certificate:
    """A certificate for localhost, and the context of a client that trusts it."""

    chain: Path
    key: Path
    authority: Path
    client: ssl.SSLContext


def make_certificate(directory: Path) -> Certificate:
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    certificate = Certificate(
        directory / "chain.pem", directory / "key.pem", directory / "ca.pem", context
    )
    issued.private_key_pem.write_to_path(certificate.key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(certificate.chain, append=True)
    authority.cert_pem.write_to_path(certificate.authority)
    return certificate


@dataclass(frozen=True)
class Kind:
    """A server, and one way to run it."""

    arguments: tuple[str, ...]  # with {port}; with TLS {chain} and {key}, too
    packages: tuple[str, ...]
    tls: bool = False
    http2: bool = False
    #: Whether a client can tell that a response was broken off.
    shows_errors: bool = True
    #: See tests/entry_points.py.
    entry_point: str = "sse_app"
    #: In addition to HTTP/2, by which it is asked for its status.
    http3: bool = False
    workers: int = 1
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)
    #: What Python warns of there (PYTHONWARNINGS).
    warnings: str = "default"
    #: Whether it is only there for the tests of how servers stop.
    only_stops: bool = False


_UVICORN = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}")
_HYPERCORN = ("-m", "hypercorn", "--bind", "127.0.0.1:{port}")
_TLS = ("--certfile", "{chain}", "--keyfile", "{key}")
_GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--no-control-socket")
#: Enough where a worker of hypercorn is what differs: its parent gets the signals.
_SIGTERM = (signal.SIGTERM,)
#: For servers that leave sockets open when they exit.
_UNCLOSED = "default,ignore:unclosed:ResourceWarning"
_GRANIAN = ("-m", "granian", "--host", "127.0.0.1", "--port", "{port}", "--interface", "asgi")

KINDS: Mapping[str, Kind] = {
    "uvicorn-h11": Kind((*_UVICORN, "--http", "h11", "--loop", "asyncio"), ("uvicorn",)),
    "uvicorn-httptools": Kind(
        (*_UVICORN, "--http", "httptools", "--loop", "uvloop"), ("uvicorn", "httptools", "uvloop")
    ),
    "hypercorn": Kind(_HYPERCORN, ("hypercorn",)),
    "hypercorn-trio": Kind((*_HYPERCORN, "-k", "trio"), ("hypercorn",)),
    "hypercorn-h2": Kind(
        (*_HYPERCORN, *_TLS), ("hypercorn",), tls=True, http2=True, shows_errors=False
    ),
    "granian": Kind((*_GRANIAN, "--http", "1"), ("granian",)),
    "granian-h2": Kind((*_GRANIAN, "--http", "2"), ("granian",), http2=True),
    "daphne": Kind(
        ("-m", "daphne", "--bind", "127.0.0.1", "--port", "{port}"),
        ("daphne",),
        shows_errors=False,
    ),
    "daphne-h2": Kind(
        ("-m", "daphne", "-e", "ssl:{port}:interface=127.0.0.1:certKey={chain}:privateKey={key}"),
        ("daphne", "h2", "priority"),
        tls=True,
        http2=True,
        shows_errors=False,
    ),
    "uvicorn-starlette": Kind(
        (*_UVICORN, "--http", "h11", "--loop", "asyncio"), ("uvicorn",), entry_point="starlette"
    ),
    "hypercorn-trio-starlette": Kind(
        (*_HYPERCORN, "-k", "trio"),
        ("hypercorn",),
        entry_point="starlette",
    ),
    "uvicorn-zttp": Kind((*_UVICORN, "--http", "zttp"), ("uvicorn", "zttp"), only_stops=True),
    "uvicorn-zttp-h2": Kind(
        (*_UVICORN, "--http", "zttp", "--http2"),
        ("uvicorn", "zttp"),
        http2=True,
        only_stops=True,
    ),
    "uvicorn-workers": Kind(
        (*_UVICORN, "--workers", "2"),
        ("uvicorn",),
        workers=2,
        warnings=_UNCLOSED,
        only_stops=True,
    ),
    "gunicorn": Kind(
        (*_GUNICORN, "--workers", "2", "--worker-class", "uvicorn_worker.UvicornWorker"),
        ("gunicorn", "uvicorn_worker"),
        workers=2,
        # At SIGINT it sends SIGQUIT to its workers. uvicorn's take no notice, even without streams,
        # and are killed after 30 s.
        signals=(signal.SIGTERM,),
        only_stops=True,
    ),
    "hypercorn-uvloop": Kind(
        (*_HYPERCORN, "-k", "uvloop"), ("hypercorn", "uvloop"), signals=_SIGTERM, only_stops=True
    ),
    "hypercorn-serve": Kind(
        ("-m", "tests.servers.serve", "asyncio", "127.0.0.1:{port}"),
        ("hypercorn",),
        only_stops=True,
    ),
    "hypercorn-serve-trio": Kind(
        ("-m", "tests.servers.serve", "trio", "127.0.0.1:{port}"), ("hypercorn",), only_stops=True
    ),
    # With QUIC it exits when the graceful timeout is over, not earlier: it waits for a datagram.
    "hypercorn-h3": Kind(
        (*_HYPERCORN, *_TLS, "--quic-bind", "127.0.0.1:{port}"),
        ("hypercorn", "aioquic"),
        tls=True,
        http2=True,
        http3=True,
        signals=_SIGTERM,
        shows_errors=False,
        warnings=_UNCLOSED,
        only_stops=True,
    ),
    "hypercorn-h3-trio": Kind(
        (*_HYPERCORN, *_TLS, "-k", "trio", "--quic-bind", "127.0.0.1:{port}"),
        ("hypercorn", "aioquic"),
        tls=True,
        http2=True,
        http3=True,
        signals=_SIGTERM,
        shows_errors=False,
        warnings=_UNCLOSED,
        only_stops=True,
    ),
}


def kinds(condition: Callable[[Kind], bool] = lambda kind: True) -> list[str]:
    """The names of those servers that fulfil `condition`, for tests of more than how they stop."""
    return [name for name, kind in KINDS.items() if condition(kind) and not kind.only_stops]


def on_servers(names: list[str]) -> pytest.MarkDecorator:
    """Run a test that takes `server` on some of them."""
    return pytest.mark.parametrize("server", names, indirect=True)


#: What no server writes where all goes well. Python's warnings are among it.
_ABOVE_INFO = re.compile(
    r"\b(?:warn|fatal|critical|traceback)\b|(?:error|exception|warning)\b", re.IGNORECASE
)
_INFO = re.compile(r"\bINFO\b")

#: What the library writes about a stream whose end is abnormal, as it is in many tests.
_ENDED = "a stream has ended: "


class Process:
    """A process with its output in a file; it leads a process group that ends with it."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        token: str = "",
        entry_point: str = "sse_app",
        program: Sequence[str] = (sys.executable,),
        warnings: str = "default",
    ) -> None:
        self.log_file = log
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": warnings,
            "SSE_ASGI_TEST_TOKEN": token,
            "SSE_ASGI_TEST_ENTRY_POINT": entry_point,
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def ready(self) -> bool:
        """Wait until it can be used; false where it has exited instead."""
        raise NotImplementedError

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, as a process manager does."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has exited by itself; the exit code."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def summary(self) -> dict[str, int]:
        """What the streams of a server that has stopped have gone through, and how many."""
        # The last of each process.
        last = dict(re.findall(r"^summary of (\d+) (.*)$", self.log(), re.MULTILINE))
        return dict(sum(map(Counter, map(json.loads, last.values())), Counter()))

    def log(self, start: int = 0) -> str:
        return self.log_file.read_bytes()[start:].decode(errors="replace")

    def complaints(self, start: int = 0) -> list[str]:
        """Lines of the log that are no mere information."""
        return [
            line
            for line in self.log(start).splitlines()
            if _ABOVE_INFO.search(line) and not _INFO.search(line) and _ENDED not in line
        ]


class Server(Process):
    """A server that runs, and answers at `address`."""

    app = "tests.servers.apps:app"
    kinds: ClassVar[Mapping[str, Kind]] = KINDS

    def __init__(
        self, name: str, directory: Path, certificate: Certificate | None, port: int
    ) -> None:
        self.name = name
        self.kind = kind = self.kinds[name]
        values: dict[str, object] = {"port": port}
        context = None
        if kind.tls:
            assert certificate is not None
            values.update(chain=certificate.chain, key=certificate.key)
            context = certificate.client
        self.address = Address(port, context, kind.http2, kind.http3)
        token = f"{os.getpid()}-{next(_serial)}"
        log = directory / f"{name}-{token}.log"
        super().__init__(
            [*self.arguments(values), self.app],
            log,
            token,
            kind.entry_point,
            warnings=kind.warnings,
        )
        self._client = self.address.client()
        self._token = token
        self._checked = 0
        self._forgiven: list[str] = []

    def arguments(self, values: Mapping[str, object]) -> list[str]:
        """Python's, the application apart."""
        return [argument.format(**values) for argument in self.kind.arguments]

    def kill(self) -> None:
        self.hang_up()
        super().kill()

    def hang_up(self) -> None:
        """Close the connection of `status`. With TLS a server that closes it waits for the client
        to agree, who would not notice, and logs an error in the end.
        """
        self._client.close()
        self._client = self.address.client()

    def signal(self, number: signal.Signals) -> None:
        self.hang_up()  # it may wait for a connection that is kept alive
        super().signal(number)

    def ready(self) -> bool:
        """Wait until it answers, all of its workers; false where it has exited instead."""
        ends = time.monotonic() + DEADLINE
        workers: set[int] = set()
        while self.process.poll() is None:
            assert time.monotonic() < ends, f"{self.name} does not answer: {self.log()}"
            try:
                status = self.status("")
                if status["token"] != self._token:
                    continue
                workers.add(status["pid"])
                self.hang_up()  # the next connection may be another one's
                if len(workers) == self.kind.workers:
                    self._checked = len(self.log_file.read_bytes())
                    return True
            except httpx.TransportError:
                time.sleep(0.02)
        return False

    def open(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: list[tuple[bytes, bytes]] | None = None,
        receive_buffer: int | None = None,
    ) -> Response:
        return self.address.open(
            path, method=method, headers=headers or [], receive_buffer=receive_buffer
        )

    def status(self, tag: str) -> dict[str, Any]:
        """What the process says of itself, and of the streams of `tag`: see apps.status."""
        path = f"/status?tag={tag}"
        try:
            response = self._client.get(path)
        except (httpx.NetworkError, httpx.RemoteProtocolError):  # it was idle and got closed
            response = self._client.get(path)
        status: dict[str, Any] = response.raise_for_status().json()
        return status

    def left(self) -> dict[str, int]:
        """How much there is in the process of what streams may leave behind: see apps.left."""
        left: dict[str, int] = self._client.get("/left").raise_for_status().json()
        return left

    def wait_for_status(
        self, tag: str, condition: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Wait until the server has noticed what it is expected to."""
        status = self.status(tag)

        def fulfilled() -> bool:
            nonlocal status
            status = self.status(tag)
            return condition(status)

        wait_for(
            fulfilled, lambda: f"{self.name} says {status}; log: {self.log(self._checked)[-2000:]}"
        )
        return status

    def wait_for_end(self, tag: str, streams: int = 1) -> list[str]:
        """Wait until streams of `tag` are over, and the application with them; its history."""

        def over(status: dict[str, Any]) -> bool:
            ends = sum(what.startswith("app ") for what in status["history"])
            return ends >= streams and not status["running"]

        history: list[str] = self.wait_for_status(tag, over)["history"]
        return history

    def wait_for_complaint(self, message: str) -> None:
        """Wait until the log has an error that the test meant to cause; it counts for nothing."""
        wait_for(
            lambda: any(message in line for line in self.complaints(self._checked)),
            lambda: f"not there: {self.log(self._checked)}",
        )
        self.new_complaints()

    def forgive(self, message: str) -> None:
        """Take lines with this message for information until the end of the test."""
        self._forgiven.append(message)

    def new_complaints(self) -> list[str]:
        """What came into the log since this was called last, information apart."""
        start, self._checked = self._checked, len(self.log_file.read_bytes())
        forgiven, self._forgiven = self._forgiven, []
        return [
            line
            for line in self.complaints(start)
            if not any(message in line for message in forgiven)
        ]


def require_package(name: str) -> None:
    """Skip the test, or fail it where servers are required, if a package is not installed."""
    if importlib.util.find_spec(name) is None:
        missing("servers", f"{name} is not installed")


ServerT = TypeVar("ServerT", bound=Server)


def start(
    name: str, directory: Path, certificate: Certificate | None, make: type[ServerT]
) -> ServerT:
    """Start a server, and wait until it answers; skip where it is not installed."""
    for package in make.kinds[name].packages:
        require_package(package)
    return started(lambda: make(name, directory, certificate, free_port()))


def exit_code(
    name: str,
    number: signal.Signals,
    directory: Path,
    certificate: Certificate | None,
    make: type[Server] = Server,
) -> int:
    """The exit code of a server that has no streams when it gets a signal."""
    server = start(name, directory, certificate, make)
    try:
        server.signal(number)
        return server.wait()
    finally:
        server.kill()


ProcessT = TypeVar("ProcessT", bound=Process)


def started(make: Callable[[], ProcessT]) -> ProcessT:
    """What `make` starts, when it is ready; on another port, if somebody else had the first."""
    for _ in range(3):
        process = make()
        try:
            if process.ready():
                return process
        except BaseException:
            process.kill()
            raise
        process.kill()
    raise AssertionError(f"does not start: {process.log()}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def steady_port() -> int:
    """A free port that can be listened on again later.

    Not one of those that the kernel gives away: somebody else may get it meanwhile. And who
    connects to such a port while nobody listens may be connected to himself.
    """
    while True:
        number = random.randrange(20000, 30000)
        try:
            socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        return number
