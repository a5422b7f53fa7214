"""How many events a second publishers store on Redis: many tasks, topics and processes.

With ``python -m benchmarks.publishers --against FOLDER`` another checkout is measured in turn with
this one, and the ratio is what counts: rates depend on what else the machine does. The figures of
Redis are what it says of its own processor time: its share, and so what it could do at most.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.redis.servers import RedisServer

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("publishers_worker.py")

SECONDS = 1.5
ROUNDS = 5


class Shape(NamedTuple):
    """Who publishes what."""

    title: str
    call: str
    topics: int
    #: In each process.
    publishers: int
    processes: int = 1


SHAPES = [
    Shape("one publisher", "publish", 1, 1),
    Shape("64 publishers, one topic", "publish", 1, 64),
    Shape("64 publishers, 64 topics", "publish", 64, 64),
    Shape("4 processes x 16 publishers, one topic", "publish", 1, 16, 4),
    Shape("4 processes x 64 publishers, one topic", "publish", 1, 64, 4),
    Shape("publish_many of 100, one caller", "publish_many", 1, 1),
]


class Sample(NamedTuple):
    """What came of one run."""

    #: Events a second.
    rate: float
    #: Microseconds of processor time for an event: of the processes, and of Redis.
    here: float
    redis: float


def busy(server: RedisServer) -> float:
    """Return the processor time that a server has taken, in seconds."""
    info = server.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def measure(server: RedisServer, package: Path, shape: Shape) -> Sample:
    """Run the processes of a shape with the package of a checkout."""
    prefix = secrets.token_hex(4)
    command = [sys.executable, str(WORKER), server.url, prefix, str(shape.topics)]
    command += [str(shape.publishers), str(SECONDS), shape.call]
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(package)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(shape.processes)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n", "see the traceback above"
    before = busy(server)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [worker.communicate()[0].split() for worker in workers]
    redis = busy(server) - before
    server.command("FLUSHALL")
    count = sum(int(words[0]) for words in said)
    rate = sum(int(words[0]) / float(words[1]) for words in said)
    here = sum(float(words[2]) for words in said)
    return Sample(rate, here / count * 1e6, redis / count * 1e6)


def median(samples: list[Sample]) -> Sample:
    return Sample(*map(statistics.median, zip(*samples, strict=True)))


def main(against: Path | None = None, rounds: int = ROUNDS) -> None:
    packages = {"": ROOT} if against is None else {"before": against, "": ROOT}
    print(f"\n{'events of 200 bytes':<46}      a second  x before   µs here  µs of Redis")
    with RedisServer() as server:
        for shape in SHAPES:
            samples: dict[str, list[Sample]] = {name: [] for name in packages}
            for _ in range(rounds):
                for name, package in packages.items():
                    if name != "before" or shape.call == "publish":
                        samples[name].append(measure(server, package, shape))
            base = median(samples["before"]).rate if samples.get("before") else None
            for name, found in samples.items():
                if found:
                    rate, here, redis = median(found)
                    ratio = "" if base is None else f"{rate / base:.1f}"
                    title = f"{shape.title} {name and f'({name})'}"
                    print(
                        f"{title:<50} {rate:9.0f} {ratio:>9} {here:9.1f} {redis:12.1f}", flush=True
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    options = parser.parse_args()
    main(options.against, options.rounds)
