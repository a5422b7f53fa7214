"""The contract of logs, kept by the one on Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import coredis
import pytest

from sse_asgi.hub import Hub, HubClosedError, HubError, Log
from sse_asgi.hub.redis import RedisLog, link, reader, runs
from sse_asgi.testing import LogContract

from .servers import RedisServer

pytestmark = pytest.mark.anyio


class TestRedisLog(LogContract):
    @pytest.fixture(autouse=True)
    def _redis(
        self, redis_url: str, new_prefix: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.url, self.new_prefix = redis_url, new_prefix
        monkeypatch.setattr(runs, "LEASE", 2.0)

    @asynccontextmanager
    async def make_log(self, *, max_events: int, max_bytes: int) -> AsyncGenerator[Log, None]:
        yield RedisLog(
            self.url, prefix=self.new_prefix(), max_events=max_events, max_bytes=max_bytes
        )


class TestTwoRedisLogs(TestRedisLog):
    """Of two processes, on the same topics."""

    @asynccontextmanager
    async def make_logs(
        self, *, max_events: int, max_bytes: int
    ) -> AsyncGenerator[Sequence[Log], None]:
        prefix = self.new_prefix()
        yield [
            RedisLog(self.url, prefix=prefix, max_events=max_events, max_bytes=max_bytes)
            for _ in range(2)
        ]


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"source": 5}, TypeError),
        ({"prefix": b"x"}, TypeError),
        ({"prefix": ""}, ValueError),
        ({"prefix": "{a}"}, ValueError),
        ({"max_events": 0}, ValueError),
        ({"max_bytes": "1"}, TypeError),
        ({"max_age": 0}, ValueError),
        ({"timeout": "5"}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"shards": True}, TypeError),
        ({"shards": 0}, ValueError),
        ({"shards": 16385}, ValueError),
    ],
)
async def test_parameters_are_checked(parameters: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        RedisLog(**{"source": "redis://localhost", **parameters})


async def test_a_client_of_the_application(redis_url: str, new_prefix: Callable[[], str]) -> None:
    """One that is not open is opened; one that is stays open; whatever it decodes."""
    prefix = new_prefix()
    client = coredis.Redis.from_url(redis_url, decode_responses=True)
    for source in (client, lambda: coredis.Redis.from_url(redis_url)):
        async with Hub(RedisLog(source, prefix=prefix)) as hub:
            await hub.publish("t", "\u00e4")
    async with client:
        async with Hub(RedisLog(client, prefix=prefix)) as hub:
            await hub.publish("t", "\u00e4")
            assert (await hub.position("t")).endswith("-3")
        assert await client.ping()


async def test_a_hub_that_is_not_open(redis_url: str, new_prefix: Callable[[], str]) -> None:
    hub = Hub(RedisLog(redis_url, prefix=new_prefix()))
    for words in ("not open", "closed"):
        with pytest.raises(HubClosedError, match=words):
            await hub.publish("t", "x")
        with pytest.raises(HubClosedError, match=words):
            await anext(hub.subscribe("t"))
        async with hub:
            await hub.publish("t", "x")


async def test_names_of_topics_that_are_gone_go(
    redis_url: str, new_prefix: Callable[[], str]
) -> None:
    """And a topic that comes back again and again has one name."""
    prefix = new_prefix()
    log = RedisLog(redis_url, prefix=prefix, max_age=60, shards=1)
    async with coredis.Redis.from_url(redis_url) as client, Hub(log) as hub:

        async def gone(topic: str) -> None:  # as it is after a while
            await client.delete([log.keys.log(topic), log.keys.of_topic(topic)[1]])

        async def names() -> list[str]:
            entries = await client.xrange(log.keys.topics(0))
            return [str(cast(bytes, entry.field_values[b"topic"]), "utf-8") for entry in entries]

        await hub.publish("stays", "x")
        for _ in range(10):
            await gone("often")
            await hub.publish("often", "x")
            await anyio.sleep(0.02)  # old names are looked at meanwhile
        for number in range(10):
            await hub.publish(f"once/{number}", "x")
            await gone(f"once/{number}")
        with anyio.fail_after(10):
            while len(found := await names()) > 5:
                await anyio.sleep(0.01)
        assert {"stays", "often"} <= set(found)
        assert found.count("often") == 1


async def test_more_readers_than_a_pool_has_by_default(
    redis_url: str, new_prefix: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a connection; commands need one, too."""
    monkeypatch.setattr(reader, "STREAMS", 1)
    topics = [f"t{number}" for number in range(70)]
    async with Hub(RedisLog(redis_url, prefix=new_prefix())) as hub:
        subscriptions = [hub.subscribe(topic, last_event_id="x") for topic in topics]
        for subscription in subscriptions:
            await anext(subscription)  # the gap
        for topic, subscription in zip(topics, subscriptions, strict=True):
            await hub.publish(topic, topic)
            assert topic.encode() in await anext(subscription)


