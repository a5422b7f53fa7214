"""What presence costs 10,000 streams: to come, to be there, to ask, and to go.

Each stream has an info of its own, in one topic. The server is a ``send`` that does nothing. A
Redis is started for this, or is the one at ``SSE_ASGI_TEST_REDIS_URL``.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import secrets
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from sse_asgi import sse_app
from sse_asgi.hub import Hub, MemoryLog
from sse_asgi.hub.redis import RedisLog
from tests.redis.servers import any_server

from .fanout import Clients
from .redis import Server

STREAMS, ROUNDS = 10_000, 3


def cases(url: str) -> dict[str, Callable[[], Hub]]:
    def on_redis(presence: bool) -> Hub:
        log = RedisLog(url, prefix=secrets.token_hex(4))
        return Hub(log, presence=presence, presence_grace=0)

    def in_memory(presence: bool) -> Hub:
        return Hub(MemoryLog(), presence=presence, presence_grace=0)

    return {
        "in memory": lambda: in_memory(False),
        "in memory, presence": lambda: in_memory(True),
        "on Redis": lambda: on_redis(False),
        "on Redis, presence": lambda: on_redis(True),
    }


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


async def come_and_go(
    new_hub: Callable[[], Hub], server: Server, keeps: bool, traced: bool
) -> dict[str, float]:
    """One round. If presence is kept, until another process knows of it."""
    numbers = itertools.count()
    figures: dict[str, float] = {}
    async with new_hub() as hub:

        async def all_known() -> bool:
            log: Any = hub._log
            shards = getattr(log.presence, "_shards", {}).values()
            there = hub.subscribers() == STREAMS and len(hub._registry.awaited) == STREAMS
            return there and (not keeps or not any(shard.is_due for shard in shards))

        async def all_gone() -> bool:
            log: Any = hub._log
            return hub.subscribers() == 0 and not getattr(log.presence, "_shards", {})

        app = sse_app(lambda: hub.subscribe("room", info={"user": next(numbers)}))
        clients = Clients(STREAMS)
        if traced:
            gc.collect()
            tracemalloc.start()
        here, redis = time.process_time(), await server.cpu()
        await clients.open(lambda: app)
        await until(all_known)
        figures["come, process"] = (time.process_time() - here) / STREAMS * 1e6
        figures["come, Redis"] = (await server.cpu() - redis) / STREAMS * 1e6
        if traced:
            gc.collect()
            figures["memory"] = tracemalloc.get_traced_memory()[0] / STREAMS
            tracemalloc.stop()
        if keeps:
            for name, ask in (("presence()", hub.presence), ("count()", hub.count)):
                began = time.perf_counter()
                await ask("room")
                figures[name] = (time.perf_counter() - began) * 1e3
        here, redis = time.process_time(), await server.cpu()
        await asyncio.sleep(6)
        figures["at rest, process"] = (time.process_time() - here) / 6 * 1e3
        figures["at rest, Redis"] = (await server.cpu() - redis) / 6 * 1e3
        here, redis = time.process_time(), await server.cpu()
        await clients.close()
        await until(all_gone)
        figures["go, process"] = (time.process_time() - here) / STREAMS * 1e6
        figures["go, Redis"] = (await server.cpu() - redis) / STREAMS * 1e6
    return figures


async def run(url: str) -> None:
    server = Server(url)
    async with server.client:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in cases(url)}
        for turn in range(ROUNDS + 1):
            for name, new_hub in cases(url).items():
                keeps = name.endswith("presence")
                figures = await come_and_go(new_hub, server, keeps, traced=turn == ROUNDS)
                if turn == ROUNDS:  # it is slow where memory is traced
                    figures = {"memory": figures["memory"]}
                found[name].append(figures)
    names = dict.fromkeys(figure for rounds in found.values() for each in rounds for figure in each)
    print(f"\n{STREAMS:,} streams; µs a stream, ms of a call, ms a second at rest, bytes a stream")
    print(f"  {'':<20}" + "".join(f"{name:>18}" for name in names))
    for case, rounds in found.items():
        row = f"  {case:<20}"
        for name in names:
            values = [each[name] for each in rounds if name in each]
            row += f"{statistics.median(values):18.1f}" if values else f"{'':>18}"
        print(row)


def main() -> None:
    with any_server() as url:
        asyncio.run(run(url))
