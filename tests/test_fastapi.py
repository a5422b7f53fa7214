"""FastAPI: responses from path operations, dependencies, typed events, and the OpenAPI document.

How the streams live and end is tested in test_supervisor.py, through this entry point too.
"""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import anyio
import fastapi.sse
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from openapi_spec_validator import OpenAPIV31SpecValidator, OpenAPIV32SpecValidator
from pydantic import BaseModel, Field

import sse_asgi
from sse_asgi import HTTPError, Shutdown, sse_app
from sse_asgi.fastapi import (
    EventSourceResponse,
    JSONServerSentEvent,
    LastEventId,
    ServerSentEvent,
    sse_responses,
)
from sse_asgi.hub import Hub
from sse_asgi.testing import connect

from .streams import Recorder

pytestmark = pytest.mark.anyio


class Part(BaseModel):
    name: str


class Item(BaseModel):
    number: int
    part: Part = Field(alias="PART", default=Part(name="p"))
    children: list[Item] = []


class Usage(BaseModel):
    tokens: int


# -- the id that a client comes back with ----------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/", {}, None),
        ("/", {"Last-Event-ID": "5"}, "5"),
        ("/?last_event_id=6", {}, "6"),
        ("/?last_event_id=6", {"Last-Event-ID": "5"}, "5"),
        ("/?last_event_id=6", {"Last-Event-ID": ""}, "6"),
        ("/?last_event_id=", {}, None),
        ("/", {"Last-Event-ID": "h\u00e4\u2603"}, "h\u00e4\u2603"),
        ("/", {"Last-Event-ID": "x" * 5000}, "x" * 5000),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_last_event_id(path: str, headers: dict[str, str], expected: str | None) -> None:
    app = FastAPI()

    @app.get("/", response_class=EventSourceResponse)
    async def stream(last_event_id: LastEventId) -> EventSourceResponse:
        return EventSourceResponse([{"data": {"id": last_event_id}}])

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    async with connect(app, path, headers=raw) as events:
        assert json.loads((await events.receive()).data) == {"id": expected}


async def test_last_event_id_with_a_hub() -> None:
    app, hub = FastAPI(), Hub()

    @app.get("/{topic}", response_class=EventSourceResponse)
    async def news(topic: str, last_event_id: LastEventId) -> EventSourceResponse:
        return EventSourceResponse(hub.subscribe(topic, last_event_id=last_event_id))

    ids = [await hub.publish("news", str(number)) for number in range(3)]
    async with connect(app, "/news", headers={"Last-Event-ID": ids[0]}) as events:
        assert [(await events.receive()).data for _ in range(2)] == ["1", "2"]


def test_last_event_id_is_in_the_document() -> None:
    app = FastAPI()

    @app.get("/")
    def nothing(last_event_id: LastEventId) -> None: ...

    OpenAPIV31SpecValidator(app.openapi()).validate()
    parameters = app.openapi()["paths"]["/"]["get"]["parameters"]
    assert {(p["name"], p["in"], p["required"]) for p in parameters} == {
        ("Last-Event-ID", "header", False),
        ("last_event_id", "query", False),
    }


# -- events ----------------------------------------------------------------------------------------


