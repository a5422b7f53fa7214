"""The application of the picture of the dashboard: see tests/dashboard_picture.py."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from sse_asgi import Shutdown, SSERequest, sse_app
from sse_asgi.hub import Hub, HubError, Subscription
from sse_asgi.hub.redis import RedisLog
from sse_asgi.prometheus import PrometheusObserver

registry = CollectorRegistry()
observer = PrometheusObserver(registry)
hub = Hub(RedisLog(os.environ["REDIS_URL"], max_events=100, timeout=1), observer=observer)
market = Shutdown(streams_per_second=3)
chosen = random.Random(5)
numbers = itertools.count()


@sse_app(observer=observer, shutdown=market, shutdown_grace_period=4, max_lifetime=18)
async def prices() -> AsyncGenerator[dict[str, object], None]:
    """Some prices at once, twice in a second. The source fails now and then."""
    await anyio.sleep(chosen.expovariate(20))
    while chosen.random() > 0.001:
        for share in sorted(chosen.sample(range(40), k=chosen.randint(1, 20))):
            yield {"event": "price", "data": [share, round(chosen.gauss(100, 5), 2)]}
        await anyio.sleep(0.5)
    raise LookupError("there is no price")


@sse_app(observer=observer, send_timeout=15)
def orders(request: SSERequest) -> Subscription:
    """Orders as they come, of a few kilobytes each."""
    return hub.subscribe("orders", last_event_id=request.last_event_id, history=1)


@sse_app(observer=observer, ping=2)
def alerts() -> Subscription:
    """A topic that rarely has something to say."""
    return hub.subscribe("alerts", history=1)


async def words() -> AsyncGenerator[dict[str, object], None]:
    await anyio.sleep(chosen.uniform(0.1, 1))
    for number in range(chosen.randrange(20, 60)):
        yield {"data": f"word {number}"}
        await anyio.sleep(0.1)


@sse_app(observer=observer)
async def chat() -> Subscription:
    """The answer of a language model: a run, which ends its topic."""
    topic = f"answer:{next(numbers)}"
    await hub.run(topic, words())
    return hub.subscribe(topic, history=100)


async def publish(topic: str, every: float, size: int, most: int) -> None:
    """Publish events for ever, up to so many at once."""
    while True:
        await anyio.sleep(chosen.uniform(0.5, 1.5) * every)
        event = {"event": topic, "data": "x" * size}
        try:
            await hub.publish_many(topic, [event] * chosen.randint(1, most))
        except HubError:  # Redis is away
            await anyio.sleep(0.2)


async def close_market(request: Request) -> Response:
    market.drain()
    return PlainTextResponse("closed\n")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with hub, anyio.create_task_group() as tasks:
        tasks.start_soon(publish, "orders", 0.2, 3000, 3)
        tasks.start_soon(publish, "alerts", 7, 100, 1)
        yield
        tasks.cancel_scope.cancel()


app = Starlette(
    routes=[
        Route("/prices", prices),
        Route("/orders", orders),
        Route("/alerts", alerts),
        Route("/chat", chat),
        Route("/close-market", close_market, methods=["POST"]),
        Mount("/metrics", make_asgi_app(registry)),
    ],
    lifespan=lifespan,
)
