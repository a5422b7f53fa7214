"""The machine: its cores, what it is, and how busy it is while something is measured. Linux."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]

#: The server has one core, the load client another, where there are two.
CLIENT_CORE, SERVER_CORE = CORES[0], CORES[-1]

_TICK = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run here, and start processes, on this core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu(pid: int) -> float:
    """The processor time that a process has taken so far, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def rss(pid: int) -> int:
    """The memory of a process that is in RAM, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _busy_and_stolen() -> tuple[float, float]:
    """Seconds of all cores that somebody was at work, and that the hypervisor gave to others."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq) / _TICK, steal / _TICK


@dataclass(frozen=True)
class Shares:
    """Who was how busy, in cores (1.0 is all of one)."""

    seconds: float
    server: float
    client: float
    others: float
    stolen: float


class Watch:
    """Who is how busy from now on.

    :param server: the process that is measured.
    :param clients: processes of the load, besides this one.
    """

    def __init__(self, server: int, clients: tuple[int, ...] = ()) -> None:
        self._server, self._clients = server, (os.getpid(), *clients)
        self._began = self._read()

    def _read(self) -> tuple[float, float, float, float, float]:
        client = sum(cpu(pid) for pid in self._clients)
        return time.monotonic(), cpu(self._server), client, *_busy_and_stolen()

    def stop(self) -> Shares:
        began, ended = self._began, self._read()
        seconds = ended[0] - began[0]
        server, client, busy, stolen = (
            (late - early) / seconds for early, late in zip(began[1:], ended[1:], strict=True)
        )
        return Shares(seconds, server, client, max(busy - server - client, 0.0), stolen)


def facts() -> dict[str, object]:
    """What the machine is: no name, no path."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if "model name" in line), "")
    return {
        "processor": model or platform.machine(),
        "cores": len(CORES),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load average": os.getloadavg()[0],
    }


def version_of(*command: str) -> str:
    """The first line that a program prints about its version."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().partition("\n")[0]
