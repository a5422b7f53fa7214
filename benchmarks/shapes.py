"""The shapes of events that are measured, as data: kinds, fields and sizes.

Nothing in the library may know of one of them: a program has others. What a peer writes to send
an event of a shape is in ``expressions.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .peers.texts import MARK, TEXT

#: What fields beside the data have, in the order in which they are sent.
FIELDS: Mapping[str, Any] = MappingProxyType(
    {"comment": "from the log", "id": "1732609712345-15", "event": "price", "retry": 3000}
)

_END = MARK.decode()


def _document(size: int) -> dict[str, Any]:
    """Return a value whose compact JSON has so many bytes."""
    count = 1 + size // 256
    item = {"name": "Zoë", "price": 12.5, "count": 3, "tags": ["new", None], "sold": False}
    document = {"user": 4711, "items": [item] * count, "text": _END}
    left = size - len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())
    return {**document, "text": "x" * left + _END}


#: The data of each size. The last byte of an event's text, which the load client counts, is in
#: each of them once.
DATA: Mapping[str, Any] = MappingProxyType(
    {
        "small": "hello" + _END,
        "100 bytes": TEXT,
        "1 KiB": "x" * 1023 + _END,
        "10 lines": "\n".join(["a line of text"] * 9 + ["the last line " + _END]),
        "JSON of 200 bytes": _document(200),
        "JSON of 2 KiB": _document(2048),
    }
)


@dataclass(frozen=True)
class Shape:
    """What a program yields."""

    #: One of ``KINDS``.
    kind: str
    #: Beside the data.
    fields: tuple[str, ...]
    size: str

    @property
    def name(self) -> str:
        fields = f" ({', '.join(self.values)})" if self.kind in _WITH_FIELDS else ""
        return f"{self.kind}{fields}, {self.size}"

    @property
    def data(self) -> Any:
        return DATA[self.size]

    @property
    def is_json(self) -> bool:
        return not isinstance(self.data, str)

    @property
    def values(self) -> dict[str, Any]:
        """Return the fields, in the order in which they are sent, and the data."""
        beside = {name: FIELDS[name] for name in FIELDS if name in self.fields}
        retry = {"retry": beside.pop("retry")} if "retry" in beside else {}
        return {**beside, "data": self.data, **retry}


#: ``event``: of the class that each library has for events. It is built for each event.
STR, DICT, EVENT, BYTES = "a str", "a dict", "an event object", "bytes"
#: Of the class that FastAPI has, whoever sends it.
FASTAPI_EVENT = "FastAPI's event object"

_WITH_FIELDS = (DICT, EVENT, FASTAPI_EVENT)

#: Kinds and fields, each in all sizes of text.
_OF_TEXT: tuple[tuple[str, tuple[str, ...]], ...] = (
    (STR, ()),
    (DICT, ()),
    (DICT, ("event",)),
    (DICT, ("id",)),
    (DICT, ("id", "event")),
    (DICT, ("comment", "id", "event", "retry")),
    (EVENT, ("id", "event")),
    (FASTAPI_EVENT, ("id", "event")),
)
_OF_JSON = (
    Shape(DICT, (), "JSON of 200 bytes"),
    Shape(DICT, (), "JSON of 2 KiB"),
)

#: What is encoded, and what a stream sends.
ENCODED = (
    *(Shape(*kind, size) for kind in _OF_TEXT for size in ("small", "1 KiB", "10 lines")),
    *_OF_JSON,
    Shape(BYTES, (), "1 KiB"),
)
STREAMED = (
    *(Shape(*kind, "100 bytes") for kind in _OF_TEXT),
    *_OF_JSON,
    Shape(BYTES, (), "100 bytes"),
)

#: What is sent where it does not matter.
PLAIN = Shape(STR, (), "100 bytes")
#: What is sent where another place is what matters: what many programs send.
USUAL = Shape(DICT, ("id", "event"), "100 bytes")

BY_NAME = {shape.name: shape for shape in (*ENCODED, *STREAMED)}
