"""What Redis is asked for: that grows with nodes and topics, not with subscribers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog
from sse_asgi.testing import Connection, connect

from ..test_hub import back, receive, stream_of
from .servers import RedisServer

pytestmark = pytest.mark.anyio

EVENTS = 50


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Of which nobody else asks anything."""
    with RedisServer() as server:
        yield server


class Calls:
    """How often commands were carried out meanwhile."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        return {name: self._server.calls(name) for name in ("xread", "evalsha", "eval")}

    @property
    def xread(self) -> int:
        return self._now()["xread"] - self._before["xread"]

    @property
    def scripts(self) -> int:
        now = self._now()
        return sum(now[name] - self._before[name] for name in ("evalsha", "eval"))


@asynccontextmanager
async def subscribers(
    hub: Hub, count: int, *topics: str, last_event_id: str | None = None
) -> AsyncIterator[list[Connection]]:
    """So many streams, which all have got their first event: see `begun`."""
    streams: list[Connection] = []
    headers = {} if last_event_id is None else back(last_event_id)
    over = anyio.Event()

    async def one() -> None:
        async with connect(stream_of(hub, *topics, history=1), headers=headers) as stream:
            await receive(stream, 1)
            streams.append(stream)
            await over.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
        with anyio.fail_after(30):
            while len(streams) < count:
                await anyio.sleep(0.01)
        yield streams
        over.set()


async def publish_each(hub: Hub, streams: list[Connection], topic: str = "news") -> None:
    """Publish one event after another; each is delivered to everybody before the next."""
    for number in range(EVENTS):
        await hub.publish(topic, str(number))
        for stream in streams:
            assert await receive(stream, 1) == [str(number)]


@pytest.mark.parametrize("count", [1, 20, 200])
async def test_an_event_costs_one_read_a_node(server: RedisServer, count: int) -> None:
    """However many subscribers a node has."""
    for nodes in (1, 2):
        async with Hub(RedisLog(server.url)) as hub, Hub(RedisLog(server.url)) as other:
            await hub.publish("news", "first")
            async with subscribers(hub, count, "news") as streams:
                if nodes == 1:
                    await measure(server, hub, streams, nodes)
                else:
                    async with subscribers(other, count, "news") as more:
                        await measure(server, hub, streams + more, nodes)


async def measure(server: RedisServer, hub: Hub, streams: list[Connection], nodes: int) -> None:
    await anyio.sleep(0.1)  # until all is quiet
    calls = Calls(server)
    await publish_each(hub, streams)
    assert calls.scripts == EVENTS
    # Every few seconds one of them ends without an event.
    assert EVENTS * nodes <= calls.xread <= (EVENTS + 10) * nodes
