"""The events of sse-starlette, in the same bytes: without a framework, for all adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .encoder import check_separator
from .encoder import encode as encode_event
from .errors import SSEError
from .event import DataT_co, data_text, json_text
from .event import ServerSentEvent as StrictEvent
from .types import HasEventFields

__all__ = ["JSONServerSentEvent", "SendTimeoutError", "ServerSentEvent", "encode"]


class SendTimeoutError(SSEError, TimeoutError):
    """The client has not read for ``send_timeout`` seconds."""


class ServerSentEvent(StrictEvent[DataT_co]):
    r"""An event that takes what sse-starlette's takes.

    It leaves line breaks in ``event`` and ``id``, and NUL in ``id``, out, where
    :class:`sse_asgi.ServerSentEvent` refuses them. Data with a ``str()`` of its own (numbers,
    ``bool``, ``UUID``, ``datetime``, ``Enum`` ...) is sent as that; Pydantic models, dataclasses,
    msgspec structs, ``dict``, ``list`` and ``tuple`` become JSON.

    :param sep: how the lines of this event end, whatever those of the stream do: ``"\r\n"``
        (default), ``"\n"`` or ``"\r"``.
    :raises TypeError: a field of a wrong type, or ``data`` that has no defined text.
    :raises ValueError: a negative ``retry``, another ``sep``, text that UTF-8 can't carry.
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
    """An event whose data is JSON, a ``str`` too; ``None`` is no data, as in sse-starlette.

    The parameters are those of :class:`ServerSentEvent`.

    :raises TypeError: ``data`` that JSON has no form for.
    :raises ValueError: NaN or infinity, and what :class:`ServerSentEvent` refuses.
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
    """Encode what sse-starlette can: any event-like, and anything else as data."""
    if isinstance(event, ServerSentEvent):
        return event.encode()
    if type(event) is str or isinstance(event, (bytes, StrictEvent)):
        return encode_event(event, sep)
    if isinstance(event, (dict, Mapping)):
        if type(event.get("data")) is str:
            try:
                return encode_event(event, sep)
            except (TypeError, ValueError):
                pass  # repaired below, or refused again
        return ServerSentEvent(**{**event, "sep": sep}).encode()
    if isinstance(event, memoryview):
        return bytes(event)
    if isinstance(event, HasEventFields):
        return encode_event(event, sep)
    return encode_event(_text(event), sep)


def _text(data: Any) -> str:
    """``str(data)``, which is what sse-starlette sends; JSON where that is a ``repr`` only."""
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
