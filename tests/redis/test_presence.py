"""Hubs on one Redis: who is present on all nodes, who comes and goes, and who is disconnected."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, get_args

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sse_asgi import sse_app
from sse_asgi.errors import HubClosedError
from sse_asgi.hub import Hub, HubError, PresenceEvents
from sse_asgi.hub.redis import RedisLog, presence
from sse_asgi.hub.redis.link import Call
from sse_asgi.testing import Connection, connect

from ..test_hub_presence import ADA, BEN, ended, is_present, stream, until
from .faulty_proxy import FaultyProxy, Moment
from .presence_node import presence_is_due
from .servers import Cluster, RedisServer

pytestmark = [
    pytest.mark.anyio,
    # coredis, where a connection can't be made
    pytest.mark.filterwarnings("ignore:Unclosed <Memory:ResourceWarning"),
]

#: How long it may take until it is so everywhere, in seconds: more than the second that is said, as
#: the machine may be very busy.
SOON = 20.0

NewHub = Callable[..., Hub]


@pytest.fixture(params=["server", "cluster"])
def new_hub(request: pytest.FixtureRequest, new_prefix: Callable[[], str]) -> NewHub:
    """Makes hubs that are one."""
    place: RedisServer | Cluster = request.getfixturevalue(request.param)
    prefix = new_prefix()
    return lambda **options: hub_at(place.url, prefix, **options)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node is taken to be dead sooner."""
    monkeypatch.setattr(presence, "HEARTBEAT", 0.3)
    monkeypatch.setattr(presence, "LEASE", 1.0)


def hub_at(url: str, prefix: str = "sse_asgi", grace: float = 0.0, **options: Any) -> Hub:
    options.setdefault("timeout", 10.0)
    return Hub(RedisLog(url, prefix=prefix, **options), presence=True, presence_grace=grace)


async def soon(condition: Callable[[], Awaitable[object]], within: float = SOON) -> None:
    """Wait until something is so."""
    with anyio.fail_after(within):
        while not await condition():
            await anyio.sleep(0.03)


async def present(hubs: list[Hub], topic: str, *infos: object, count: int) -> None:
    """Wait until these infos, and so many subscribers, are there for all hubs."""
    for hub in hubs:
        await soon(lambda hub=hub: is_present(hub, topic, *infos))  # type: ignore[misc]

        async def counted(hub: Hub = hub) -> bool:
            return await hub.count(topic) == count

        await soon(counted)


@asynccontextmanager
async def nodes(new_hub: NewHub, number: int, **options: Any) -> AsyncGenerator[list[Hub], None]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(new_hub(**options)) for _ in range(number)]


@asynccontextmanager
async def events_of(hub: Hub, topic: str) -> AsyncGenerator[Connection, None]:
    """The events of those who come and go, after the list of those who are there."""
    async with connect(sse_app(lambda: hub.presence_events(topic))) as connection:
        yield connection


async def event(connection: Connection) -> tuple[str, Any]:
    with anyio.fail_after(SOON):
        received = await connection.receive()
    return received.event, json.loads(received.data)


def stored(server: RedisServer, what: str = "presence") -> list[str]:
    return [key for key in server.command("KEYS", "*") if f"}}:{what}" in key]


def die(hub: Hub) -> None:
    """Let a hub do nothing any more, as if its process had died."""

    def gone(command: object) -> object:
        call: Call[Any] = Call()
        call.fail(HubClosedError("it has died"))
        return call

    log: Any = hub._log
    log._link.start = gone


def settled(hub: Hub) -> bool:
    return not presence_is_due(hub)


# -- two nodes -------------------------------------------------------------------------------------


