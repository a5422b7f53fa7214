"""The command line."""

from __future__ import annotations

import argparse
import gc
import re
import time
from collections import Counter

from .cases import MODES, Case, make, smaller
from .driver import run
from .oracle import describe, faults
from .sources import program


def failing(case: Case) -> list[str]:
    stage, _ = run(case)
    return faults(stage)


def kind_of(fault: str) -> str:
    """Leave out of a fault what differs from case to case."""
    return "".join("#" if c.isdigit() else c for c in fault)[:28]


def shrink(case: Case, fault: str, seconds: float = 20) -> Case:
    ends, wanted = time.monotonic() + seconds, kind_of(fault)
    progress = True
    while progress and time.monotonic() < ends:
        progress = False
        for candidate in smaller(case):
            if time.monotonic() > ends:
                break
            try:
                found = failing(candidate)
            except Exception:
                continue
            if any(kind_of(f) == wanted for f in found):
                case, progress = candidate, True
                break
    return case


def show(case: Case) -> None:
    stage, _ = run(case)
    for fault in faults(stage):
        print("   !!", fault)
    print("   case", case)
    if case.steps:
        print("      " + program(case.steps, sync=case.kind == "sync").replace("\n", "\n      "))
    for name, value in describe(stage).items():
        print(f"   {name}: {value}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=float, default=1 / 60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--case")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--skip", default="")
    arguments = parser.parse_args()
    gc.collect()
    gc.freeze()
    if arguments.case:
        show(Case.parse(arguments.case))
        return
    modes = tuple(arguments.mode or MODES[:3])
    seed = arguments.seed if arguments.seed is not None else time.time_ns() % 10**9
    ends = time.monotonic() + arguments.hours * 3600
    rounds = 0
    kinds: Counter[str] = Counter()
    examples: dict[str, Case] = {}
    while time.monotonic() < ends and rounds != arguments.rounds:
        case = make(seed + rounds, modes)
        for fault in dict.fromkeys(failing(case)):
            if arguments.only in fault and not (arguments.skip and re.search(arguments.skip, fault)):
                kinds[kind_of(fault)] += 1
                old = examples.get(kind_of(fault))
                if old is None or len(str(case)) < len(str(old)):
                    examples[kind_of(fault)] = case
        rounds += 1
    print(f"{rounds} rounds from seed {seed}, {sum(kinds.values())} with faults")
    for kind, count in kinds.most_common():
        case = examples[kind]
        print(f"-- {count} of {kind}, such as seed {case.seed} ({case.mode})")
        if arguments.shrink:
            found = [f for f in failing(case) if kind_of(f) == kind]
            if not found:
                print("   not again", case)
                continue
            show(shrink(case, found[0]))


if __name__ == "__main__":
    main()