def app_of(*events: Any, **options: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/", response_class=EventSourceResponse)
    async def stream() -> EventSourceResponse:
        return EventSourceResponse(list(events), **options)

    return app


ITEM = '{"number":1,"PART":{"name":"p"},"children":[]}'


@pytest.mark.parametrize(
    "event",
    [
        ServerSentEvent[Item](Item(number=1)),
        sse_asgi.ServerSentEvent[Item](Item(number=1)),
        JSONServerSentEvent(Item(number=1)),
        {"data": Item(number=1)},
        fastapi.sse.ServerSentEvent(data=Item(number=1)),
    ],
)
async def test_pydantic_models_as_data(event: Any) -> None:
    for app in (app_of(event), sse_app(lambda: [event])):
        async with connect(app) as stream:
            assert (await stream.receive()).data == ITEM


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (fastapi.sse.ServerSentEvent(data="text"), '"text"'),
        (fastapi.sse.ServerSentEvent(data={"a": [1]}), '{"a":[1]}'),
        (fastapi.sse.ServerSentEvent(data=0), "0"),
        (fastapi.sse.ServerSentEvent(raw_data="two\nlines"), "two\nlines"),
        (fastapi.sse.ServerSentEvent(raw_data=""), ""),
    ],
)
async def test_events_of_fastapi(event: Any, data: str) -> None:
    event = event.model_copy(update={"event": "e", "id": "7", "retry": 50, "comment": "c"})
    for app in (app_of(event), sse_app(lambda: [event])):
        async with connect(app) as stream:
            received = await stream.receive()
            assert (received.data, received.event, received.id) == (data, "e", "7")
            assert stream.reconnection_time == 50
            assert stream.comments == ["c"]


async def test_an_event_of_fastapi_without_data() -> None:
    async with connect(app_of(fastapi.sse.ServerSentEvent(comment="c"), "a")) as stream:
        assert (await stream.receive()).data == "a"
        assert stream.comments == ["c"]


# -- path operations and their dependencies --------------------------------------------------------


class Pool:
    """Connections to a database, of which there are few."""

    def __init__(self, size: int) -> None:
        self.free = size

    async def connection(self) -> AsyncIterator[Pool]:
        if not self.free:
            raise HTTPException(503, "the pool is exhausted")
        self.free -= 1
        try:
            yield self
        finally:
            self.free += 1


def app_with_pool(pool: Pool, recorder: Recorder, shutdown: Shutdown) -> FastAPI:
    app = FastAPI()

    @app.get("/request", dependencies=[Depends(pool.connection)])
    async def request_scope() -> EventSourceResponse:
        return EventSourceResponse(recorder.source("a", cleanup=0.01), shutdown=shutdown)

    @app.get("/function", dependencies=[Depends(pool.connection, scope="function")])
    async def function_scope() -> EventSourceResponse:
        return EventSourceResponse(recorder.source("a"), shutdown=shutdown)

    @app.get("/within")
    async def within() -> EventSourceResponse:
        async def source() -> AsyncIterator[str]:
            async for _ in pool.connection():
                found = "a"
            yield found
            await anyio.sleep_forever()

        return EventSourceResponse(source(), shutdown=shutdown)

    return app


@pytest.mark.parametrize("end", ["disconnect", "shutdown"])
async def test_a_dependency_of_the_request_lives_as_long_as_the_stream(end: str) -> None:
    pool, recorder, shutdown = Pool(1), Recorder(), Shutdown()
    app = app_with_pool(pool, recorder, shutdown)
    async with connect(app, "/request") as stream:
        await stream.receive()
        assert pool.free == 0
        async with connect(app, "/request") as another:
            assert another.status_code == 503
        if end == "shutdown":
            shutdown.drain()
            await stream.read()
    assert recorder.closed
    assert pool.free == 1


@pytest.mark.parametrize("path", ["/function", "/within"])
async def test_a_pool_that_is_not_pinned(path: str) -> None:
    pool = Pool(1)
    app = app_with_pool(pool, Recorder(), Shutdown())
    async with connect(app, path) as first, connect(app, path) as second:
        assert (await first.receive()).data == (await second.receive()).data == "a"
        assert pool.free == 1


def user(request: Request) -> str:
    if "authorization" not in request.headers:
        raise HTTPException(401, "who are you?")
    return request.headers["authorization"]


async def test_a_dependency_may_refuse_the_stream() -> None:
    app = FastAPI()

    @app.get("/")
    async def stream(name: Annotated[str, Depends(user)]) -> EventSourceResponse:
        return EventSourceResponse([name])

    async with connect(app) as refused:
        assert refused.status_code == 401
    async with connect(app, headers={"Authorization": "me"}) as accepted:
        assert (await accepted.receive()).data == "me"


