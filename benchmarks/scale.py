"""What a process carries: its cost against the number of connections, and the size of events.

The server is uvicorn in a process of its own, on a core of its own where there are two; the
clients are in another. Each has a file for each connection, so the limit on open files (``ulimit
-n``) bounds how many there can be; how it goes on beyond that is measured without sockets (see
``scale_objects.py``), and so are the counts before, to compare. The figures are of the server's
process: its memory, and its processor time. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from . import scale_history
from .scale_clients import PING_CHUNK, Heard, shared

Row = dict[str, float]

#: How many connections, by sockets and without.
BY_SOCKETS, WITHOUT_SOCKETS = (1000, 5000, 10_000, 15_000), (1000, 5000, 10_000, 15_000, 50_000)

#: How many there are, and of what size events are, where that is what changes.
SUBSCRIBERS, SIZES = 1000, (24, 200, 2048, 20_480, 204_800)

#: Bytes of an event otherwise.
SIZE = 200

#: Seconds between pings, and how many of them are measured.
PING, PINGS = 4.0, 2

#: Events published one by one, and how many deliveries a second are expected at least.
EVENTS, PACE = 10, 20_000

#: How much is published in a second when events are large, for all together.
BYTES_PER_SECOND = 200e6

#: Events a second, and for how many seconds, when they come at a rate whatever becomes of them.
RATE, SECONDS = 10, 5

#: Connections that come and go first: what is loaded once, or grows once, is then there.
WARM = 200

#: Files that a process has open besides its connections.
SPARE = 100


def cores() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0))


def run(module: str, *arguments: object, core: int, file: int | None = None) -> psutil.Popen:
    """Run a module in a process of its own, on one core."""
    process = psutil.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PING": str(PING)},
        pass_fds=() if file is None else (file,),
    )
    process.cpu_affinity([core])
    return process


def cpu(process: psutil.Popen) -> float:
    """The seconds of processor time that a process has taken (clock_getcpuclockid(3))."""
    return time.clock_gettime((~process.pid << 3) | 2)


def wait_until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s")
        time.sleep(0.02)


class Setting:
    """A server, and its connections by sockets."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.truncate(ctypes.sizeof(Heard))
        self.heard = shared(self.file.fileno())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.clients: psutil.Popen | None = None
        self.server = self.serve()
        wait_until(self.answers, 20)

    def serve(self) -> psutil.Popen:
        options = (
            "--port",
            self.port,
            "--backlog",
            4096,
            "--loop",
            "uvloop",
            "--http",
            "httptools",
        )
        quiet = ("--no-access-log", "--log-level", "warning")
        return run("uvicorn", "benchmarks.scale_app:app", *options, *quiet, core=cores()[0])

    def connect(self, count: int) -> None:
        module, file = "benchmarks.scale_clients", self.file.fileno()
        self.clients = run(module, file, self.port, count, core=cores()[-1], file=file)

    def disconnect(self) -> None:
        if self.clients is not None:
            self.clients.kill()
            self.clients.wait()

    def close(self) -> None:
        for process in filter(None, (self.server, self.clients)):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
                process.kill()
                process.wait()

    def answers(self) -> bool:
        try:
            self.ask("/nothing")
        except OSError:
            return False
        return True

    def ask(self, path: str) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: benchmark\r\nConnection: close\r\n\r\n".encode()
            )
            while connection.recv(4096):
                pass

    def open(self, count: int) -> None:
        """Have so many connections, and wait until they are open."""
        before = self.heard.opened
        self.connect(count)
        wait_until(lambda: self.heard.opened >= before + count)

    def publish(self, events: int, size: int, interval: float, count: int) -> float:
        """Publish, wait until all have had everything, and return the seconds that took."""
        until, began = self.heard.had_all + count, time.monotonic()
        self.ask(f"/publish?count={events}&size={size}&interval={interval}")
        wait_until(lambda: self.heard.had_all >= until)
        return time.monotonic() - began


