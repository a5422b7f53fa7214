"""A Redis that fails in every way: streams stay open, and afterwards nothing is missing unsaid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import anyio.to_thread
import coredis
import pytest
from anyio.abc import TaskGroup
from coredis.connection import TCPLocation

from sse_asgi import sse_app
from sse_asgi.decoder import DecodedEvent
from sse_asgi.hub import Hub, HubError
from sse_asgi.hub.redis import RedisLog, reader
from sse_asgi.testing import Connection, connect

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

    def __init__(self, hub: Hub, topic: str = "t") -> None:
        self.events: list[DecodedEvent] = []
        self._app = sse_app(lambda: hub.subscribe(topic, history=0), ping=0.1)
        self._stream: Connection | None = None

    async def run(self) -> None:
        async with connect(self._app) as self._stream:
            async for event in self._stream:
                self.events.append(event)

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
        with anyio.fail_after(DEADLINE):
            while data not in self.data:
                await anyio.sleep(0.01)

    async def lives(self) -> None:
        """See that it is still pinged."""
        before = self.pings
        with anyio.fail_after(DEADLINE):
            while self.pings < before + 3:
                await anyio.sleep(0.01)


class World:
    """Hubs, their subscribers, and what was stored."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self.subscribers: list[Subscriber] = []
        self.stored: list[tuple[str, str]] = []

    async def subscribe(self, hub: Hub, topic: str = "t") -> Subscriber:
        """One more, which gets all from now on."""
        subscriber = Subscriber(hub, topic)
        self.subscribers.append(subscriber)
        self._tasks.start_soon(subscriber.run)
        with anyio.fail_after(DEADLINE):
            for number in range(1000):  # until it is there, whenever that is
                await self.publish(hub, f"hello {id(subscriber)} {number}", topic)
                await anyio.sleep(0.02)
                if subscriber.data:
                    return subscriber
        raise AssertionError("it had nothing")

    async def publish(self, hub: Hub, data: str, topic: str = "t") -> str:
        event_id = await hub.publish(topic, data)
        self.stored.append((event_id, data))
        return event_id

    async def insist(self, hub: Hub, data: str) -> None:
        """Publish until it is stored."""
        with anyio.fail_after(DEADLINE):
            while True:
                try:
                    await self.publish(hub, data)
                except HubError:
                    continue
                return

    def check(self) -> None:
        """All that anybody was told fits together."""
        meanings: dict[str, str] = {}
        for event_id, data in self.stored:
            assert meanings.setdefault(event_id, data) == data, f"{event_id} twice"
        for subscriber in self.subscribers:
            position: tuple[str, int] | None = None
            for event in subscriber.events:
                assert event.id is not None
                epoch, _, offset = event.id.partition("-")
                if event.event == "gap":
                    assert json.loads(event.data)["position"] == event.id
                else:
                    data = event.data
                    assert meanings.setdefault(event.id, data) == data, f"{event.id} twice"
                    if position is not None:
                        assert (epoch, int(offset)) == (position[0], position[1] + 1)
                position = epoch, int(offset)
            twice = [each for each, count in Counter(subscriber.data).items() if count > 1]
            assert subscriber.gaps or not twice


@asynccontextmanager
async def world() -> AsyncGenerator[World, None]:
    async with anyio.create_task_group() as tasks:
        yield (this := World(tasks))
        tasks.cancel_scope.cancel()
    this.check()


def new_hub(url: str, **options: float) -> Hub:
    return Hub(RedisLog(url, timeout=options.pop("timeout", TIMEOUT)))