async def test_an_exception_before_the_start_reaches_the_handlers_of_fastapi() -> None:
    app = FastAPI()

    @app.get("/")
    async def stream() -> EventSourceResponse:
        async def source() -> AsyncIterator[str]:
            await anyio.sleep(0.01)
            raise HTTPError(404, "no such item")
            yield "never"

        return EventSourceResponse(source(), defer_start=True)

    async with connect(app) as answer:
        assert answer.status_code == 404
        assert await answer.read() == b'{"detail":"no such item"}'


async def test_a_sync_path_operation_and_a_sync_generator_and_background_tasks() -> None:
    app, ran = FastAPI(), list[str]()

    @app.post("/")
    def stream(item: Item, tasks: fastapi.BackgroundTasks) -> EventSourceResponse:
        def source() -> Iterator[ServerSentEvent[int]]:
            yield ServerSentEvent(item.number)

        tasks.add_task(ran.append, "after")
        return EventSourceResponse(source())

    async with connect(
        app, method="POST", body=b'{"number": 3}', headers={"Content-Type": "application/json"}
    ) as answer:
        assert (await answer.receive()).data == "3"
        await answer.read()
        await answer.disconnect()
    assert ran == ["after"]


async def test_a_mounted_app_and_a_middleware() -> None:
    recorder = Recorder()
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.mount("/clock", sse_app(lambda request: recorder.source(request.path)))
    async with connect(app, "/clock/", headers={"Origin": "http://a.example"}) as stream:
        assert (await stream.receive()).data == "/clock/"
        assert stream.headers["access-control-allow-origin"] == "*"
    assert recorder.closed


# -- OpenAPI ---------------------------------------------------------------------------------------


def document(path: str, responses: Any, **options: Any) -> tuple[Any, Any]:
    """The media type of a stream in the document of an application, and all of the document."""
    app, router = FastAPI(), APIRouter()

    @router.get(path, response_class=EventSourceResponse, responses=responses, **options)
    async def stream() -> Response:
        return EventSourceResponse([])

    @router.post("/items")
    async def create(item: Item) -> Item:
        return item

    app.include_router(router, prefix="/api")
    openapi = app.openapi()
    content = openapi["paths"][f"/api{path}"]["get"]["responses"]["200"]["content"]
    assert list(content) == ["text/event-stream"]
    return content["text/event-stream"], openapi


