"""Topics that do not exist: who subscribes to one creates nothing, and misses nothing."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import anyio
import pytest
import trio

from sse_asgi.hub import Hub, MemoryLog
from sse_asgi.testing import connect

from .at_once import Cycle
from .hub_ends import until_begun
from .streams import http_scope, on_mock_clock
from .test_hub import back, gap, nothing_more, receive, stream_of

pytestmark = pytest.mark.anyio


async def test_subscriptions_leave_nothing_behind() -> None:
    """However many topics clients make up."""
    log = MemoryLog()
    hub = Hub(log)

    async def come(number: int) -> None:
        topics = [f"{number}/{name}" for name in "ab"]
        await hub.position(*topics)
        subscription = hub.subscribe(*topics, last_event_id="x", history=number % 2)
        assert b"gap" in await anext(subscription)  # it has begun
        assert hub.subscribers() == 1
        await subscription.aclose()

    for number in range(1500):  # what caches hold
        await come(number)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1500, 3000):
            await come(number)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1500 * 40
    finally:
        tracemalloc.stop()
    assert list(log.topics()) == []
    assert repr(hub) == "<Hub topics=0 subscribers=0>"


@pytest.mark.parametrize("policy", ["gap", "disconnect", "latest"])
@pytest.mark.parametrize("history", [None, 5])
async def test_a_topic_is_created_while_its_subscribers_wait(
    policy: Any, history: int | None
) -> None:
    hub = Hub()
    async with (
        connect(stream_of(hub, "a", policy=policy, history=history)) as one,
        connect(stream_of(hub, "a", "b", policy=policy, history=history)) as both,
    ):
        await anyio.wait_all_tasks_blocked()
        for topic in ("a", "b", "a"):
            await hub.publish(topic, topic)
        assert await receive(one, 2) == ["a", "a"]
        assert sorted(await receive(both, 3)) == ["a", "a", "b"]
        await nothing_more(both)


@pytest.mark.parametrize("max_events", [1000, 2])
async def test_a_topic_is_created_while_a_client_is_away(max_events: int) -> None:
    """Its id has a place for the topic: it gets the first event, or knows how many are missing."""
    hub = Hub(max_events=max_events)
    async with connect(stream_of(hub, "a", "b")) as stream:
        await anyio.wait_all_tasks_blocked()
        await hub.publish("a", "1")
        event = await stream.receive()
    for number in range(5):
        await hub.publish("b", str(number))
    async with connect(stream_of(hub, "a", "b"), headers=back(event.id)) as stream:
        if max_events == 2:
            _, data = await gap(stream)
            assert (data["missed"], data["topic"]) == (3, "b")
        assert await receive(stream, min(5, max_events)) == list("01234")[-max_events:]
        await nothing_more(stream)


async def test_a_page_of_a_topic_that_does_not_exist() -> None:
    """What is published between the page and its stream is not missed, whoever may still read."""
    hub = Hub()
    position = await hub.position("a")
    subscription = hub.subscribe("a")  # begins here
    await hub.publish("a", "1")
    assert b"data: 1" in await anext(subscription)
    async with connect(stream_of(hub, "a"), headers=back(position)) as stream:
        assert await receive(stream, 1) == ["1"]
    for offset in ("0", "9999999999999"):  # not a moment, and one that has not come
        strange = f"{position.split('-')[0]}-{offset}"
        async with connect(stream_of(hub, "a"), headers=back(strange)) as stream:
            if offset != "0":
                await gap(stream)
            assert await receive(stream, 1) == ["1"]


async def test_the_last_event_where_there_was_none() -> None:
    hub = Hub()
    subscription = hub.subscribe("a", "b", last_event_id="x")
    await anext(subscription)
    assert hub.kick(lambda other: True, last="bye") == 1
    await hub.publish("a", "1")
    assert [frame async for frame in subscription][-1] == b"data: bye\n\n"


async def test_a_topic_that_has_ended_with_its_first_event() -> None:
    hub = Hub()
    position = await hub.position("a")
    async with connect(stream_of(hub, "a")) as stream:
        await anyio.wait_all_tasks_blocked()
        last = await hub.publish("a", "1", final=True)
        assert [event.data async for event in stream] == ["1"]
    async with connect(stream_of(hub, "a"), headers=back(position)) as stream:
        assert [event.data async for event in stream] == ["1"]
    async with connect(stream_of(hub, "a"), headers=back(last)) as stream:
        assert stream.status_code == 204


@on_mock_clock
async def test_a_topic_that_was_there_in_between() -> None:
    """It was forgotten: a client from before that is told, whether it is there again or not."""
    for again in (False, True):
        hub = Hub(max_age=10)
        position = await hub.position("a")
        await hub.publish("a", "missed")
        await trio.sleep(400)
        await hub.publish("other", "x")
        assert "a" not in tuple(hub._log.topics() or ())
        if again:
            await hub.publish("a", "1")
        async with connect(stream_of(hub, "a"), headers=back(position)) as stream:
            await gap(stream)
            await hub.publish("a", "2")
            assert await receive(stream, 1 + again) == ["1", "2"][not again :]


@on_mock_clock
async def test_a_topic_that_stays_away() -> None:
    """A stream that was open for long has an id that is not older than its newest event."""
    hub = Hub(max_age=10)
    async with connect(stream_of(hub, "a", "b")) as stream:
        await anyio.wait_all_tasks_blocked()
        for number in range(10):
            await trio.sleep(200)
            await hub.publish("a", str(number))
            event = await stream.receive()
            assert event.data == str(number)
    await trio.sleep(9)
    await hub.publish("b", "1")
    async with connect(stream_of(hub, "a", "b"), headers=back(event.id)) as stream:
        assert await receive(stream, 1) == ["1"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_id_of_an_event_that_is_passed_on_without_waking_a_task() -> None:
    """There is no task then, and one of the topics does not exist yet."""
    hub, cycle = Hub(), Cycle()
    app: Any = stream_of(hub, "a", "b")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, http_scope(), cycle.receive, cycle.send)
        await until_begun(hub, "a")
        for number in range(3):
            await hub.publish("a", str(number))
            await anyio.sleep(0.001)
        with anyio.fail_after(10):
            await cycle.has(b"data: 2")
        cycle.disconnect()
    lines = cycle.body.splitlines()
    assert [line for line in lines if b"data" in line] == [b"data: 0", b"data: 1", b"data: 2"]
    assert all(line.count(b".") == 1 for line in lines if b"id" in line)
