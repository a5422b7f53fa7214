"""Event loops whose clock jumps to the next deadline when nobody has anything to do."""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
from collections.abc import Callable
from typing import Any

import trio

__all__ = ["JumpingClock", "JumpingLoop", "Stuck"]

#: How long, in real seconds, threads get before the clock jumps, if there may be some.
GRACE = 0.03


class Stuck(BaseException):
    """Everybody waits, and nothing will ever happen."""


class _Selector(selectors.DefaultSelector):
    loop: JumpingLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        loop = self.loop
        if loop.threads and (ready := super().select(GRACE)):
            return ready
        while loop.busy():
            if ready := super().select(0.001):
                return ready
        if timeout is None:
            raise Stuck
        loop.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop.

    :param busy: returns whether a thread works, during which the clock stands still.
    :param threads: whether there may be others.
    """

    def __init__(self, busy: Callable[[], bool], threads: bool, *, eager: bool) -> None:
        self.now = 1000.0
        self.busy = busy
        self.threads = threads
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        if eager:
            assert sys.version_info >= (3, 12), "eager tasks came with Python 3.12"
            self.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009

    def time(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


class JumpingClock(trio.abc.Clock, trio.abc.Instrument):
    """A clock for trio, which also has to be told of every step: give it to `instruments`, too.

    (`MockClock` would not wait for threads.)
    """

    def __init__(self, busy: Callable[[], bool], threads: bool) -> None:
        self._now = 1000.0
        self._busy = busy
        self._threads = threads
        self._polled = 0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        self._now += seconds

    def before_task_step(self, task: object) -> None:
        self._polled = 0

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if self._polled == 0:  # something may have come in
            self._polled = 1
            return 0
        if self._busy():
            return 0.001
        if self._polled == 1 and self._threads:
            self._polled = 2
            return GRACE
        if deadline < math.inf:
            self._now = max(self._now, deadline)
            return 0
        return 0.01
