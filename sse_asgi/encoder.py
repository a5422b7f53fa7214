"""Encode an event-like as a frame: the bytes of one event with its blank line. Pure, no I/O.

This is the inverse of WHATWG HTML 9.2.6. Data is split only at CRLF, CR and LF, the line ends of an
event stream. U+2028 and a vertical tab are characters like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .event import (
    FIELDS,
    JSONServerSentEvent,
    ServerSentEvent,
    check_names,
    data_text,
    id_text,
    json_text,
    milliseconds,
    single_line,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .types import EventLike

__all__ = ["SEPARATORS", "check_separator", "encode", "encode_fields", "encode_ping"]

#: The line ends of an event stream (WHATWG HTML 9.2.5).
SEPARATORS = ("\n", "\r\n", "\r")

#: How bytes may end that end with a blank line, which any two line ends make: CRLF is one of them.
_BLANK_LINE = (b"\n\n", b"\n\r\n", b"\r\r", b"\n\r", b"\r\r\n")
#: A blank line and nothing else, or no frame at all, such as ``b"".join([])``.
_NOTHING = (b"", b"\n", b"\r\n", b"\r")

#: How a str may begin and end that may be a frame already.
_FIELD = ("data:", "event:", "id:", "retry:", ":")
_BLANK_LINE_OF_STR = tuple(ending.decode() for ending in _BLANK_LINE)
#: A line of a frame; and one that says something to a client.
_LINE = re.compile(r"(?:data|event|id|retry)?:")
_SAYS_SOMETHING = re.compile(r"(?:data|event|id|retry): ?[^ ]")

_FIELDS = frozenset(FIELDS)
_fields_of: Callable[[object], tuple[Any, Any, Any, Any, Any]] = attrgetter(*FIELDS)


def encode(event: EventLike, sep: str = "\n") -> bytes:
    r"""Encode one event-like as a frame.

    :param event: a :class:`~sse_asgi.ServerSentEvent`, a mapping of its fields, a ``str`` (the
        data), ``bytes`` (whole frames already encoded, returned unchanged), or an object with the
        attributes ``data``, ``event``, ``id``, ``retry`` and ``comment``, such as FastAPI's
        ``ServerSentEvent``.
    :param sep: the line ending: ``"\n"``, ``"\r\n"`` or ``"\r"``. It is not checked here, since it
        is the same for a whole stream (see :func:`check_separator`).
    :raises TypeError: for something that is not an event-like, a mapping with an unknown key, or a
        field of the wrong type.
    :raises ValueError: as for :class:`~sse_asgi.ServerSentEvent`; for ``bytes`` that do not end
        with a blank line; for a ``str`` that is a frame already, such as ``"data: text\n\n"``.
    """
    # What most streams send is encoded here. An f-string for each form, since joining parts of text
    # costs more, as calls do. Errors are for encode_fields to raise, which looks at each field.
    kind: Any = type(event)
    fields: Any
    data: Any
    if kind is str:
        data = event
        if "\n" in data or "\r" in data:
            if data[-1] in "\r\n":  # few do, and to look is cheap
                _refuse_frame(data)
            data = _folded(data, "data: ")
        frame = f"data: {data}\n\n"
        try:
            return (frame if sep == "\n" else frame.replace("\n", sep)).encode()
        except UnicodeEncodeError:
            return encode_fields(sep, event)
    if kind is dict or kind is ServerSentEvent or kind is JSONServerSentEvent:
        fields = event if kind is dict else vars(event)
        data, name, id_ = fields.get("data"), fields.get("event"), fields.get("id")
        if type(data) is str and (
            kind is not dict  # an event was checked when it was built
            or (
                (name is None or (type(name) is str and name.isprintable()))
                and (id_ is None or type(id_) is int or (type(id_) is str and id_.isprintable()))
            )
        ):
            lines = _folded(data, "data: ") if "\n" in data or "\r" in data else data
            if id_ is None:
                if name is None:
                    known, frame = 1, f"data: {lines}\n\n"
                else:
                    known, frame = 2, f"event: {name}\ndata: {lines}\n\n"
            elif name is None:
                known, frame = 2, f"id: {id_}\ndata: {lines}\n\n"
            else:
                known, frame = 3, f"id: {id_}\nevent: {name}\ndata: {lines}\n\n"
            if len(fields) == known or (frame := _with_others(frame, fields, known)):
                try:
                    return (frame if sep == "\n" else frame.replace("\n", sep)).encode()
                except UnicodeEncodeError:
                    pass
        if fields.keys() <= _FIELDS:
            return encode_fields(sep, **fields)
    if isinstance(event, bytes):
        if event.endswith(_BLANK_LINE) or event in _NOTHING:
            return event
        raise ValueError(
            "bytes must be whole frames, which end with a blank line: yield a str to send data, "
            f"and relay(chunks) to pass on the bytes of another stream; not {_end_of(event)}"
        )
    return _encode_other(event, sep)


def encode_ping(event: Any, sep: str, encode_event: Callable[[Any, str], bytes] = encode) -> bytes:
    r"""Encode what ``ping_message_factory`` returns.

    ``bytes`` may also be comment lines without a blank line, such as ``b":\n"``: they are no event,
    and need not end one.

    :param encode_event: encodes an event-like with a separator.
    :raises TypeError: as for :func:`encode`.
    :raises ValueError: as for :func:`encode`; for a ``str`` that is a comment line, where
        ``encode_event`` is :func:`encode`.
    """
    # For bytes, unlike str, splitlines() knows the standard's line ends: CRLF, LF and CR.
    if (
        isinstance(event, bytes)
        and event.endswith((b"\n", b"\r"))
        and all(line[:1] == b":" for line in event.splitlines())
    ):
        return event
    if encode_event is encode and isinstance(event, str) and event[:1] == ":":
        raise ValueError(
            f"a ping that is a str is sent as data: return {event.encode()!r:.80} or "
            f"a dict with a comment, not {event!r:.80}"
        )
    return encode_event(event, sep)


def check_separator(sep: object) -> str:
    r"""Return ``sep`` if the lines of an event stream may end with it.

    :param sep: ``"\r\n"``, ``"\n"`` or ``"\r"``.
    :raises ValueError: if it is not.
    """
    if sep not in SEPARATORS:
        raise ValueError(f"sep must be one of {', '.join(map(repr, SEPARATORS))}, not {sep!r}")
    return str(sep)


def encode_fields(
    sep: str,
    /,
    data: Any = None,
    event: Any = None,
    id: Any = None,  # noqa: A002
    retry: Any = None,
    comment: Any = None,
) -> bytes:
    """Check the fields of an event, as :class:`~sse_asgi.ServerSentEvent` does, and join them.

    :param sep: one of :data:`SEPARATORS`.
    :raises TypeError: for a field of the wrong type.
    :raises ValueError: as for :class:`~sse_asgi.ServerSentEvent`.
    """
    lines = before = after = ""
    if data is not None:
        if type(data) is not str:
            data = data_text(data)
        # Nearly all data is one line, and looking for line ends is far cheaper than splitting.
        lines = _folded(data, "data: ") if "\n" in data or "\r" in data else data
    if comment is not None:
        before = f": {_folded(text('comment', comment), ': ')}\n"
    if id is not None:
        before = f"{before}id: {id_text(id)}\n"
    if event is not None:
        before = f"{before}event: {single_line('event', event)}\n"
    if retry is not None:
        after = f"retry: {milliseconds(retry)}\n"
    frame = f"{before}{after}\n" if data is None else f"{before}data: {lines}\n{after}\n"
    try:
        return (frame if sep == "\n" else frame.replace("\n", sep)).encode()
    except UnicodeEncodeError:
        # Only the data was not checked before, since encoding checks it anyway.
        text("data", data)
        raise


def _with_others(frame: str, fields: Mapping[str, Any], known: int) -> str:
    """Return a frame with the fields that few events have: a comment, and the retry.

    :param known: how many of the fields the frame has.
    :returns: the frame; ``""``: :func:`encode_fields` has to look at what there is.
    """
    comment, retry = fields.get("comment"), fields.get("retry")
    if comment is not None:
        if type(comment) is not str or not comment.isprintable():
            return ""
        frame = f": {comment}\n{frame}"
        known += 1
    if retry is not None:
        if type(retry) is not int or retry < 0:
            return ""
        frame = f"{frame[:-1]}retry: {retry}\n\n"
        known += 1
    return frame if len(fields) == known else ""


def _encode_other(event: Any, sep: str) -> bytes:
    """Encode an event-like that is of no kind that most streams send: see :func:`encode`."""
    if isinstance(event, dict):
        check_names(event)
        return encode_fields(sep, **event)
    if isinstance(event, ServerSentEvent):
        return encode_fields(sep, event.data, event.event, event.id, event.retry, event.comment)
    if isinstance(event, str):
        _refuse_frame(event)
        return encode_fields(sep, event)
    try:
        fields = _fields_of(event)
    except AttributeError:
        if isinstance(event, Mapping):
            return encode(dict(event), sep)
        kind = type(event).__name__
        if hasattr(event, "__await__"):
            raise TypeError(f"an event can't be a {kind}: await it first: {event!r:.80}") from None
        raise TypeError(
            f"an event must be a ServerSentEvent, dict, str or bytes, not {kind}: {event!r:.80}; "
            "to send it as data, give ServerSentEvent(data=...)"
        ) from None
    raw_data = getattr(event, "raw_data", ...)
    if raw_data is not ...:  # FastAPI's ServerSentEvent: what is not raw is JSON, even a str
        data = raw_data if fields[0] is None else json_text(fields[0])
        return encode_fields(sep, data, *fields[1:])
    return encode_fields(sep, *fields)


def _refuse_frame(event: str) -> None:
    r"""Refuse a ``str`` that is a frame already, with a blank line at its end.

    A stream of text may well have a part that only looks like one: ``":\n\n"`` is among the most
    frequent tokens of language models. So each line must be a field or a comment, and one must be
    a field with a value.
    """
    if not (event.startswith(_FIELD) and event.endswith(_BLANK_LINE_OF_STR)):
        return
    lines = [line for line in re.split("[\r\n]+", event) if line]
    if all(map(_LINE.match, lines)) and any(map(_SAYS_SOMETHING.match, lines)):
        raise ValueError(
            "a str is sent as data, and this one is a frame already: pass it as bytes, "
            f"frame.encode(); or if it is meant as data, {{'data': ...}}: {_end_of(event)}"
        )


def _end_of(frame: str | bytes) -> str:
    shown = repr(frame)
    return shown if len(shown) <= 80 else f"{shown[:40]} ... {shown[-35:]}"


def _folded(value: str, prefix: str) -> str:
    """Return the lines of ``value``, ended by LF, with ``prefix`` before each except the first."""
    if "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    return value.replace("\n", "\n" + prefix)
