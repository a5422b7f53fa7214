"""The pings of all streams of an event loop, by one timer, where a ping takes no task."""

from __future__ import annotations

import contextvars
import math
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ..runtime.base import nothing

if TYPE_CHECKING:
    from typing import Protocol

    from ..runtime.base import Cancel, Runtime

    class Pinged(Protocol):
        """A stream, as far as this file knows it."""

        #: The streams that are asked together with this one. This file sets it.
        asked_with: set[Pinged] | None

        def ping(self, now: float) -> float:
            """Send a ping if one is due. Return when to ask again; ``inf``: never."""
            ...


__all__ = ["GRID", "Pings", "pings_of"]

#: Streams that are due at about the same time are asked together. So a ping may be late by this
#: part of the interval, or by so many seconds, whichever is less. It is never early.
GRID = 1 / 64, 0.1

#: uvloop counts in milliseconds, and may call a timer earlier by half of one.
EARLY = 0.001

#: For how long to ask streams before other tasks run, in seconds.
SLICE = 0.002


class Pings:
    """Asks the streams of an event loop that have the same interval, when a ping may be due.

    A stream does not say when it writes. It is asked when its ping would be due if it had not
    written, and then says when to ask again.

    The streams and the timer are all that keep this object alive: it holds streams, which hold the
    event loop, and nothing that belongs to a loop may keep it alive.
    """

    __slots__ = ("__weakref__", "_context", "_grid", "_next", "_runtime", "_slots", "_timer")

    def __init__(self, runtime: Runtime, interval: float) -> None:
        self._runtime = runtime
        self._grid = min(interval * GRID[0], GRID[1])
        # Who is asked at which multiple of the grid.
        self._slots: dict[int, set[Pinged]] = {}
        # When it is the turn of the first of them, and what takes that back.
        self._next = math.inf
        self._timer: Cancel = nothing
        # Of the timer: that of whichever stream came first is not for the others.
        self._context = contextvars.Context()

    def ask(self, stream: Pinged, at: float) -> None:
        """Ask a stream at a time, or a little later."""
        if at == math.inf:
            stream.asked_with = None
            return
        number = int(at / self._grid) + 1
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
            if number * self._grid < self._next:
                self._wait()
        slot.add(stream)
        stream.asked_with = slot

    def forget(self, stream: Pinged) -> None:
        """Never ask a stream again."""
        slot, stream.asked_with = stream.asked_with, None
        if slot is not None:
            slot.discard(stream)
            if not slot:
                self._slots = {number: slot for number, slot in self._slots.items() if slot}
                if not self._slots:
                    self._wait()

    def _wait(self) -> None:
        """Set the timer for the first slot, or stop it if there is none."""
        self._timer()
        self._timer = nothing
        self._next = math.inf
        if self._slots:
            self._next = min(self._slots) * self._grid
            rest = self._next - self._runtime.clock() + EARLY
            self._timer = self._context.run(self._runtime.after, rest, self._ask_those_due)

    def _ask_those_due(self) -> None:
        """Ask one stream after another, and let other tasks run if that takes long."""
        now = self._runtime.clock()
        ends = monotonic() + SLICE
        try:
            for number in sorted(self._slots):
                if number * self._grid > now:
                    break
                slot = self._slots[number]
                while slot:
                    stream = slot.pop()
                    self.ask(stream, stream.ping(now))
                    if monotonic() >= ends:
                        return
                self._slots.pop(number, None)
        finally:
            self._wait()


def pings_of(runtime: Runtime, interval: float) -> Pings:
    """Return what asks all streams of an event loop that have this interval."""
    known = runtime.own(_by_interval)
    pings = known.get(interval)
    if pings is None:
        pings = known[interval] = Pings(runtime.of_loop, interval)
    return pings


def _by_interval() -> WeakValueDictionary[float, Pings]:
    return WeakValueDictionary()
