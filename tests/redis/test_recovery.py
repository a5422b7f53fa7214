"""How a hub finds a Redis that works again, if nothing says that its connections are of no use."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import coredis
import pytest

from sse_asgi.hub import HubError
from sse_asgi.hub.redis import link

from .faulty_proxy import FaultyProxy
from .servers import RedisServer
from .test_faults import DEADLINE, DURABLE, in_thread, new_hub, parse, restore, until, world

pytestmark = pytest.mark.anyio


async def test_the_server_becomes_a_replica() -> None:
    """It goes on answering, on the connection that there is. The address leads to the new primary.

    Nobody reads: Redis closes the connections that wait for events.
    """
    with RedisServer() as old, RedisServer() as new, FaultyProxy(old.port) as proxy:
        async with new_hub(proxy.url, timeout=DEADLINE) as hub:
            before = await hub.publish("t", "before")
            new.command("REPLICAOF", "127.0.0.1", old.port)
            await until(lambda: new.info("replication")["master_link_status"] == "up")
            proxy.target = new.port
            new.command("REPLICAOF", "NO", "ONE")
            old.command("REPLICAOF", "127.0.0.1", new.port)
            after = await hub.publish("t", "after")
            epoch, offset = parse(before)
            assert parse(after) == (epoch, offset + 1)


async def test_a_connection_of_a_publisher_falls_silent() -> None:
    """The first command that has no answer replaces it. There is no reader, which would, too."""
    with RedisServer() as server, FaultyProxy(server.port) as proxy:
        async with new_hub(proxy.url, timeout=2) as hub:
            await hub.publish("t", "before")
            await in_thread(proxy.strand)
            with pytest.raises(HubError, match="no answer within"):
                await hub.publish("t", "perhaps")
            await hub.publish("t", "after")


@pytest.mark.parametrize("known", ["read", "asked", "published"])
async def test_older_data_is_known_by_whoever_has_had_the_newer(known: str) -> None:
    """Whichever way an event has come, its id never gets a second meaning."""
    with RedisServer(**DURABLE) as server, FaultyProxy(server.port) as proxy:
        async with new_hub(proxy.url) as hub, new_hub(server.url) as other, world() as all_:
            one = await all_.subscribe(hub) if known == "read" else None
            await all_.publish(other, "kept")
            snapshot = await anyio.to_thread.run_sync(server.snapshot)
            lost = await all_.publish(hub if known == "published" else other, "lost")
            if one is not None:
                await one.has("lost")
            elif known == "asked":
                assert await hub.position("t") == lost
            await in_thread(proxy.refuse)
            await restore(server, snapshot)
            await in_thread(proxy.resume)
            if one is not None:
                await one.is_told()
            await all_.insist(hub, "after")
            after = all_.stored[-1].event_id
            assert parse(after)[0] != parse(lost)[0]


async def test_a_position_is_no_older_than_the_question() -> None:
    """Those who ask at the same time share an answer, unless it may have been on its way."""
    with RedisServer() as server, FaultyProxy(server.port) as proxy:
        async with (
            new_hub(proxy.url, timeout=DEADLINE) as hub,
            new_hub(server.url, timeout=DEADLINE) as other,
        ):
            first = await other.publish("t", "first")
            assert await hub.position("t") == first
            before = server.calls("evalsha")
            proxy.delay(0.5)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hub.position, "t")
                await until(lambda: server.calls("evalsha") > before)
                newest = await other.publish("t", "newest")  # while the answer is on its way
                assert await hub.position("t") == newest


async def test_what_was_in_progress_with_a_client_that_is_replaced(redis_url: str) -> None:
    """It is tried again with the next, whatever its error; and does no harm to that one."""
    clients: list[coredis.Redis[bytes]] = []

    def new_client() -> coredis.Redis[bytes]:
        clients.append(coredis.Redis.from_url(redis_url))
        return clients[-1]

    async def serve(client: Any, tasks: Any) -> None:
        pass

    replaced = anyio.Event()
    way = link.Link(new_client, timeout=DEADLINE)

    async def fails_late(error: Exception, client: Any) -> int:
        if client is clients[0]:
            await replaced.wait()
            raise error
        return clients.index(client)

    async def fails_at_once(client: Any) -> int:
        if client is clients[0]:
            raise OSError("lost")
        return clients.index(client)

    async with anyio.create_task_group() as tasks:
        await tasks.start(way.run, serve)
        late = [
            way.start(partial(fails_late, error))
            for error in (OSError("lost, too"), ValueError("of no meaning"))
        ]
        await anyio.wait_all_tasks_blocked()
        assert await way.start(fails_at_once).result() == 1
        replaced.set()
        assert [await call.result() for call in late] == [1, 1]
        assert len(clients) == 2
        tasks.cancel_scope.cancel()
