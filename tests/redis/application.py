"""An ordinary application, in memory or on Redis: nodes.py runs it on several nodes."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from sse_asgi import SSERequest, sse_app
from sse_asgi.hub import Hub, Subscription
from sse_asgi.hub.redis import RedisLog

from ..hub_model import subscribe

#: How many events a client that comes without an id gets of each topic.
HISTORY = 1000

# All that differs.
hub = Hub(RedisLog(os.environ["REDIS_URL"])) if "REDIS_URL" in os.environ else Hub()


async def publish(request: Request) -> PlainTextResponse:
    data = (await request.body()).decode()
    key = request.headers["idempotency-key"]
    return PlainTextResponse(await hub.publish(request.path_params["topic"], data, key=key))


@sse_app
async def events(request: SSERequest) -> Subscription:
    topics = request.query_params.getlist("topic")
    return subscribe(hub, topics, last_event_id=request.last_event_id, history=HISTORY)


app = Starlette(
    routes=[Route("/topics/{topic}", publish, methods=["POST"]), Route("/events", events)],
    lifespan=hub.lifespan,
)
