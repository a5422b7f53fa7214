"""The command line of the fuzz: for hours, on servers, and to see one case again.

python -m tests.hostile.fuzz --hours 1
python -m tests.hostile.fuzz --hours 1 --server uvicorn-h11 --server daphne
python -m tests.hostile.fuzz --case '{"steps": [["raise", "Boom"]]}'
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .cases import MODES, Case, make, smaller
from .driver import run
from .oracle import describe, faults
from .sources import program


def faults_of(case: Case) -> list[str]:
    stage, _ = run(case)
    return list(dict.fromkeys(faults(stage)))


def kind_of(fault: str) -> str:
    """Leave out of a fault what differs from case to case."""
    return re.sub(r"\d+", "#", fault)[:40]


def shrink(case: Case, kind: str, seconds: float) -> Case:
    """Make a case smaller for as long as it has a fault of this kind."""
    ends, progress = time.monotonic() + seconds, True
    while progress and time.monotonic() < ends:
        progress = False
        for candidate in smaller(case):
            if time.monotonic() > ends:
                break
            if any(kind_of(fault) == kind for fault in faults_of(candidate)):
                case, progress = candidate, True
                break
    return case


def show(case: Case) -> None:
    stage, _ = run(case)
    for fault in faults(stage):
        print("   !!", fault)
    print("   case", case)
    if case.steps:
        lines = program(case.steps, sync=case.kind == "sync")
        print("      " + lines.strip().replace("\n", "\n      "))
    for name, value in describe(stage).items():
        print(f"   {name}: {value}")


class Tally:
    """How often each kind of fault was found, and the shortest case of each."""

    def __init__(self, skip: str) -> None:
        self._skip = re.compile(skip) if skip else None
        self.rounds = 0
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, tuple[Case | None, str]] = {}

    def add(self, case: Case | None, fault: str) -> None:
        if self._skip is not None and self._skip.search(fault):
            return
        kind = kind_of(fault)
        self.kinds[kind] += 1
        old = self.examples.get(kind)
        if old is None or len(str(case)) < len(str(old[0])):
            self.examples[kind] = case, fault
            if old is None:
                print(f"{time.strftime('%X')} {fault[:200]}\n   {case}", flush=True)

    def tell(self) -> None:
        print(f"{self.rounds} rounds, {sum(self.kinds.values())} faults")
        for kind, count in self.kinds.most_common():
            print(f"{count:6} {kind}")


def in_process(seed: int, modes: tuple[str, ...], more: Callable[[], bool], tally: Tally) -> None:
    while more():
        case = make(seed + tally.rounds, modes)
        for fault in faults_of(case):
            tally.add(case, fault)
        tally.rounds += 1


def on_server(name: str, seed: int, more: Callable[[], bool], tally: Tally, *, eager: bool) -> None:
    import httpx

    from .servers import TOGETHER, batch, make_served, start_server, stop

    with tempfile.TemporaryDirectory() as directory:
        server = start_server(name, Path(directory), eager=eager)
        try:
            while more():
                calm = seed % 2 == 0
                cases = [make_served(seed * TOGETHER + n, name, calm=calm) for n in range(TOGETHER)]
                try:
                    for case, fault in batch(server, cases, calm=calm):
                        tally.add(case, f"{name}: {fault}")
                except httpx.TransportError as exc:
                    tally.add(None, f"{name}: the server does not answer: {exc!r}")
                    print(*map(str, cases), server.log()[-3000:], sep="\n")
                    server.kill()
                    server = start_server(name, Path(directory), eager=eager)
                seed += 1
                tally.rounds += TOGETHER
            for fault in stop(server, seed):
                tally.add(None, f"{name}: {fault}")
        finally:
            server.kill()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.hostile.fuzz")
    parser.add_argument("--hours", type=float, default=1 / 60, help="how long")
    parser.add_argument("--rounds", type=int, help="how many cases at most")
    parser.add_argument("--seed", type=int, help="of the first case; the next ones follow")
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--server", action="append", help="on servers, which share the time")
    parser.add_argument("--eager", action="store_true", help="servers with eager tasks")
    parser.add_argument("--case", help="run one case and tell all of it")
    parser.add_argument("--shrink", type=float, default=0, help="so many seconds for each fault")
    parser.add_argument("--skip", default="", help="faults to leave out: a regular expression")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.case:
        show(Case.parse(arguments.case))
        return 0
    gc.collect()
    gc.freeze()
    seed = arguments.seed if arguments.seed is not None else time.time_ns() % 10**9
    tally = Tally(arguments.skip)
    servers: list[str | None] = arguments.server or [None]
    modes = tuple(arguments.mode or (MODES if sys.version_info >= (3, 12) else MODES[:3]))
    print(f"seed {seed}")
    for server in servers:
        ends = time.monotonic() + arguments.hours * 3600 / len(servers)
        most = None if arguments.rounds is None else tally.rounds + arguments.rounds

        def more(ends: float = ends, most: int | None = most) -> bool:
            return time.monotonic() < ends and (most is None or tally.rounds < most)

        if server is None:
            in_process(seed, modes, more, tally)
        else:
            on_server(server, seed, more, tally, eager=arguments.eager)
    tally.tell()
    for kind, (case, _) in tally.examples.items():
        if arguments.shrink and case is not None and servers == [None]:
            print("--", kind)
            show(shrink(case, kind, arguments.shrink))
    return bool(tally.kinds)


if __name__ == "__main__":
    sys.exit(main())
