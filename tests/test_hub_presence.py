"""Who is present in a topic, who comes and goes, and who is disconnected: in memory."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from sse_asgi import sse_app
from sse_asgi.hub import Hub, HubClosedError, MemoryLog, PresenceEvents, Subscription
from sse_asgi.hub.redis import RedisLog
from sse_asgi.testing import Connection, connect

pytestmark = pytest.mark.anyio

ADA, BEN = {"user": "ada", "role": "admin"}, {"user": "ben", "role": "guest"}


def hub_of(grace: float = 0.0, **options: Any) -> Hub:
    return Hub(presence=True, presence_grace=grace, **options)


@asynccontextmanager
async def stream(
    hub: Hub, *topics: str, info: Any = None, patterns: tuple[str, ...] = ()
) -> AsyncIterator[Connection]:
    """A stream of a subscription that has begun."""
    app = sse_app(lambda: hub.subscribe(*topics, patterns=patterns, info=info))
    before = hub.subscribers()
    async with connect(app) as connection:
        await until(lambda: hub.subscribers() > before)
        yield connection


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


async def ended(connection: Connection) -> list[tuple[str, str]]:
    """All events that were left of a stream, which ends."""
    with anyio.fail_after(10):
        return [(event.event, event.data) async for event in connection]


async def is_present(hub: Hub, topic: str, *infos: object) -> bool:
    def key(info: object) -> str:
        return json.dumps(info, sort_keys=True)

    return sorted(await hub.presence(topic), key=key) == sorted(infos, key=key)


# -- who is present --------------------------------------------------------------------------------


async def test_infos_that_are_present() -> None:
    """Each once, however many have it; those without are counted alone."""
    hub = hub_of()
    async with stream(hub, "room", info=ADA), stream(hub, "room", info=ADA):
        async with stream(hub, "room", info=BEN), stream(hub, "room"), stream(hub, "other"):
            assert await is_present(hub, "room", ADA, BEN)
            assert await hub.count("room") == hub.subscribers("room") == 4
            assert (await hub.presence("other"), await hub.count("other")) == ([], 1)
        assert await is_present(hub, "room", ADA)
        assert await hub.count("room") == 2
    assert (await hub.presence("room"), await hub.count("room")) == ([], 0)


@dataclass
class User:
    name: str


@pytest.mark.parametrize(
    "same",
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ({"a": 1}, {"a": 1.0}),
        ([1, 2], (1, 2)),
        ({1: 2}, {"1": 2}),
        (User("ada"), {"name": "ada"}),
        ("\u00e4\u2028\x1f\0", "\u00e4\u2028\x1f\0"),
        (0, -0.0),
    ],
)
async def test_infos_that_are_the_same(same: tuple[object, object]) -> None:
    hub = hub_of()
    async with stream(hub, "room", info=same[0]), stream(hub, "room", info=same[1]):
        assert len(await hub.presence("room")) == 1
        await hub.disconnect(info=same[0])
        assert hub.subscribers() == 0


@pytest.mark.parametrize("different", [(1, True), (1, "1"), ({"a": 1}, {"a": True}), ([], {})])
async def test_infos_that_differ(different: tuple[object, object]) -> None:
    hub = hub_of()
    async with (
        stream(hub, "room", info=different[0]) as first,
        stream(hub, "room", info=different[1]),
    ):
        assert len(await hub.presence("room")) == 2
        await hub.disconnect(info=different[0])
        assert await ended(first) == []
        assert hub.subscribers() == 1


circle: list[Any] = []
circle.append(circle)


@pytest.mark.parametrize(
    ("info", "error"),
    [
        (object(), TypeError),
        ({"a": {object()}}, TypeError),
        (b"x", TypeError),
        (float("nan"), ValueError),
        ([float("inf")], ValueError),
        (circle, ValueError),
    ],
)
async def test_an_info_that_is_no_json(info: Any, error: type[Exception]) -> None:
    """It is refused where it enters, and only where presence is asked for."""
    hub = hub_of()
    with pytest.raises(error, match="info must be JSON"):
        hub.subscribe("room", info=info)
    with pytest.raises(error, match="info must be JSON"):
        await hub.disconnect(info=info)
    plain = Hub()
    async with stream(plain, "room", info=info):
        assert plain.kick(lambda subscription: subscription.info is info) == 1


async def test_an_info_that_is_changed_later() -> None:
    hub, info = hub_of(), {"user": "ada"}
    app = sse_app(lambda: hub.subscribe("room", info=info))
    async with connect(app):
        await until(hub.subscribers)
        info["user"] = object()  # type: ignore[assignment]
        (there,) = await hub.presence("room")
        assert there == {"user": "ada"}
        there["user"] = "ben"
        assert await is_present(hub, "room", {"user": "ada"})
    assert await is_present(hub, "room")


async def test_patterns_count_for_the_topics_that_they_match() -> None:
    """For those that there are, and for those that come later."""
    hub = hub_of()
    await hub.publish("room/1", "x")
    async with stream(hub, "room/3", patterns=("room/*",), info=ADA), stream(hub, "room/3"):
        await hub.publish("room/2", "x")
        for topic, count in (("room/1", 1), ("room/2", 1), ("room/3", 2)):
            assert await is_present(hub, topic, ADA)
            assert await hub.count(topic) == count
        assert await is_present(hub, "other")
    for number in range(4):
        assert (await hub.presence(f"room/{number}"), await hub.count(f"room/{number}")) == ([], 0)


async def test_one_that_has_not_begun_is_not_present() -> None:
    """It can be disconnected."""
    hub = hub_of()
    subscription = hub.subscribe("room", info=ADA)
    assert (await hub.presence("room"), await hub.count("room")) == ([], 0)
    await hub.disconnect("room", ADA)
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


async def test_one_that_is_forgotten_is_gone() -> None:
    hub = hub_of()
    subscription = hub.subscribe("room", last_event_id="strange", info=ADA)
    await anext(subscription)
    assert await is_present(hub, "room", ADA)
    del subscription
    gc.collect()
    await until(lambda: not hub.subscribers())
    assert await is_present(hub, "room")


async def test_a_hub_in_memory_without_presence() -> None:
    """It is the only node, and can be asked all the same, whatever the infos are."""
    hub = Hub()
    await hub.publish("room", "for those with a pattern it is there from now on")
    kept = object()
    async with (
        stream(hub, "room", info=ADA) as ada,
        stream(hub, "room", info=dict(reversed(ADA.items()))) as again,
        stream(hub, patterns=("*",), info=BEN) as ben,
        stream(hub, "room", info=kept) as other,
        stream(hub, "hall", info=ADA),
    ):
        assert await hub.count("room") == 4
        assert await hub.count("nowhere") == 0
        assert await is_present(hub, "room", ADA, BEN)
        assert await is_present(hub, "nowhere")
        await hub.disconnect("room", {"user": "ada"}, last="bye")
        assert await ended(ada) == await ended(again) == [("message", "bye")]
        assert await hub.count("room") == 2
        await hub.disconnect("room", {"user": "ben", "role": "admin"})
        assert await hub.count("room") == 2
        await hub.disconnect("room")
        assert await ended(ben) == await ended(other) == []
        assert await hub.count("hall") == hub.subscribers() == 1
    with pytest.raises(RuntimeError, match="presence=True"):
        hub.presence_events("room")
    with pytest.raises(TypeError):
        await hub.disconnect(info=kept)


async def test_a_hub_that_is_one_of_several_without_presence() -> None:
    hub = Hub(RedisLog("redis://localhost"))
    with pytest.raises(RuntimeError, match="presence=True"):
        await hub.presence("room")
    with pytest.raises(RuntimeError, match="presence=True"):
        await hub.count("room")
    with pytest.raises(RuntimeError, match="presence=True"):
        await hub.disconnect("room")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"presence": 1}, TypeError),
        ({"presence_grace": "1"}, TypeError),
        ({"presence_grace": True}, TypeError),
        ({"presence_grace": -1}, ValueError),
        ({"presence_grace": float("inf")}, ValueError),
        ({"presence_grace": float("nan")}, ValueError),
    ],
)
async def test_parameters_are_checked(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        Hub(**options)


async def test_a_log_that_cannot_keep_presence() -> None:
    """It works for everything else."""

    class Old(MemoryLog):
        presence: Any = property(lambda self: None, lambda self, value: None)

    with pytest.raises(TypeError, match="can't keep presence"):
        Hub(Old(), presence=True)
    assert await Hub(Old()).publish("t", "x")


@pytest.mark.parametrize("topic", ["", "a*", "x" * 256, 5])
async def test_topics_are_checked(topic: Any) -> None:
    hub = hub_of()
    for ask in (hub.presence, hub.count, hub.disconnect):
        with pytest.raises((TypeError, ValueError), match="topic"):
            await ask(topic)
    with pytest.raises((TypeError, ValueError), match="topic"):
        hub.presence_events(topic)


# -- who comes and goes ----------------------------------------------------------------------------


async def test_events_of_those_who_come_and_go() -> None:
    hub = hub_of()
    async with stream(hub, "room", info=ADA):
        async with connect(sse_app(lambda: hub.presence_events("room"))) as events:
            first = await events.receive()
            assert (first.event, json.loads(first.data), first.id) == ("presence", [ADA], "")
            async with stream(hub, "room", info=ADA), stream(hub, "room"), stream(hub, "other"):
                async with stream(hub, "room", info=BEN):
                    pass
            for kind in ("join", "leave"):
                event = await events.receive()
                assert (event.event, json.loads(event.data)) == (kind, BEN)
            async with stream(hub, "room", info="text"):
                event = await events.receive()
                assert (event.event, json.loads(event.data)) == ("join", "text")


async def test_who_reads_slowly_gets_the_list_again() -> None:
    hub = hub_of()
    events = hub.presence_events("room")
    assert (await anext(events)).event == "presence"
    for _ in range(501):
        async with stream(hub, "room", info=BEN):
            pass
    async with stream(hub, "room", info=ADA):
        event = await anext(events)
        assert (event.event, json.loads(event.data or "")) == ("presence", [ADA])
    assert (await anext(events)).event == "leave"
    events.close()


async def test_readers_do_not_disturb_each_other() -> None:
    hub = hub_of()
    readers = [hub.presence_events("room") for _ in range(3)]
    for reader in readers:
        assert (await anext(reader)).event == "presence"
    readers.pop().close()
    async with stream(hub, "room", info=ADA):
        for reader in readers:
            assert (await anext(reader)).event == "join"
        late = hub.presence_events("room")
        assert json.loads((await anext(late)).data or "") == [ADA]
    for reader in (*readers, late):
        assert (await anext(reader)).event == "leave"


@pytest.mark.parametrize("how", ["closed", "forgotten", "the hub"])
async def test_a_reader_that_ends_leaves_nothing(how: str) -> None:
    hub = hub_of()
    events = hub.presence_events("room")
    await anext(events)
    presence: Any = hub._presence
    assert presence.watches._watches
    if how == "closed":
        await events.aclose()
    elif how == "forgotten":
        del events
        gc.collect()
    else:
        hub.close()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    await until(lambda: not presence.watches._watches)


async def test_a_reader_that_is_closed_while_it_waits() -> None:
    hub = hub_of()
    readers = [hub.presence_events("room") for _ in range(2)]
    got: list[str | None] = []

    async def read(reader: PresenceEvents) -> None:
        got.extend([event.event async for event in reader])

    async with anyio.create_task_group() as tasks:
        for reader in readers:
            tasks.start_soon(read, reader)
        await anyio.wait_all_tasks_blocked()
        readers[0].close()
        await anyio.wait_all_tasks_blocked()
        hub.close()
    assert got == ["presence"] * 2


# -- a moment of grace -----------------------------------------------------------------------------


def test_the_moment_of_grace() -> None:
    """Exactly so long: who comes back within it has never been away."""

    async def main() -> None:
        hub, got = hub_of(5), list[tuple[float, str | None]]()

        async def read() -> None:
            async for event in hub.presence_events("room"):
                got.append((trio.current_time() - began, event.event))

        async def visit(seconds: float) -> None:
            with trio.move_on_after(seconds):
                async with stream(hub, "room", info=ADA):
                    await trio.sleep_forever()

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(1)
            await visit(10)
            await trio.sleep(4.9)
            assert await is_present(hub, "room", ADA)
            assert await hub.count("room") == 0
            await visit(10)  # comes back in time
            await trio.sleep(3)
            await visit(1)
            await trio.sleep(4.9)
            assert await is_present(hub, "room", ADA)
            await trio.sleep(0.2)
            assert await is_present(hub, "room")
            await visit(1)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert [kind for _, kind in got] == ["presence", "join", "leave", "join", "leave"]
        times = [round(when - got[1][0], 1) for when, _ in got]
        assert times[1:] == pytest.approx([0, 33.9, 34.0, 40.0], abs=0.15)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_many_who_go_have_one_timer() -> None:
    async def main() -> None:
        hub = hub_of(5)
        subscriptions: list[Subscription] = []
        for number in range(1000):
            subscription = hub.subscribe("room", last_event_id="strange", info=number)
            await anext(subscription)
            subscriptions.append(subscription)
        before = trio.lowlevel.current_statistics().tasks_living
        for number, subscription in enumerate(subscriptions):
            subscription.close()
            if number % 100 == 0:
                await trio.sleep(0.5)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 1
        assert len(await hub.presence("room")) > 900
        await trio.sleep(5.1)
        assert await hub.presence("room") == []

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# -- disconnect ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "info", "who"),
    [
        (None, None, "abcdef"),
        ("one", None, "abf"),
        ("two", None, "c"),
        (None, {"user": "ada"}, "ac"),
        ("one", {"user": "ada"}, "a"),
        (None, {}, "abc"),
        (None, ADA, "ac"),
        (None, {**ADA, "more": 1}, ""),
        (None, {"user": None}, ""),
        (None, "text", "d"),
        (None, "ada", ""),
        ("three", None, ""),
    ],
)
async def test_disconnect(topic: str | None, info: Any, who: str) -> None:
    hub = hub_of()
    everybody: dict[str, Connection] = {}
    async with (
        stream(hub, "one", info=ADA) as everybody["a"],
        stream(hub, "one", info=BEN) as everybody["b"],
        stream(hub, "two", info=ADA) as everybody["c"],
        stream(hub, "four", info="text") as everybody["d"],
        stream(hub, "four") as everybody["e"],
        stream(hub, patterns=("on*",)) as everybody["f"],
    ):
        await hub.disconnect(topic, info, last={"event": "bye", "data": "x"})
        for name in who:
            assert await ended(everybody[name]) == [("bye", "x")]
        assert hub.subscribers() == 6 - len(who)


@pytest.mark.parametrize("last", [{"data": "\ud800"}, {"nodata": 1}, 5, b"data: x", "data: x\n\n"])
async def test_a_last_event_that_cannot_be_encoded(last: Any) -> None:
    """Nobody is disconnected."""
    hub = hub_of()
    async with stream(hub, "room", info=ADA):
        with pytest.raises((TypeError, ValueError)):
            await hub.disconnect("room", last=last)
        assert await hub.count("room") == 1


async def test_a_last_event_of_any_bytes() -> None:
    hub = hub_of()
    frames: list[bytes] = []

    async def read() -> None:
        frames.extend([frame async for frame in hub.subscribe("room", info=ADA)])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        await hub.disconnect(last=b"data: \xff\xfe\n\n")
    assert frames == [b"data: \xff\xfe\n\n"]


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [False, True])
async def test_a_hub_that_is_closed(opened: bool) -> None:
    hub = hub_of(5)
    if opened:
        await hub.__aenter__()
    async with stream(hub, "room", info=ADA) as streamed:
        hub.close()
        assert await ended(streamed) == []
    for ask in (hub.presence, hub.count, hub.disconnect):
        with pytest.raises(HubClosedError):
            await ask("room")
    with pytest.raises(HubClosedError):
        hub.presence_events("room")
    if opened:
        await hub.__aexit__(None, None, None)
    async with hub:
        assert (await hub.presence("room"), await hub.count("room")) == ([], 0)


async def test_nothing_is_left_of_a_topic() -> None:
    hub = hub_of(0.01)
    events = hub.presence_events("room")
    await anext(events)
    for number in range(50):
        async with stream(hub, "room", patterns=("r*",), info={"number": number}):
            pass
    await events.aclose()
    presence: Any = hub._presence
    await until(lambda: not presence._present)
    assert not presence._going
    assert not presence._begun
    assert not list(presence._made)
    assert not presence.watches._watches
    for kept in vars(presence._log).values():
        assert callable(kept) or not kept


def test_one_that_was_left_in_an_event_loop_that_has_ended() -> None:
    hub = hub_of(5)
    left: list[Subscription] = []

    async def leave() -> None:
        left.append(hub.subscribe("room", last_event_id="strange", info=ADA))
        await anext(left[0])

    async def use() -> None:
        assert await is_present(hub, "room")
        async with stream(hub, "room", info=BEN):
            assert await is_present(hub, "room", BEN)

    asyncio.run(leave())
    left.clear()
    gc.collect()
    asyncio.run(use())


async def test_a_cancelled_call_changes_nothing() -> None:
    """In the middle of each await."""
    hub = hub_of()
    async with stream(hub, "room", info=ADA):
        for ask in (hub.presence, hub.count, hub.disconnect):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await ask("room")
            assert scope.cancelled_caught
        assert await hub.count("room") == 1


async def test_many_come_and_go() -> None:
    hub = hub_of()
    events = hub.presence_events("room")
    there: set[int] = set(json.loads((await anext(events)).data or ""))

    async def read() -> None:
        async for event in events:
            value = json.loads(event.data or "")
            if event.event == "presence":
                there.clear()
                there.update(value)
            elif event.event == "join":
                assert value not in there
                there.add(value)
            else:
                there.remove(value)

    async def follow(number: int) -> None:
        async for _ in hub.subscribe("room", info=number):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        for _ in range(3):
            for number in range(2000):
                tasks.start_soon(follow, number % 500)
            await until(lambda: len(there) == 500)
            assert await hub.count("room") == 2000
            await hub.disconnect("room")
            await until(lambda: not there)
            assert (await hub.presence("room"), await hub.count("room")) == ([], 0)
        events.close()
