"""A topic that ends, on Redis: whichever node says so, all know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import anyio
import anyio.to_thread
import pytest

from sse_asgi.hub import Hub, TopicEndedError
from sse_asgi.hub.redis import RedisLog
from sse_asgi.testing import connect

from ..hub_ends import Ends, ends
from ..test_hub import back, receive, stream_of
from .faulty_proxy import FaultyProxy
from .servers import RedisServer, hurry

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hub(new_hub: Callable[..., Hub]) -> AsyncIterator[Hub]:
    async with new_hub() as hub:
        yield hub


@pytest.fixture
async def other(new_hub: Callable[..., Hub]) -> AsyncIterator[Hub]:
    async with new_hub() as hub:
        yield hub


class TestOnRedis(Ends):
    """Two nodes on one Redis."""


async def test_a_node_that_is_new_knows(new_hub: Callable[..., Hub]) -> None:
    async with new_hub() as hub:
        await hub.publish("t", "a")
        final = await hub.publish("t", "b", final=True)
    async with new_hub() as hub:
        with pytest.raises(TopicEndedError):
            await hub.publish("t", "c")
        async with connect(stream_of(hub, "t"), headers=back(final)) as stream:
            assert stream.status_code == 204


async def test_an_end_outlives_its_event(redis_url: str, new_prefix: Callable[[], str]) -> None:
    async with Hub(RedisLog(redis_url, prefix=new_prefix(), max_age=0.2)) as hub:
        final = await hub.publish("t", "a", final=True)
        await anyio.sleep(0.3)
        for _ in range(2):
            async with connect(stream_of(hub, "t"), headers=back(final)) as stream:
                assert stream.status_code == 204
            with pytest.raises(TopicEndedError):
                await hub.publish("t", "b")


def go_away(proxy: FaultyProxy, how: str) -> None:
    if how == "refuses":
        proxy.refuse()
        proxy.cut()
    else:
        proxy.silence()


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_a_redis_that_is_away_delays_no_stream_for_long(how: str) -> None:
    """It can't be known whether the topic has ended, so the stream opens, and waits."""
    with RedisServer() as server, FaultyProxy(server.port) as proxy:
        async with Hub(RedisLog(proxy.url)) as hub:
            await hurry(hub)
            ids = [await hub.publish("t", data) for data in "ab"]
            final = await hub.publish("t", "c", final=True)
            await anyio.to_thread.run_sync(go_away, proxy, how)
            async with (
                connect(stream_of(hub, "t"), headers=back(ids[0])) as stream,
                connect(stream_of(hub, "t"), headers=back(final)) as done,
            ):
                assert stream.status_code == done.status_code == 200
                await anyio.to_thread.run_sync(proxy.resume)
                assert await receive(stream, 2) == ["b", "c"]
                await ends(stream)
                await ends(done)


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_a_redis_that_is_away_keeps_nobody_who_was_kicked(how: str) -> None:
    with RedisServer() as server, FaultyProxy(server.port) as proxy:
        async with Hub(RedisLog(proxy.url)) as hub:
            await hurry(hub)
            first = await hub.publish("t", "a")
            async with connect(stream_of(hub, "t"), headers=back(first)) as stream:
                await hub.publish("t", "b")
                assert await receive(stream, 1) == ["b"]
                await anyio.to_thread.run_sync(go_away, proxy, how)
                hub.kick(lambda subscription: True, last="bye")
                assert await receive(stream, 1) == ["bye"]
                await ends(stream)


async def test_a_final_event_that_is_lost(new_prefix: Callable[[], str]) -> None:
    """Then the topic has not ended, and who had the end is told."""
    with RedisServer() as server, server.connect() as redis:
        new = partial(RedisLog, server.url)
        async with Hub(new()) as hub:
            await hub.publish("t", "a")
            keys = redis.command("KEYS", "*:t")
            dumps = {key: redis.command("DUMP", key) for key in keys}
            final = await hub.publish("t", "b", final=True)
        for key, dump in dumps.items():
            redis.command("RESTORE", key, 0, dump, "REPLACE")
        async with Hub(new()) as hub:
            await hub.publish("t", "c")
            async with connect(stream_of(hub, "t"), headers=back(final)) as stream:
                assert (await stream.receive()).event == "gap"
                assert await receive(stream, 2) == ["a", "c"]
                await hub.publish("t", "d", final=True)
                assert await receive(stream, 1) == ["d"]
                await ends(stream)
