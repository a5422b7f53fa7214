"""Subscriptions that their users leave, and applications that count them."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sse_asgi import sse_app
from sse_asgi.hub import Hub, Subscription
from sse_asgi.testing import connect

from .hub_model import subscribe
from .test_hub import stream_of

pytestmark = pytest.mark.anyio

NAMES = pytest.mark.parametrize("names", [("news",), ("news", "more"), ("n*",), ("x*",)])


async def is_so(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


@NAMES
async def test_a_generator_that_passes_events_on_leaves_nothing(names: tuple[str, ...]) -> None:
    """Regression 37: most natural, and it has left a subscription of each client for ever."""
    counted: dict[str, int] = {}
    hub = Hub(on_subscribers=counted.__setitem__)
    await hub.publish("news", "before")

    async def events() -> AsyncIterator[bytes]:
        async for frame in subscribe(hub, names):
            yield frame

    app = sse_app(events)
    for _ in range(20):
        async with connect(app) as stream:
            await anyio.wait_all_tasks_blocked()
            await hub.publish("news", "x")
            if names != ("x*",):
                assert (await stream.receive()).data == "x"
    await is_so(lambda: hub.subscribers() == 0)
    assert hub.subscribers("news") == 0
    assert all(count == 0 for count in counted.values())
    assert hub.kick(lambda subscription: True) == 0
    await hub.publish("news", "after")


@NAMES
async def test_one_that_is_forgotten_after_a_step_is_gone(names: tuple[str, ...]) -> None:
    hub = Hub()
    await hub.publish("news", "x")
    subscription = subscribe(hub, names, last_event_id="strange")
    assert b"gap" in await anext(subscription)
    assert hub.subscribers() == 1
    del subscription
    gc.collect()
    await is_so(lambda: hub.subscribers() == 0)
    async with connect(stream_of(hub, "news")) as stream:
        await anyio.wait_all_tasks_blocked()
        await hub.publish("news", "y")
        assert (await stream.receive()).data == "y"


async def test_one_in_a_circle_is_gone_when_that_is_collected() -> None:
    hub = Hub()
    subscription = hub.subscribe("news", last_event_id="strange", info=(circle := [None]))
    await anext(subscription)
    circle[0] = subscription  # type: ignore[call-overload]
    del subscription, circle
    gc.collect()
    await is_so(lambda: hub.subscribers() == 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@NAMES
async def test_one_that_a_task_waits_for_stays(names: tuple[str, ...]) -> None:
    """Asyncio itself does not keep such a task."""
    hub = Hub()
    got: list[bytes] = []

    async def wait() -> None:
        got.append(await anext(subscribe(hub, names)))

    loop = asyncio.get_running_loop()
    loop.create_task(wait())
    await anyio.wait_all_tasks_blocked()
    for _ in range(3):
        gc.collect()
        await anyio.lowlevel.checkpoint()
    assert hub.subscribers() == 1
    for topic in ("news", "xyz"):
        await hub.publish(topic, "here")
    await is_so(lambda: got)
    assert b"here" in got[0]
    await is_so(lambda: hub.subscribers() == 0)


def test_one_that_was_left_in_an_event_loop_that_has_ended() -> None:
    """The hub can be used in another one."""
    hub = Hub()
    left: list[Subscription] = []

    async def leave() -> None:
        left.append(hub.subscribe("news", patterns=["n*"], last_event_id="strange"))
        await anext(left[0])

    async def use() -> None:
        async with connect(stream_of(hub, "news")) as stream:
            await anyio.wait_all_tasks_blocked()
            await hub.publish("news", "x")
            assert (await stream.receive()).data == "x"

    asyncio.run(leave())
    left.clear()
    gc.collect()
    asyncio.run(use())
    assert hub.subscribers() == 0


# -- on_subscribers --------------------------------------------------------------------------------


async def test_on_subscribers_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """It has left a subscription behind."""
    error = RuntimeError("meant to happen")

    def raises(topic: str, count: int) -> None:
        raise error

    hub = Hub(on_subscribers=raises)
    async with connect(stream_of(hub, "news", "more", "n*")) as stream:
        await anyio.wait_all_tasks_blocked()
        await hub.publish("news", "x")
        await hub.publish("new", "y")
        assert [(await stream.receive()).data for _ in range(2)] == ["x", "y"]
    assert hub.subscribers() == hub.subscribers("news") == hub.subscribers("more") == 0
    logged = [r for r in caplog.records if r.name == "sse_asgi"]
    assert all(r.levelno == logging.ERROR and "on_subscribers" in r.message for r in logged)
    assert all(r.exc_info is not None and r.exc_info[1] is error for r in logged)
    assert len(logged) == 6


@pytest.mark.parametrize("when", [0, 1])
async def test_on_subscribers_that_kicks(when: int) -> None:
    """Itself, before it has begun; and another, which is told of meanwhile."""
    seen: list[tuple[str, int]] = []

    def kick(topic: str, count: int) -> None:
        seen.append((topic, count))
        if count > when:
            hub.kick(lambda subscription: True)

    hub = Hub(on_subscribers=kick)
    app = stream_of(hub, "a", "b")
    async with connect(app) as first:
        await anyio.wait_all_tasks_blocked()
        assert hub.subscribers() == when
        async with connect(app) as second:
            assert [event async for event in second] == []
        assert [event async for event in first] == []
    assert hub.subscribers() == hub.subscribers("a") == hub.subscribers("b") == 0
    assert seen[-2:] == [("a", 0), ("b", 0)]


async def test_on_subscribers_that_subscribes_and_publishes() -> None:
    """What it has begun is told of afterwards, in order."""
    seen: list[tuple[str, int]] = []
    mine: list[Subscription] = []

    async with anyio.create_task_group() as tasks:

        def begin(topic: str, count: int) -> None:
            seen.append((topic, count))
            tasks.start_soon(hub.publish, "log", f"{topic} {count}")
            if topic == "news" and count == 1:
                mine.append(hub.subscribe("log", history=10))
                step: Any = mine[0].__anext__()
                with pytest.raises(StopIteration):  # there is an event: it need not wait
                    while True:
                        step.send(None)

        hub = Hub(on_subscribers=begin)
        await hub.publish("log", "first")
        async with connect(stream_of(hub, "news")) as stream:
            await anyio.wait_all_tasks_blocked()
            assert seen == [("news", 1), ("log", 1)]
            await hub.publish("news", "x")
            assert (await stream.receive()).data == "x"
        for subscription in mine:
            subscription.close()
    assert seen == [("news", 1), ("log", 1), ("news", 0), ("log", 0)]
    assert hub.subscribers() == 0
