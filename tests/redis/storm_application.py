"""An application that runs sources, keeps presence and closes streams: see storm.py."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sse_asgi import SSERequest, sse_app
from sse_asgi.hub import Hub, HubError, Run, Subscription, TopicEndedError, TopicRunningError
from sse_asgi.hub.redis import RedisLog, presence, runs

from ..hub_model import subscribe
from .application import HISTORY

#: For how many seconds a runner, or a node, is not taken for dead.
LEASE = float(os.environ.get("LEASE", "15"))

#: The data of the final event of a topic that is published to.
END = "end"

#: The name of the last event of a stream that is closed.
KICKED = "kicked"

# A command fails sooner than Redis comes back, sometimes.
runs.LEASE = presence.LEASE = LEASE
presence.HEARTBEAT = LEASE / 3
hub = Hub(
    RedisLog(os.environ.get("REDIS_URL", "redis://localhost"), timeout=LEASE / 10),
    presence=True,
    presence_grace=0.0,
)

_tasks: set[asyncio.Task[None]] = set()


async def publish(request: Request) -> Response:
    topic, data = request.path_params["topic"], (await request.body()).decode()
    key = request.headers["idempotency-key"]
    return PlainTextResponse(await hub.publish(topic, data, key=key, final=key == END))


async def numbers(topic: str, count: int | None, pause: float) -> AsyncIterator[str]:
    for number in itertools.count():
        if number == count:
            return
        yield f"{topic} {number}"
        await asyncio.sleep(pause)


async def begin(request: Request) -> Response:
    """Begin a run, and say in which process it is."""
    topic, query = request.path_params["topic"], request.query_params
    count = int(query["count"]) if "count" in query else None
    run = await hub.run(topic, numbers(query["says"], count, float(query["pause"])))
    task = asyncio.create_task(report(run))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return PlainTextResponse(str(os.getpid()))


async def report(run: Run) -> None:
    print(f"\nrun {run.topic} {await run.wait()} in {os.getpid()}", flush=True)


async def stop(request: Request) -> Response:
    return PlainTextResponse(str(await hub.stop(request.path_params["topic"])))


async def disconnect(request: Request) -> Response:
    """Close streams on all nodes."""
    query = request.query_params
    info = {"client": int(query["client"])} if "client" in query else None
    last = {"event": KICKED, "data": "by disconnect"} if "last" in query else None
    await hub.disconnect(query.get("topic"), info, last)
    return PlainTextResponse("")


async def kick(request: Request) -> Response:
    """Close some streams of this process."""
    rest = int(request.query_params["rest"])

    def is_meant(subscription: Subscription) -> bool:
        client: int = subscription.info["client"]
        return client % 4 == rest

    return PlainTextResponse(str(hub.kick(is_meant, last={"event": KICKED, "data": "by kick"})))


async def present(request: Request) -> Response:
    topic = request.path_params["topic"]
    infos = await hub.presence(topic)
    clients = sorted(info["client"] for info in infos)
    return JSONResponse({"clients": clients, "count": await hub.count(topic)})


@sse_app
async def events(request: SSERequest) -> Subscription:
    query = request.query_params
    return subscribe(
        hub,
        query.getlist("topic"),
        last_event_id=request.last_event_id,
        history=HISTORY,
        info={"client": int(query["client"])},
    )


async def refused(request: Request, error: Exception) -> Response:
    return PlainTextResponse(json.dumps(str(error)), 409)


async def failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(json.dumps(str(error)), 503)


async def watch() -> None:
    """Say when this process could not do anything for so long that leases may end."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.1)
        if time.monotonic() - began > LEASE / 4:
            print(f"\nstalled {os.getpid()}", flush=True)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
    watching = asyncio.create_task(watch())
    try:
        async with hub:
            yield
    finally:
        watching.cancel()


app = Starlette(
    routes=[
        Route("/topics/{topic}", publish, methods=["POST"]),
        Route("/runs/{topic}", begin, methods=["POST"]),
        Route("/runs/{topic}", stop, methods=["DELETE"]),
        Route("/presence/{topic}", present),
        Route("/disconnect", disconnect, methods=["POST"]),
        Route("/kick", kick, methods=["POST"]),
        Route("/events", events),
    ],
    exception_handlers={TopicEndedError: refused, TopicRunningError: refused, HubError: failed},
    lifespan=lifespan,
)
