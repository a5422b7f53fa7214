"""Sources: the program that the steps of a case stand for, and what it notes while it runs.

A source is compiled from Python that is written here, so that scopes and `finally` blocks stand
around a `yield` as in a program, and a failure can be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from sse_asgi import HTTPError

from .cases import Step

__all__ = ["RAISED", "Boom", "Log", "Panic", "program", "source_of"]


class Boom(Exception):
    """An error of the application's."""


class Panic(BaseException):
    """What extensions in Rust raise, for one."""


def made(name: str) -> BaseException:
    """Make an exception of the application's."""
    if name == "HTTPError":
        return HTTPError(418, "a teapot")
    if name == "OSError":
        return ConnectionResetError("of a database")
    if name == "Closed":
        return anyio.ClosedResourceError()
    if name == "Cancelled":
        return anyio.get_cancelled_exc_class()() if _on_asyncio() else Boom("cancelled")
    return {"Boom": Boom, "Panic": Panic}[name]("meant to happen")


RAISED = ("Boom", "Panic", "HTTPError", "OSError", "Closed")


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Log:
    """What a source has gone through."""

    def __init__(
        self,
        clock: Callable[[], float],
        sep: str,
        in_host: Callable[[], bool],
        yields: Callable[[int], object],
    ) -> None:
        self.clock = clock
        self._sep = sep
        self._in_host = in_host
        self._yields = yields
        self.over = False  # the application has returned, or the source is being closed
        self.started = 0
        self.closed: list[bool] = []  # each time, whether in the task of the host
        self.ended = False  # by itself
        #: The frames that were yielded, and how many of them the source was resumed after.
        self.frames: list[bytes] = []
        self.resumed_after = 0
        self.raised: list[BaseException] = []
        self.swallowed = 0
        self.cleanups: dict[int, tuple[float, type[BaseException] | None]] = {}
        self.cleaned: dict[int, float] = {}
        self.yields_in_cleanup = 0
        self.broken_shields: list[str] = []
        #: Threads at work, for which the clock must not jump.
        self.threads = 0
        self.inside = 0

    @property
    def cancelled(self) -> type[BaseException]:
        return anyio.get_cancelled_exc_class()

    def start(self) -> None:
        self.started += 1
        self.inside += 1

    def event(self, size: int) -> str:
        self._see_close()
        number = len(self.frames)
        text = f"{number} ".ljust(size, "x") if size > 1 else str(number % 10)
        self.frames.append(f"data: {text}{self._sep}{self._sep}".encode())
        self.inside -= 1
        self._yields(size)
        return text

    def bad(self) -> Any:
        self.inside -= 1
        return {"no such field": 1}

    def resume(self) -> None:
        self.inside += 1
        if not self.over:
            self.resumed_after = len(self.frames)

    def begin(self, number: int) -> None:
        self.cleanups[number] = (self.clock(), sys.exc_info()[0])

    def end(self, number: int) -> None:
        self.cleaned[number] = self.clock()

    def _see_close(self) -> None:
        """See whether a GeneratorExit is on its way: what is yielded now can't be sent."""
        if isinstance(sys.exc_info()[1], GeneratorExit):
            self.over = True

    def swallow(self) -> None:
        self._see_close()
        self.swallowed += 1

    def close(self) -> None:
        self.inside = 0
        self.closed.append(self._in_host())

    def error(self, name: str) -> BaseException:
        self.raised.append(made(name))
        return self.raised[-1]

    async def shield(self, seconds: float) -> None:
        began, ended = self.clock(), False
        try:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(seconds)
                ended = True
        finally:
            if not ended:
                self.broken_shields.append(
                    f"a shield of {seconds} s was broken after {self.clock() - began:.3f} s"
                )

    async def thread(self) -> None:
        began, ended = threading.Event(), threading.Event()

        def work() -> None:
            began.set()
            time.sleep(0.001)
            ended.set()

        self.threads += 1
        try:
            await anyio.to_thread.run_sync(work)
        finally:
            self.threads -= 1
            if began.is_set() and not ended.is_set():
                self.broken_shields.append("a thread was not waited for")

    async def tasks(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0.02)
            group.start_soon(anyio.sleep, 0.05)


def program(steps: list[Step], *, sync: bool = False) -> str:
    """Return the Python of a generator function `source(log)`."""
    return "\n".join(_Writer(sync).source(steps)) + "\n"


def source_of(steps: list[Step], *, sync: bool = False) -> Any:
    """Return the generator function."""
    names: dict[str, Any] = {"anyio": anyio, "time": time, "contextlib": contextlib}
    exec(compile(program(steps, sync=sync), "<source>", "exec"), names)
    return names["source"]


class _Writer:
    def __init__(self, sync: bool) -> None:
        self._sync = sync
        self._cleanups = 0

    def source(self, steps: list[Step]) -> list[str]:
        body = ["log.start()", "try:", *_in(self.block(steps)), "    log.ended = True",
                "finally:", "    log.close()"]  # fmt: skip
        lines = [f"{'' if self._sync else 'async '}def source(log):", *_in(body)]
        return [*lines, "    if 0: yield"]

    def block(self, steps: list[Step]) -> list[str]:
        lines = [line for step in steps for line in getattr(self, _method(step[0]))(*step[1:])]
        return lines or ["pass"]

    def event(self, size: int) -> list[str]:
        return [f"yield log.event({size}); log.resume()"]

    def bad(self) -> list[str]:
        return ["yield log.bad(); log.resume()"]

    def burst(self, count: int, size: int) -> list[str]:
        return [f"for _ in range({count}):", *_in(self.event(size))]

    def wait(self, seconds: float) -> list[str]:
        if self._sync:
            return [f"time.sleep({min(seconds, 0.05) / 20})"]
        return [f"await anyio.sleep({seconds})"]

    def shield(self, seconds: float) -> list[str]:
        return [f"await log.shield({seconds})"]

    def thread(self) -> list[str]:
        return ["await log.thread()"]

    def tasks(self) -> list[str]:
        return ["await log.tasks()"]

    def raise_(self, name: str) -> list[str]:
        return [f"raise log.error({name!r})"]

    def for_ever(self, steps: list[Step]) -> list[str]:
        return ["while True:", *_in(self.block(steps))]

    def scoped(self, seconds: float, steps: list[Step]) -> list[str]:
        return [f"with anyio.move_on_after({seconds}):", *_in(self.block(steps))]

    def around(self, seconds: float | None, steps: list[Step]) -> list[str]:
        return [f"with anyio.move_on_after({seconds}):", *_in(self.block(steps))]

    def group(self, steps: list[Step]) -> list[str]:
        return ["async with anyio.create_task_group() as group:",
                "    group.start_soon(anyio.sleep, 0.05)",
                *_in(self.block(steps))]  # fmt: skip

    def swallow(self, steps: list[Step]) -> list[str]:
        kind = "GeneratorExit" if self._sync else "log.cancelled"
        return ["try:", *_in(self.block(steps)), f"except {kind}:", "    log.swallow()"]

    def swallow_all(self, steps: list[Step]) -> list[str]:
        return ["try:", *_in(self.block(steps)), "except BaseException:", "    log.swallow()"]

    def finally_(self, steps: list[Step], cleanup: list[Step]) -> list[str]:
        number = self._cleanups
        self._cleanups += 1
        return ["try:", *_in(self.block(steps)), "finally:", f"    log.begin({number})",
                *_in(self.block(cleanup)), f"    log.end({number})"]  # fmt: skip


def _method(name: str) -> str:
    name = name.replace(" ", "_")
    return f"{name}_" if name in ("raise", "finally") else name


def _in(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]