async def test_a_command_that_had_to_wait_does_not_condemn_a_client(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has less time left for the client that was found at last than others have."""
    monkeypatch.setattr(link, "LONGEST", 0.05)
    clients: list[coredis.Redis[bytes]] = []
    may_connect = False

    def new_client() -> coredis.Redis[bytes]:
        if not may_connect:
            raise OSError("not now")
        clients.append(coredis.Redis.from_url(redis_url))
        return clients[-1]

    async def never(client: Any) -> None:
        await anyio.sleep_forever()

    async def serve(client: Any, tasks: Any) -> None:
        pass

    way = link.Link(new_client, timeout=1)
    async with anyio.create_task_group() as tasks:
        await tasks.start(way.run, serve)
        early = way.start(never)
        await anyio.sleep(0.7)
        may_connect = True
        with pytest.raises(HubError, match=r"not now|no answer"):
            await early.result()
        assert await way.start(lambda client: client.ping()).result()
        assert len(clients) == 1
        with pytest.raises(HubError, match="no answer"):
            await way.start(never).result()
        assert await way.start(lambda client: client.ping()).result()
        assert len(clients) == 2  # that one had its time
        tasks.cancel_scope.cancel()


async def test_names_of_topics_that_are_gone_go_here_too(
    redis_url: str, new_prefix: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "REVIEW", 0.05)
    monkeypatch.setattr(reader, "BLOCK", 0.05)
    log = RedisLog(redis_url, prefix=new_prefix(), max_age=60, shards=1)
    async with coredis.Redis.from_url(redis_url) as client, Hub(log) as hub:
        await hub.publish("stays", "x")
        await log.follow_topics()
        for number in range(10):
            topic = f"once/{number}"
            await hub.publish(topic, "x")
            await client.delete([log.keys.log(topic), log.keys.of_topic(topic)[1]])
        await hub.publish("last", "x")
        with anyio.fail_after(10):
            while not (
                len(names := tuple(log.topics() or ())) <= 5 and {"stays", "last"} <= set(names)
            ):
                await anyio.sleep(0.02)


async def test_names_of_topics_after_a_clock_that_was_ahead(new_prefix: Callable[[], str]) -> None:
    """A replica that takes over may have a clock, and names, that are behind."""
    with RedisServer() as server:
        log = RedisLog(server.url, prefix=new_prefix(), shards=1)
        async with Hub(log) as hub:
            key = log.keys.topics(0)
            server.command("XADD", key, "99999999999999-0", "topic", "ahead")
            await log.follow_topics()
            with anyio.fail_after(10):
                while server.info("clients")["blocked_clients"] == "0":  # the reader
                    await anyio.sleep(0.02)
            server.command("DEL", key)
            await hub.publish("new", "x")
            server.command("CLIENT", "KILL", "TYPE", "normal")
            with anyio.fail_after(10):
                while "new" not in tuple(log.topics() or ()):
                    await anyio.sleep(0.02)
