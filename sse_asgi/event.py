"""An event of an event stream: checked when it is built, and immutable from then on.

WHATWG HTML 9.2.5 defines the fields. A value that could not be sent without changing its meaning
is refused here, where the mistake was made. Nothing repairs it later.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import TypeVar

    # The default is Any, so that nobody has to write ServerSentEvent[Any].
    DataT_co = TypeVar("DataT_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    DataT_co = TypeVar("DataT_co", covariant=True)

__all__ = ["JSONServerSentEvent", "ServerSentEvent"]

#: The names of the fields, which may also be the keys of a ``dict``.
FIELDS = ("data", "event", "id", "retry", "comment")


@dataclasses.dataclass(frozen=True, init=False)
class ServerSentEvent(Generic[DataT_co]):
    """One event, as the browser's ``EventSource`` dispatches it.

    All fields except ``data`` are keyword-only. ``ServerSentEvent[Model]`` tells a type checker
    what the data is made from.

    :param data: the data field. A ``str`` is sent unchanged, with one ``data:`` line for each of
        its lines. ``bytes`` are decoded as UTF-8. Pydantic models, dataclasses, msgspec structs,
        ``dict``, ``list``, ``tuple``, numbers and ``bool`` become JSON, in which lone surrogates,
        U+0085, U+2028 and U+2029 are escaped. ``None``: there is no data field, so a browser
        dispatches no event.
    :param event: the event name; without one a browser uses ``message``.
    :param id: the event id, which a client sends back as ``Last-Event-ID``. An ``int`` becomes
        decimal digits; ``""`` makes the client forget the last id.
    :param retry: the reconnection time in milliseconds.
    :param comment: a comment, which clients ignore.
    :raises TypeError: for a field of the wrong type, or ``data`` that has no defined text.
    :raises ValueError: for CR or LF in ``event`` or ``id``, NUL in ``id``, a negative ``retry``,
        text that UTF-8 can't carry (lone surrogates, except in JSON), ``bytes`` that are not
        UTF-8, NaN or infinity.

    After construction ``data`` is the text that will be sent, or ``None``.
    """

    data: str | None = None
    event: str | None = None
    id: str | None = None
    retry: int | None = None
    comment: str | None = None

    def __init__(
        self,
        data: DataT_co | None = None,
        *,
        event: str | None = None,
        id: str | int | None = None,  # noqa: A002 - the field's name in the standard
        retry: int | None = None,
        comment: str | None = None,
    ) -> None:
        # This goes past the frozen __setattr__. Slots would need a call for each field, which costs
        # as much as all the checks. The encoder reads the fields from here, too.
        fields = self.__dict__
        if data is not None:
            fields["data"] = data_text(data)
        if event is not None:
            fields["event"] = single_line("event", event)
        if id is not None:
            fields["id"] = id_text(id)
        if retry is not None:
            fields["retry"] = milliseconds(retry)
        if comment is not None:
            fields["comment"] = text("comment", comment)


class JSONServerSentEvent(ServerSentEvent[DataT_co]):
    """An event whose data is always JSON. A ``str`` is quoted, and ``None`` becomes ``null``.

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
        comment: str | None = None,
    ) -> None:
        as_json: Any = json_text(data)
        super().__init__(as_json, event=event, id=id, retry=retry, comment=comment)


# The checks, one for each kind of field. The encoder uses them for a dict, so that an event is
# refused for the same reason and in the same words, whatever its form.


def check_names(names: Iterable[object]) -> None:
    """Refuse names that are no fields of an event."""
    unknown = ", ".join(repr(name) for name in names if name not in FIELDS)
    if unknown:
        raise TypeError(
            f"an event has no field {unknown}; its fields are {', '.join(FIELDS)}. To send a dict "
            "as data: {'data': ...}"
        )


def text(name: str, value: object) -> str:
    """Return ``value`` if it is a ``str`` that UTF-8 can carry; else raise."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}: {_short(value)}")
    if type(value) is not str:  # such as an Enum, whose str() may be its name
        value = str.__str__(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ValueError(
                f"{name} has a lone surrogate at {exc.start}, which UTF-8 can't carry: "
                f"{_short(value)}"
            ) from None
    return value


def single_line(name: str, value: object) -> str:
    """Return ``value`` if it is a ``str`` without CR and LF, which end a field; else raise."""
    if type(value) is str and value.isprintable():  # no control character, no surrogate
        return value
    value = text(name, value)
    if "\n" in value or "\r" in value:
        raise ValueError(f"{name} must not contain CR or LF: {_short(value)}")
    return value


def id_text(value: object) -> str:
    """Return ``value`` as an event id; raise if it can't be one."""
    if type(value) is str and value.isprintable():  # no control character, no surrogate
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(int(value))
    value = single_line("id", value)
    if "\0" in value:  # a client ignores such an id (WHATWG HTML 9.2.6)
        raise ValueError(f"id must not contain NUL: {_short(value)}")
    return value