def resolved(schema: Any, openapi: Any, depth: int = 8) -> Any:
    """The schema with what it refers to in place, as deep as needed."""
    if isinstance(schema, list):
        return [resolved(item, openapi, depth) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        _, _, name = schema["$ref"].rpartition("/")
        target = openapi["components"]["schemas"][name]
        return resolved(target, openapi, depth - 1) if depth else name
    return {key: resolved(value, openapi, depth) for key, value in schema.items()}


@pytest.mark.parametrize("data", [Item, ServerSentEvent[Item], sse_asgi.ServerSentEvent[Item]])
async def test_the_events_of_a_stream_are_in_the_document(data: Any) -> None:
    media_type, openapi = document("/a", sse_responses(data))
    event = resolved(media_type["itemSchema"], openapi)
    content = event["properties"]["data"].pop("contentSchema")
    assert content["title"] == "Item"
    assert set(content["properties"]) == {"number", "PART", "children"}
    assert event == {
        "title": event["title"],
        "type": "object",
        "properties": {
            "event": {"type": "string", "const": "message"},
            "data": {"type": "string", "contentMediaType": "application/json"},
            "id": {"type": "string"},
            "retry": {"type": "integer", "minimum": 0},
        },
        "required": ["data"],
    }


@pytest.mark.parametrize(
    "responses",
    [
        sse_responses(str, {"item.new": Item}, usage=Usage),
        sse_responses(str, {"usage": Usage, "item.new": Item}),
        sse_responses(ServerSentEvent[str], {"usage": Usage}, {"item.new": Item}),
    ],
)
async def test_events_are_told_apart_by_name(responses: Any) -> None:
    media_type, openapi = document("/a", responses)
    events = [event["properties"] for event in resolved(media_type["itemSchema"], openapi)["oneOf"]]
    names = [event["event"]["const"] for event in events]
    assert sorted(names) == ["item.new", "message", "usage"]
    data = {name: event["data"] for name, event in zip(names, events, strict=True)}
    assert data["message"] == {"type": "string"}
    assert data["usage"]["contentSchema"]["title"] == "Usage"
    assert data["item.new"]["contentSchema"]["title"] == "Item"


async def test_events_of_one_name_are_not_told_apart() -> None:
    media_type, openapi = document("/a", sse_responses(Item, Usage))
    events = resolved(media_type["itemSchema"], openapi)["anyOf"]
    titles = [event["properties"]["data"]["contentSchema"]["title"] for event in events]
    assert titles == ["Item", "Usage"]
    assert all(event["required"] == ["data"] for event in events)


@pytest.mark.parametrize(
    ("data", "as_text"),
    [
        (str, True),
        (Annotated[str, Field(max_length=3)], True),
        (Literal["[DONE]"], True),
        (int, False),
        (None, False),
        (list[Item], False),
        (uuid.UUID, False),
    ],
)
async def test_what_is_text_and_what_is_json(data: Any, as_text: bool) -> None:
    media_type, openapi = document("/a", sse_responses({"größe": data}))
    event = resolved(media_type["itemSchema"], openapi)
    assert event["required"] == ["event", "data"]
    assert ("contentMediaType" not in event["properties"]["data"]) is as_text


async def test_older_tools_find_a_schema() -> None:
    media_type, openapi = document("/a", sse_responses(Item, usage=Usage, item_schema=False))
    assert "itemSchema" not in media_type
    assert media_type["schema"]["type"] == "string"
    assert media_type["schema"]["contentMediaType"] == "text/event-stream"
    schema = resolved(media_type["schema"], openapi)["contentSchema"]
    names = [event["properties"]["event"]["const"] for event in schema["items"]["anyOf"]]
    assert names == ["message", "usage"]
    OpenAPIV31SpecValidator(openapi).validate()


async def test_the_document_is_valid_as_what_it_says_it_is() -> None:
    _, openapi = document("/a", sse_responses(Item, usage=Usage))
    OpenAPIV32SpecValidator({**openapi, "openapi": "3.2.0"}).validate()


async def test_other_schemas_stay_as_they_are() -> None:
    _, openapi = document("/a", sse_responses(Item, many=list[Item]))
    body = openapi["paths"]["/api/items"]["post"]["requestBody"]["content"]["application/json"]
    schema = resolved(body["schema"], openapi)
    assert (schema["type"], schema["title"]) == ("object", "Item")


async def test_types_of_one_name_do_not_meet() -> None:
    def another() -> type[BaseModel]:
        class Item(BaseModel):
            other: str

        return Item

    app = FastAPI()
    for number, model in enumerate((Item, another(), another(), Item)):
        app.add_api_route(
            f"/{number}",
            lambda: EventSourceResponse([]),
            response_class=EventSourceResponse,
            responses=sse_responses(model),
            operation_id=f"operation_{number}",
        )
    openapi = app.openapi()
    properties = []
    for number in range(4):
        content = openapi["paths"][f"/{number}"]["get"]["responses"]["200"]["content"]
        event = resolved(content["text/event-stream"]["itemSchema"], openapi)
        properties.append(list(event["properties"]["data"]["contentSchema"]["properties"]))
    assert properties == [["number", "PART", "children"], ["other"], ["other"], properties[0]]


def test_a_stream_without_events_is_refused() -> None:
    with pytest.raises(TypeError, match="at least one event"):
        sse_responses()


def test_everything_is_in_one_place() -> None:
    """A2A's SDK looks the parameter up."""
    assert "shutdown_grace_period" in inspect.signature(EventSourceResponse).parameters
