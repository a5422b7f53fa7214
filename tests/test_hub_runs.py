"""Runs in memory: a source that is read into a topic, whoever listens."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from anyio.lowlevel import checkpoint

from sse_asgi import HTTPError, current_thread_limiter
from sse_asgi.hub import Hub, HubClosedError, HubError, MemoryLog, TopicEndedError
from sse_asgi.testing import connect

from .hub_runs import DEADLINE, Answer, Runs, end_of, forever, reason_of
from .streams import on_mock_clock
from .test_hub import receive, stream_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with Hub() as hub:
        yield hub


@pytest.fixture
def other(hub: Hub) -> Hub:
    return hub


class TestInMemory(Runs):
    """The log is in this process."""


async def test_a_hub_that_is_not_open() -> None:
    """One in memory can be used at once."""
    hub = Hub(end_event="done")
    answer = Answer("a", at_once=True)
    run = await hub.run("t", answer())
    assert await reason_of(run) == "finished"
    async with connect(stream_of(hub, "t", history=10)) as stream:
        assert await receive(stream, 1) == ["a"]
        assert (await stream.receive()).event == "done"


async def test_leaving_the_hub_waits_for_its_sources() -> None:
    answers = [Answer() for _ in range(5)]
    async with Hub() as hub:
        runs = [await hub.run(f"t{n}", forever(answer)) for n, answer in enumerate(answers)]
        await checkpoint()
    assert [run.reason for run in runs] == ["interrupted"] * 5


@on_mock_clock
async def test_the_hub_waits_for_what_a_source_shields() -> None:
    began = trio.current_time()

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await trio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await trio.sleep(100)

    async with Hub() as hub:
        run = await hub.run("t", source())
        await trio.sleep(1)
    assert run.reason == "interrupted"
    # Its own shield is not broken.
    assert trio.current_time() - began == pytest.approx(101)


@on_mock_clock
async def test_a_cleanup_has_five_seconds() -> None:
    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await trio.sleep_forever()
        finally:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                await trio.sleep_forever()

    class Slow:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> str:
            await trio.sleep_forever()
            raise AssertionError

        async def aclose(self) -> None:
            await trio.sleep_forever()

    async with Hub() as hub:
        for number, each in enumerate((source(), Slow())):
            run = await hub.run(f"t{number}", each)
            await trio.sleep(1)
            began = trio.current_time()
            run.stop()
            assert await run.wait() == "stopped"
            assert trio.current_time() - began == pytest.approx(5 * number)


def test_the_event_loop_ends() -> None:
    """Without a lifespan: the source is closed with all other tasks."""
    answer = Answer()

    async def main() -> None:
        hub = Hub()
        await hub.run("t", forever(answer))
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert answer.closed.is_set()


@pytest.mark.parametrize("where", ["its task", "its cleanup", "a wait"])
def test_a_source_awaits_a_task_that_it_has_cancelled(where: str) -> None:
    """That is no reason to leave the topic without an end."""

    async def source() -> AsyncIterator[Any]:
        task = asyncio.ensure_future(asyncio.sleep(100))
        try:
            yield "a"
            if where == "its task":
                task.cancel()
                await task
            if where == "a wait":
                await asyncio.sleep(100)
            yield 7
        finally:
            task.cancel()
            await task

    async def main() -> None:
        async with Hub() as hub:
            run = await hub.run("t", source())
            await asyncio.sleep(0.01)
            run.stop()
            error = {"its task": RuntimeError, "its cleanup": TypeError, "a wait": None}[where]
            with pytest.raises(error) if error else contextlib.nullcontext():
                await reason_of(run)
            assert run.reason == ("failed" if error else "stopped")
            with pytest.raises(TopicEndedError):
                await hub.publish("t", "b")

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks")
@pytest.mark.parametrize("does", ["ends", "stops itself"])
def test_a_source_that_ends_before_its_task_was_made(does: str) -> None:
    """An eager task factory runs it at once."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        loop.set_task_factory(vars(asyncio)["eager_task_factory"])
        async with Hub() as hub:

            async def source() -> AsyncIterator[str]:
                if does == "stops itself":
                    await hub.stop("t")
                    await asyncio.sleep(100)
                return
                yield

            await hub.publish("u", "a")  # then the log does not let others run for some time
            run = await hub.run("t", source())
            assert await reason_of(run) == ("finished" if does == "ends" else "stopped")
            assert not hub._runs._running

    asyncio.run(main())


