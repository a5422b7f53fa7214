"""How a hub finds a Redis that works again, if nothing says that its connections are of no use."""

from __future__ import annotations

import pytest

from sse_asgi.hub import HubError

from .faulty_proxy import FaultyProxy
from .servers import RedisServer
from .test_faults import DEADLINE, in_thread, new_hub, parse, until

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
