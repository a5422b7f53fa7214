"""A Redis that fails in every way: streams stay open, and afterwards nothing is missing unsaid."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import coredis
import pytest
from anyio.abc import TaskGroup
from coredis.connection import TCPLocation

from sse_asgi import sse_app
from sse_asgi.decoder import DecodedEvent
from sse_asgi.hub import Hub, HubError
from sse_asgi.hub.redis import RedisLog, link, reader
from sse_asgi.testing import Connection, connect

from ..hub_model import subscribe
from ..test_docs import blocks
from .faulty_proxy import FaultyProxy, Moment
from .servers import Cluster, RedisServer, Sentinels

pytestmark = pytest.mark.anyio

DURABLE = {"appendonly": "yes", "appendfsync": "always"}

#: Of the logs here, in seconds.
TIMEOUT = 1.0

#: For how long anything may take.
DEADLINE = 20.0


class Subscriber:
    """A stream, and all that has come by it."""

    def __init__(self, hub: Hub, topic: str, known: int) -> None:
        self.topic = topic
        #: How much was stored before it began.
        self.known = known
        self.events: list[DecodedEvent] = []
        self.over = False
        self._app = sse_app(lambda: hub.subscribe(topic, history=0), ping=0.1)
        self._stream: Connection | None = None

    async def run(self) -> None:
        async with connect(self._app) as self._stream:
            async for event in self._stream:
                self.events.append(event)
        self.over = True

    @property
    def pings(self) -> int:
        return len(self._stream.comments) if self._stream is not None else 0

    @property
    def data(self) -> list[str]:
        return [event.data for event in self.events if event.event != "gap"]

    @property
    def gaps(self) -> int:
        return sum(event.event == "gap" for event in self.events)

    async def has(self, data: str) -> None:
        """Wait for an event."""
        await until(lambda: data in self.data)

    async def is_told(self) -> None:
        """Wait for a gap."""
        await until(lambda: self.gaps > 0)

    async def lives(self) -> None:
        """See that it is still pinged."""
        before = self.pings
        await until(lambda: self.pings >= before + 3)


class Stored(NamedTuple):
    """What a publisher was told."""

    event_id: str
    data: str
    topic: str
    #: How much was stored before it was published.
    after: int


class World:
    """Hubs, their subscribers, and what was stored."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self.subscribers: list[Subscriber] = []
        self.stored: list[Stored] = []

    async def subscribe(self, hub: Hub, topic: str = "t") -> Subscriber:
        """One more, which gets all from now on."""
        subscriber = Subscriber(hub, topic, 0)
        self.subscribers.append(subscriber)
        self._tasks.start_soon(subscriber.run)
        with anyio.fail_after(DEADLINE):
            for number in range(1000):  # until it is there, whenever that is
                await self.publish(hub, f"hello {id(subscriber)} {number}", topic)
                subscriber.known = len(self.stored)
                await anyio.sleep(0.02)
                if subscriber.data:
                    return subscriber
        raise AssertionError("it had nothing")

    async def publish(self, hub: Hub, data: str, topic: str = "t", key: str | None = None) -> str:
        after = len(self.stored)
        event_id = await hub.publish(topic, data, key=key)
        self.stored.append(Stored(event_id, data, topic, after))
        return event_id

    async def insist(self, hub: Hub, data: str, topic: str = "t") -> None:
        """Publish until it is stored."""
        with anyio.fail_after(DEADLINE):
            while True:
                try:
                    await self.publish(hub, data, topic, key=data)
                except HubError:
                    continue
                return

    async def lives(self) -> None:
        """See that all streams are still pinged."""
        async with anyio.create_task_group() as tasks:
            for subscriber in self.subscribers:
                tasks.start_soon(subscriber.lives)

    def check(self) -> None:
        """All that anybody was told fits together."""
        meanings: dict[str, str] = {}
        for event_id, data, topic, after in self.stored:
            assert meanings.setdefault(event_id, data) == data, f"{event_id} twice"
            epoch, offset = parse(event_id)
            for earlier in self.stored[:after]:
                if earlier.topic == topic and earlier.data != data:
                    before = parse(earlier.event_id)
                    assert before[0] != epoch or before[1] < offset, "out of order"
        for subscriber in self.subscribers:
            assert not subscriber.over
            self._check_stream(subscriber, meanings)
            missing = {
                each.data for each in self.stored[subscriber.known :]
                if each.topic == subscriber.topic
            } - set(subscriber.data)  # fmt: skip
            assert subscriber.gaps or not missing

    def _check_stream(self, subscriber: Subscriber, meanings: dict[str, str]) -> None:
        position: tuple[str, int] | None = None
        seen: set[tuple[str, str]] = set()
        for event in subscriber.events:
            assert event.id is not None
            epoch, offset = parse(event.id)
            if event.event == "gap":
                gap = json.loads(event.data)
                assert gap["position"] == event.id
                assert position == parse(gap["after"])
            else:
                assert meanings.setdefault(event.id, event.data) == event.data, f"{event.id} twice"
                was_absent = position is not None and position[0] == f"{epoch[:6]}0"
                if not was_absent or offset != 1:  # the first event of a topic that was lost
                    assert position in (None, (epoch, offset - 1)), "neither contiguous nor a gap"
                assert (epoch, event.data) not in seen, f"{event.data} twice"
                seen.add((epoch, event.data))
            position = epoch, offset


