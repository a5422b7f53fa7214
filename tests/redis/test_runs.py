"""Runs on Redis: one runner for all nodes, and what becomes of a run whose process dies."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sse_asgi.hub import Hub, HubError, TopicEndedError, TopicRunningError
from sse_asgi.hub.redis import RedisLog, runs
from sse_asgi.hub.redis.link import Call
from sse_asgi.testing import connect

from ..hub_runs import DEADLINE, Answer, Runs, end_of, forever, reason_of
from ..test_answers import Answers
from ..test_hub import back, receive, stream_of
from .faulty_proxy import FaultyProxy
from .servers import Cluster, RedisServer, hurry
from .test_presence import die

pytestmark = [
    pytest.mark.anyio,
    # coredis, where a connection can't be made
    pytest.mark.filterwarnings("ignore:Unclosed <Memory:ResourceWarning"),
]

NewHub = Callable[..., Hub]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner is taken to be dead sooner."""
    monkeypatch.setattr(runs, "LEASE", 2.0)


@pytest.fixture
async def hub(new_hub: NewHub) -> AsyncIterator[Hub]:
    async with new_hub() as hub:
        yield hub


@pytest.fixture
async def other(new_hub: NewHub) -> AsyncIterator[Hub]:
    async with new_hub() as hub:
        yield hub


class TestOnRedis(Runs):
    """Two nodes on one Redis."""


class TestOnACluster(Runs):
    """Two nodes on a cluster."""

    @pytest.fixture
    def new_hub(self, cluster: Cluster, new_prefix: Callable[[], str]) -> NewHub:
        prefix = new_prefix()
        return lambda **options: Hub(RedisLog(cluster.url, prefix=prefix, **options))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("is_quiet", [True, False])
async def test_a_node_that_dies(new_hub: NewHub, is_quiet: bool) -> None:
    """Those who wait are told, those who come late too, and then 204."""
    async with new_hub() as other:
        async with new_hub() as hub:
            answer = Answer("a", "b")
            run = await hub.run("t", forever(answer) if is_quiet else answer())
            if not is_quiet:
                answer.allow()
            async with connect(stream_of(other, "t", history=10)) as stream:
                assert await receive(stream, 1) == ["a"]
                die(hub)
                assert await end_of(stream) == "interrupted"
            if not is_quiet:
                answer.allow()  # it can't tell any more
        assert run.reason == "interrupted"
        assert answer.closed.is_set()
        last = stream.last_event_id
        assert last is not None
        async with connect(stream_of(other, "t"), headers=back(last)) as stream:
            assert stream.status_code == 204
        with pytest.raises(TopicEndedError):
            await other.run("t", Answer()())


@pytest.mark.usefixtures("short")
async def test_a_node_dies_and_nobody_listens(new_hub: NewHub) -> None:
    """The next one who asks for the topic ends it."""
    async with new_hub() as other:
        async with new_hub() as hub:
            await hub.run("t", forever(Answer()))
            async with connect(stream_of(hub, "t", history=10)) as stream:
                assert await receive(stream, 1) == ["a"]
            die(hub)
        with anyio.fail_after(DEADLINE), pytest.raises(TopicEndedError):
            while True:  # until this node can tell that the other one is dead
                with contextlib.suppress(TopicRunningError):
                    await other.run("t", Answer()())
                await anyio.sleep(0.1)
        async with connect(stream_of(other, "t", history=10)) as stream:
            assert await receive(stream, 1) == ["a"]
            assert await end_of(stream) == "interrupted"


@pytest.mark.usefixtures("short")
async def test_a_run_is_renewed(new_hub: NewHub) -> None:
    """Although its source says nothing for longer than a lease."""
    async with new_hub() as hub, new_hub() as other:
        answer = Answer("a")
        run = await hub.run("t", answer())
        async with connect(stream_of(other, "t")) as stream:
            await anyio.sleep(3)
            with pytest.raises(TopicRunningError):
                await other.run("t", Answer()())
            answer.allow()
            assert await receive(stream, 1) == ["a"]
            assert await end_of(stream) == "finished"
        assert await reason_of(run) == "finished"


