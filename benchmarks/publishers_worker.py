"""A process of ``publishers``: publishes for a while, and prints how many events and what it took.

It runs as a script, so that ``PYTHONPATH`` says whose package it is.
"""

from __future__ import annotations

import asyncio
import sys
import time

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog

BODY = "x" * 200

#: How many events are in a call of ``publish_many``.
MANY = 100


async def main(
    url: str, prefix: str, topics: int, publishers: int, seconds: float, call: str
) -> None:
    async with Hub(RedisLog(url, prefix=prefix)) as hub:
        ends = 0.0
        count = 0

        async def work(topic: str) -> None:
            nonlocal count
            while time.perf_counter() < ends:
                if call == "publish":
                    await hub.publish(topic, BODY)
                    count += 1
                else:
                    await hub.publish_many(topic, [BODY] * MANY)
                    count += MANY

        for topic in range(topics):
            await hub.publish(f"t{topic}", BODY)
        print("ready", flush=True)
        sys.stdin.readline()
        began, cpu = time.perf_counter(), time.process_time()
        ends = began + seconds
        await asyncio.gather(*(work(f"t{number % topics}") for number in range(publishers)))
        print(count, time.perf_counter() - began, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    _, url, prefix, topics, publishers, seconds, call = sys.argv
    asyncio.run(main(url, prefix, int(topics), int(publishers), float(seconds), call))