async def test_all_nodes_know_who_is_present(new_hub: NewHub) -> None:
    async with nodes(new_hub, 2) as hubs:
        here, there = hubs
        async with (
            stream(here, "room", info=ADA),
            stream(there, "room", info=dict([*ADA.items()][::-1])),
        ):
            async with stream(there, "room", info=BEN), stream(here, "room"), stream(here, "other"):
                await present(hubs, "room", ADA, BEN, count=4)
                await present(hubs, "other", count=1)
            await present(hubs, "room", ADA, count=2)
        await present(hubs, "room", count=0)


async def test_topics_of_all_shards(new_hub: NewHub) -> None:
    async with nodes(new_hub, 2) as hubs, AsyncExitStack() as stack:
        topics = [f"room/{number}" for number in range(40)]
        for topic in topics:
            await hubs[0].publish(topic, "who is in the topics of a pattern is in those that exist")
            await stack.enter_async_context(stream(hubs[0], topic, info=topic))
        await stack.enter_async_context(stream(hubs[1], patterns=("room/*",), info=ADA))
        for topic in topics:
            await present(hubs, topic, ADA, topic, count=2)
        await hubs[1].disconnect()
        await until(lambda: not any(hub.subscribers() for hub in hubs))
        for topic in topics:
            await present(hubs, topic, count=0)


async def test_what_this_node_has_is_known_at_once(new_hub: NewHub) -> None:
    async with nodes(new_hub, 1) as (hub,):
        for number in range(10):
            async with stream(hub, "room", info=number):
                assert (await hub.presence("room"), await hub.count("room")) == ([number], 1)
            assert (await hub.presence("room"), await hub.count("room")) == ([], 0)


async def test_one_join_and_one_leave_on_all_nodes(new_hub: NewHub) -> None:
    """However many have the same info, on whatever nodes."""
    async with nodes(new_hub, 3) as hubs, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(events_of(hub, "room")) for hub in hubs]
        for reader in readers:
            assert await event(reader) == ("presence", [])
        for number in range(3):
            async with AsyncExitStack() as streams:
                for hub in (*hubs, *hubs):
                    await streams.enter_async_context(stream(hub, "room", info=number))
                await present(hubs, "room", number, count=6)
                late = await streams.enter_async_context(events_of(hubs[number], "room"))
                assert await event(late) == ("presence", [number])
            await present(hubs, "room", count=0)
            for reader in readers:
                assert [await event(reader) for _ in "ab"] == [("join", number), ("leave", number)]


async def test_nobody_has_left_as_long_as_another_node_has_him(new_hub: NewHub) -> None:
    async with nodes(new_hub, 2) as hubs, stream(hubs[0], "room", info=ADA):
        await present(hubs, "room", ADA, count=1)
        async with events_of(hubs[0], "room") as reader:
            assert await event(reader) == ("presence", [ADA])
            for number in range(3):
                async with stream(hubs[1], "room", info=ADA):
                    await present(hubs, "room", ADA, count=2)
                await present(hubs, "room", ADA, count=1)
                async with stream(hubs[1], "room", info=number):
                    assert await event(reader) == ("join", number)
                assert await event(reader) == ("leave", number)


async def test_who_comes_back_to_another_node_was_not_away(new_hub: NewHub) -> None:
    async with nodes(new_hub, 2, grace=1.5) as hubs, events_of(hubs[0], "room") as reader:
        assert await event(reader) == ("presence", [])
        for turn in range(4):
            async with stream(hubs[turn % 2], "room", info=ADA):
                await anyio.sleep(0.1)
                assert await is_present(hubs[0], "room", ADA)
        assert await is_present(hubs[1], "room", ADA)
        await present(hubs, "room", count=0)
        assert [await event(reader) for _ in "ab"] == [("join", ADA), ("leave", ADA)]


