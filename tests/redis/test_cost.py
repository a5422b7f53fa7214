"""What Redis is asked for: that grows with nodes and topics, not with subscribers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog
from sse_asgi.testing import Connection, connect

from ..test_hub import back, receive, stream_of
from .servers import RedisServer

pytestmark = pytest.mark.anyio

EVENTS = 30

COMMANDS = ("xread", "evalsha")

#: What may be asked meanwhile because the time has come, and in each second that it takes.
FRUITLESS = 10


class Calls:
    """How often the server has carried out commands since this was made."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._began = time.monotonic()
        self._before = self._so_far()
        #: What may have been asked because the time had come, when :meth:`now` was called last.
        self.fruitless = 0

    def _so_far(self) -> Counter[str]:
        return Counter({name: self._server.calls(name) for name in COMMANDS})

    def now(self) -> Counter[str]:
        self.fruitless = FRUITLESS + int(time.monotonic() - self._began)
        return self._so_far() - self._before


def connected(server: RedisServer) -> list[str]:
    """All connections, but the one that asks."""
    clients: list[str] = server.command("CLIENT", "LIST").splitlines()
    return [client for client in clients if " cmd=client" not in client]


def waiting(server: RedisServer) -> list[str]:
    """Those that wait for events."""
    return [client for client in connected(server) if " cmd=xread " in client]


@asynccontextmanager
async def subscribers(
    hub: Hub, count: int, *topics: str, last_event_id: str | None = None
) -> AsyncIterator[list[Connection]]:
    """So many for each of the topics, who come at once; all have had the newest event."""
    streams: list[Connection] = []
    headers = {} if last_event_id is None else back(last_event_id)
    over = anyio.Event()

    async def subscribe(topic: str) -> None:
        async with connect(stream_of(hub, topic, history=1), headers=headers) as stream:
            await receive(stream, 1)
            streams.append(stream)
            await over.wait()

    async with anyio.create_task_group() as tasks:
        for topic in topics:
            for _ in range(count):
                tasks.start_soon(subscribe, topic)
        with anyio.fail_after(60):
            while len(streams) < count * len(topics):
                await anyio.sleep(0.01)
        await anyio.sleep(0.1)  # until those wait who read
        yield streams
        over.set()


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("count", [1, 20, 60])
async def test_an_event_is_read_once_by_each_node(
    server: RedisServer, nodes: int, count: int
) -> None:
    async with AsyncExitStack() as stack:
        hubs = [await stack.enter_async_context(Hub(RedisLog(server.url))) for _ in range(nodes)]
        await hubs[0].publish("news", "first")
        streams: list[Connection] = []
        for hub in hubs:
            streams += await stack.enter_async_context(subscribers(hub, count, "news"))
        calls = Calls(server)
        for number in range(EVENTS):
            await hubs[0].publish("news", str(number))
            for stream in streams:  # one by one: several events may be read at once
                assert await receive(stream, 1) == [str(number)]
        spent = calls.now()
    # Each node waits already before the first, and perhaps not yet again after the last.
    assert (EVENTS - 1) * nodes <= spent["xread"] <= EVENTS * nodes + calls.fruitless
    assert EVENTS <= spent["evalsha"] <= EVENTS + calls.fruitless


@pytest.mark.parametrize("count", [1, 20, 150])
async def test_who_come_at_once_share_what_they_ask(server: RedisServer, count: int) -> None:
    async with Hub(RedisLog(server.url)) as hub:
        await hub.publish("news", "first")
        calls = Calls(server)
        async with subscribers(hub, count, "news"):
            spent = calls.now()
    # Where the log ends, and what is before that; and the reader sees that nothing has happened.
    assert spent["evalsha"] <= 5
    assert spent["xread"] <= 1 + calls.fruitless


async def test_who_come_back_ask_nothing(server: RedisServer) -> None:
    """What they have missed is at hand where others are subscribed."""
    async with Hub(RedisLog(server.url)) as hub:
        first = await hub.publish("news", "first")
        async with subscribers(hub, 1, "news") as streams:
            for number in range(EVENTS):
                await hub.publish("news", str(number))
            assert await receive(streams[0], EVENTS) == list(map(str, range(EVENTS)))
            calls = Calls(server)
            async with subscribers(hub, 200, "news", last_event_id=first) as streams:
                for stream in streams:
                    assert await receive(stream, EVENTS - 1) == list(map(str, range(1, EVENTS)))
                spent = calls.now()
    assert spent["evalsha"] <= calls.fruitless
    assert spent["xread"] <= calls.fruitless


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("topics", "connections"), [(1, 1), (90, 1), (210, 3)])
async def test_connections(server: RedisServer, topics: int, count: int, connections: int) -> None:
    """One waits for events of up to 100 topics, however many subscribers these have."""
    async with Hub(RedisLog(server.url)) as hub:
        names = [f"t{number}" for number in range(topics)]
        for name in names:
            await hub.publish(name, "first")
        async with subscribers(hub, count, *names):
            with anyio.fail_after(30):
                while len(waiting(server)) < connections:
                    await anyio.sleep(0.05)
            await anyio.sleep(0.2)
            assert len(waiting(server)) == connections
            # Commands that come together, while there is none to share, open some more.
            assert len(connected(server)) <= connections + 50
