"""What the hub on Redis costs: the Redis server, and the processes on it.

The server is started for this, or is the one at ``SSE_ASGI_TEST_REDIS_URL``, which should have
nothing else to do. Its figures are what it says of its own processor time and memory.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import coredis

from sse_asgi import sse_app
from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog
from tests.redis.servers import any_server

from .fanout import LAST, Clients

#: What an event is, if nothing else is said.
BODY = "x" * 200


class Server:
    """The Redis server, and how busy it is."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = coredis.Redis.from_url(url)

    async def cpu(self) -> float:
        """The processor time that it has taken so far, in seconds."""
        return await self._says("used_cpu_user") + await self._says("used_cpu_sys")

    async def memory(self) -> float:
        """The bytes that it has in use."""
        return await self._says("used_memory")

    async def sent(self) -> float:
        """The bytes that it has sent."""
        return await self._says("total_net_output_bytes")

    async def _says(self, name: str) -> float:
        info: Any = await self.client.info()
        return float(info[name])

    def hub(self, prefix: str | None = None, **options: Any) -> Hub:
        return Hub(RedisLog(self.url, prefix=prefix or secrets.token_hex(4), **options))


async def many(count: int, at_once: int, do: Callable[[int], Awaitable[Any]]) -> None:
    """Do something so many times, with so many under way."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await do(number)

    await asyncio.gather(*(work() for _ in range(at_once)))


async def measured(
    server: Server, title: str, count: int, at_once: int, do: Callable[[int], Awaitable[Any]]
) -> None:
    await many(50, 1, do)
    redis, here = await server.cpu(), time.process_time()
    await many(count, at_once, do)
    here, redis = time.process_time() - here, await server.cpu() - redis
    print(f"  {title:<44} {redis / count * 1e6:8.0f} {here / count * 1e6:12.0f}")


async def publish_one(hub: Hub, size: int, _: int) -> None:
    await hub.publish(f"t{size}", "x" * size)


async def commands(server: Server) -> None:
    print("\nµs of processor time an operation                  Redis   the process")
    async with server.hub() as hub:
        for size in (200, 1000, 10_000):
            title = f"publish {size:,} bytes, one after another"
            await measured(server, title, 2000, 1, partial(publish_one, hub, size))
        title = "publish 200 bytes, 50 at once"
        await measured(server, title, 4000, 50, partial(publish_one, hub, 200))
        await measured(server, "ask where a topic ends", 2000, 1, lambda _: hub.position("t200"))
        positions = (await hub.position("t200")).split("-")
        behind = f"{positions[0]}-{int(positions[1]) - 100}"

        async def catch_up(_: int) -> None:
            subscription = hub.subscribe("t200", last_event_id=behind)
            await anext(subscription)
            subscription.close()

        await measured(server, "catch up with 100 events of 200 bytes", 1000, 1, catch_up)


async def reading(server: Server) -> None:
    """An event for a process that follows so many topics."""
    print("\nan event of 200 bytes for one more process that follows ... topics")
    print("  topics        µs of Redis   µs of the process   bytes sent")
    for topics in (1, 10, 100, 200, 1000):
        prefix = secrets.token_hex(4)
        async with server.hub(prefix) as publisher, server.hub(prefix) as node:
            redis, here, sent = await cost_of_a_reader(server, publisher, node, topics)
            print(f"  {topics:>6} {redis:18.0f} {here:19.0f} {sent:12.0f}")


async def cost_of_a_reader(
    server: Server, publisher: Hub, node: Hub, topics: int, events: int = 300
) -> tuple[float, float, float]:
    """What an event costs when it is read, beyond what it costs when it is not."""
    names = [f"t{number}" for number in range(topics)]
    arrived = asyncio.Event()

    async def listen(topic: str) -> None:
        async for _ in node.subscribe(topic):
            arrived.set()

    async def publish(*, is_read: bool) -> tuple[float, float, float]:
        redis, here, sent = await server.cpu(), time.process_time(), await server.sent()
        for number in range(events):
            arrived.clear()
            await publisher.publish(names[number % topics], BODY)
            if is_read:
                await arrived.wait()
            await asyncio.sleep(0.005)
        here = time.process_time() - here
        return await server.cpu() - redis, here, await server.sent() - sent

    for topic in names:
        await publisher.position(topic)
    unread = await publish(is_read=False)
    listening = [asyncio.ensure_future(listen(topic)) for topic in names]
    await asyncio.sleep(2)
    read = await publish(is_read=True)
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    redis, here, sent = (read[figure] - unread[figure] for figure in range(3))
    return redis / events * 1e6, here / events * 1e6, sent / events


async def memory(server: Server) -> None:
    print("\nbytes of Redis' memory")
    async with server.hub() as hub:
        before = await server.memory()
        for size in (200, 1000):
            await many(1000, 1, partial(publish_one, hub, size))
            after = await server.memory()
            print(f"  an event of {size:>5} bytes  {(after - before) / 1000:8.0f}")
            before = after
        await many(1000, 50, lambda number: hub.publish(f"topic {number}", BODY))
        after = await server.memory()
        print(f"  a topic with one of 200 {(after - before) / 1000:7.0f}")


async def latency(server: Server) -> None:
    print("\nms from publish to send, 20 events/s        p50      p99")
    for subscribers in (1, 500):
        prefix = secrets.token_hex(4)
        async with server.hub(prefix) as publisher, server.hub(prefix) as node:
            took = await delivery_times(publisher, node, subscribers)
        p50, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
        print(f"  to the last of {subscribers:>3} subscribers         {p50:8.2f} {p99:8.2f}")


async def delivery_times(publisher: Hub, node: Hub, subscribers: int) -> list[float]:
    app = sse_app(lambda: node.subscribe("t"))
    clients = Clients(subscribers)
    await clients.open(lambda: app)
    await asyncio.sleep(1)
    took: list[float] = []
    for _ in range(200):
        clients.forget()
        began = time.perf_counter()
        await publisher.publish("t", LAST)
        await clients.all_had.wait()
        took.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(0.05)
    await clients.close()
    return took


async def run(url: str) -> None:
    server = Server(url)
    async with server.client:
        await commands(server)
        await reading(server)
        await memory(server)
        await latency(server)


def main() -> None:
    with any_server() as url:
        asyncio.run(run(url))