def parse(event_id: str) -> tuple[str, int]:
    place, _, offset = event_id.rpartition("-")
    return place.partition("_")[0], int(offset)


@asynccontextmanager
async def world() -> AsyncGenerator[World, None]:
    async with anyio.create_task_group() as tasks:
        yield (this := World(tasks))
        await this.lives()
        this.check()
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(DEADLINE):
        while not condition():
            await anyio.sleep(0.01)


def new_hub(url: str, *, timeout: float = TIMEOUT, max_events: int = 1000) -> Hub:
    return Hub(RedisLog(url, timeout=timeout, max_events=max_events))


async def in_thread(function: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(function)


# -- the server goes, and comes back ---------------------------------------------------------------


@pytest.mark.parametrize("wiped", [False, True])
async def test_the_server_is_killed_and_restarted(wiped: bool) -> None:
    with RedisServer(**DURABLE) as server:
        async with new_hub(server.url) as here, new_hub(server.url) as there, world() as all_:
            one, two = await all_.subscribe(here), await all_.subscribe(there)
            for number in range(20):
                await all_.publish(here, f"before {number}")
            await two.has("before 19")
            await in_thread(server.kill)
            # And why: it was lost, or can't be found.
            with pytest.raises(HubError, match=r"Redis did not do it within 1\.0 s: \w+"):
                await here.publish("t", "too soon")
            await all_.lives()
            if wiped:
                await in_thread(server.wipe)
            await in_thread(server.start)
            if wiped:  # it is said though nothing new comes
                for subscriber in (one, two):
                    await subscriber.is_told()
            for number in range(20):
                await all_.insist(there, f"after {number}")
            for subscriber in (one, two):
                await subscriber.has("after 19")
                assert subscriber.gaps == wiped
                assert "too soon" not in subscriber.data


async def test_the_server_is_killed_while_events_are_published() -> None:
    with RedisServer(**DURABLE) as server:
        async with new_hub(server.url) as here, new_hub(server.url) as there, world() as all_:
            those = [await all_.subscribe(hub) for hub in (here, there)]

            async def publish(hub: Hub, name: str) -> None:
                for number in range(60):
                    await all_.insist(hub, f"{name} {number}")
                    await anyio.sleep(0.01)

            async with anyio.create_task_group() as tasks:
                for hub, name in ((here, "a"), (here, "b"), (there, "c")):
                    tasks.start_soon(publish, hub, name)
                for _ in range(3):
                    await anyio.sleep(0.2)
                    await in_thread(server.kill)
                    await anyio.sleep(0.1)
                    await in_thread(server.start)
            for one in those:
                for name in "abc":
                    await one.has(f"{name} 59")
                assert not one.gaps


async def restore(server: RedisServer, snapshot: Path) -> None:
    await in_thread(server.kill)
    await in_thread(partial(server.restore, snapshot))
    await in_thread(server.start)


@pytest.mark.parametrize("newcomers", [0, 2, 3])
@pytest.mark.parametrize("reads", [True, False])
async def test_the_server_comes_back_with_older_data(reads: bool, newcomers: int) -> None:
    """A node that knows what was lost reveals it, as a reader or as a publisher; also where the
    same ids were given again, to somebody who could not know.
    """
    with RedisServer(**DURABLE) as server, FaultyProxy(server.port) as proxy:
        async with new_hub(proxy.url) as hub, world() as all_:
            one = await all_.subscribe(hub) if reads else None
            await all_.publish(hub, "kept")
            snapshot = await anyio.to_thread.run_sync(server.snapshot)
            await all_.publish(hub, "lost 1")
            lost = await all_.publish(hub, "lost 2")
            if one is not None:
                await one.has("lost 2")
            await in_thread(proxy.refuse)
            await restore(server, snapshot)
            news = [f"new {number}" for number in range(newcomers)]
            async with new_hub(server.url) as newcomer:
                for data in news:
                    await newcomer.publish("t", data)
            await in_thread(proxy.resume)
            if one is not None:
                await one.is_told()  # without another event
            await all_.insist(hub, "newest")
            if one is not None:
                await one.has("newest")
                assert one.gaps == 1
            # In the new epoch there is all that there was.
            async with connect(sse_app(lambda: hub.subscribe("t", last_event_id=lost))) as stream:
                with anyio.fail_after(DEADLINE):
                    assert (await stream.receive()).event == "gap"
                    came = [""]
                    while came[-1] != "newest":
                        event = await stream.receive()
                        assert event.id is not None
                        assert parse(event.id)[0] != parse(lost)[0]
                        came.append(event.data)
            assert came[-newcomers - 2 :] == ["kept", *news, "newest"]


@pytest.mark.parametrize("newcomers", [0, 1, 2, 3])
@pytest.mark.parametrize("max_events", [1, 1000])
async def test_a_loss_that_nobody_knows_of_is_said(newcomers: int, max_events: int) -> None:
    """Regression 41: Redis comes back without its newest events, and all processes are new. Those
    who had what was lost are told, whatever took its place; those who had less miss nothing.
    """
    with RedisServer(**DURABLE) as server:
        new = partial(new_hub, server.url, max_events=max_events)
        async with new() as hub:
            kept = await hub.publish("t", "kept")
            snapshot = await anyio.to_thread.run_sync(server.snapshot)
            lost = [await hub.publish("t", f"lost {number}") for number in range(2)]
        await restore(server, snapshot)
        async with new() as hub:
            news = [f"new {number}" for number in range(newcomers)]
            ids = [kept, *[await hub.publish("t", data) for data in news]]
            there = ["kept", *news][-max_events:]
            for had in lost:
                async with connect(sse_app(lambda: hub.subscribe("t", last_event_id=had))) as one:
                    with anyio.fail_after(DEADLINE):
                        assert (await one.receive()).event == "gap"
                        assert [(await one.receive()).data for _ in there] == there
            for number, had in list(enumerate(ids))[-max_events:]:
                async with connect(sse_app(lambda: hub.subscribe("t", last_event_id=had))) as one:
                    await hub.publish("t", "live")
                    with anyio.fail_after(DEADLINE):
                        came = [(await one.receive()).data]
                        while came[-1] != "live":
                            came.append((await one.receive()).data)
                if max_events == 1:
                    assert came == ["live"]
                else:
                    assert came[: newcomers - number] == news[number:]
            assert len({*ids, *lost}) == len(ids) + 2


@pytest.mark.parametrize("command", ["FLUSHALL", "DEL sse_asgi:{8}:log:t"])
async def test_a_loss_breaks_no_connection(command: str) -> None:
    with RedisServer() as server:
        assert RedisLog(server.url).keys.log("t") == "sse_asgi:{8}:log:t"
        async with new_hub(server.url) as here, new_hub(server.url) as there, world() as all_:
            one = await all_.subscribe(here)
            await in_thread(partial(server.command, *command.split()))
            await all_.publish(there, "after")
            await one.has("after")
            assert one.gaps == 1


@pytest.mark.parametrize("block", [0.3, 60])
async def test_a_loss_is_said_though_nothing_new_comes(
    block: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon, or as soon as anybody asks."""
    monkeypatch.setattr(reader, "BLOCK", block)
    with RedisServer() as server:
        async with new_hub(server.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            await all_.publish(hub, "before")
            await one.has("before")
            await in_thread(lambda: server.command("FLUSHALL"))
            if block == 60:
                async with connect(sse_app(lambda: hub.subscribe("t", history=0))):
                    await one.is_told()
            await one.is_told()
            await all_.publish(hub, "after")
            await one.has("after")
            assert one.gaps == 1


async def test_there_is_no_server_at_first(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server:
        await in_thread(server.stop)
        async with new_hub(server.url) as hub, world() as all_:
            app = sse_app(lambda: hub.subscribe("t", history=5), ping=0.1)
            async with connect(app) as stream, connect(app) as other:
                with anyio.fail_after(DEADLINE):
                    with pytest.raises(HubError, match="Redis"):
                        await all_.publish(hub, "too soon")
                    await until(lambda: min(len(stream.comments), len(other.comments)) > 5)
                await in_thread(server.start)
                await all_.insist(hub, "now")
                with anyio.fail_after(DEADLINE):
                    for each in (stream, other):
                        assert (await each.receive()).data == "now"
    assert [r.levelname for r in caplog.records if "can't reach Redis" in r.message] == ["WARNING"]


# -- the server does not answer --------------------------------------------------------------------


async def test_the_server_stops_for_a_moment() -> None:
    with RedisServer() as server:
        async with new_hub(server.url, timeout=DEADLINE) as hub, world() as all_:
            one = await all_.subscribe(hub)
            server.pause()
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(all_.publish, hub, "while it stands")
                    await one.lives()
                    server.resume()
            finally:
                server.resume()
            await one.has("while it stands")
            assert not one.gaps


async def test_the_server_stops_for_long() -> None:
    with RedisServer() as server:
        async with new_hub(server.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            server.pause()
            try:
                with pytest.raises(HubError, match="within"):
                    await hub.publish("t", "perhaps", key="perhaps")
                await one.lives()
            finally:
                server.resume()
            await all_.insist(hub, "perhaps")  # and if it was carried out, it is that one
            await all_.insist(hub, "after")
            await one.has("after")
            assert one.data[-2:] == ["perhaps", "after"]
            assert not one.gaps


async def test_the_server_has_no_memory_left() -> None:
    with RedisServer() as server:
        async with new_hub(server.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            await in_thread(lambda: server.command("CONFIG", "SET", "maxmemory", "1"))
            with pytest.raises(HubError, match=r"refused it: .*OOM"):
                await hub.publish("t", "x")
            app = sse_app(lambda: hub.subscribe("t", "other", history=1), ping=0.1)
            async with connect(app) as stream:  # of a topic that there can't be yet
                await until(lambda: len(stream.comments) > 10)
                await one.lives()
                await in_thread(lambda: server.command("CONFIG", "SET", "maxmemory", "0"))
                await all_.publish(hub, "after")
                await one.has("after")
                with anyio.fail_after(DEADLINE):
                    while (await stream.receive()).data != "after":
                        pass
            assert not one.gaps


# -- the connection --------------------------------------------------------------------------------


@contextmanager
def behind_a_proxy() -> Iterator[FaultyProxy]:
    with RedisServer() as server, FaultyProxy(server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("moment", ["before", "within", "after"])
async def test_a_connection_is_cut_in_a_command(moment: Moment) -> None:
    """It is done once."""
    with behind_a_proxy() as proxy:
        async with new_hub(proxy.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            first = await all_.publish(hub, "first")
            proxy.cut_at("the one", moment)
            event_id = await all_.publish(hub, "the one")
            assert proxy.cuts == 1
            assert int(event_id.split("-")[1]) == int(first.split("-")[1]) + 1
            await all_.publish(hub, "last")
            await one.has("last")
            assert one.data[-3:] == ["first", "the one", "last"]
            assert not one.gaps


async def test_a_connection_is_cut_in_the_reading() -> None:
    with behind_a_proxy() as proxy:
        async with new_hub(proxy.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            for number in range(5):
                proxy.cut_at("xread", "after")
                await all_.insist(hub, str(number))
                await one.has(str(number))
            assert proxy.cuts
            assert not one.gaps


async def test_connections_are_cut_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More often than a pool of coredis gets over; nothing is left of them."""
    caplog.set_level(logging.CRITICAL, "sse_asgi")  # errors would be kept, and clients with them
    monkeypatch.setattr(link, "SHORTEST", 0.001)
    monkeypatch.setattr(link, "LONGEST", 0.01)
    with RedisServer() as server, FaultyProxy(server.port) as proxy:

        def left() -> tuple[int, int, int]:
            """Connections, tasks, and clients."""
            gc.collect()
            clients = sum(isinstance(each, coredis.Redis) for each in gc.get_objects())
            connections = int(server.info("clients")["connected_clients"])
            return connections, len(anyio.get_running_tasks()), clients

        async with new_hub(proxy.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            usual = left()
            for number in range(100):
                await in_thread(proxy.cut)
                if number % 10 == 0:
                    await all_.insist(hub, str(number))
                    await one.has(str(number))
            await all_.insist(hub, "after")
            await one.has("after")
            assert not one.gaps
            await until(lambda: all(now <= was + 2 for now, was in zip(left(), usual, strict=True)))


@pytest.mark.parametrize("seconds", [0.1, 2 * TIMEOUT])
async def test_a_slow_connection(seconds: float) -> None:
    """The slower one is too slow even to connect."""
    with behind_a_proxy() as proxy:
        async with (
            new_hub(proxy.url, timeout=max(TIMEOUT, 50 * (seconds == 0.1))) as hub,
            world() as all_,
        ):
            one = await all_.subscribe(hub)
            proxy.delay(seconds)
            if seconds > TIMEOUT:
                with pytest.raises(HubError, match="within"):
                    await hub.publish("t", "0", key="0")
                await one.lives()
                await in_thread(proxy.resume)
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(all_.insist, hub, str(number))
            for number in range(20):
                await one.has(str(number))
            assert not one.gaps


async def test_a_connection_that_is_half_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is thrown away, and no other connection of the process stays in a pool."""
    monkeypatch.setattr(reader, "BLOCK", 0.5)
    with behind_a_proxy() as proxy:
        async with new_hub(proxy.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            await in_thread(proxy.silence)
            with pytest.raises(HubError, match="within"):
                await hub.publish("t", "perhaps")
            await one.lives()
            await in_thread(proxy.resume)
            await all_.insist(hub, "after")
            await one.has("after")
            assert not one.gaps


@pytest.mark.parametrize("busy", [False, True])
async def test_connections_that_are_stranded(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says that they are half open; a reader waits for what may not come anyway."""
    monkeypatch.setattr(reader, "BLOCK", 0.5)
    with RedisServer() as server, FaultyProxy(server.port) as proxy:
        async with new_hub(proxy.url) as here, new_hub(server.url) as there, world() as all_:
            one = await all_.subscribe(here)
            await in_thread(proxy.strand)
            await all_.publish(there, "meanwhile")
            if busy:
                await all_.insist(here, "too")
                await one.has("too")
            await one.has("meanwhile")
            assert not one.gaps


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_attempts_become_rare_and_are_not_in_step() -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer())
        proxies = [stack.enter_context(FaultyProxy(server.port)) for _ in range(3)]
        hubs = [await stack.enter_async_context(new_hub(proxy.url)) for proxy in proxies]
        all_ = await stack.enter_async_context(world())
        those = [await all_.subscribe(hub) for hub in hubs]
        before = [proxy.connections for proxy in proxies]
        for proxy in proxies:
            proxy.target = 1  # where nobody is
            await in_thread(proxy.cut)
        await all_.lives()
        await anyio.sleep(3)
        pauses = []
        for proxy, number in zip(proxies, before, strict=True):
            attempts = proxy.connected[number:]
            assert 3 <= len(attempts) <= 15
            pauses.append([later - at for at, later in pairwise(attempts)])
        assert any(max(each) - min(each) > 0.05 for each in zip(*pauses, strict=False))
        for proxy in proxies:
            proxy.target = server.port
        await all_.insist(hubs[0], "after")
        for one in those:
            await one.has("after")
            assert not one.gaps


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_attempts_become_rare_where_it_answers_and_fails() -> None:
    with RedisServer() as server:
        server.command("ACL", "SETUSER", "default", "-xread")
        async with new_hub(server.url) as hub, world() as all_:
            async with connect(sse_app(lambda: hub.subscribe("t", history=9), ping=0.1)) as stream:
                await until(lambda: stream.comments)
                await anyio.sleep(3)
                assert int(server.info("stats")["total_connections_received"]) < 25
                server.command("ACL", "SETUSER", "default", "+xread")
                await all_.insist(hub, "after")
                with anyio.fail_after(DEADLINE):
                    assert (await stream.receive()).data == "after"


@pytest.mark.parametrize("how", ["kick", "close"])
@pytest.mark.parametrize("failure", ["kill", "pause"])
async def test_streams_end_while_the_server_is_away(failure: str, how: str) -> None:
    """At once, whatever they wait for."""
    ended = 0

    async def wait_for_the_end(each: Connection) -> None:
        nonlocal ended
        async with each as stream:
            async for _ in stream:
                pass
            assert stream.complete
        ended += 1

    with RedisServer() as server:
        async with anyio.create_task_group() as tasks:
            async with new_hub(server.url, timeout=10 * DEADLINE) as hub:
                apps = [
                    sse_app(lambda topic=topic: subscribe(hub, [topic]), ping=0.1)
                    for topic in ("t", "u*")
                ]
                with anyio.fail_after(DEADLINE):
                    await hub.publish("t", "x")
                    for app in apps:
                        tasks.start_soon(wait_for_the_end, connect(app))
                    await until(lambda: hub.subscribers() == 2)
                    await in_thread(getattr(server, failure))
                    for app in apps:
                        tasks.start_soon(wait_for_the_end, connect(app))
                    await anyio.sleep(0.3)
                    if how == "kick":
                        assert hub.kick(lambda subscription: True) == 4
                        await until(lambda: ended == 4)
            await until(lambda: ended == 4)


# -- another server takes over ---------------------------------------------------------------------


def hold_up(primary: RedisServer, replica: RedisServer) -> None:
    """From now on the replica is behind."""
    replica.command("CONFIG", "SET", "masterauth", "wrong")
    primary.command("CLIENT", "KILL", "TYPE", "replica")


@pytest.mark.parametrize(("behind", "anyio_backend"), [(False, "asyncio"), (True, "trio")])
async def test_a_sentinel_has_a_replica_take_over(behind: bool) -> None:
    with Sentinels() as sentinels:
        location = TCPLocation("127.0.0.1", sentinels.port)

        def client() -> coredis.Redis[bytes]:
            return coredis.Sentinel([location]).primary_for(sentinels.service)

        hub = Hub(RedisLog(client, timeout=TIMEOUT))
        async with hub, world() as all_:
            one = await all_.subscribe(hub)
            await in_thread(lambda: sentinels.primary.command("WAIT", 1, 5000))
            if behind:
                await in_thread(partial(hold_up, sentinels.primary, sentinels.replica))
                await all_.publish(hub, "lost")
                await one.has("lost")
            await in_thread(sentinels.fail_over)
            await one.lives()
            if behind:
                await one.is_told()
            await all_.insist(hub, "after")
            await one.has("after")
            assert one.gaps == behind


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it takes long
async def test_a_node_of_a_cluster_fails_over() -> None:
    with Cluster(replicas=True) as cluster:
        keys = RedisLog(cluster.url).keys
        async with (
            new_hub(cluster.url, timeout=5) as hub,
            # It has too few errors for its client to doubt what it knows of the cluster, and too
            # much time for that client to be replaced.
            new_hub(cluster.url, timeout=10 * DEADLINE) as publisher,
            world() as all_,
        ):
            topics = [f"t{number}" for number in range(9)]
            by_primary = {cluster.primary_of(keys.log(topic)): topic for topic in topics}
            those = [await all_.subscribe(hub, topic) for topic in topics]
            # Not the same one: a primary that agreed to go would not write for 10 s.
            for number, kill in ((0, False), (1, True), (2, True)):
                await anyio.sleep(0.5)  # for the replicas
                behind = number == 2
                if number == 1:
                    await all_.publish(publisher, "before", by_primary[number])
                if behind:
                    pair = cluster.primaries[number], cluster.replicas[number]
                    await in_thread(partial(hold_up, *pair))
                    for topic, one in zip(topics, those, strict=True):
                        await all_.publish(hub, "perhaps lost", topic)
                        await one.has("perhaps lost")
                await in_thread(partial(cluster.fail_over, number, kill=kill))
                if number == 1:
                    await all_.insist(publisher, "after", by_primary[number])
                await all_.lives()
                if behind:  # it is said though nothing new comes
                    await those[topics.index(by_primary[number])].is_told()
                for topic, one in zip(topics, those, strict=True):
                    await all_.insist(hub, f"after {number}", topic)
                    await one.has(f"after {number}")
                gaps = [one.gaps for one in those]
                assert set(gaps) == ({0, 1} if behind else {0})
            # The node of the URL is a replica now. Without it, the others are known from before.
            again = new_hub(cluster.replicas[0].url, timeout=5)
            for data in ("with it", "without it"):
                async with again:
                    await all_.insist(again, data)
                await in_thread(cluster.replicas[0].kill)


async def test_the_program_of_the_page_opens_streams_while_redis_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its factory publishes first. Who comes meanwhile has what is published afterwards."""
    with RedisServer() as server, FaultyProxy(server.port) as proxy:
        monkeypatch.setenv("REDIS_URL", proxy.url)
        program: dict[str, Any] = {"__name__": "visitors"}
        source = next(b for b in blocks("docs/how-to/redis.md") if b.language == "python")
        exec(source.text, program)
        async with program["hub"]:
            async with connect(program["app"]) as stream:
                assert (await stream.receive()).data == "somebody is here"
            await in_thread(proxy.refuse)
            await in_thread(proxy.cut)
            async with connect(program["app"]) as stream:
                assert stream.status_code == 200
                await in_thread(proxy.resume)
                async with connect(program["app"]) as other:
                    assert (await other.receive()).data == "somebody is here"
                    assert (await stream.receive()).data == "somebody is here"