async def in_thread(function: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(function)


# -- the server goes, and comes back ---------------------------------------------------------------


def with_its_data(server: RedisServer) -> None:
    server.kill()
    server.start()


def without_data(server: RedisServer) -> None:
    server.kill()
    server.wipe()
    server.start()


@pytest.mark.parametrize("restart", [with_its_data, without_data])
async def test_the_server_is_killed_and_restarted(
    restart: Callable[[RedisServer], None],
) -> None:
    with RedisServer(**DURABLE) as server:
        async with new_hub(server.url) as here, new_hub(server.url) as there, world() as all_:
            one, two = await all_.subscribe(here), await all_.subscribe(there)
            for number in range(20):
                await all_.publish(here, f"before {number}")
            await two.has("before 19")
            await in_thread(lambda: restart(server))
            for number in range(20):
                await all_.insist(there, f"after {number}")
            for subscriber in (one, two):
                await subscriber.has("after 19")
                await subscriber.lives()
                assert subscriber.gaps == (restart is without_data)
                for number in range(20):
                    assert f"before {number}" in subscriber.data
                    assert f"after {number}" in subscriber.data


async def test_a_loss_is_said_though_nothing_new_comes() -> None:
    with RedisServer() as server:
        async with new_hub(server.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            await in_thread(lambda: without_data(server))
            with anyio.fail_after(DEADLINE):
                while not one.gaps:
                    await anyio.sleep(0.01)
            await all_.insist(hub, "after")
            await one.has("after")


@pytest.mark.parametrize("first", ["a node that knows", "a publisher that knows", "a newcomer"])
async def test_the_server_comes_back_with_older_data(first: str) -> None:
    """No id gets a second meaning, but to whom it could not be known."""
    with RedisServer(**DURABLE) as server:
        async with new_hub(server.url) as here, new_hub(server.url) as there, world() as all_:
            one = await all_.subscribe(here)
            await all_.publish(here, "kept")
            await one.has("kept")
            snapshot = await anyio.to_thread.run_sync(server.snapshot)
            for data in ("lost 1", "lost 2"):
                await all_.publish(there, data)
            await one.has("lost 2")
            await in_thread(server.kill)
            await in_thread(lambda: server.restore(snapshot))
            await in_thread(server.start)
            if first == "a newcomer":
                async with new_hub(server.url) as newcomer:
                    await newcomer.publish("t", "new")
            else:
                await all_.insist(here if first == "a node that knows" else there, "new")
            await one.has("new")
            assert one.gaps == 1
            await all_.insist(here, "newest")
            await one.has("newest")
            # What was there is still there, in the new epoch.
            assert one.data.count("kept") == 2


async def test_a_client_with_an_id_of_what_was_lost() -> None:
    with RedisServer(**DURABLE) as server:
        async with new_hub(server.url) as hub, world() as all_:
            await all_.publish(hub, "kept")
            snapshot = await anyio.to_thread.run_sync(server.snapshot)
            lost = await all_.publish(hub, "lost")
            await in_thread(server.kill)
            await in_thread(lambda: server.restore(snapshot))
            await in_thread(server.start)
            app = sse_app(lambda r: hub.subscribe("t", last_event_id=r.last_event_id))
            with anyio.fail_after(DEADLINE):
                async with connect(app, headers={"last-event-id": lost}) as stream:
                    assert (await stream.receive()).event == "gap"
                    assert (await stream.receive()).data == "kept"


async def test_everything_is_flushed() -> None:
    """Which breaks no connection."""
    with RedisServer() as server:
        async with new_hub(server.url) as here, new_hub(server.url) as there, world() as all_:
            one = await all_.subscribe(here)
            await in_thread(lambda: server.command("FLUSHALL"))
            await all_.publish(there, "after")
            await one.has("after")
            assert one.gaps == 1


async def test_there_is_no_server_at_first() -> None:
    with RedisServer() as server:
        await in_thread(server.stop)
        async with new_hub(server.url) as hub, world() as all_:
            app = sse_app(lambda: hub.subscribe("t", history=5), ping=0.1)
            async with connect(app) as stream:
                with anyio.fail_after(DEADLINE):
                    with pytest.raises(HubError, match="Redis"):
                        await all_.publish(hub, "too soon")
                    while len(stream.comments) < 5:
                        await anyio.sleep(0.01)
                await in_thread(server.start)
                await all_.insist(hub, "now")
                with anyio.fail_after(DEADLINE):
                    assert (await stream.receive()).data == "now"


# -- the server does not answer --------------------------------------------------------------------


@pytest.mark.parametrize("pause", [TIMEOUT / 3, TIMEOUT * 2])
async def test_the_server_stops_for_a_while(pause: float) -> None:
    with RedisServer() as server:
        async with new_hub(server.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            server.pause()
            try:
                if pause < TIMEOUT:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(all_.publish, hub, "while it stands")
                        await anyio.sleep(pause)
                        server.resume()
                else:
                    began = anyio.current_time()
                    with pytest.raises(HubError, match="within"):
                        await hub.publish("t", "perhaps", key="k")
                    assert anyio.current_time() - began < DEADLINE
                    await one.lives()
            finally:
                server.resume()
            await all_.insist(hub, "after")
            await one.has("after")
            assert not one.gaps
            assert one.data.count("perhaps") <= 1


async def test_the_server_has_no_memory_left() -> None:
    with RedisServer(maxmemory="3mb") as server:
        async with new_hub(server.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            await in_thread(lambda: server.command("CONFIG", "SET", "maxmemory", "1"))
            with pytest.raises(HubError, match="OOM"):
                await hub.publish("t", "x")
            await one.lives()
            await in_thread(lambda: server.command("CONFIG", "SET", "maxmemory", "0"))
            await all_.publish(hub, "after")
            await one.has("after")
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


async def test_connections_are_cut_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """More often than a pool of coredis gets over; nothing is left of them."""
    monkeypatch.setattr("sse_asgi.hub.redis.link.SHORTEST", 0.001)
    with behind_a_proxy() as proxy:
        async with new_hub(proxy.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            usual = proxy.open
            for number in range(100):
                await in_thread(proxy.cut)
                if number % 10 == 0:
                    await all_.insist(hub, str(number))
                    await one.has(str(number))
            await all_.insist(hub, "after")
            await one.has("after")
            assert not one.gaps
            with anyio.fail_after(DEADLINE):
                while proxy.open > usual:
                    await anyio.sleep(0.01)


async def test_a_slow_connection() -> None:
    with behind_a_proxy() as proxy:
        async with new_hub(proxy.url, timeout=5) as hub, world() as all_:
            one = await all_.subscribe(hub)
            proxy.delay(0.1)
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(all_.publish, hub, str(number))
            for number in range(20):
                await one.has(str(number))
            assert not one.gaps


async def test_a_connection_that_is_half_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up; those that the process still has don't stay in a pool."""
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


async def test_attempts_become_rare() -> None:
    with behind_a_proxy() as proxy:
        async with new_hub(proxy.url) as hub, world() as all_:
            one = await all_.subscribe(hub)
            proxy.target = 1  # where nobody is
            before = proxy.connections
            await in_thread(proxy.cut)
            await anyio.sleep(3)
            assert 3 <= proxy.connections - before <= 15
            await one.lives()


async def test_streams_end_while_the_server_is_away() -> None:
    with RedisServer() as server:
        async with anyio.create_task_group() as tasks:
            async with new_hub(server.url) as hub:
                streams = [connect(sse_app(lambda: hub.subscribe("t"))) for _ in range(3)]
                await hub.publish("t", "x")
                await in_thread(server.kill)

                async def wait_for_the_end(each: Connection) -> None:
                    async with each as stream:
                        async for _ in stream:
                            pass
                        assert stream.complete

                for each in streams:
                    tasks.start_soon(wait_for_the_end, each)
                await anyio.sleep(0.3)
                assert hub.kick(lambda subscription: True) == 3


# -- another server takes over ---------------------------------------------------------------------


async def test_a_sentinel_has_a_replica_take_over() -> None:
    with Sentinels() as sentinels:
        location = TCPLocation("127.0.0.1", sentinels.port)

        def client() -> coredis.Redis[bytes]:
            return coredis.Sentinel([location]).primary_for(sentinels.service)

        hub = Hub(RedisLog(client, timeout=TIMEOUT))
        async with hub, world() as all_:
            one = await all_.subscribe(hub)
            await in_thread(lambda: sentinels.primary.command("WAIT", 1, 5000))
            await in_thread(sentinels.fail_over)
            await all_.insist(hub, "after")
            await one.has("after")
            await one.lives()
            assert not one.gaps


async def test_a_node_of_a_cluster_fails_over() -> None:
    with Cluster(replicas=True) as cluster:
        async with new_hub(cluster.url, timeout=5) as hub, world() as all_:
            topics = [f"t{number}" for number in range(9)]
            those = [await all_.subscribe(hub, topic) for topic in topics]
            await anyio.sleep(0.5)  # for the replicas
            for kill in (False, True):
                await in_thread(lambda kill=kill: cluster.fail_over(0, kill=kill))  # type: ignore[misc]
                for topic, one in zip(topics, those, strict=True):
                    await all_.publish(hub, f"after {kill}", topic)
                    await one.has(f"after {kill}")
            for one in those:
                await one.lives()
                assert not one.gaps
