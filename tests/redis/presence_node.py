"""A process with subscriptions, for somebody to kill.

python -m tests.redis.presence_node URL PREFIX LEASE INFO...
"""

from __future__ import annotations

import json
import sys

import anyio

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog, presence


async def main(url: str, prefix: str, infos: list[str]) -> None:
    async with (
        Hub(RedisLog(url, prefix=prefix), presence=True, presence_grace=0) as hub,
        anyio.create_task_group() as tasks,
    ):
        for info in infos:
            tasks.start_soon(anext, hub.subscribe("room", info=json.loads(info)))
        while await hub.count("room") < len(infos) or presence_is_due(hub):
            await anyio.sleep(0.01)
        print("ready", flush=True)
        await anyio.sleep_forever()


def presence_is_due(hub: Hub) -> bool:
    """Whether Redis does not know everything."""
    log = hub._log
    assert isinstance(log, RedisLog)
    return any(shard.is_due for shard in log.presence._shards.values())


if __name__ == "__main__":
    presence.LEASE = float(sys.argv[3])
    presence.HEARTBEAT = presence.LEASE / 3
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[4:])
