"""Event streams in FastAPI: the response of Starlette, and the stream in the OpenAPI document."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin
from weakref import WeakValueDictionary

from pydantic import ConfigDict, create_model
from pydantic_core import core_schema

from .event import ServerSentEvent as AnyServerSentEvent
from .starlette import EventSourceResponse, JSONServerSentEvent, SendTimeoutError, ServerSentEvent

if TYPE_CHECKING:
    from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

__all__ = [
    "EventSourceResponse",
    "JSONServerSentEvent",
    "SendTimeoutError",
    "ServerSentEvent",
    "sse_responses",
]


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

    :param events: what the data of an event without a name is made from: a Pydantic model, or any
        type that Pydantic has a schema for, or ``ServerSentEvent[Model]``; ``str`` is text, all
        else is JSON. A mapping gives the types of events with names.
    :param named_events: the types of events with names, too.
    :param item_schema: give ``itemSchema``, which OpenAPI has since 3.2 for the items of a stream,
        besides the ``schema`` that all tools know. FastAPI calls its documents 3.1: a validator
        may mind, unless ``app.openapi_version`` is set to ``"3.2.0"``.
    :raises TypeError: without any event.
    :raises pydantic.errors.PydanticSchemaGenerationError: a type that Pydantic has no schema for.
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
            # By way of "model" FastAPI learns of our models, and puts them into the components.
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


#: The models that are in use: FastAPI would rename two of the same name, and references by name
#: would lead nowhere.
_event_models: WeakValueDictionary[tuple[str, Any], type[BaseModel]] = WeakValueDictionary()


def _event_model(event: str, data: Any) -> type[BaseModel]:
    """A model whose JSON schema is that of an event (OpenAPI 3.2, 4.14.4)."""
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
    """A text that is a stream of events."""

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