@pytest.mark.usefixtures("short")
async def test_many_runs_are_renewed(new_hub: NewHub) -> None:
    async with new_hub() as hub:
        answers = [Answer("a") for _ in range(300)]
        begun = [await hub.run(f"t{n}", answer()) for n, answer in enumerate(answers)]
        await anyio.sleep(3)
        assert [run.reason for run in begun] == [None] * 300
        begun[7].stop()
        for answer in answers:
            answer.allow()
        assert {await reason_of(run) for run in begun} == {"finished", "stopped"}


@pytest.mark.usefixtures("short")
async def test_who_was_taken_for_dead_can_say_nothing_more(new_hub: NewHub) -> None:
    """It was cut off, or its process was stopped, for longer than a lease."""
    async with new_hub() as other, new_hub() as hub:
        log: Any = hub._log
        answer = Answer("a", "b")
        run = await hub.run("t", answer())
        answer.allow()
        async with connect(stream_of(other, "t", history=10)) as stream:
            assert await receive(stream, 1) == ["a"]
            start = log._link.start
            die(hub)
            hub._runs._renewing.cancel()  # type: ignore[union-attr]
            assert await end_of(stream) == "interrupted"
        log._link.start = start
        answer.allow()
        assert await reason_of(run) == "interrupted"
        assert answer.closed.is_set()


async def test_redis_is_away(server: RedisServer) -> None:
    """The run waits, and then goes on: no event is lost or stored twice."""
    with FaultyProxy(server.port) as proxy:
        async with Hub(RedisLog(proxy.url)) as hub, Hub(RedisLog(server.url)) as other:
            await hurry(hub)
            answer = Answer("a", "b", "c")
            run = await hub.run("t", answer())
            async with connect(stream_of(other, "t", history=10)) as stream:
                answer.allow()
                assert await receive(stream, 1) == ["a"]
                proxy.refuse()
                proxy.cut()
                answer.allow(2)
                await anyio.sleep(2)
                await anyio.to_thread.run_sync(proxy.resume)
                assert await receive(stream, 2) == ["b", "c"]
                assert await end_of(stream) == "finished"
            assert await reason_of(run) == "finished"


@pytest.mark.parametrize("is_quiet", [True, False])
@pytest.mark.usefixtures("short")
async def test_redis_has_lost_everything(server: RedisServer, is_quiet: bool) -> None:
    """The topic has no run any more. It ends: nobody waits for ever."""
    async with Hub(RedisLog(server.url)) as hub:
        answer = Answer("a", "b")
        run = await hub.run("t", forever(answer) if is_quiet else answer())
        answer.allow()
        async with connect(stream_of(hub, "t", history=10)) as stream:
            assert await receive(stream, 1) == ["a"]
            server.command("FLUSHALL")
            answer.allow()
            assert await reason_of(run) == "interrupted"
            assert answer.closed.is_set()
            with anyio.fail_after(DEADLINE):
                events = [event.event async for event in stream]
            assert events[-1] == "end"
        with pytest.raises(TopicEndedError):
            await hub.run("t", Answer()())


@pytest.mark.usefixtures("short")
async def test_a_shard_that_cannot_be_reached_does_not_hold_up_others(
    cluster: Cluster, new_prefix: Callable[[], str]
) -> None:
    log = RedisLog(cluster.url, prefix=new_prefix())
    async with Hub(log) as hub:
        begun = [await hub.run(f"t{n}", Answer("a")()) for n in range(30)]
        await anyio.sleep(0.1)
        gone = {log.keys.shard(run.topic) for run in begun[:1]}
        link: Any = log._link
        start = link.start

        def start_or_fail(command: Any) -> Any:
            topics = command.args[1] if command.args[:1] == ("renew",) else ()
            if any(log.keys.shard(topic) in gone for topic in topics):
                call: Call[Any] = Call()

                async def fail() -> None:
                    await anyio.sleep(0.3)
                    call.fail(HubError("gone"))

                link.tasks.start_soon(fail)
                return call
            return start(command)

        link.start = start_or_fail
        await anyio.sleep(4)
        link.start = start
        going_on = {log.keys.shard(run.topic) for run in begun if run.reason is None}
        assert going_on >= {log.keys.shard(run.topic) for run in begun} - gone
        for run in begun:
            if log.keys.shard(run.topic) not in gone:
                with pytest.raises(TopicRunningError):
                    await hub.run(run.topic, Answer()())


