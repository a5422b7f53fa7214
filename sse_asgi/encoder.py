"""Encode an event-like as a frame: the bytes of one event with its blank line. Pure, no I/O.

This is the inverse of WHATWG HTML 9.2.6. Data is split only at CRLF, CR and LF, the line ends of an
event stream. U+2028 and a vertical tab are characters like any other.
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
        data), ``bytes`` (a frame already encoded, returned unchanged), or an object with the
        attributes ``data``, ``event``, ``id``, ``retry`` and ``comment``, such as FastAPI's
        ``ServerSentEvent``.
    :param sep: the line ending: ``"\n"``, ``"\r\n"`` or ``"\r"``. It is not checked here, since it
        is the same for a whole stream (see :func:`check_separator`).
    :raises TypeError: for something that is not an event-like, a mapping with an unknown key, or a
        field of the wrong type.
    :raises ValueError: as for :class:`~sse_asgi.ServerSentEvent`.
    """
    # A short path for what most streams send. For a wrong value, _frame raises the error.
    if type(event) is str:
        lines = _folded(event, sep, "data: ") if "\n" in event or "\r" in event else event
        try:
            return f"data: {lines}{sep}{sep}".encode()
        except UnicodeEncodeError:
            return _frame(sep, event)
    if type(event) is dict and len(event) == 2:
        data, name = event.get("data"), event.get("event")
        if type(data) is str and type(name) is str and name.isprintable():
            lines = _folded(data, sep, "data: ") if "\n" in data or "\r" in data else data
            try:
                return f"event: {name}{sep}data: {lines}{sep}{sep}".encode()
            except UnicodeEncodeError:
                return _frame(sep, data, name)
    if isinstance(event, bytes):
        return event
    if isinstance(event, dict):
        try:
            return _frame(sep, **event)
        except TypeError:
            if event.keys() <= _FIELDS:
                raise
            raise TypeError(
                f"an event has no field {_unknown(event.keys())}; its fields are "
                f"{', '.join(_NAMES)}"
            ) from None
    if isinstance(event, ServerSentEvent):
        return _frame(sep, event.data, event.event, event.id, event.retry, event.comment)
    if isinstance(event, str):
        return _frame(sep, event)
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
    if raw_data is not ...:  # FastAPI's ServerSentEvent: what is not raw is JSON, even a str
        data = raw_data if fields[0] is None else json_text(fields[0])
        return _frame(sep, data, *fields[1:])
    return _frame(sep, *fields)


def check_separator(sep: object) -> str:
    """Return ``sep`` if the lines of an event stream may end with it.

    :raises ValueError: if it is not.
    """
    if sep not in SEPARATORS:
        raise ValueError(f"sep must be one of {', '.join(map(repr, SEPARATORS))}, not {sep!r}")
    return str(sep)


def _frame(
    sep: str,
    /,
    data: Any = None,
    event: Any = None,
    id: Any = None,  # noqa: A002
    retry: Any = None,
    comment: Any = None,
) -> bytes:
    """Check the fields, as ServerSentEvent does, and join them."""
    if data is not None and type(data) is not str:
        data = data_text(data)
    before = after = ""
    if event is not None:
        before = f"event: {single_line('event', event)}{sep}"
    if id is not None:
        before = f"id: {id_text(id)}{sep}{before}"
    if comment is not None:
        before = f": {_folded(text('comment', comment), sep, ': ')}{sep}{before}"
    if retry is not None:
        after = f"retry: {milliseconds(retry)}{sep}"
    if data is None:
        return f"{before}{after}{sep}".encode()
    # Nearly all data is one line, and looking for line ends is far cheaper than splitting.
    lines = _folded(data, sep, "data: ") if "\n" in data or "\r" in data else data
    try:
        return f"{before}data: {lines}{sep}{after}{sep}".encode()
    except UnicodeEncodeError:
        # Only the data was not checked before, since encoding checks it anyway.
        text("data", data)
        raise


def _folded(value: str, sep: str, prefix: str) -> str:
    """Join the lines of ``value`` by ``sep``, with ``prefix`` before each line except the first."""
    if "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    return value.replace("\n", sep + prefix)


def _unknown(names: Iterable[object]) -> str:
    return ", ".join(repr(name) for name in names if name not in _FIELDS)
