"""Event streams in FastAPI: the response for Starlette, and its part of the OpenAPI document."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_args, get_origin
from weakref import WeakValueDictionary

try:
    from fastapi import Depends, Header, Query, Request
    from pydantic import ConfigDict, create_model
    from pydantic_core import core_schema
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"{__name__} needs FastAPI: pip install fastapi", name=_error.name
    ) from _error

from .event import ServerSentEvent as AnyServerSentEvent
from .request import SSERequest
from .starlette import EventSourceResponse, JSONServerSentEvent, SendTimeoutError, ServerSentEvent

if TYPE_CHECKING:
    from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

__all__ = [
    "EventSourceResponse",
    "JSONServerSentEvent",
    "LastEventId",
    "SendTimeoutError",
    "ServerSentEvent",
    "sse_responses",
]


def _last_event_id(
    request: Request,
    header: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="The id of the last event that was received."),
    ] = None,
    query: Annotated[
        str | None,
        Query(alias="last_event_id", description="The same, for clients that can't set a header."),
    ] = None,
) -> str | None:
    # The two are declared for the OpenAPI document. FastAPI reads header fields as Latin-1.
    return SSERequest(request.scope).last_event_id


#: For a parameter of a path operation: the id of the last event that the client has seen (WHATWG
#: HTML 9.2.4). It comes from the header ``Last-Event-ID``, and else from the query parameter
#: ``last_event_id``; ``None``: there is none.
LastEventId: TypeAlias = Annotated[str | None, Depends(_last_event_id)]


def sse_responses(
    *events: Any, item_schema: bool = True, **named_events: Any
) -> dict[int | str, dict[str, Any]]:
    """Describe an event stream, for the ``responses`` of a path operation or a router.

    ::

        @app.get(
            "/answers",
            response_class=EventSourceResponse,
            responses=sse_responses(Token, usage=Usage),
        )

    :param events: the type that the data of an event without a name is made from: a Pydantic
        model, any type that Pydantic has a schema for, or ``ServerSentEvent[Model]``. ``str`` is
        text; any other type is JSON. A mapping of names to types describes named events.
    :param named_events: more named events: the type for each name.
    :param item_schema: add ``itemSchema``, which describes each item of a stream since OpenAPI
        3.2, to the ``schema`` that all tools know. The documents of FastAPI say 3.1, so a
        validator may complain unless ``app.openapi_version`` is set to ``"3.2.0"``.
    :raises TypeError: if no event is given.
    :raises pydantic.errors.PydanticSchemaGenerationError: for a type that Pydantic has no schema
        for.
    """
    by_name = list(_by_name(*events, named_events))
    if not by_name:
        raise TypeError("sse_responses() needs the type of at least one event")
    models = [_event_model(name, data) for name, data in by_name]
    content: dict[str, Any] = {"schema": {"type": "string"}}
    if item_schema:
        references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
        told_apart = len(dict(by_name)) == len(by_name)
        content["itemSchema"] = {"oneOf" if told_apart else "anyOf": references}
        if len(models) == 1:
            content["itemSchema"] = references[0]
    return {
        200: {
            "description": "A stream of server-sent events",
            # From "model" FastAPI learns of our models, and puts them into the components.
            "model": Annotated[str, _AsStream(models)],
            "content": {"text/event-stream": content},
        }
    }


def _by_name(*events: Any) -> Iterator[tuple[str, Any]]:
    for event in events:
        if isinstance(event, Mapping):
            yield from event.items()
        else:
            yield "message", event  # what a browser calls an event without a name


#: The models in use. FastAPI renames models that have the same name, and then a reference by name
#: would lead nowhere. So each name is given once.
_event_models: WeakValueDictionary[tuple[str, Any], type[BaseModel]] = WeakValueDictionary()


def _event_model(event: str, data: Any) -> type[BaseModel]:
    """Return a model whose JSON schema is that of an event (OpenAPI 3.2, 4.14.4)."""
    origin = get_origin(data)
    if isinstance(origin, type) and issubclass(origin, AnyServerSentEvent):
        (data,) = get_args(data)
    if (model := _event_models.get((event, data))) is not None:
        return model

    def describe(schema: JsonSchemaValue) -> None:
        content = schema["properties"]["data"]
        content.pop("title", None)
        as_text = content.get("type") == "string" and "format" not in content
        as_json = {"contentMediaType": "application/json", "contentSchema": content}
        schema["properties"] = {
            "event": {"type": "string", "const": event},
            "data": content if as_text else {"type": "string", **as_json},
            "id": {"type": "string"},
            "retry": {"type": "integer", "minimum": 0},
        }
        schema["required"] = ["data"] if event == "message" else ["event", "data"]

    taken = {model.__name__ for model in _event_models.values()}
    name = re.sub(
        r"[^a-zA-Z0-9]+", "_", f"ServerSentEvent_{event}_{getattr(data, '__name__', data)}"
    )
    if name in taken:
        name = next(f"{name}_{n}" for n in itertools.count(2) if f"{name}_{n}" not in taken)
    model = create_model(name, __config__=ConfigDict(json_schema_extra=describe), data=(data, ...))
    _event_models[event, data] = model
    return model


class _AsStream:
    """An annotation: the JSON schema of a text that is a stream of events."""

    def __init__(self, models: list[type[BaseModel]]) -> None:
        self.models = models

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        event = core_schema.union_schema([handler.generate_schema(m) for m in self.models])
        return core_schema.list_schema(event)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "type": "string",
            "contentMediaType": "text/event-stream",
            "contentSchema": handler(schema),
        }
