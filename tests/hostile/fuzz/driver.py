"""Run one case in this process, and look at what is left of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.abc
import trio

from sse_asgi.supervisor import Stream

from .cases import Case
from .clocks import JumpingClock, JumpingLoop, Stuck
from .stage import Outcome, Stage

__all__ = ["run"]

#: How long, in seconds of the clock that jumps, an application may stay after all is over.
LIMIT = 200.0
#: How long, in seconds of the processor's time, a case may take.
PATIENCE = 10


class Frozen(BaseException):
    """The event loop does not run any more."""


class _Records(logging.Handler):
    def __init__(self, stage: Stage) -> None:
        super().__init__(logging.WARNING)
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage() + (f" [{error!r}]" if error is not None else "")
        self._stage.outcome.records.append((self._stage.clock(), record.levelname, message))


@contextmanager
def _watched(stage: Stage) -> Iterator[None]:
    """Note what is logged, what Python complains about, and whether all stands still."""
    faults = stage.outcome.faults
    handler = _Records(stage)

    def unraisable(info: Any) -> None:
        faults.append(f"unraisable: {info.err_msg or ''} {info.exc_value!r} in {info.object!r:.80}")

    def frozen(number: int, frame: object) -> None:
        if "the event loop does not run" not in faults:
            faults.append("the event loop does not run")
        raise Frozen

    loggers = [logging.getLogger(name) for name in ("sse_asgi", "asyncio")]
    before = sys.unraisablehook, signal.signal(signal.SIGPROF, frozen)
    sys.unraisablehook = unraisable
    signal.setitimer(signal.ITIMER_PROF, PATIENCE, 1)
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    except Frozen:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.unraisablehook = before[0]
        signal.signal(signal.SIGPROF, before[1])
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


def run(case: Case) -> tuple[Stage, Outcome]:
    """Run a case."""
    threads = case.kind in ("sync", "list")
    holder: list[Stage] = []

    def busy() -> bool:
        log = holder[0].log
        return log.threads > 0 or (case.kind == "sync" and log.inside > 0)

    on_trio = case.mode == "trio"
    loop: JumpingLoop | None = None
    clock: Callable[[], float]
    if on_trio:
        mock = JumpingClock(busy, threads)
        clock, task, pass_time = mock.current_time, _trio_task, mock.pass_time
    else:
        loop = JumpingLoop(busy, threads, eager=case.mode == "eager")
        clock, task, pass_time = loop.time, _asyncio_task, loop.pass_time
    streams = _streams()
    stage = Stage(case, clock, task, pass_time)
    holder.append(stage)
    stage.streams_before = streams
    with _watched(stage):
        try:
            if loop is None:
                trio.run(partial(_play, stage), clock=mock, instruments=[mock])
            else:
                _run_on_asyncio(loop, stage)
        except Stuck:
            stage.outcome.faults.append("everybody waits for ever")
        except Exception as exc:
            stage.outcome.faults.append(f"of the fuzz: {exc!r}")
            if os.environ.get("SSE_ASGI_FUZZ_DEBUG"):
                raise
        for error in stage.log.raised:
            error.__traceback__ = error.__cause__ = error.__context__ = None
        gc.collect()
        _look_at_memory(stage)
    return stage, stage.outcome


def _trio_task() -> object:
    try:
        return trio.lowlevel.current_task()
    except RuntimeError:
        return None


def _asyncio_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _run_on_asyncio(loop: JumpingLoop, stage: Stage) -> None:
    def complain(loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        stage.outcome.faults.append(f"{context['message']} {error!r}"[:300])

    loop.set_exception_handler(complain)
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_play(stage) if stage.case.mode == "group" else _play_bare(stage))
    finally:
        loop.close()


async def _play_bare(stage: Stage) -> None:
    """Play in bare tasks of asyncio."""
    create = asyncio.get_running_loop().create_task
    others = [create(stage.direct()), create(stage.read_slowly())]
    if stage.case.kind == "hub":
        others.append(create(stage.publish()))
    host = create(stage.call())
    await asyncio.wait([host], timeout=LIMIT)
    if not host.done():
        stage.outcome.faults.append("the application does not return")
    elif not host.cancelled():
        host.result()
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    for _ in range(3):
        await asyncio.sleep(0)
    await _threads_end(stage)
    stage.outcome.left["tasks"] = len(asyncio.all_tasks()) - 1
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            stage.outcome.faults.append(f"left: {task!r:.200}")
    stage.outcome.host = None


async def _play(stage: Stage) -> None:
    """Play in task groups of anyio's."""
    before = _tasks()
    ended = anyio.Event()

    async def host(group: anyio.abc.TaskGroup) -> None:
        try:
            await stage.call()
            await anyio.lowlevel.checkpoint()
        finally:
            ended.set()

    with anyio.move_on_after(LIMIT) as limit:
        async with anyio.create_task_group() as group:
            group.start_soon(stage.direct)
            group.start_soon(stage.read_slowly)
            if stage.case.kind == "hub":
                group.start_soon(stage.publish)
            group.start_soon(host, group)
            await ended.wait()
            group.cancel_scope.cancel()
    if limit.cancelled_caught:
        stage.outcome.faults.append("the application does not return")
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    await _threads_end(stage)
    stage.outcome.left["tasks"] = _tasks() - before
    stage.outcome.host = None


def _tasks() -> int:
    if _asyncio_task() is not None:
        return len(asyncio.all_tasks())
    return trio.lowlevel.current_statistics().tasks_living


async def _threads_end(stage: Stage) -> None:
    """Wait until a thread that nobody waits for any longer has ended."""
    if stage.case.kind != "sync":
        return
    ends = time.monotonic() + 2
    while stage.log.started > len(stage.log.closed) and time.monotonic() < ends:
        time.sleep(0.002)
        await anyio.lowlevel.checkpoint()
    for _ in range(100):
        from sse_asgi import current_thread_limiter

        if not current_thread_limiter().borrowed_tokens:
            break
        time.sleep(0.002)
        await anyio.lowlevel.checkpoint()
    stage.outcome.left["thread tokens"] = int(current_thread_limiter().borrowed_tokens)


def _streams() -> int:
    return sum(type(thing) is Stream for thing in gc.get_objects())


def _look_at_memory(stage: Stage) -> None:
    left = stage.outcome.left
    left["places"] = stage.connections()
    left["listeners"] = int(repr(stage.shutdown).rpartition("=")[2][:-1])
    if stage.case.kind == "sync":
        for _ in range(50):  # a thread that has ended still has its frame for a moment
            if not any(source() is not None for source in stage.sources):
                break
            time.sleep(0.002)
            gc.collect()
    if stage.hub is not None:
        left["subscriptions"] = stage.hub.subscribers()
    left["sources"] = sum(source() is not None for source in stage.sources)
    left["streams"] = _streams() - stage.streams_before