async def test_the_answer_to_the_end_is_lost(server: RedisServer) -> None:
    """Until the log gives up: the run has ended as its topic says."""
    with FaultyProxy(server.port) as proxy:
        async with Hub(RedisLog(proxy.url)) as hub, Hub(RedisLog(server.url)) as other:
            await hurry(hub)
            answer = Answer("a")
            run = await hub.run("t", answer())
            async with connect(stream_of(other, "t", history=10)) as stream:
                proxy.refuse()
                proxy.cut_at('"reason":"finished"', "after")
                answer.allow()
                assert await receive(stream, 1) == ["a"]
                assert await end_of(stream) == "finished"
            assert proxy.cuts == 1
            await anyio.sleep(1)
            assert run.reason is None  # it does not know
            await anyio.to_thread.run_sync(proxy.resume)
            assert await reason_of(run) == "finished"


@pytest.mark.usefixtures("short")
async def test_redis_was_away_for_longer_than_a_lease(server: RedisServer) -> None:
    """Whoever reaches it first does not take a runner for dead that could not reach it either."""
    with FaultyProxy(server.port) as proxy, FaultyProxy(server.port) as first:
        logs = RedisLog(proxy.url), RedisLog(first.url)
        async with Hub(logs[0]) as hub, Hub(logs[1]) as other:
            answer = Answer("a")
            run = await hub.run("t", answer())
            await other.position("t")
            for each in (proxy, first):
                each.refuse()
                each.cut()
            await anyio.sleep(3)
            await anyio.to_thread.run_sync(first.resume)
            with pytest.raises(TopicRunningError):
                await other.run("t", Answer()())
            await anyio.to_thread.run_sync(proxy.resume)
            answer.allow()
            assert await reason_of(run) == "finished"


async def test_what_is_in_redis_afterwards(server: RedisServer) -> None:
    """No topic is noted as one with a run."""
    async with Hub(RedisLog(server.url)) as hub:
        for number in range(20):
            run = await hub.run(f"t{number}", Answer("a", at_once=True)())
            assert await reason_of(run) == "finished"
    assert not [key for key in server.command("KEYS", "*") if key.endswith(":runs")]


@contextlib.asynccontextmanager
async def run_node(server: RedisServer) -> AsyncIterator[Any]:
    """Another process, which runs a source."""
    command = [sys.executable, "-m", "tests.redis.run_node", server.url, "2.0"]
    process = await anyio.open_process(command, stderr=None)
    try:
        assert process.stdout is not None
        with anyio.fail_after(DEADLINE):
            assert (await process.stdout.receive()).startswith(b"ready")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.aclose()


@pytest.mark.usefixtures("short")
async def test_a_process_that_is_killed(server: RedisServer) -> None:
    async with Hub(RedisLog(server.url)) as hub, run_node(server) as process:
        async with connect(stream_of(hub, "t", history=10_000)) as stream:
            assert await receive(stream, 5) == list("01234")
            process.kill()
            with anyio.fail_after(DEADLINE):
                events = [event async for event in stream]
            numbers = [int(event.data) for event in events[:-1]]
            assert numbers == list(range(5, 5 + len(numbers)))
            assert (events[-1].event, events[-1].data) == ("end", '{"reason":"interrupted"}')


@pytest.mark.usefixtures("short")
async def test_a_process_that_was_stopped(server: RedisServer) -> None:
    """It goes on after its topic was ended, and ends by itself."""
    async with Hub(RedisLog(server.url)) as hub, run_node(server) as process:
        async with connect(stream_of(hub, "t", history=10_000)) as stream:
            assert await receive(stream, 1) == ["0"]
            process.send_signal(signal.SIGSTOP)
            with anyio.fail_after(DEADLINE):
                events = [event async for event in stream]
            assert (events[-1].event, events[-1].data) == ("end", '{"reason":"interrupted"}')
        process.send_signal(signal.SIGCONT)
        with anyio.fail_after(DEADLINE):
            assert await process.wait() == 0
        assert await hub.position("t") == stream.last_event_id


class TestAnswers(Answers):
    """The programs of the how-to page, on two nodes."""
