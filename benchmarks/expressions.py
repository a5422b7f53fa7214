"""What a program writes for an event of a shape, with each peer: an expression in Python.

It is made from the fields of the shape, so a peer is measured with what one would write by hand
for just these fields.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .shapes import BYTES, DICT, EVENT, FASTAPI_EVENT, STR, Shape


class InexpressibleError(Exception):
    """The peer can't send an event of the shape; says why."""


@dataclass(frozen=True)
class Code:
    """An expression for the event, and one for its frame, with the names in them."""

    event: str
    frame: str
    names: Mapping[str, Any]

    def builder(self) -> Callable[[], Any]:
        """Return a function that builds an event."""
        function: Callable[[], Any] = eval(f"lambda: {self.event}", dict(self.names))
        return function


def code_of(peer: str, shape: Shape, package: str = "sse_asgi") -> Code:
    """Return what is written with a peer.

    :param package: what this library is imported as.
    :raises InexpressibleError: it can't send such an event.
    """
    return _sse_asgi(shape, package) if peer == "sse_asgi" else _CODES[peer](shape)


def check(peer: str, shape: Shape) -> None:
    """:raises InexpressibleError: the peer can't send an event of the shape."""
    if peer == "better_sse":
        better_sse_event(shape)
    else:
        code_of(peer, shape)


def frame_of(shape: Shape) -> bytes:
    """Return the bytes that are sent."""
    code = _raw(Shape(DICT, shape.fields, shape.size))
    frame: bytes = eval(code.frame, dict(code.names))
    return frame


def _names(shape: Shape, **more: Any) -> dict[str, Any]:
    frame = {"frame": frame_of(shape)} if shape.kind == BYTES else {}
    return {**shape.values, **frame, **more}


def _arguments(shape: Shape, data: str = "data") -> str:
    """Return ``data, id=id`` for a shape with an id."""
    return ", ".join([data, *(f"{name}={name}" for name in shape.values if name != "data")])


def _dict(shape: Shape) -> str:
    """Return ``{'id': id, 'data': data}`` for a shape with an id."""
    return f"{{{', '.join(f'{name!r}: {name}' for name in shape.values)}}}"


def _lines(data: str) -> str:
    """Join the lines of data, as one writes it who knows that there may be several."""
    return data.replace("\n", "\ndata: ") if "\n" in data else data


#: Made once, as one does who knows that ``json.dumps`` makes one at each call.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _raw(shape: Shape) -> Code:
    if shape.kind == BYTES:
        return Code("frame", "frame", _names(shape))
    parts = {name: f"{name}: {{{name}}}\n" for name in shape.values}
    parts["data"] = f"data: {{{'to_json' if shape.is_json else 'lines'}(data)}}\n"
    if "comment" in parts:
        parts["comment"] = ": {comment}\n"
    frame = f"f{''.join([*parts.values(), chr(10)])!r}.encode()"
    return Code(frame, frame, _names(shape, lines=_lines, to_json=_to_json))


def _sse_asgi(shape: Shape, package: str) -> Code:
    encode = importlib.import_module(f"{package}.encoder").encode
    names = _names(shape, encode=encode)
    event = {STR: "data", DICT: _dict(shape), BYTES: "frame"}.get(shape.kind)
    if shape.kind == EVENT:
        names["ServerSentEvent"] = importlib.import_module(f"{package}.event").ServerSentEvent
        event = f"ServerSentEvent({_arguments(shape)})"
    elif shape.kind == FASTAPI_EVENT:
        names["ServerSentEvent"] = importlib.import_module("fastapi.sse").ServerSentEvent
        event = f"ServerSentEvent({_arguments(shape, 'raw_data=data')})"
    return Code(str(event), f"encode({event})", names)


def _sse_starlette(shape: Shape) -> Code:
    module = importlib.import_module("sse_starlette.event")
    names = _names(
        shape,
        encode=module.ensure_bytes,
        ServerSentEvent=module.ServerSentEvent,
        JSONServerSentEvent=module.JSONServerSentEvent,
    )
    if shape.is_json:
        event = f"JSONServerSentEvent({_arguments(shape)})"
    elif shape.kind == FASTAPI_EVENT:
        raise InexpressibleError("sends str() of other objects")
    else:
        event = {
            STR: "data",
            DICT: _dict(shape),
            EVENT: f"ServerSentEvent({_arguments(shape)})",
            BYTES: "frame",
        }[shape.kind]
    return Code(event, f"encode({event}, '\\r\\n')", names)


def _fastapi_sse(shape: Shape) -> Code:
    module = importlib.import_module("fastapi.sse")
    to_plain = importlib.import_module("fastapi.encoders").jsonable_encoder

    def encode(event: Any) -> bytes:  # a function within a function of FastAPI's does this
        data = event.raw_data
        if data is None:
            data = json.dumps(to_plain(event.data))
        frame: bytes = module.format_sse_event(
            data_str=data,
            event=event.event,
            id=event.id,
            retry=event.retry,
            comment=event.comment,
        )
        return frame

    if shape.kind == BYTES:
        raise InexpressibleError("writes JSON of what is no event object")
    names = _names(
        shape,
        encode=encode,
        format_sse_event=module.format_sse_event,
        ServerSentEvent=module.ServerSentEvent,
    )
    event = (
        f"ServerSentEvent({_arguments(shape, 'data=data' if shape.is_json else 'raw_data=data')})"
    )
    # It has nothing for text but its event object, and one function that takes the fields.
    by_fields = shape.kind in (STR, DICT) and not shape.is_json
    frame = f"format_sse_event({_arguments(shape, 'data_str=data')})"
    return Code(event, frame if by_fields else f"encode({event})", names)


def _litestar(shape: Shape) -> Code:
    if shape.is_json:
        raise InexpressibleError("writes no JSON")
    if shape.kind == BYTES:
        raise InexpressibleError("sends bytes as data")
    if shape.kind == FASTAPI_EVENT:
        raise InexpressibleError("sends str() of other objects")
    message = importlib.import_module("litestar.response.sse").ServerSentEventMessage
    names = _names(shape, ServerSentEventMessage=message)
    built = f"ServerSentEventMessage({_arguments(shape)})"
    event = {STR: "data", DICT: _dict(shape)}.get(shape.kind, built)
    frame = f"ServerSentEventMessage(**{event})" if shape.kind == DICT else built
    return Code(event, f"{frame}.encode()", names)


_CODES: Mapping[str, Callable[[Shape], Code]] = {
    "raw": _raw,
    "sse_starlette": _sse_starlette,
    "fastapi_sse": _fastapi_sse,
    "litestar": _litestar,
}


def better_sse_event(shape: Shape) -> dict[str, Any]:
    """Return the arguments of a call in JavaScript.

    :raises InexpressibleError: it can't send such an event.
    """
    if shape.kind not in (STR, DICT):
        raise InexpressibleError("has no event objects and no frames, but a call with the fields")
    if {"comment", "retry"} & {*shape.fields}:
        raise InexpressibleError("sends a comment and a retry apart from events")
    return {**shape.values, "json": shape.is_json}
