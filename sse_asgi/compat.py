"""The events of sse-starlette, sent as the same bytes. All adapters share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .encoder import check_separator, encode_fields
from .encoder import encode as encode_event
from .errors import SSEError
from .event import DataT_co, check_names, data_text, json_text
from .event import ServerSentEvent as StrictEvent
from .types import HasEventFields

__all__ = ["JSONServerSentEvent", "SendTimeoutError", "ServerSentEvent", "encode", "ensure_bytes"]


class SendTimeoutError(SSEError, TimeoutError):
    """The client has not read for ``send_timeout`` seconds."""


class ServerSentEvent(StrictEvent[DataT_co]):
    r"""An event that accepts what sse-starlette's event accepts.

    It removes line breaks from ``event`` and ``id``, and NUL from ``id``;
    :class:`sse_asgi.ServerSentEvent` refuses them. Data of a type with its own ``str()`` (numbers,
    ``bool``, ``UUID``, ``datetime``, ``Enum`` ...) is sent as that text. Pydantic models,
    dataclasses, msgspec structs, ``dict``, ``list`` and ``tuple`` become JSON. A ``comment`` is
    sent as its ``str()``.

    :param data: what the event carries.
    :param event: the name of the event.
    :param id: the id of the event, which a client sends as ``Last-Event-ID`` when it reconnects.
    :param retry: the reconnection time, in milliseconds.
    :param comment: text that a browser ignores.
    :param sep: the line ending of this event, also if the stream has another: ``"\r\n"``
        (default), ``"\n"`` or ``"\r"``.
    :raises TypeError: for a field of the wrong type, or ``data`` that has no defined text.
    :raises ValueError: for a negative ``retry``, another ``sep``, or text that UTF-8 can't carry.
    """

    DEFAULT_SEPARATOR: str = "\r\n"

    _sep: str | None = None

    def __init__(
        self,
        data: DataT_co | None = None,
        *,
        event: str | None = None,
        id: str | int | None = None,  # noqa: A002 - the field's name in the standard
        retry: int | None = None,
        comment: Any = None,
        sep: str | None = None,
    ) -> None:
        text: Any = None if data is None else _text(data)
        super().__init__(
            text,
            event=_without("\r\n", event),
            id=_without("\r\n\0", id),
            retry=retry,
            comment=None if comment is None else str(comment),
        )
        if sep is not None:
            self._sep = check_separator(sep)

    def encode(self) -> bytes:
        """Return the frame of the event."""
        return encode_event(self, self._sep or self.DEFAULT_SEPARATOR)


class JSONServerSentEvent(ServerSentEvent[DataT_co]):
    """An event whose data is JSON. A ``str`` is quoted; ``None`` is no data, as in sse-starlette.

    The parameters are those of :class:`ServerSentEvent`.

    :raises TypeError: for ``data`` that has no JSON form.
    :raises ValueError: for NaN or infinity, and for what :class:`ServerSentEvent` refuses.
    """

    def __init__(
        self,
        data: DataT_co | None = None,
        *,
        event: str | None = None,
        id: str | int | None = None,  # noqa: A002 - the field's name in the standard
        retry: int | None = None,
        comment: Any = None,
        sep: str | None = None,
    ) -> None:
        text: Any = None if data is None else json_text(data)
        super().__init__(text, event=event, id=id, retry=retry, comment=comment, sep=sep)


def encode(event: Any, sep: str) -> bytes:
    """Encode an event-like, or anything else as data, as sse-starlette does.

    :raises ValueError: for ``bytes`` that do not end with a blank line, and for what
        :class:`ServerSentEvent` refuses.
    """
    if type(event) is str:
        if event[-1:] in "\r\n":  # it may look like a frame, and be data all the same
            return encode_fields(sep, event)
        return encode_event(event, sep)
    if isinstance(event, (dict, Mapping)):
        if type(event.get("data")) is str:
            try:
                return encode_event(event, sep)
            except (TypeError, ValueError):
                pass  # repaired below, or refused again
        check_names(event.keys() - {"sep"})
        return ServerSentEvent(**{**event, "sep": sep}).encode()
    if isinstance(event, ServerSentEvent):
        return event.encode()
    if isinstance(event, (bytes, StrictEvent)):
        return encode_event(event, sep)
    if isinstance(event, memoryview):
        return encode_event(bytes(event), sep)
    if isinstance(event, HasEventFields):
        return encode_event(event, sep)
    return encode_fields(sep, _text(event))


def ensure_bytes(data: Any, sep: str) -> bytes:
    r"""Encode what a stream may yield, as the function of sse-starlette with this name does.

    :param data: as for :class:`~sse_asgi.starlette.EventSourceResponse`, but ``bytes`` and
        ``memoryview`` are not checked.
    :param sep: the line ending, unless ``data`` is a :class:`ServerSentEvent`, which has its own:
        ``"\r\n"``, ``"\n"`` or ``"\r"``.
    :raises TypeError: as for :class:`ServerSentEvent`.
    :raises ValueError: as for :class:`ServerSentEvent`.
    """
    if isinstance(data, (bytes, memoryview)):
        return bytes(data)
    return encode(data, check_separator(sep))


def _text(data: Any) -> str:
    """Return ``str(data)``, as sse-starlette sends it, or JSON if that is only a ``repr``."""
    kind = type(data)
    plain: Any = object.__str__  # calls repr()
    only_repr = kind.__str__ is plain and not isinstance(data, (int, float))
    if only_repr or isinstance(data, (bytes, bytearray)) or hasattr(kind, "model_dump_json"):
        return data_text(data)
    return str(data)


def _without(characters: str, value: Any) -> Any:
    if isinstance(value, str):
        for character in characters:
            value = value.replace(character, "")
    return value
