"""What users write, and type checkers have nothing to say about."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, assert_type

import anyio
import anyio.lowlevel
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.routing import Mount, Route
from starlette.types import ASGIApp as StarletteASGIApp

import sse_asgi.starlette
from sse_asgi import (
    CloseReport,
    HTTPError,
    JSONServerSentEvent,
    ServerSentEvent,
    Shutdown,
    SSEApp,
    SSERequest,
    sse_app,
)
from sse_asgi.client import DecodedEvent, EventSource, StateChange
from sse_asgi.fastapi import sse_responses
from sse_asgi.starlette import EventSourceResponse
from sse_asgi.testing import connect
from sse_asgi.types import ASGIApp, EventLike


class Item(BaseModel):
    name: str


# Factories.


async def strings(request: SSERequest) -> AsyncIterator[str]:
    assert_type(request.last_event_id, str | None)
    assert_type(request.shutting_down, bool)
    yield request.query_params["q"]


async def dicts() -> AsyncIterator[dict[str, Any]]:
    yield {"event": "tick", "data": 1.5}


async def dicts_of_strings() -> AsyncIterator[dict[str, str]]:
    yield {"event": "tick", "data": "1.5"}


async def events() -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent("text", event="e", id=7, retry=1000, comment="c")
    yield JSONServerSentEvent({"a": 1})


async def typed_events() -> AsyncIterator[ServerSentEvent[Item]]:
    yield ServerSentEvent(Item(name="n"))
    yield ServerSentEvent(comment="no data")


async def mixed(request: SSERequest) -> AsyncIterator[EventLike]:
    yield "text"
    yield b"data: frame\n\n"
    yield {"data": [1, 2]}
    yield ServerSentEvent(3)


async def not_annotated(request):  # type: ignore[no-untyped-def]
    yield "text"


def sync(request: SSERequest) -> Iterator[str]:
    if "q" not in request.query_params:
        raise HTTPError(400, "what do you want?", headers={"X-Why": "no q"})
    yield "text"


async def coroutine(request: SSERequest) -> AsyncIterator[dict[str, Any]]:
    await anyio.lowlevel.checkpoint()
    return dicts()


def listed() -> list[ServerSentEvent[int]]:
    return [ServerSentEvent(1)]


def on_close(report: CloseReport) -> None:
    print(report.reason.value, report.events, report.bytes, report.duration)


async def on_close_too(report: CloseReport) -> None: ...


def on_error(exc: Exception) -> ServerSentEvent[str]:
    return ServerSentEvent(str(exc), event="error")


async def on_error_too(exc: Exception) -> dict[str, str] | None:
    return {"data": str(exc)}


apps = [
    sse_app(strings),
    sse_app(dicts),
    sse_app(dicts_of_strings),
    sse_app(events),
    sse_app(typed_events),
    sse_app(mixed),
    sse_app(not_annotated),
    sse_app(sync),
    sse_app(coroutine),
    sse_app(listed),
    sse_app(lambda: ["text"]),
    sse_app(lambda request: strings(request)),
    sse_app(
        strings,
        ping=None,
        ping_message_factory=lambda: {"comment": "ping"},
        sep="\r\n",
        headers={"X-A": "1"},
        retry=1000,
        send_timeout=None,
        cleanup_timeout=2,
        shutdown=Shutdown(),
        shutdown_grace_period=1.5,
        max_lifetime=3600,
        max_connections=100,
        methods=["GET", "POST"],
        max_body=10_000,
        defer_start=True,
        on_error=on_error,
        on_close=on_close,
    ),
    sse_app(strings, on_close=on_close_too, on_error=on_error_too, headers=[(b"x-a", b"1")]),
]
assert_type(apps, list[SSEApp])


@sse_app
async def decorated(request: SSERequest) -> AsyncIterator[str]:
    yield "text"


@sse_app(ping=5, max_connections=10)
async def decorated_with_options() -> AsyncIterator[str]:
    yield "text"


assert_type(decorated, SSEApp)
assert_type(decorated_with_options, SSEApp)
decorate: Callable[[Any], SSEApp] = sse_app(ping=5)
as_asgi: ASGIApp = decorated
as_starlette: StarletteASGIApp = decorated
mounted = Starlette(routes=[Mount("/a", decorated), Route("/b", decorated)])

# Responses.


async def integers() -> AsyncIterator[int]:
    yield 1


async def sender() -> None: ...


async def left(message: Any) -> None: ...


async def endpoint(request: Request) -> EventSourceResponse:
    response = EventSourceResponse(integers(), 200, {"X-A": "1"}, ping=5, sep="\n")
    response.ping_interval = 10
    return response


async def endpoint_with_everything(request: Request) -> EventSourceResponse:
    send, receive = anyio.create_memory_object_stream[dict[str, Any]](10)
    send.close()
    return EventSourceResponse(
        receive,
        background=BackgroundTask(sender),
        ping_message_factory=lambda: sse_asgi.starlette.ServerSentEvent(comment="c"),
        data_sender_callable=sender,
        send_timeout=30,
        client_close_handler_callable=left,
        shutdown_event=anyio.Event(),
        shutdown_grace_period=5,
        cleanup_timeout=None,
        max_lifetime=60,
        on_close=on_close,
    )


routes = [Route("/", endpoint), Route("/all", endpoint_with_everything)]
api = FastAPI()


@api.get(
    "/", response_class=EventSourceResponse, responses=sse_responses(Item, {"n": int}, other=str)
)
async def operation() -> EventSourceResponse:
    return EventSourceResponse(typed_events())


async def test() -> None:
    async with connect(decorated, "/path", headers={"Last-Event-ID": "7"}) as stream:
        assert_type(stream.status_code, int)
        event = await stream.receive()
        assert_type(event.data, str)


# The client.


def fields() -> dict[str, str]:
    return {}


async def fields_async() -> list[tuple[bytes, bytes]]:
    return []


async def follow(changes: list[StateChange]) -> None:
    async with EventSource(
        "http://x/", headers={"a": "b"}, on_state_change=changes.append
    ) as source:
        async for event in source:
            assert_type(event, DecodedEvent)
            assert_type(event.json(Item), Item)
            assert_type(event.json(list[int]), list[int])
            print(event.json()["name"])
    EventSource("http://x/", headers=fields)
    EventSource("http://x/", headers=fields_async, method="POST", json=[1], retry_on={502})
