"""How fast a stream is. Pure, no I/O, no clock."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ..client import gap_of
from .show import value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..decoder import DecodedEvent

__all__ = ["Bench"]

#: How many latencies are kept for the summary: the latest.
KEPT = 100_000

#: Unix times are seconds up to here, then milliseconds, then microseconds, then nanoseconds. The
#: first is in the year 2286, and in 1970 if it was milliseconds.
UNITS = ((1e10, 1.0), (1e13, 1e-3), (1e16, 1e-6), (1e19, 1e-9))

#: A number that is less is no time: it is one of 2001.
EARLIEST = 1e9


class Bench:
    """Counts what a stream brings.

    :param field: the field of JSON data that is a Unix time.
    :param now: the time when it begins to count, in seconds, by any clock.
    """

    def __init__(self, field: str, now: float) -> None:
        self._field = field
        self._began = self._last = now
        self._all = _Counts()
        self._recent = _Counts()

    def receive(self, size: int) -> None:
        """Count bytes."""
        self._all.bytes += size
        self._recent.bytes += size

    def count(self, event: DecodedEvent, unix_time: float) -> None:
        """Count an event that was received at a time."""
        gap = gap_of(event) if event.event == "gap" else None
        sent = _time_of(event.data, self._field)
        for counts in (self._all, self._recent):
            counts.events += 1
            if gap is not None:
                counts.gaps += 1
                counts.missed += gap.missed or 0
            if sent is not None:
                counts.latencies.append(unix_time - sent)

    def line(self, now: float) -> str:
        """Return what came since the last line."""
        text = self._recent.text(now - self._last)
        self._recent, self._last = _Counts(), now
        return text

    def summary(self, now: float) -> str:
        """Return what has come in all."""
        seconds = now - self._began
        return f"in {seconds:.1f} s: {self._all.events} events; {self._all.text(seconds)}"


class _Counts:
    def __init__(self) -> None:
        self.events = self.bytes = self.gaps = self.missed = 0
        self.latencies: deque[float] = deque(maxlen=KEPT)

    def text(self, seconds: float) -> str:
        per_second = 1 / seconds if seconds > 0 else 0.0
        parts = [f"{self.events * per_second:.1f} events/s", f"{self.bytes * per_second:.0f} B/s"]
        parts.append(f"{self.gaps} gaps" + (f" ({self.missed} missed)" if self.missed else ""))
        if self.latencies:
            ordered = sorted(self.latencies)
            shown = (f"{_part(ordered, part) * 1000:.1f}" for part in (0.5, 0.99, 1.0))
            parts.append(f"latency {'/'.join(shown)} ms (median/99 %/most)")
        return ", ".join(parts)


def _part(ordered: Sequence[float], part: float) -> float:
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def _time_of(data: str, field: str) -> float | None:
    """Return the Unix time that data is, or has, in seconds; ``None``: it has none."""
    try:
        value: Any = value_of(data)
    except ValueError:
        return None
    if isinstance(value, dict):
        value = value.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < EARLIEST:
        return None
    return next((value * unit for most, unit in UNITS if value < most), None)
