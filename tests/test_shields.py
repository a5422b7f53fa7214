"""How a source is interrupted that is in a shield, a thread or a task group, or cleans up already.

It is interrupted where it may be, has the time to clean up, and is closed in its own task before
the application returns. Each test runs in a bare task, with a scope around the application, and on
trio.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.testing

from sse_asgi import CloseReason, CloseReport, Shutdown, sse_app

from .entry_points import sse_app_in_a_scope
from .streams import http_scope

#: Much longer than any test takes, and than a machine is busy.
LONG = 30.0

#: When a stream is ended: everything that is under way has begun.
SOON = 0.05

#: How long a source can't be interrupted, from its begin.
SHIELDED = 0.5

#: What an event has that the client does not take.
STUCK = b"stuck"

Source = Callable[[], AsyncIterator[Any]]


class Ended(NamedTuple):
    """What is left of a stream."""

    report: CloseReport
    body: bytes
    #: Whether it had a last message.
    complete: bool
    #: How long it took, in seconds, from its begin.
    took: float


async def serve(app: Any, how: str, shutdown: Shutdown, reports: list[CloseReport]) -> Ended:
    """Serve a stream. ``how`` says what ends it: the client leaves, a drain, or itself."""
    messages: list[Any] = []

    async def receive() -> Any:
        if how != "end":
            await anyio.sleep(SOON)
        if how == "leave":
            return {"type": "http.disconnect"}
        if how == "drain":
            shutdown.drain(0)
        return await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if STUCK in message.get("body", b""):
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        messages.append(message)

    begin = anyio.current_time()
    await app(http_scope(), receive, send)
    took = anyio.current_time() - begin
    (report,) = reports
    body = b"".join(message.get("body", b"") for message in messages)
    return Ended(report, body, not messages[-1].get("more_body", True), took)


class Run:
    """Serves a source in one of the ways in which an application may run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, source: Source, how: str, *, cleanup_timeout: float = LONG) -> Ended:
        async def main() -> Ended:
            shutdown, reports = Shutdown(), list[CloseReport]()
            make = sse_app_in_a_scope if self.name == "in a scope" else sse_app
            app = make(
                source,
                shutdown=shutdown,
                on_close=reports.append,
                cleanup_timeout=cleanup_timeout,
                ping=None,
            )
            return await serve(app, how, shutdown, reports)

        # Not anyio.run(): it has a scope around everything on asyncio, too.
        return trio.run(main) if self.name == "trio" else asyncio.run(main())


@pytest.fixture(params=["bare", "in a scope", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Serve a source in each of the ways."""
    return Run(request.param)


@pytest.fixture(params=["bare", "in a scope"])
def run_on_asyncio(request: pytest.FixtureRequest) -> Run:
    """Serve a source in each of the ways that asyncio has."""
    return Run(request.param)


REASONS = {
    "end": CloseReason.FINISHED,
    "leave": CloseReason.CLIENT_DISCONNECTED,
    "drain": CloseReason.SHUTDOWN,
}

interrupted = pytest.mark.parametrize("how", ["leave", "drain"])


def check(ended: Ended, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """See that a stream has ended as it should, and that nobody was warned."""
    assert ended.report.reason is REASONS[how]
    assert ended.report.error is None
    assert ended.complete is (how != "leave")
    assert ended.took < LONG / 2
    assert caplog.records == []


class Steps:
    """What a source has done; and in which task, which is to be the same all the time."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.tasks: list[int] = []

    def __call__(self, step: str) -> None:
        self.done.append(step)
        self.tasks.append(anyio.get_current_task().id)

    def check(self, *steps: str) -> None:
        assert self.done == list(steps)
        assert len(set(self.tasks)) == 1


# -- what a cleanup may wait for -------------------------------------------------------------------


async def a_moment() -> None:
    await anyio.sleep(0.01)


async def a_thread() -> None:
    await anyio.to_thread.run_sync(time.sleep, 0.01)


async def a_lock() -> None:
    async with anyio.Lock():
        await a_moment()


async def a_semaphore() -> None:
    async with anyio.Semaphore(1):
        await a_moment()


async def a_limiter() -> None:
    async with anyio.CapacityLimiter(1):
        await a_moment()


async def a_channel() -> None:
    sends, receives = anyio.create_memory_object_stream[str](1)
    with sends, receives:
        await sends.send("bye")
        await receives.receive()


async def a_task_group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(a_moment)


async def a_timeout() -> None:
    with anyio.move_on_after(0.01):
        await anyio.sleep_forever()
    await a_moment()


async def a_checkpoint() -> None:
    await anyio.lowlevel.checkpoint_if_cancelled()
    await anyio.lowlevel.checkpoint()
    await a_moment()


CLEANUPS: list[Callable[[], Awaitable[None]]] = [
    a_moment, a_thread, a_lock, a_semaphore, a_limiter, a_channel, a_task_group, a_timeout,
    a_checkpoint,
]  # fmt: skip


async def nothing() -> None:
    await anyio.sleep_forever()


async def in_a_task_group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, LONG)


async def in_a_task_group_itself() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, LONG)
        await anyio.sleep_forever()


