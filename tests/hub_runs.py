"""What holds for runs, whatever the log."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sse_asgi.hub import Hub, HubClosedError, Run, TopicEndedError, TopicRunningError
from sse_asgi.testing import Connection, connect

from .hub_ends import ends, until_begun
from .test_hub import back, receive, stream_of

DEADLINE = 20.0

who: ContextVar[str] = ContextVar("who", default="nobody")


class Answer:
    """A source that gives its words one by one, when it is told to."""

    def __init__(self, *words: str, at_once: bool = False) -> None:
        self.words = words
        self.closed = anyio.Event()
        self.begun = anyio.Event()
        self._permits = anyio.Semaphore(len(words) if at_once else 0)

    def allow(self, words: int = 1) -> None:
        for _ in range(words):
            self._permits.release()

    async def __call__(self) -> AsyncIterator[str]:
        try:
            self.begun.set()
            for word in self.words:
                await self._permits.acquire()
                yield word
        finally:
            self.closed.set()


async def forever(answer: Answer) -> AsyncIterator[str]:
    """Its first event comes, and never another one."""
    try:
        yield "a"
        await anyio.sleep_forever()
    finally:
        answer.closed.set()


async def end_of(stream: Connection) -> str:
    """Why the run has ended."""
    with anyio.fail_after(DEADLINE):
        event = await stream.receive()
    assert event.event == "end"
    await ends(stream)
    reason: str = json.loads(event.data)["reason"]
    return reason


async def reason_of(run: Run) -> str:
    with anyio.fail_after(DEADLINE):
        return await run.wait()


class Runs:
    """The tests. `hub` and `other` are two nodes of one hub, or the same."""

    async def test_a_source_is_read_into_its_topic_and_ends_it(self, hub: Hub, other: Hub) -> None:
        answer = Answer("a", "b", at_once=True)
        run = await hub.run("t", answer())
        assert await reason_of(run) == run.reason == "finished"
        assert answer.closed.is_set()
        async with connect(stream_of(other, "t", history=10)) as stream:
            assert await receive(stream, 2) == ["a", "b"]
            assert await end_of(stream) == "finished"
        assert stream.last_event_id
        async with connect(stream_of(other, "t"), headers=back(stream.last_event_id)) as stream:
            assert stream.status_code == 204
        with pytest.raises(TopicEndedError):
            await other.publish("t", "c")

    async def test_it_goes_on_whoever_listens(self, hub: Hub, other: Hub) -> None:
        """A client goes and comes back, and another one listens too."""
        answer = Answer("a", "b", "c", "d")
        run = await hub.run("t", answer())
        async with connect(stream_of(other, "t", history=10)) as stream:
            answer.allow()
            assert await receive(stream, 1) == ["a"]
            seen = stream.last_event_id
        answer.allow(2)
        async with (
            connect(stream_of(hub, "t"), headers=back(seen)) as stream,
            connect(stream_of(other, "t", history=10)) as second,
        ):
            assert await receive(stream, 2) == ["b", "c"]
            assert await receive(second, 3) == ["a", "b", "c"]
            answer.allow()
            assert await receive(stream, 1) == await receive(second, 1) == ["d"]
            assert await end_of(stream) == await end_of(second) == "finished"
        assert await reason_of(run) == "finished"

    @pytest.mark.parametrize("where", ["here", "there"])
    @pytest.mark.parametrize("is_quiet", [True, False])
    async def test_stop_by_topic(self, hub: Hub, other: Hub, where: str, is_quiet: bool) -> None:
        answer = Answer(*map(str, range(10_000)), at_once=True)
        run = await hub.run("t", forever(answer) if is_quiet else answer())
        async with connect(stream_of(other, "t", history=10)) as stream:
            await receive(stream, 1)
            assert await (hub if where == "here" else other).stop("t")
            with pytest.raises(TopicEndedError):
                await other.publish("t", "late")
            with anyio.fail_after(DEADLINE):
                events = [event async for event in stream]
            assert json.loads(events[-1].data) == {"reason": "stopped"}
        assert await reason_of(run) == "stopped"
        assert answer.closed.is_set()
        assert not await other.stop("t")

    async def test_stop_by_the_run(self, hub: Hub, other: Hub) -> None:
        answer = Answer()
        run = await hub.run("t", forever(answer))
        async with connect(stream_of(other, "t", history=10)) as stream:
            assert await receive(stream, 1) == ["a"]
            assert run.reason is None
            run.stop()
            run.stop()
            assert await reason_of(run) == "stopped"
            assert answer.closed.is_set()
            run.stop()
            assert await end_of(stream) == "stopped"

    async def test_nobody_runs_it(self, hub: Hub, other: Hub) -> None:
        assert not await hub.stop("t")
        await hub.publish("t", "a")
        assert not await other.stop("t")
        await hub.publish("t", "b")

    async def test_one_runner_for_a_topic(self, hub: Hub, other: Hub) -> None:
        answer, refused = Answer("a"), [Answer(), Answer()]
        run = await hub.run("t", answer())
        for node, late in zip((hub, other), refused, strict=True):
            source = late()
            with pytest.raises(TopicRunningError, match="has a run"):
                await node.run("t", source)
            with pytest.raises(StopAsyncIteration):
                await anext(source)  # it was closed
            assert not late.begun.is_set()
        await other.publish("t", "between")  # anybody may
        answer.allow()
        assert await reason_of(run) == "finished"
        with pytest.raises(TopicEndedError):
            await other.run("t", Answer()())

    async def test_many_at_once(self, hub: Hub, other: Hub) -> None:
        runs: list[Run] = []

        async def begin(node: Hub) -> None:
            with contextlib.suppress(TopicRunningError):
                runs.append(await node.run("t", Answer("a")()))

        async with anyio.create_task_group() as tasks:
            for node in (hub, other) * 5:
                tasks.start_soon(begin, node)
        assert len(runs) == 1
        runs[0].stop()
        assert await reason_of(runs[0]) == "stopped"

    async def test_a_source_that_fails(
        self, hub: Hub, other: Hub, caplog: pytest.LogCaptureFixture
    ) -> None:
        error = RuntimeError("no model")

        async def source() -> AsyncIterator[str]:
            yield "a"
            raise error

        run = await hub.run("t", source())
        async with connect(stream_of(other, "t", history=10)) as stream:
            assert await receive(stream, 1) == ["a"]
            assert await end_of(stream) == "failed"
        for _ in range(2):
            with pytest.raises(RuntimeError) as caught:
                await reason_of(run)
            assert caught.value is error
        assert run.reason == "failed"
        assert "no model" in caplog.text

    @pytest.mark.parametrize(
        "event", [{"data": "a", "id": "1"}, 7, b"no event"], ids=["an id", "no event", "no frame"]
    )
    async def test_an_event_that_cannot_be_published(self, hub: Hub, event: Any) -> None:
        closed = anyio.Event()

        async def source() -> AsyncIterator[Any]:
            try:
                yield event
            finally:
                closed.set()

        run = await hub.run("t", source())
        with pytest.raises((TypeError, ValueError)):
            await reason_of(run)
        assert closed.is_set()
        assert run.reason == "failed"

    async def test_a_sync_source_is_read_in_a_thread(self, hub: Hub, other: Hub) -> None:
        threads: list[int] = []

        def source() -> Iterator[str]:
            threads.append(threading.get_ident())
            yield "a"
            yield "b"

        run = await hub.run("t", source())
        assert await reason_of(run) == "finished"
        async with connect(stream_of(other, "t", history=10)) as stream:
            assert await receive(stream, 2) == ["a", "b"]
        assert threads != [threading.get_ident()]

    @pytest.mark.parametrize("source", [None, "text", {"data": "a"}, 7])
    async def test_what_is_no_source(self, hub: Hub, source: Any) -> None:
        with pytest.raises(TypeError, match="a source must be"):
            await hub.run("t", source)
        assert not await hub.stop("t")

    async def test_a_topic_that_is_none(self, hub: Hub) -> None:
        answer = Answer()
        source = answer()
        for name in ("", "a*", "a\n"):
            with pytest.raises(ValueError, match="topic"):
                await hub.run(name, source)
            with pytest.raises(ValueError, match="topic"):
                await hub.stop(name)
        with pytest.raises(StopAsyncIteration):
            await anext(source)

    async def test_it_has_the_context_of_the_caller(self, hub: Hub) -> None:
        async def source() -> AsyncIterator[str]:
            yield who.get()
            who.set("the source")
            yield who.get()

        token = who.set("the caller")
        try:
            with anyio.CancelScope() as scope:
                run = await hub.run("t", source())
                scope.cancel()  # it has a task of its own
            assert await reason_of(run) == "finished"
            assert who.get() == "the caller"
        finally:
            who.reset(token)
        async with connect(stream_of(hub, "t", history=10)) as stream:
            assert await receive(stream, 2) == ["the caller", "the source"]

    async def test_waiting_can_be_cancelled(self, hub: Hub) -> None:
        answer = Answer("a")
        run = await hub.run("t", answer())
        with anyio.move_on_after(0.01):
            await run.wait()
        assert run.reason is None
        answer.allow()
        assert await reason_of(run) == "finished"

    async def test_the_topic_is_ended_by_a_publisher(self, hub: Hub, other: Hub) -> None:
        answer = Answer("a", "b")
        run = await hub.run("t", answer())
        await other.publish("t", "that's all", final=True)
        answer.allow()
        assert await reason_of(run) == "stopped"
        assert answer.closed.is_set()

    async def test_a_subscription_is_a_source(self, hub: Hub) -> None:
        """Of another hub: its frames have ids, so its events are passed on."""

        async def relayed(subscription: Any) -> AsyncIterator[Any]:
            async for frame in subscription:
                for line in frame.decode().splitlines():
                    if line.startswith("data: "):
                        yield line.removeprefix("data: ")

        async with Hub() as source:
            run = await hub.run("t", relayed(source.subscribe("s")))
            await until_begun(source, "s")
            await source.publish("s", "a")
            await source.publish("s", "b", final=True)
            assert await reason_of(run) == "finished"
        async with connect(stream_of(hub, "t", history=10)) as stream:
            assert await receive(stream, 2) == ["a", "b"]

    async def test_cleanup_of_a_source(self, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
        """It may wait, and what it raises is logged; the topic ends after it."""

        async def source() -> AsyncIterator[str]:
            try:
                yield "a"
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                raise OSError("in its cleanup")

        run = await hub.run("t", source())
        async with connect(stream_of(hub, "t", history=10)) as stream:
            assert await receive(stream, 1) == ["a"]
            run.stop()
            assert await end_of(stream) == "stopped"
        assert await reason_of(run) == "stopped"
        assert "in its cleanup" in caplog.text

    @pytest.mark.parametrize("where", ["its task", "its cleanup"])
    @pytest.mark.parametrize(
        "error", [SystemExit(1), BaseExceptionGroup("", [SystemExit(1)])], ids=["one", "a group"]
    )
    async def test_a_source_that_raises_what_is_no_exception(
        self, hub: Hub, where: str, error: BaseException
    ) -> None:
        """The topic ends all the same."""

        async def source() -> AsyncIterator[Any]:
            try:
                yield "a"
                if where == "its task":
                    raise error
                yield 7
            finally:
                if where == "its cleanup":
                    raise error

        run = await hub.run("t", source())
        with pytest.raises(type(error) if where == "its task" else TypeError):
            await reason_of(run)
        async with connect(stream_of(hub, "t", history=10)) as stream:
            assert await receive(stream, 1) == ["a"]
            assert await end_of(stream) == run.reason == "failed"

    @pytest.mark.parametrize("how", ["stop", "by a publisher", "a bad event"])
    @pytest.mark.parametrize("around", [anyio.CancelScope, anyio.create_task_group])
    async def test_a_scope_around_a_yield(self, hub: Hub, how: str, around: Any) -> None:
        """The source is closed in it."""
        cleaned_up = anyio.Event()

        async def source() -> AsyncIterator[Any]:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    if around is anyio.CancelScope:
                        stack.enter_context(around())
                    else:
                        tasks = await stack.enter_async_context(around())
                        tasks.start_soon(anyio.sleep_forever)
                    for _ in range(100_000):
                        yield "a"
                        if how == "a bad event":
                            yield 7
            finally:
                await checkpoint()
                cleaned_up.set()

        run = await hub.run("t", source())
        await answer_has_begun(hub)
        if how == "stop":
            run.stop()
        elif how == "by a publisher":
            await hub.publish("t", "b", final=True)
        if how == "a bad event":
            with pytest.raises(TypeError):
                await reason_of(run)
        else:
            assert await reason_of(run) == "stopped"
        assert cleaned_up.is_set()
        assert not await hub.stop("t")
        with pytest.raises(TopicEndedError):
            await hub.publish("t", "c")

    async def test_a_task_group_around_a_yield_fails(self, hub: Hub) -> None:
        async def fails() -> None:
            await checkpoint()
            raise OSError("no upstream")

        async def source() -> AsyncIterator[str]:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fails)
                for _ in range(100_000):
                    yield "a"

        run = await hub.run("t", source())
        with pytest.raises(ExceptionGroup) as caught:
            await reason_of(run)
        assert caught.group_contains(OSError)
        assert run.reason == "failed"

    async def test_a_source_that_yields_in_its_cleanup(self, hub: Hub) -> None:
        """That is not published; the rest of its cleanup is done."""
        answer = Answer()

        async def source() -> AsyncIterator[str]:
            try:
                for _ in range(100_000):
                    yield "a"
            finally:
                yield "bye"
                await checkpoint()
                answer.closed.set()

        run = await hub.run("t", source())
        await answer_has_begun(hub)
        run.stop()
        assert await reason_of(run) == "stopped"
        assert answer.closed.is_set()

    async def test_an_error_is_raised_with_the_same_traceback(self, hub: Hub) -> None:
        async def source() -> AsyncIterator[str]:
            yield "a"
            raise OSError("no model")

        def length(traceback: Any) -> int:
            return 0 if traceback is None else 1 + length(traceback.tb_next)

        run = await hub.run("t", source())
        lengths = []
        for _ in range(3):
            with pytest.raises(OSError, match="no model") as caught:
                await reason_of(run)
            lengths.append(length(caught.value.__traceback__))
        assert lengths == lengths[:1] * 3

    async def test_the_hub_is_closed(self, hub: Hub) -> None:
        answer = Answer()
        run = await hub.run("t", forever(answer))
        await answer_has_begun(hub)
        hub.close()
        assert await reason_of(run) == "interrupted"
        assert answer.closed.is_set()
        source = answer()
        with pytest.raises(HubClosedError):
            await hub.run("u", source)
        with pytest.raises(StopAsyncIteration):
            await anext(source)
        with pytest.raises(HubClosedError):
            await hub.stop("t")


async def answer_has_begun(hub: Hub) -> None:
    for _ in range(20):
        await checkpoint()