class WithoutSockets(Setting):
    def serve(self) -> psutil.Popen:
        module, file = "benchmarks.scale_objects", self.file.fileno()
        return run(module, file, self.port, core=cores()[0], file=file)

    def connect(self, count: int) -> None:
        self.ask(f"/connect?count={count}")

    def disconnect(self) -> None:
        self.ask("/disconnect")


@dataclass
class Meter:
    """The processor time of a server, without what it takes when it has nothing to do."""

    server: psutil.Popen
    idle: float = 0.0

    def start(self) -> None:
        self._began, self._cpu = time.monotonic(), cpu(self.server)

    def stop(self) -> float:
        """Seconds of processor time since the start."""
        return cpu(self.server) - self._cpu - self.idle * (time.monotonic() - self._began)


@contextlib.contextmanager
def prepared(make: Callable[[], Setting]) -> Iterator[tuple[Setting, Meter]]:
    """A server that had some connections, and has none now."""
    setting = make()
    try:
        setting.open(WARM)
        setting.publish(2, SIZE, 0.1, WARM)
        setting.disconnect()
        time.sleep(1)
        meter = Meter(setting.server)
        meter.start()
        time.sleep(2)
        meter.idle = meter.stop() / 2
        yield setting, meter
    finally:
        setting.close()


def connections(make: Callable[[], Setting], count: int) -> Row:
    """What so many connections cost."""
    row: Row = {}
    with prepared(make) as (setting, meter):
        server, heard = setting.server, setting.heard
        empty = server.memory_info().rss
        meter.start()
        setting.open(count)
        row["connect_us"] = meter.stop() / count * 1e6
        time.sleep(1)
        row["kib"] = (server.memory_info().rss - empty) / count / 1024

        before = heard.bytes
        meter.start()
        time.sleep(PING * PINGS)
        row["ping_us"] = meter.stop() / max((heard.bytes - before) / len(PING_CHUNK), 1) * 1e6

        meter.start()
        setting.publish(EVENTS, SIZE, max(count / PACE, 0.1), count)
        row["delivery_us"] = meter.stop() / count / EVENTS * 1e6

        row |= at_a_rate(setting, meter, count)
        row |= drain(setting, meter, count)
    return row


def at_a_rate(setting: Setting, meter: Meter, count: int) -> Row:
    """How late events are that come at a rate, and how busy that keeps the processes."""
    heard = setting.heard
    heard.watched, pieces = 0, heard.pieces
    clients = setting.clients
    theirs = 0.0 if clients is None else cpu(clients)
    meter.start()
    took = setting.publish(RATE * SECONDS, SIZE, 1 / RATE, count)
    busy = meter.stop()
    delays = sorted(heard.delays[: min(heard.watched, len(heard.delays))])
    return {
        "rate_p50_ms": statistics.median(delays),
        "rate_p99_ms": delays[int(len(delays) * 0.99)],
        "rate_cores": busy / took,
        "rate_client_cores": 0.0 if clients is None else (cpu(clients) - theirs) / took,
        "rate_joined": count * RATE * SECONDS / (heard.pieces - pieces),
    }


def drain(setting: Setting, meter: Meter, count: int) -> Row:
    """From SIGTERM to the last stream's end, and to that of the process."""
    heard = setting.heard
    ended, heard.last_chunks, used = heard.ended, 0, 0.0
    began = time.monotonic_ns()
    meter.start()
    setting.server.send_signal(signal.SIGTERM)
    while heard.ended < ended + count and setting.server.poll() is None:
        time.sleep(0.005)
        with contextlib.suppress(OSError):  # it may have ended just now
            used = meter.stop()
    setting.server.wait(60)
    return {
        "drain_s": (heard.last_end - began) / 1e9,
        "drain_us": used / count * 1e6,
        "exit_s": (time.monotonic_ns() - began) / 1e9,
        "last_chunks": heard.last_chunks / count,
    }


