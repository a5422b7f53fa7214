"""An event as text, for people and for programs. Pure, no I/O."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from datetime import datetime

    from ..decoder import DecodedEvent

__all__ = ["as_json", "as_text", "printable", "value_of"]

#: What turns text around, breaks lines, or hides; not what joins letters and emoji (200C, 200D).
_UNSEEN = "\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"

#: What a server must not send to a terminal: control characters, too.
_UNPRINTABLE = re.compile(f"[\x00-\x08\x0b-\x1f{_UNSEEN}]")

_NOT_IN_JSON = re.compile(f"[{_UNSEEN}\ud800-\udfff]")

DIM, NAME, ID, END = "\x1b[2m", "\x1b[36m", "\x1b[33m", "\x1b[0m"

#: In front of further lines of an event.
INDENT = "    "


def printable(text: str) -> str:
    """Return text without what a terminal would take for a command."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def value_of(data: str) -> Any:
    """Return the value of data that is JSON; else raise :class:`ValueError`."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except RecursionError:
        raise ValueError("too deep") from None


def as_json(event: DecodedEvent, when: datetime) -> str:
    """Return one line of JSON. Data that is JSON is a value in it, and not a string."""
    try:
        data = value_of(event.data)
    except ValueError:
        data = event.data
    fields = {"time": when.isoformat(), "event": event.event, "id": event.id, "data": data}
    # JSON may escape what UTF-8 can't carry (lone surrogates), and what a terminal would obey.
    encoded = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded)


def as_text(event: DecodedEvent, when: datetime, *, pretty: bool, colours: bool) -> str:
    """Return a line with time, name, id and data; more lines if the data has more."""
    clock = f"{when:%H:%M:%S}.{when.microsecond // 1000:03}"
    name = printable(event.event)
    parts = [(DIM, clock), (NAME, name), (ID, printable(event.id))]
    if colours:
        parts = [(colour, f"{colour}{part}{END}" if part else "") for colour, part in parts]
    head = " ".join(part for _, part in parts if part)
    lines = [printable(line) for line in _data_lines(event.data, pretty=pretty)]
    return f"{head} " + f"\n{INDENT}".join(lines)


def _data_lines(data: str, *, pretty: bool) -> list[str]:
    if pretty or "\n" in data:
        try:
            value = value_of(data)
            indent = 2 if pretty and isinstance(value, (dict, list)) and value else None
            data = json.dumps(value, ensure_ascii=False, indent=indent)
        except ValueError:
            pass
        else:
            if indent:
                data = f"\n{data}"
            data = data.encode("utf-8", "backslashreplace").decode()  # lone surrogates
    return data.split("\n")