async def test_the_hub_is_closed_while_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody runs the topic: it ends."""
    log = MemoryLog()
    begin_run = log.begin_run
    hub = Hub(log)

    async def begin(*arguments: Any) -> None:
        await begin_run(*arguments)
        hub.close()

    monkeypatch.setattr(log, "begin_run", begin)
    async with hub:
        with pytest.raises(HubClosedError):
            await hub.run("t", Answer()())
    async with hub:
        assert not await hub.stop("t")
        async with connect(stream_of(hub, "t", history=10)) as stream:
            assert await end_of(stream) == "interrupted"


async def test_the_answer_to_the_end_of_a_run_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is sent again, and it is the same."""
    log = MemoryLog()
    append, lost = log.append_of_run, 0

    async def lose(*arguments: Any, **options: Any) -> Any:
        nonlocal lost
        position = await append(*arguments, **options)
        if options["final"] and not lost:
            lost += 1
            raise HubError("no answer")
        return position

    monkeypatch.setattr(log, "append_of_run", lose)
    monkeypatch.setattr("sse_asgi.hub.asking.PAUSE", (0.0, 0.0))
    async with Hub(log) as hub:
        run = await hub.run("t", Answer("a", at_once=True)())
        assert await reason_of(run) == "finished"
        assert lost == 1


async def test_a_hub_with_runs_belongs_to_their_event_loop() -> None:
    """Although it is not open."""
    hub = Hub()
    run = await hub.run("t", forever(Answer()))

    def publish() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(hub.publish("t", "b"))

    await anyio.to_thread.run_sync(publish)
    run.stop()
    assert await reason_of(run) == "stopped"
    assert isinstance(await anyio.to_thread.run_sync(asyncio.run, hub.publish("u", "b")), str)


def test_an_event_loop_was_closed_before_its_tasks_had_ended() -> None:
    """The hub can be used in another one, and closed there."""
    hub = Hub()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(hub.run("t", forever(Answer())))
    tasks = asyncio.all_tasks(loop)

    async def main() -> None:
        with anyio.fail_after(DEADLINE):
            async with hub:
                run = await hub.run("u", Answer("a", at_once=True)())
                assert await reason_of(run) == "finished"

    try:
        loop.close()
        asyncio.run(main())
    finally:
        for task in tasks:  # as if that had been forgotten for ever
            task._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_hub_that_is_cancelled_waits_for_the_cleanup_of_its_sources() -> None:
    cleaned_up: list[bool] = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
            cleaned_up.append(True)

    with anyio.CancelScope() as scope:
        async with Hub() as hub:
            run = await hub.run("t", source())
            async with connect(stream_of(hub, "t", history=10)) as stream:
                assert await receive(stream, 1) == ["a"]
            scope.cancel()
            await checkpoint()
    assert run.reason == "interrupted"
    assert cleaned_up


async def test_a_run_keeps_its_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic without events is forgotten after some time, but not if it has a run."""
    monkeypatch.setattr("sse_asgi.hub.memory.IDLE", 0.0)
    answer = Answer("a")
    async with Hub() as hub:
        run = await hub.run("t", answer())
        for number in range(20):
            await hub.position(f"other{number}")
            await anyio.sleep(0.001)
        answer.allow()
        assert await reason_of(run) == "finished"


async def test_a_log_that_knows_nothing_of_runs() -> None:
    class Log:
        def __init__(self) -> None:
            from sse_asgi.hub import MemoryLog

            self._log = MemoryLog()

        def __getattr__(self, name: str) -> Any:
            if "run" in name and name != "run":
                raise AttributeError(name)
            return getattr(self._log, name)

    log: Any = Log()
    log.presence = None
    answer = Answer()
    source = answer()
    async with Hub(log) as hub:
        with pytest.raises(RuntimeError, match="can't run sources"):
            await hub.run("t", source)
        with pytest.raises(RuntimeError, match="can't run sources"):
            await hub.stop("t")
    with pytest.raises(StopAsyncIteration):
        await anext(source)


async def test_an_end_reaches_those_who_wait(hub: Hub) -> None:
    answer = Answer("a")
    await hub.run("t", answer())
    async with connect(stream_of(hub, "t")) as stream, connect(stream_of(hub, "t")) as second:
        await anyio.wait_all_tasks_blocked()
        answer.allow()
        for each in (stream, second):
            assert await receive(each, 1) == ["a"]
            assert await end_of(each) == "finished"


async def test_a_run_that_is_stopped_before_its_first_step(hub: Hub) -> None:
    answer = Answer("a", at_once=True)
    run = await hub.run("t", answer())
    run.stop()
    assert await reason_of(run) == "stopped"
    assert not answer.begun.is_set()


async def test_no_thread_is_left(hub: Hub) -> None:
    """The source is closed all the same."""
    closed: list[bool] = []

    class Source:
        def __iter__(self) -> Any:
            raise AssertionError

        def close(self) -> None:
            closed.append(True)

    limiter = current_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 0
    try:
        with pytest.raises(HTTPError):
            await hub.run("t", Source())
    finally:
        limiter.total_tokens = before
    assert not await hub.stop("t")
    with anyio.fail_after(10):
        while not closed:
            await anyio.sleep(0.001)
