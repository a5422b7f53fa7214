"""Timing that a busy machine disturbs little: processor time, interleaved, medians and spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Figure:
    """Microseconds of processor time an operation."""

    median: float
    spread: float


def side_by_side(
    candidates: Mapping[str, Callable[[int], object]], operations: int, rounds: int = 9
) -> dict[str, Figure]:
    """Run all candidates in turn, ``rounds`` times; each does so many operations a call."""

    def timed(candidate: Callable[[int], object]) -> float:
        began = time.process_time()
        candidate(operations)
        return (time.process_time() - began) / operations * 1e6

    return interleave({name: partial(timed, each) for name, each in candidates.items()}, rounds)


def interleave(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Figure]:
    """Run all candidates in turn, ``rounds`` times; each returns what an operation has taken."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            times[name].append(candidate())
    return {
        name: Figure(statistics.median(series), statistics.pstdev(series))
        for name, series in times.items()
    }


def table(title: str, figures: Mapping[str, Figure], base: str, operation: str = "an event") -> str:
    """Figures as lines of text, each with its ratio to ``base`` and its distance from it."""
    floor = figures[base].median
    lines = [f"{title} (µs of processor time {operation})"]
    for name, figure in figures.items():
        lines.append(
            f"  {name:<34} {figure.median:7.3f} ±{figure.spread:.3f}"
            f"   x {figure.median / floor:5.2f}   {figure.median - floor:+.3f}"
        )
    return "\n".join(lines)
