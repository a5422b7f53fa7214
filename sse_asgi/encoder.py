"""From an event-like to a frame: the bytes of one event, blank line included. Pure, no I/O.

The inverse of WHATWG HTML 9.2.6. Data is split at CRLF, CR and LF and nowhere else: those are
the line ends of an event stream, and U+2028 or a vertical tab is a character like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .event import ServerSentEvent, data_text, id_text, json_text, milliseconds, single_line, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .types import EventLike

__all__ = ["SEPARATORS", "check_separator", "encode"]

#: The line ends of an event stream (WHATWG HTML 9.2.5).
SEPARATORS = ("\n", "\r\n", "\r")

_NAMES = ("data", "event", "id", "retry", "comment")
_FIELDS = frozenset(_NAMES)
_fields_of: Callable[[object], tuple[Any, Any, Any, Any, Any]] = attrgetter(*_NAMES)


def encode(event: EventLike, sep: str = "\n") -> bytes:
    r"""Encode one event-like as a frame.

    :param event: a :class:`~sse_asgi.ServerSentEvent`, a mapping of its fields, a ``str`` (the
        data), ``bytes`` (a frame encoded already: returned untouched), or an object with the
        attributes ``data``, ``event``, ``id``, ``retry`` and ``comment``, such as FastAPI's
        ``ServerSentEvent``.
    :param sep: how lines end: ``"\n"``, ``"\r\n"`` or ``"\r"``; not checked here, since it is
        the same for a whole stream (see :func:`check_separator`).
    :raises TypeError: something that is no event-like, a mapping with an unknown key, a field
        of a wrong type.
    :raises ValueError: as for :class:`~sse_asgi.ServerSentEvent`.
    """
    if type(event) is str and "\n" not in event and "\r" not in event:
        try:  # what most streams send: no detour
            return f"data: {event}{sep}{sep}".encode()
        except UnicodeEncodeError:
            pass  # said below
    if isinstance(event, str):
        data = event if type(event) is str else text("data", event)
        return _frame(data, None, None, None, None, sep)
    if isinstance(event, bytes):
        return event
    if isinstance(event, ServerSentEvent):
        return _frame(*_fields_of(event), sep)
    if isinstance(event, dict):
        if not event.keys() <= _FIELDS:
            raise TypeError(
                f"an event has no field {_unknown(event.keys())}; its fields are "
                f"{', '.join(_NAMES)}"
            )
        get = event.get
        return _checked_frame(
            get("data"), get("event"), get("id"), get("retry"), get("comment"), sep
        )
    try:
        fields = _fields_of(event)
    except AttributeError:
        if isinstance(event, Mapping):
            return encode(dict(event), sep)
        raise TypeError(
            f"a source must yield ServerSentEvent, dict, str or bytes, not "
            f"{type(event).__name__}; to send it as data, yield ServerSentEvent(data=...)"
        ) from None
    raw_data = getattr(event, "raw_data", ...)
    if raw_data is not ...:  # FastAPI's ServerSentEvent: what is not raw is JSON, a str too
        data = raw_data if fields[0] is None else json_text(fields[0])
        return _checked_frame(data, *fields[1:], sep)
    return _checked_frame(*fields, sep)


def check_separator(sep: object) -> str:
    """``sep``, if lines of an event stream may end so; else a :class:`ValueError`."""
    if sep not in SEPARATORS:
        raise ValueError(f"sep must be one of {', '.join(map(repr, SEPARATORS))}, not {sep!r}")
    return str(sep)


def _checked_frame(data: Any, event: Any, id: Any, retry: Any, comment: Any, sep: str) -> bytes:  # noqa: A002
    """The frame of fields that nobody has checked: what ServerSentEvent does, without one."""
    return _frame(
        data if data is None or type(data) is str else data_text(data),
        event if event is None else single_line("event", event),
        id if id is None else id_text(id),
        retry if retry is None else milliseconds(retry),
        comment if comment is None else text("comment", comment),
        sep,
    )


def _frame(
    data: str | None,
    event: str | None,
    id: str | None,  # noqa: A002
    retry: int | None,
    comment: str | None,
    sep: str,
) -> bytes:
    lines = "" if comment is None else _lines(": ", comment, sep)
    if id is not None:
        lines += f"id: {id}{sep}"
    if event is not None:
        lines += f"event: {event}{sep}"
    if data is not None:
        # Nearly all data is one line: looking for line ends is far cheaper than splitting.
        if "\n" in data or "\r" in data:
            lines += _lines("data: ", data, sep)
        else:
            lines += f"data: {data}{sep}"
    if retry is not None:
        lines += f"retry: {retry}{sep}"
    try:
        return (lines + sep).encode()
    except UnicodeEncodeError:
        # Only data can come here unchecked, since encoding checks it anyway.
        text("data", data)
        raise


def _lines(prefix: str, value: str, sep: str) -> str:
    if "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    return prefix + value.replace("\n", sep + prefix) + sep


def _unknown(names: Iterable[object]) -> str:
    return ", ".join(repr(name) for name in names if name not in _FIELDS)
