"""The servers of the peers, which run on a core of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from .expressions import better_sse_event
from .load import Load
from .machine import CLIENT_CORE, SERVER_CORE, on_core
from .peer import CACHE, ROOT, BetterSSE, Nchan, Peer, environment_of
from .shapes import PLAIN, Shape


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int
    peer: Peer
    publishers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def worker(self) -> int:
        """The process that serves: granian has it as a child."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[-1]) if children else self.pid

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Go on, and stop again."""
        os.killpg(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.pid, signal.SIGSTOP)

    @property
    def client_pids(self) -> tuple[int, ...]:
        return tuple(publisher.pid for publisher in self.publishers)

    def publish(self, rate: float = 0, burst: int = 1) -> None:
        """Begin to publish."""
        if isinstance(self.peer, Nchan):
            command = [sys.executable, "-m", "benchmarks.peers.nchan_publisher"]
            with on_core(CLIENT_CORE):
                self.publishers.append(
                    subprocess.Popen([*command, str(self.port), str(rate), str(burst)], cwd=ROOT)
                )
            return
        with Load(self.port) as load:
            load.ask(f"/publish?rate={rate}&burst={burst}")


@contextlib.contextmanager
def serving(
    peer: Peer,
    *,
    server: str = "uvicorn",
    ping: float | None = None,
    shape: Shape = PLAIN,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Run the server of a peer, on its core.

    :param shape: what its streams send.
    :param variables: more of its environment (peers/__init__.py).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        name: value
        for name, value in environment_of(peer).items()
        if not name.startswith("BENCHMARK_")
    }
    environment |= {**variables, "BENCHMARK_SHAPE": shape.name}
    if isinstance(peer, BetterSSE):
        environment["BENCHMARK_NODE"] = str(CACHE)
        environment["BENCHMARK_EVENT"] = json.dumps(better_sse_event(shape))
    if ping is not None:
        environment["BENCHMARK_PING"] = str(ping)
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "output", "w+b") as output:
        with on_core(SERVER_CORE):
            process = subprocess.Popen(
                peer.command(server, port, Path(folder), ping),
                env=environment,
                cwd=folder,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that its workers are ended with it
            )
        running = Server(process, port, peer)
        try:
            _wait_for(process, port, Path(folder))
            yield running
        finally:
            for publisher in running.publishers:
                publisher.kill()
                publisher.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    said = (folder / "output").read_text(errors="replace").strip()[-500:]
    raise RuntimeError(f"the server did not start: {said}")