@pytest.mark.parametrize("how", ["topic", "info", "both", "all", "pattern"])
async def test_disconnect_on_all_nodes(new_hub: NewHub, how: str) -> None:
    async with nodes(new_hub, 3) as hubs, AsyncExitStack() as stack:
        meant, others = list[Connection](), list[Connection]()
        for hub in hubs:
            streams: list[tuple[bool, dict[str, Any]]] = [
                (True, {"info": ADA}),
                (how in ("topic", "all", "pattern"), {"info": BEN}),
            ]
            for chosen, options in streams:
                opened = stream(hub, "room", **options)
                if how == "pattern":
                    opened = stream(hub, patterns=("r*m",), **options)
                (meant if chosen else others).append(await stack.enter_async_context(opened))
            opened = stream(hub, "other", info=ADA)
            chosen = how in ("info", "all")
            (meant if chosen else others).append(await stack.enter_async_context(opened))
        arguments: dict[str, Any] = {
            "topic": "room" if how in ("topic", "both", "pattern") else None,
            "info": {"user": "ada"} if how in ("info", "both") else None,
        }
        before = hubs[0].subscribers()
        await hubs[0].disconnect(**arguments, last={"event": "bye", "data": "x"})
        assert hubs[0].subscribers() == before - len(meant) // 3  # this node has done it already
        for connection in meant:
            assert await ended(connection) == [("bye", "x")]
        assert sum(hub.subscribers() for hub in hubs) == len(others)


async def test_who_comes_after_a_disconnect_stays(new_hub: NewHub) -> None:
    async with nodes(new_hub, 2) as hubs:
        for _ in range(3):
            async with stream(hubs[1], "room", info=ADA) as streamed:
                await hubs[0].disconnect("room")
                assert await ended(streamed) == []
        async with stream(hubs[1], "room", info=ADA):
            async with new_hub() as third:
                await present([*hubs, third], "room", ADA, count=1)
            await anyio.sleep(0.1)
            assert hubs[1].subscribers() == 1


# -- nodes that end --------------------------------------------------------------------------------


async def test_a_node_that_is_closed(new_hub: NewHub) -> None:
    """Its subscribers are gone, and its infos after the moment of grace: clients may come back."""
    async with new_hub(grace=1.0) as other, events_of(other, "room") as reader:
        assert await event(reader) == ("presence", [])
        async with AsyncExitStack() as stack:
            hub = await stack.enter_async_context(new_hub(grace=1.0))
            for info in (ADA, BEN):
                await stack.enter_async_context(stream(hub, "room", info=info))
            await present([other], "room", ADA, BEN, count=2)
        async with stream(other, "room", info=ADA):
            assert await other.count("room") == 1
            await present([other], "room", ADA, count=1)
            assert sorted([(await event(reader))[1]["user"] for _ in "ab"]) == ["ada", "ben"]
            assert await event(reader) == ("leave", BEN)
        assert await event(reader) == ("leave", ADA)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("reads", [True, False])
async def test_a_node_that_dies(new_hub: NewHub, reads: bool) -> None:
    """Whoever has subscribers, or reads the events, finds it dead, once."""
    async with nodes(new_hub, 3) as hubs, AsyncExitStack() as stack:
        dying, *others = hubs
        if reads:
            readers = [await stack.enter_async_context(events_of(hub, "room")) for hub in others]
            for reader in readers:
                assert await event(reader) == ("presence", [])
        async with stream(dying, "room", info=ADA), stream(dying, "room", info=BEN):
            if not reads:
                await stack.enter_async_context(stream(others[0], "room", info=ADA))
            await present(others, "room", ADA, BEN, count=2 + (not reads))
            die(dying)
            await present(others, "room", *([] if reads else [ADA]), count=int(not reads))
            if reads:
                for reader in readers:
                    seen = sorted([await event(reader) for _ in "abcd"], key=str)
                    assert seen == [("join", ADA), ("join", BEN), ("leave", ADA), ("leave", BEN)]


