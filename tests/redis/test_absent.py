"""Topics that do not exist, on Redis: who subscribes to one leaves no key there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog, reader
from sse_asgi.testing import connect

from ..test_hub import back, gap, receive, stream_of
from .servers import RedisServer

pytestmark = pytest.mark.anyio


async def test_subscriptions_leave_no_key_behind(server: RedisServer) -> None:
    """However many topics clients make up. A reader's own key stays for some seconds."""
    log = RedisLog(server.url)
    async with Hub(log) as hub:

        async def come(first: int) -> None:
            for number in range(first, first + 100):
                topics = [f"{number}/{name}" for name in "ab"]
                await hub.position(*topics)
                subscription = hub.subscribe(*topics, last_event_id="x")
                assert b"gap" in await anext(subscription)
                await subscription.aclose()

        async with anyio.create_task_group() as tasks:
            for first in range(0, 1000, 100):
                tasks.start_soon(come, first)
        assert [key for key in server.command("KEYS", "*") if ":bell:" not in key] == []
        assert not log._followed
        assert not log.script._tops
        assert log.topics() is None


@pytest.mark.parametrize("max_age", [None, 60])
async def test_a_topic_is_created(new_hub: Callable[..., Hub], max_age: float | None) -> None:
    """While its subscribers wait, at another node; while a client is away; and while it loads."""
    async with new_hub(max_age=max_age) as here, new_hub(max_age=max_age) as there:
        position = await here.position("a")
        async with (
            connect(stream_of(here, "a"), headers=back(position)) as one,
            connect(stream_of(here, "a", "b"), headers=back(await here.position("a", "b"))) as both,
        ):
            await anyio.sleep(0.1)
            await there.publish("a", "1")
            assert await receive(one, 1) == ["1"]
            event = await both.receive()
            assert event.data == "1"
        await there.publish("b", "2")
        for hub in (here, there):
            async with connect(stream_of(hub, "a", "b"), headers=back(event.id)) as stream:
                assert await receive(stream, 1) == ["2"]
            async with connect(stream_of(hub, "a"), headers=back(position)) as stream:
                assert await receive(stream, 1) == ["1"]


async def test_a_topic_is_lost_and_created_again(server: RedisServer) -> None:
    """Its subscribers are told that it is gone, and get what comes then."""
    async with Hub(RedisLog(server.url)) as hub, Hub(RedisLog(server.url)) as other:
        first = await hub.publish("a", "1")
        async with connect(stream_of(hub, "a"), headers=back(f"{first[:-1]}0")) as stream:
            assert await receive(stream, 1) == ["1"]
            server.command("FLUSHALL")
            position = await hub.position("a")
            event, data = await gap(stream)
            assert data["missed"] is None
            assert event.id.split("-")[0] == position.split("-")[0]
            again = await other.publish("a", "2")
            assert again.split("_")[0] > first.split("_")[0]
            assert await receive(stream, 1) == ["2"]
        for given, is_told in ((first, True), (position, False)):
            async with connect(stream_of(hub, "a"), headers=back(given)) as stream:
                if is_told:
                    await gap(stream)
                assert await receive(stream, 1) == ["2"]


async def test_how_long_an_id_is_good(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as Redis keeps a topic. Where somebody listens, it is a new one again and again."""
    monkeypatch.setattr(reader, "REVIEW", 0.05)
    monkeypatch.setattr(reader, "BLOCK", 0.05)
    log: Any = RedisLog(server.url, max_age=60)
    async with Hub(log) as hub:
        old = await hub.position("a", "b")
        log.script.forget_after = 3000
        async with connect(stream_of(hub, "a", "b"), headers=back(old)) as stream:
            await anyio.sleep(4)
            await hub.publish("a", "1")
            event = await stream.receive()
            assert event.data == "1"
        await hub.publish("b", "2")
        async with connect(stream_of(hub, "a", "b"), headers=back(event.id)) as stream:
            assert await receive(stream, 1) == ["2"]
        async with connect(stream_of(hub, "a", "b"), headers=back(old)) as stream:
            assert {(await gap(stream))[1]["topic"] for _ in "ab"} == {"a", "b"}