def milliseconds(value: object) -> int:
    """Return ``value`` if it can be a reconnection time; else raise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"retry must be an int (milliseconds), not {type(value).__name__}: {_short(value)}"
        )
    if value < 0:
        raise ValueError(f"retry must not be negative: {value}")
    return int(value)


def data_text(value: object) -> str:
    """Return ``value`` as the text of a data field."""
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, str):
        return text("data", value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError as exc:
            raise ValueError(f"data is not UTF-8: {exc}") from None
    return json_text(value)


def json_text(value: object) -> str:
    """Return ``value`` as compact JSON. It escapes only the characters that clients stumble over.

    :func:`json.loads` makes the same of it as of what :func:`json.dumps` makes.
    """
    # A model's own serializer knows its custom types, so it comes first. It uses aliases, as the
    # model's JSON schema and the responses of FastAPI do.
    if (dump := getattr(value, "model_dump_json", None)) is not None and not isinstance(
        value, type
    ):
        try:
            encoded = dump(by_alias=True)
        except ValueError as exc:
            if not _is_about_surrogates(exc):
                raise
            value = _plain(value)
        else:
            if not isinstance(encoded, str):
                raise TypeError(f"model_dump_json() must return a str, not {_short(encoded)}")
            return _escaped(encoded)
    try:
        return _escaped(_to_json(value))
    except ValueError as exc:
        raise ValueError(f"data can't be JSON: {exc}") from None


#: UTF-8 can't carry lone surrogates. The others end a line for :meth:`str.splitlines`, and so for
#: clients that read lines with it, such as those of httpx and requests. JSON text has them only
#: within a string, where they may be escaped (RFC 8259, 7).
_STUMBLES = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def _escaped(encoded: str) -> str:
    """Return JSON text without the characters that clients stumble over."""
    if encoded.isascii() or encoded.isprintable():
        return encoded
    try:
        encoded.encode()
    except UnicodeEncodeError:
        pass
    else:  # far faster than the pattern
        if not ("\u2028" in encoded or "\u2029" in encoded or "\x85" in encoded):
            return encoded
    return _STUMBLES.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded)


def _is_about_surrogates(error: ValueError) -> bool:
    """Return whether Pydantic has failed because its JSON has no form for lone surrogates."""
    return "surrogates not allowed" in str(error)


def _plain(value: object) -> object:
    """Return something that :mod:`json` can encode in place of ``value``; never a ``repr``."""
    # Imported here: the imports take long, and few values need them.
    from datetime import date, datetime, time
    from decimal import Decimal
    from uuid import UUID

    kind = type(value)
    if isinstance(value, type):
        pass
    elif (dump := getattr(value, "model_dump", None)) is not None:
        try:
            return dump(mode="json", by_alias=True)
        except ValueError as exc:
            if not _is_about_surrogates(exc):
                raise
            return dump(by_alias=True)  # one is in a key
    elif dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(kind, "__struct_fields__"):
        import msgspec  # installed, since the value is one of its structs

        return msgspec.to_builtins(value)
    elif isinstance(value, (datetime, date, time)):
        return value.isoformat()
    elif isinstance(value, (UUID, Decimal)):
        return str(value)
    elif isinstance(value, Enum):
        return value.value
    elif isinstance(value, Mapping):
        return dict(value)
    elif isinstance(value, (set, frozenset)):
        return list(value)
    elif hasattr(kind, "__await__"):
        raise TypeError(f"data can't be a {kind.__name__}: await it first: {_short(value)}")
    raise TypeError(
        f"data of type {kind.__name__} has no defined text: give a str, bytes, or something "
        f"that JSON has a form for, not {_short(value)}"
    )


# Made once: json.dumps() makes an encoder at each call. NaN and infinity are not JSON, and
# JSON.parse() in the browser would throw.
_to_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
).encode


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