@pytest.mark.parametrize("alone", [True, False])
def test_a_process_that_is_killed(
    server: RedisServer, anyio_backend: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It disappears; if nobody else is there, all its keys do."""
    lease = 2.0
    monkeypatch.setattr(presence, "LEASE", lease)
    monkeypatch.setattr(presence, "HEARTBEAT", lease / 3)
    infos = [json.dumps({"user": number % 10}) for number in range(30)]
    command = [sys.executable, "-m", "tests.redis.presence_node", server.url, "sse_asgi"]
    process = subprocess.Popen(
        [*command, str(lease), *infos], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    async def main() -> None:
        async with AsyncExitStack() as stack:
            hub = await stack.enter_async_context(hub_at(server.url))
            if not alone:
                await stack.enter_async_context(stream(hub, "room", info={"user": 3}))
            there = [{"user": number} for number in range(10)]
            await present([hub], "room", *there, count=30 + (not alone))
            process.kill()
            await present([hub], "room", *([] if alone else [there[3]]), count=int(not alone))
            await until(lambda: len(stored(server)) == (0 if alone else 5))

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stdout.read()
        anyio.run(main, backend=anyio_backend)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("short")
def test_a_process_that_was_stopped_comes_back(server: RedisServer, anyio_backend: str) -> None:
    """As after a long pause: it says again who is there."""
    command = [sys.executable, "-m", "tests.redis.presence_node", server.url, "sse_asgi", "1"]
    process = subprocess.Popen([*command, json.dumps(ADA)], stdout=subprocess.PIPE, text=True)

    async def main() -> None:
        async with hub_at(server.url) as hub, stream(hub, "room"):
            async with events_of(hub, "room") as reader:
                assert await event(reader) == ("presence", [ADA])
                process.send_signal(signal.SIGSTOP)
                assert await event(reader) == ("leave", ADA)
                await present([hub], "room", count=1)
                process.send_signal(signal.SIGCONT)
                assert await event(reader) == ("join", ADA)
                await present([hub], "room", ADA, count=2)

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        anyio.run(main, backend=anyio_backend)
    finally:
        process.kill()
        process.communicate()


async def test_no_key_outlives_those_who_were_there(server: RedisServer) -> None:
    """When the last one has left, all are gone at once."""
    async with hub_at(server.url) as hub, hub_at(server.url) as other:
        async with AsyncExitStack() as stack:
            for number in range(20):
                for node in (hub, other):
                    opened = stream(node, f"room/{number}", "all", info=number)
                    await stack.enter_async_context(opened)
            reader = await stack.enter_async_context(events_of(hub, "all"))
            await event(reader)
            assert stored(server)
        await until(lambda: not stored(server))
        log: Any = hub._log
        await until(lambda: not log.presence._shards)
        await other.disconnect("all")
        assert 0 < server.command("PTTL", "sse_asgi:{0}:messages") <= 60_000


async def test_all_keys_expire(server: RedisServer) -> None:
    """Also those of nodes that die."""
    async with hub_at(server.url) as hub, stream(hub, "room", info=ADA), events_of(hub, "room"):
        await until(lambda: len(stored(server)) == 5)
        for key in stored(server):
            assert 0 < server.command("PTTL", key) <= 30_000


# -- what it costs ---------------------------------------------------------------------------------


async def test_a_hub_without_presence_asks_nothing_more(server: RedisServer) -> None:
    async with Hub(RedisLog(server.url)) as hub, stream(hub, "room", info=object()):
        await anyio.sleep(0.2)
        clients = server.command("CLIENT", "LIST")
        assert clients.count("cmd=xread") == 1
        calls = server.calls("evalsha") + server.calls("eval")
        assert calls <= 3
        assert not stored(server)
        assert not stored(server, "messages")


async def test_at_rest_a_node_says_that_it_lives(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each shard, however many there are."""
    monkeypatch.setattr(presence, "HEARTBEAT", 0.2)
    async with hub_at(server.url, shards=2) as hub, anyio.create_task_group() as tasks:
        for number in range(300):
            subscription = hub.subscribe(f"room/{number % 10}", info=number)
            tasks.start_soon(anext, subscription)
        await until(lambda: hub.subscribers() == 300 and settled(hub))
        await anyio.sleep(0.5)
        before, began = server.calls("evalsha"), time.monotonic()
        await anyio.sleep(2)
        beats = 2 * ((time.monotonic() - began) / 0.2 + 1)
        assert 2 <= server.calls("evalsha") - before <= beats
        tasks.cancel_scope.cancel()


async def test_those_who_come_at_once_are_told_together(server: RedisServer) -> None:
    async with hub_at(server.url) as hub, hub_at(server.url) as other:
        async with anyio.create_task_group() as tasks, events_of(other, "room") as reader:
            assert await event(reader) == ("presence", [])
            before = server.calls("evalsha")

            async def follow(number: int) -> None:
                async for _ in hub.subscribe("room", info=number):
                    pass

            for number in range(3000):
                tasks.start_soon(follow, number)
            there: set[int] = set()

            async def until(count: int, expected: str) -> None:
                nonlocal there
                while len(there) != count:
                    kind, value = await event(reader)
                    if kind == "presence":
                        there = set(value)
                    else:
                        assert kind == expected
                        (there.add if kind == "join" else there.discard)(value)

            await until(3000, "join")
            assert server.calls("evalsha") - before < 200
            await other.disconnect("room")
            await until(0, "leave")


# -- Redis fails -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_redis_loses_everything(server: RedisServer, how: str) -> None:
    """The nodes say it again; nobody is told that anybody has left."""
    async with nodes(lambda: hub_at(server.url), 2) as hubs:
        here, there = hubs
        async with stream(here, "room", info=ADA), stream(there, "room", info=BEN):
            async with events_of(here, "room") as reader:
                _, value = await event(reader)
                while len(value) < 2:
                    value.append((await event(reader))[1])
                await anyio.sleep(1.5)  # until all is complete
                for _ in range(2):
                    if how == "flushed":
                        server.command("FLUSHALL")
                    else:
                        await anyio.to_thread.run_sync(server.kill)
                        await anyio.to_thread.run_sync(server.start)
                    await present(hubs, "room", ADA, BEN, count=2)
                    await anyio.sleep(1.5)
                async with stream(there, "room", info="new"):
                    assert await event(reader) == ("join", "new")
                assert await event(reader) == ("leave", "new")
                await here.disconnect("room")
                await until(lambda: not there.subscribers())


#: Removes an info without a word, and tells of something else, two changes later.
LOSE = """
local members, changes = KEYS[1], KEYS[2]
local info = 'room\\31' .. ARGV[1]
redis.call('ZREMRANGEBYLEX', members, '[' .. info .. '\\31', '(' .. info .. ' ')
local newest = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1][1]
local generation, offset = string.match(newest, '(%d+)-(%d+)')
redis.call('XADD', changes, generation .. '-' .. (offset + 2),
  'kind', 'join', 'topic', 'other', 'info', '1')
"""


async def test_changes_that_were_missed_are_found(server: RedisServer) -> None:
    """More came at once than the stream of changes has."""
    async with nodes(lambda: hub_at(server.url, shards=1), 2) as hubs:
        here, there = hubs
        async with stream(there, "room", info=ADA):
            await present(hubs, "room", ADA, count=1)
            async with events_of(here, "room") as reader:
                assert await event(reader) == ("presence", [ADA])
                (members,), (changes,) = (
                    stored(server, f"presence:{name}") for name in ("members", "changes")
                )
                for number in range(3):
                    async with stream(there, "room", info=number):
                        assert await event(reader) == ("join", number)
                        server.command("EVAL", LOSE, "2", members, changes, str(number))
                        assert await event(reader) == ("leave", number)


@pytest.mark.parametrize("moment", get_args(Moment))
async def test_a_connection_is_cut(server: RedisServer, moment: Moment) -> None:
    """Whatever is sent again is done once."""
    with FaultyProxy(server.port) as proxy:
        async with hub_at(proxy.url) as hub, hub_at(server.url) as other:
            async with events_of(other, "room") as reader, AsyncExitStack() as stack:
                assert await event(reader) == ("presence", [])
                for number in range(3):
                    proxy.cut_at("evalsha", moment)
                    await stack.enter_async_context(stream(hub, "room", info=number))
                    assert await event(reader) == ("join", number)
                assert await other.count("room") == 3
                proxy.cut_at("broadcast", moment)
                await hub.disconnect("room", 1)
                assert await event(reader) == ("leave", 1)
                assert await other.count("room") == 2


async def test_redis_is_away(server: RedisServer) -> None:
    """Calls fail after a bounded time; streams go on, and all is told afterwards."""
    with FaultyProxy(server.port) as proxy:
        async with hub_at(proxy.url, timeout=1.0) as hub, hub_at(server.url) as other:
            async with stream(hub, "room", info=ADA) as streamed:
                await present([other], "room", ADA, count=1)
                proxy.silence()
                for ask in (hub.presence, hub.count, hub.disconnect):
                    with pytest.raises(HubError):
                        await ask("room")
                assert hub.subscribers() == 1
                subscription = hub.subscribe("room", info=BEN)
                begun = anyio.Event()

                async def read() -> None:
                    await anext(subscription)
                    begun.set()

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    await anyio.sleep(0.5)
                    proxy.resume()
                    proxy.cut()
                    await present([hub, other], "room", ADA, BEN, count=2)
                    while not begun.is_set():  # who is present may begin a little later
                        await hub.publish("room", "x")
                        await anyio.sleep(0.1)
                assert (await streamed.receive()).data == "x"
                subscription.close()


async def test_a_hub_is_closed_while_redis_is_away(server: RedisServer) -> None:
    with FaultyProxy(server.port) as proxy:
        async with hub_at(proxy.url, timeout=5.0) as hub, stream(hub, "room", info=ADA):
            await until(lambda: settled(hub))
            proxy.silence()
            began = time.monotonic()
        assert time.monotonic() - began < SOON
        proxy.resume()


async def test_cancelled_calls(new_hub: NewHub) -> None:
    """In the middle of each await: it goes on as if they had not been made."""
    async with nodes(new_hub, 2) as hubs:
        async with stream(hubs[0], "room", info=ADA), stream(hubs[1], "room", info=BEN):
            for steps in range(25):
                for ask in (hubs[0].presence, hubs[0].count):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(ask, "room")
                        for _ in range(steps):
                            await checkpoint()
                        tasks.cancel_scope.cancel()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(hubs[0].disconnect, "elsewhere")
                    for _ in range(steps):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
            await present(hubs, "room", ADA, BEN, count=2)


async def test_the_hub_is_closed_meanwhile(new_hub: NewHub) -> None:
    """Whoever waits is told, and nothing is left."""
    for steps in range(0, 40, 3):
        async with new_hub(grace=0.1) as other:
            async with anyio.create_task_group() as tasks:
                hub = new_hub()
                await hub.__aenter__()

                async def ask(what: Callable[[str], Awaitable[object]]) -> None:
                    try:
                        await what("room")
                    except HubClosedError:
                        pass

                async def follow(hub: Hub = hub) -> None:
                    try:
                        async for _ in hub.subscribe("room", info=ADA):
                            pass
                    except HubClosedError:
                        pass

                events = hub.presence_events("room")

                async def read(events: PresenceEvents = events) -> None:
                    async for _ in events:
                        pass

                for what in (hub.presence, hub.count, hub.disconnect):
                    tasks.start_soon(ask, what)
                tasks.start_soon(follow)
                tasks.start_soon(read)
                for _ in range(steps):
                    await checkpoint()
                await hub.__aexit__(None, None, None)
            await present([other], "room", count=0)