def sizes(make: Callable[[], Setting], rounds: int) -> dict[int, Row]:
    """What a delivery costs for events of so many bytes, in µs, for each of some rounds."""
    rows: dict[int, Row] = {size: {} for size in SIZES}
    with prepared(make) as (setting, meter):
        setting.open(SUBSCRIBERS)
        time.sleep(1)
        for number in range(rounds):
            for size in SIZES:
                interval = max(SUBSCRIBERS / PACE, SUBSCRIBERS * size / BYTES_PER_SECOND)
                meter.start()
                setting.publish(EVENTS, size, interval, SUBSCRIBERS)
                used = meter.stop() / SUBSCRIBERS / EVENTS
                rows[size][f"round {number}"] = used * 1e6
    return rows


MAKES: dict[str, tuple[Callable[[], Setting], Sequence[int]]] = {
    "sockets": (Setting, BY_SOCKETS),
    "without sockets": (WithoutSockets, WITHOUT_SOCKETS),
}

COLUMNS = {
    "kib": ("KiB", "8.1f"),
    "connect_us": ("connect", "8.0f"),
    "ping_us": ("ping", "8.1f"),
    "delivery_us": ("delivery", "8.1f"),
    "drain_us": ("drain", "8.1f"),
    "drain_s": ("drain s", "8.2f"),
    "exit_s": ("exit s", "8.2f"),
    "last_chunks": ("ended", "8.0%"),
    "rate_p50_ms": ("p50 ms", "8.0f"),
    "rate_p99_ms": ("p99 ms", "8.0f"),
    "rate_cores": ("cores", "8.2f"),
    "rate_client_cores": ("clients", "8.2f"),
    "rate_joined": ("joined", "8.1f"),
}


def against_connections(rounds: int, quick: bool) -> dict[str, Any]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    runs: list[tuple[str, int]] = []
    for name, (_, counts) in MAKES.items():
        for count in counts[:2] if quick else counts:
            if name == "sockets" and count > limit - SPARE:
                print(f"{count:,} sockets are more than the {limit:,} files that may be open")
            else:
                runs.append((name, count))
    samples: dict[str, dict[int, list[Row]]] = {name: {} for name in MAKES}
    for _ in range(rounds):
        for name, count in runs:
            row = connections(MAKES[name][0], count)
            samples[name].setdefault(count, []).append(row)
    print(
        "\nconnections, each: KiB of RSS; µs of processor time to connect, of a ping, of a delivery"
    )
    print("one by one, of its end; seconds from SIGTERM to the last stream's end, and to the exit;")
    print(f"streams ended by the last chunk. At {RATE} events/s: ms to a client, cores busy, and")
    print("events joined in one piece.")
    print(" " * 8 + " ".join(f"{title:>8}" for title, _ in COLUMNS.values()))
    for name, rows in samples.items():
        print(name)
        for count, same in rows.items():
            figures = {key: statistics.median(row[key] for row in same) for key in COLUMNS}
            cells = (f"{figures[key]:{form}}" for key, (_, form) in COLUMNS.items())
            print(f"{count:>7,} " + " ".join(cells))
    return dict(samples)


def against_size(rounds: int, quick: bool) -> dict[str, Any]:
    samples = {name: sizes(make, rounds) for name, (make, _) in MAKES.items()}
    print(f"\na delivery, {SUBSCRIBERS:,} subscribers (µs of processor time)")
    print("bytes of an event " + " ".join(f"{name:>16}" for name in samples))
    for size in SIZES:
        cells = (f"{statistics.median(rows[size].values()):16.1f}" for rows in samples.values())
        print(f"{size:>17,} " + " ".join(cells))
    return dict(samples)


PARTS = {
    "connections": against_connections,
    "sizes": against_size,
    "history": scale_history.against_history,
}


def main(parts: Sequence[str] = (), rounds: int = 3, quick: bool = False) -> dict[str, Any]:
    """Measure some of the parts, or all; print medians, and return all that was measured."""
    if not sys.platform.startswith("linux"):
        print("scale: on Linux only")
        return {}
    if quick:
        rounds = 1
    return {part: PARTS[part](rounds, quick) for part in parts or PARTS}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, of fewer connections")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {unknown}; there are {', '.join(PARTS)}")
    results = main(arguments.parts, arguments.rounds, arguments.quick)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))
