"""Hubs on one Redis: what is published at one reaches the subscribers of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sse_asgi.hub import Hub
from sse_asgi.testing import connect

from ..test_hub import back, gap, receive, stream_of

pytestmark = pytest.mark.anyio


async def test_every_node_has_the_same_events(new_hub: Callable[..., Hub]) -> None:
    async with new_hub() as here, new_hub() as there:
        headers = back(await here.position("news"))
        async with (
            connect(stream_of(here, "news"), headers=headers) as first,
            connect(stream_of(there, "news"), headers=headers) as second,
        ):
            sent = [
                (await hub.publish("news", data), data)
                for hub, data in ((here, "a"), (there, "b"), (here, "c"))
            ]
            for stream in (first, second):
                events = [await stream.receive() for _ in sent]
                assert [(event.id, event.data) for event in events] == sent


async def test_a_client_comes_back_to_another_node(new_hub: Callable[..., Hub]) -> None:
    async with new_hub() as here, new_hub() as there:
        ids = [await here.publish("news", data) for data in "abc"]
        async with connect(stream_of(there, "news"), headers=back(ids[0])) as stream:
            assert await receive(stream, 2) == ["b", "c"]
            await here.publish("news", "d")
            assert await receive(stream, 1) == ["d"]


async def test_a_client_that_was_away_too_long(new_hub: Callable[..., Hub]) -> None:
    async with new_hub(max_events=2) as hub:
        ids = [await hub.publish("news", data) for data in "abcde"]
        async with connect(stream_of(hub, "news"), headers=back(ids[0])) as stream:
            event, data = await gap(stream)
            assert (event.id, data["missed"]) == (ids[2], 2)
            assert await receive(stream, 2) == ["d", "e"]


async def test_history(new_hub: Callable[..., Hub]) -> None:
    async with new_hub() as hub:
        for data in "abc":
            await hub.publish("news", data)
        for history, expected in ((1, "c"), (2, "bc"), (10, "abc")):
            async with connect(stream_of(hub, "news", history=history)) as stream:
                assert await receive(stream, min(3, history)) == list(expected)


async def test_patterns(new_hub: Callable[..., Hub]) -> None:
    """Topics that were there go on; new ones begin with their first event, at every node."""
    async with new_hub() as here, new_hub() as there:
        for name, hub in (("a", here), ("b", there)):
            await here.publish(f"{name}/old", "old")
            headers = back(await hub.position(f"{name}/old"))
            async with connect(stream_of(hub, f"{name}/*"), headers=headers) as stream:
                await here.publish(f"{name}/old", "1")
                assert await receive(stream, 1) == ["1"]
                await there.publish(f"{name}/new", "2")
                await here.publish(f"{name}/new", "3")
                assert await receive(stream, 2) == ["2", "3"]


async def test_many_topics(new_hub: Callable[..., Hub]) -> None:
    """More than one connection reads; all arrive."""
    slow = {"timeout": 60}  # as it is where others are at work
    async with (
        new_hub(**slow) as here,
        new_hub(**slow) as there,
        anyio.create_task_group() as tasks,
    ):
        topics = [f"t{number}" for number in range(250)]

        async def follow(topic: str) -> None:
            async with connect(stream_of(here, topic, history=1)) as stream:
                assert await receive(stream, 1) == [topic]

        for topic in topics:
            tasks.start_soon(follow, topic)
        for topic in topics:
            await there.publish(topic, topic)


async def test_a_client_with_a_pattern_comes_to_a_node_that_does_not_know_a_new_topic(
    new_hub: Callable[..., Hub],
) -> None:
    """Its reader of names is late, for example as Redis was away: no gap, and nothing twice."""
    async with new_hub() as hub, new_hub() as other:
        log: Any = other._log
        await log.follow_topics()
        for stream in log._name_streams.values():
            log.discard(stream)
        new = hub.subscribe(patterns=["*"], history=10)
        await hub.publish("t", "a")
        first = (await anext(new)).decode()
        assert "data: a" in first
        last = await hub.publish("t", "b")
        given = first.split("id: ")[1].splitlines()[0]
        back = other.subscribe(patterns=["*"], last_event_id=given)
        with anyio.fail_after(5):
            got = await anext(back)
        assert got == f"id: {last}\ndata: b\n\n".encode()