async def in_two_task_groups() -> None:
    async with anyio.create_task_group() as outer:
        outer.start_soon(anyio.sleep, LONG)
        async with anyio.create_task_group() as inner:
            inner.start_soon(anyio.sleep, LONG)


async def in_a_task_group_of_a_task_group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_a_task_group)


async def within_a_timeout() -> None:
    with anyio.fail_after(LONG):
        await anyio.sleep_forever()


async def for_a_thread_that_may_be_abandoned() -> None:
    await anyio.to_thread.run_sync(time.sleep, SHIELDED, abandon_on_cancel=True)
    await anyio.sleep_forever()


async def in_a_task_group_after_a_shield() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, LONG)
        await in_a_shield()


WAITS: list[Callable[[], Awaitable[None]]] = [
    nothing, in_a_task_group_after_a_shield, in_a_task_group, in_a_task_group_itself,
    in_two_task_groups, in_a_task_group_of_a_task_group, within_a_timeout,
    for_a_thread_that_may_be_abandoned,
]  # fmt: skip


@interrupted
@pytest.mark.parametrize("cleanup", CLEANUPS)
def test_a_cleanup_may_wait_for(
    cleanup: Callable[[], Awaitable[None]],
    how: str,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            steps("waits")
            await anyio.sleep_forever()
        finally:
            await cleanup()
            steps("cleaned up")

    check(run(source, how), how, caplog)
    steps.check("waits", "cleaned up")


@interrupted
@pytest.mark.parametrize("cleanup", [a_moment, a_thread, a_task_group])
@pytest.mark.parametrize("wait", WAITS)
def test_there_is_time_for_a_cleanup_wherever_the_source_is_interrupted(
    wait: Callable[[], Awaitable[None]],
    cleanup: Callable[[], Awaitable[None]],
    how: str,
    run: Run,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """A task group of its own does not take the interruption for its own."""
    if run.name == "trio" and cleanup is a_thread and "task_group" in wait.__name__:
        # trio looks whether the task is cancelled as soon as the task group has ended.
        request.applymarker(pytest.mark.xfail(strict=True, raises=AssertionError))
    if run.name == "in a scope" and wait is in_a_task_group_after_a_shield:
        # The task group of anyio sees our shield, and no cancellation around it.
        request.applymarker(pytest.mark.xfail(strict=True, raises=AssertionError))
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            steps("waits")
            await wait()
            steps("went on")
        finally:
            await cleanup()
            steps("cleaned up")

    check(run(source, how), how, caplog)
    steps.check("waits", "cleaned up")


@interrupted
def test_each_cleanup_of_several_has_the_time(
    how: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        try:
            try:
                yield "a"
                await in_a_task_group()
            finally:
                await a_moment()
                await a_thread()
                steps("the inner one")
        finally:
            await a_lock()
            await a_task_group()
            await a_moment()
            steps("the outer one")

    check(run(source, how), how, caplog)
    steps.check("the inner one", "the outer one")


# -- what can't be interrupted ---------------------------------------------------------------------


async def in_a_shield() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(SHIELDED)


async def in_a_shield_within_a_shield() -> None:
    with anyio.CancelScope(shield=True):
        await in_a_shield()
        await anyio.sleep(0.01)


async def in_a_task_group_in_a_shield() -> None:
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, SHIELDED)


async def in_a_shield_with_a_deadline() -> None:
    with anyio.move_on_after(SHIELDED, shield=True):
        await anyio.sleep_forever()


async def for_a_thread() -> None:
    ended: list[float] = []

    def block() -> None:
        time.sleep(SHIELDED)
        ended.append(time.monotonic())

    try:
        await anyio.to_thread.run_sync(block)
    finally:
        assert ended, "the thread still runs"


async def in_a_shield_in_a_task_group() -> None:
    async with anyio.create_task_group():
        await in_a_shield()


SHIELDS: list[Callable[[], Awaitable[None]]] = [
    in_a_shield_in_a_task_group,
    in_a_shield, in_a_shield_within_a_shield, in_a_task_group_in_a_shield,
    in_a_shield_with_a_deadline, for_a_thread,
]  # fmt: skip

shields = pytest.mark.parametrize("shield", SHIELDS)


@interrupted
@shields
def test_a_source_is_interrupted_after_its_shield(
    shield: Callable[[], Awaitable[None]],
    how: str,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where it waits next, and not by the end of its time; and it has the time to clean up."""
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await shield()
            steps("shielded")
            await anyio.sleep_forever()
            steps("went on")
        finally:
            await a_moment()
            await a_thread()
            steps("cleaned up")

    # The time of the cleanup runs from the interruption on.
    ended = run(source, how, cleanup_timeout=5)
    check(ended, how, caplog)
    assert SHIELDED <= ended.took < 4
    steps.check("shielded", "cleaned up")


@interrupted
@shields
def test_a_source_may_end_in_its_shield(
    shield: Callable[[], Awaitable[None]],
    how: str,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await shield()
            steps("shielded")
        finally:
            steps("cleaned up")

    check(run(source, how), how, caplog)
    steps.check("shielded", "cleaned up")


@shields
def test_a_source_that_yields_after_its_shield_is_closed_there(
    shield: Callable[[], Awaitable[None]], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The client has left meanwhile. That is nothing to be warned of."""
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await shield()
            steps("shielded")
            yield "b"
            steps("went on")
        finally:
            await a_thread()
            steps("cleaned up")

    ended = run(source, "leave")
    check(ended, "leave", caplog)
    assert b"b" not in ended.body.replace(b"data", b"")
    steps.check("shielded", "cleaned up")


@interrupted
@shields
def test_a_shield_within_a_cleanup(
    shield: Callable[[], Awaitable[None]],
    how: str,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await anyio.sleep_forever()
        finally:
            await shield()
            steps("shielded")
            await a_moment()
            steps("cleaned up")

    check(run(source, how), how, caplog)
    steps.check("shielded", "cleaned up")


@interrupted
def test_a_shield_is_not_broken_when_the_time_for_a_cleanup_is_over(how: str, run: Run) -> None:
    """What comes after it is, and the stream ends."""
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(4 * SOON)
                steps("shielded")
            await anyio.sleep(LONG)
            steps("went on")

    ended = run(source, how, cleanup_timeout=SOON)
    assert ended.took < LONG / 2
    assert ended.report.reason is REASONS[how]
    steps.check("shielded")


@interrupted
def test_a_thread_is_waited_for_although_the_time_for_a_cleanup_is_over(how: str, run: Run) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await for_a_thread()
            steps("the thread has ended")
        finally:
            steps("cleaned up")

    run(source, how, cleanup_timeout=SOON)
    steps.check("the thread has ended", "cleaned up")


@interrupted
def test_waits_that_end_by_themselves_are_no_interruption(
    how: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """On trio each of them ends by a cancellation, of a scope of its own."""
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    await anyio.sleep(0.01)
                    with anyio.move_on_after(0.001):
                        await anyio.sleep_forever()
            steps("shielded")
            await anyio.sleep_forever()
        finally:
            await a_moment()
            steps("cleaned up")

    ended = run(source, how, cleanup_timeout=5)
    check(ended, how, caplog)
    assert ended.took < 4
    steps.check("shielded", "cleaned up")


class JumpingClock(trio.abc.Clock):
    """Stands still, but jumps when trio has looked at it so many times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = math.inf

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self.looks -= 1
        if self.looks < 0:
            self.looks, self.now = math.inf, self.now + 1
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0 if deadline <= self.now else 0.001


def interrupt_at_a_timeout(clock: JumpingClock, looks: int) -> Steps:
    """Have a client leave, and the timeout of the source come when trio has looked so often."""
    steps = Steps()

    async def source() -> AsyncIterator[str]:
        try:
            while True:
                yield "a"
                await anyio.sleep(0.5)
        finally:
            steps("cleaned up")

    async def main() -> None:
        async def receive() -> Any:
            await trio.testing.wait_all_tasks_blocked()
            clock.looks = looks
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await anyio.lowlevel.checkpoint()

        await sse_app(source, ping=None)(http_scope(), receive, send)

    trio.run(main, clock=clock)
    return steps


@pytest.mark.parametrize("time", range(5))  # trio runs its tasks in any order
def test_a_timeout_may_come_at_the_moment_of_the_interruption(
    time: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Before and after each step of it. The source does not go on."""
    for looks in range(1000):
        clock = JumpingClock()
        interrupt_at_a_timeout(clock, looks).check("cleaned up")
        assert caplog.records == []
        if clock.looks < math.inf:  # all was over before
            break
    assert 5 < looks < 999


# -- a source that yields while it is closed -------------------------------------------------------

_YIELDED = " yielded while it was being closed; that is not sent"


@pytest.mark.parametrize("yields", [1, 2, 20])
@pytest.mark.parametrize("wait", [a_moment, a_thread, in_a_shield])
def test_a_source_that_yields_while_it_is_closed_comes_to_its_end(
    wait: Callable[[], Awaitable[None]],
    yields: int,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Although an event of its was bad."""
    steps = Steps()

    async def source() -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            for _ in range(yields):
                yield "while it is closed"
                await a_moment()
            await wait()
            steps("cleaned up")

    with pytest.raises(TypeError):
        run(source, "end")
    steps.check("cleaned up")
    assert [_YIELDED in record.message for record in caplog.records] == [True]


@interrupted
def test_a_source_that_yields_while_it_is_closed_may_fail(
    how: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            yield "while it is closed"
            steps("fails")
            raise LookupError

    with pytest.raises(TypeError):
        run(source, how)
    steps.check("fails")
    messages = [record.message for record in caplog.records]
    assert _YIELDED in messages.pop(0)
    assert messages == ["another exception while the source was closed"]


@interrupted
def test_a_source_that_swallows_all_and_yields_comes_to_its_end(
    how: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """It is closed where it yields, which is not sent."""
    steps = Steps()

    async def source() -> AsyncIterator[Any]:
        yield "a"
        try:
            await anyio.sleep_forever()
        finally:
            with suppress(GeneratorExit):
                yield "one"
            with suppress(GeneratorExit):
                yield "two"
            await a_moment()
            steps("cleaned up")

    ended = run(source, how)
    assert ended.report.reason is REASONS[how]
    assert ended.report.error is None
    assert b"two" not in ended.body
    steps.check("cleaned up")
    assert any(_YIELDED in record.message for record in caplog.records)


def test_a_source_that_yields_when_its_client_has_left_in_a_send(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[Any]:
        try:
            yield STUCK.decode()
        finally:
            yield "while it is closed"
            await a_thread()
            steps("cleaned up")

    ended = run(source, "leave")
    assert ended.report.reason is CloseReason.CLIENT_DISCONNECTED
    assert ended.report.error is None
    assert ended.body == b""
    steps.check("cleaned up")
    assert [_YIELDED in record.message for record in caplog.records] == [True]


def test_a_cleanup_that_yields_has_no_more_time_than_others(run: Run) -> None:
    steps = Steps()

    async def source() -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            yield "while it is closed"
            try:
                await anyio.sleep(LONG)
                steps("went on")
            finally:
                steps("interrupted")

    begin = time.monotonic()
    with pytest.raises(TypeError):
        run(source, "end", cleanup_timeout=SOON)
    assert time.monotonic() - begin < LONG / 2
    steps.check("interrupted")


# -- a source that has a task of its own -----------------------------------------------------------


async def cancel_and_wait(child: asyncio.Task[None]) -> None:
    child.cancel()
    await child


async def cancel_and_wait_and_suppress(child: asyncio.Task[None]) -> None:
    child.cancel()
    with suppress(asyncio.CancelledError):
        await child


async def cancel_and_gather(child: asyncio.Task[None]) -> None:
    child.cancel()
    await asyncio.gather(child, return_exceptions=True)


async def cancel_and_wait_later(child: asyncio.Task[None]) -> None:
    child.cancel()
    await a_moment()  # it has ended by then
    with suppress(asyncio.CancelledError):
        await child


@pytest.mark.parametrize("how", ["end", "leave", "drain"])
@pytest.mark.parametrize(
    "stop",
    [cancel_and_wait, cancel_and_wait_and_suppress, cancel_and_gather, cancel_and_wait_later],
)
def test_a_source_may_cancel_a_task_of_its_own_and_wait_for_it(
    stop: Callable[[asyncio.Task[None]], Awaitable[None]],
    how: str,
    run_on_asyncio: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = Steps()

    async def work() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            await asyncio.sleep(0.01)

    async def source() -> AsyncIterator[str]:
        child = asyncio.ensure_future(work())
        try:
            yield "a"
            await anyio.sleep_forever() if how != "end" else await a_moment()
        finally:
            steps("cleans up")
            try:
                await stop(child)
            finally:
                assert child.cancelled()
                await a_moment()
                steps("cleaned up")

    ended = run_on_asyncio(source, how)
    check(ended, how, caplog)
    assert b"data: a" in ended.body
    steps.check("cleans up", "cleaned up")


@pytest.mark.parametrize("how", ["end", "leave", "drain"])
def test_a_source_may_cancel_its_task_group(
    how: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()

    async def work() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await a_moment()

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work)
                try:
                    await anyio.sleep_forever() if how != "end" else await a_moment()
                finally:
                    tasks.cancel_scope.cancel()
                    steps("cancelled")
        finally:
            await a_moment()
            steps("cleaned up")

    check(run(source, how), how, caplog)
    steps.check("cancelled", "cleaned up")
