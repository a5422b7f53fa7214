"""A process that runs a source, until it is killed: `python -m tests.redis.run_node URL LEASE`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import anyio

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog, runs


async def words() -> AsyncIterator[str]:
    for number in range(1_000_000):
        yield str(number)
        await anyio.sleep(0.01)


async def main() -> None:
    url, lease = sys.argv[1:]
    runs.LEASE = float(lease)
    async with Hub(RedisLog(url)) as hub:
        run = await hub.run("t", words())
        print("ready", flush=True)
        await run.wait()


if __name__ == "__main__":
    anyio.run(main)
