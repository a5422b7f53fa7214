"""A process of ``publishers``: publishes for a while, and prints how many events and what it took.

It runs as a script, so that ``PYTHONPATH`` says whose package it is.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import coredis
from coredis import PureToken

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog

BODY = "x" * 200

#: How many events are in a call of ``publish_many``.
MANY = 100

#: What a topic keeps where no hub does it.
KEPT = 1000


async def main(
    url: str, prefix: str, topics: int, publishers: int, seconds: float, call: str
) -> None:
    if call == "xadd":  # by hand, without a hub
        async with coredis.Redis.from_url(url) as client:

            async def add(topic: str) -> int:
                await client.xadd(
                    f"{prefix}{topic}",
                    {"data": BODY},
                    trim_strategy=PureToken.MAXLEN,
                    trim_operator=PureToken.APPROXIMATELY,
                    threshold=KEPT,
                )
                return 1

            await measure(add, topics, publishers, seconds)
        return
    async with Hub(RedisLog(url, prefix=prefix)) as hub:

        async def publish(topic: str) -> int:
            if call == "publish":
                await hub.publish(topic, BODY)
                return 1
            await hub.publish_many(topic, [BODY] * MANY)
            return MANY

        await measure(publish, topics, publishers, seconds)


async def measure(
    publish: Callable[[str], Awaitable[int]], topics: int, publishers: int, seconds: float
) -> None:
    """Publish for so long, from the time that a line says so.

    :param publish: returns how many events it has published.
    """
    ends = 0.0
    count = 0

    async def work(topic: str) -> None:
        nonlocal count
        while time.perf_counter() < ends:
            published = await publish(topic)
            count += published  # which others have added to meanwhile

    for topic in range(topics):
        await publish(f"t{topic}")
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu = time.perf_counter(), time.process_time()
    ends = began + seconds
    await asyncio.gather(*(work(f"t{number % topics}") for number in range(publishers)))
    print(count, time.perf_counter() - began, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    _, url, prefix, topics, publishers, seconds, call = sys.argv
    asyncio.run(main(url, prefix, int(topics), int(publishers), float(seconds), call))
