"""What this machine is doing: processors, memory and network, from psutil."""

from __future__ import annotations

import itertools
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import psutil

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["Sample", "describe", "samples"]


@dataclass(frozen=True)
class Sample:
    """The machine over the interval that ended at ``time``. Becomes JSON as it is."""

    number: int  #: how many samples there were before
    time: float  #: Unix time, seconds
    cpu: float  #: all processors, 0 to 100
    cores: list[float]  #: each of them, 0 to 100
    memory_used: int  #: bytes
    memory_total: int  #: bytes
    received: float  #: bytes a second, all interfaces
    sent: float  #: bytes a second, all interfaces


@dataclass(frozen=True)
class _Counters:
    """What the system counts since it started; two of them make a sample."""

    clock: float
    cores: list[tuple[float, float]]
    received: int
    sent: int
    memory_used: int
    memory_total: int


def describe() -> dict[str, Any]:
    """Say what the machine is, in values that JSON has."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": len(psutil.cpu_times(percpu=True)),
        "memory": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


async def samples(interval: float = 1.0) -> AsyncGenerator[Sample, None]:
    """Measure the machine every ``interval`` seconds.

    The previous counters live here and not in the process, as those of ``psutil.cpu_percent()``
    do: any number of readers get right numbers.
    """
    before = await anyio.to_thread.run_sync(_read_counters)
    for number in itertools.count():
        await anyio.sleep(interval)
        after = await anyio.to_thread.run_sync(_read_counters)
        yield _between(number, before, after)
        before = after


def _read_counters() -> _Counters:
    network = psutil.net_io_counters()  # None on a machine without any interface
    memory = psutil.virtual_memory()
    return _Counters(
        clock=time.monotonic(),
        cores=[_busy_and_total(times._asdict()) for times in psutil.cpu_times(percpu=True)],
        received=network.bytes_recv if network else 0,
        sent=network.bytes_sent if network else 0,
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
    )


def _busy_and_total(times: dict[str, float]) -> tuple[float, float]:
    # Linux counts the time of guests in "user" and "nice" already.
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return total - times["idle"] - times.get("iowait", 0.0), total


def _between(number: int, before: _Counters, after: _Counters) -> Sample:
    elapsed = after.clock - before.clock
    deltas = [
        (busy_now - busy, total_now - total)
        for (busy, total), (busy_now, total_now) in zip(before.cores, after.cores, strict=False)
    ]
    return Sample(
        number=number,
        time=round(time.time(), 3),
        cpu=_percent(sum(busy for busy, _ in deltas), sum(total for _, total in deltas)),
        cores=[_percent(busy, total) for busy, total in deltas],
        memory_used=after.memory_used,
        memory_total=after.memory_total,
        received=_rate(after.received - before.received, elapsed),
        sent=_rate(after.sent - before.sent, elapsed),
    )


def _percent(busy: float, total: float) -> float:
    # The counters of a processor may stand still, or go back a little.
    return round(min(max(100 * busy / total, 0.0), 100.0), 1) if total > 0 else 0.0


def _rate(count: int, elapsed: float) -> float:
    return round(max(count, 0) / elapsed, 1) if elapsed > 0 else 0.0
