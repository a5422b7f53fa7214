"""What an event, and an import, may cost: counts, so that a busy machine changes nothing.

Steps are calls of Python functions in the package: what is not one is done in C.
"""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from json import JSONEncoder
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import sse_asgi
from sse_asgi import ServerSentEvent, sse_app
from sse_asgi.encoder import encode

from .at_once import Cycle
from .imported import imported_by_the_package
from .streams import http_scope

PACKAGE = str(Path(sse_asgi.__file__).parent)

LINES = "\n".join(["a line"] * 10)


def steps(function: Callable[[], object]) -> list[str]:
    """What ``function`` calls in the package, in order; coroutines at each step."""
    called: list[str] = []

    def note(frame: FrameType, what: str, _: object) -> None:
        if what == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return called


@pytest.mark.parametrize(
    ("event", "at_most"),
    [
        ("text", 1),
        (b"data: text\n\n", 1),
        (LINES, 2),
        ({"data": "text"}, 2),
        ({"data": "text", "event": "tick"}, 1),
        ({"data": "text", "event": "tick", "id": "1"}, 4),
        ({"data": LINES}, 3),
        ({"data": LINES, "event": "tick"}, 2),
        ({"data": {"a": [1]}}, 5),
        (ServerSentEvent("text"), 2),
        (ServerSentEvent("text", event="tick"), 3),
    ],
    ids=repr,
)
def test_steps_to_a_frame(event: Any, at_most: int) -> None:
    called = steps(lambda: encode(event))
    assert called[0] == "encode"  # so they are seen
    assert len(called) <= at_most, called


def test_steps_to_an_event() -> None:
    called = steps(lambda: ServerSentEvent("text", event="tick", id="1"))
    assert called[0] == "__init__"
    assert len(called) <= 4, called


def test_json_needs_no_encoder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("made one")

    monkeypatch.setattr(JSONEncoder, "__init__", refuse)
    assert encode({"data": {"a": 1}}) == b'data: {"a":1}\n\n'


@pytest.mark.parametrize("kind", ["str", "dict", "ServerSentEvent", "retry"])
def test_data_is_copied_twice(kind: str) -> None:
    """Into the frame, and then as bytes. With a retry, which few events have, once more."""
    data = "x" * 2**20
    kinds: dict[str, Any] = {
        "str": data,
        "dict": {"data": data, "event": "tick", "id": "1"},
        "retry": {"data": data, "event": "tick", "id": "1", "retry": 1},
        "ServerSentEvent": ServerSentEvent(data, event="tick"),
    }
    event = kinds[kind]
    tracemalloc.start()
    try:
        encode(event)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    copies = 3 if kind == "retry" else 2
    assert copies - 0.1 < peak / len(data) < copies + 0.1


@pytest.mark.parametrize(("event", "at_most"), [("text", 2), ({"data": "text", "event": "e"}, 4)])
def test_steps_of_an_event_of_a_stream_that_never_waits(event: Any, at_most: int) -> None:
    """All that the library does for one more event."""

    def stream(count: int) -> list[str]:
        async def source() -> AsyncIterator[Any]:
            for _ in range(count):
                yield event

        cycle = Cycle()
        called = steps(
            lambda: asyncio.run(sse_app(source)(http_scope(), cycle.receive, cycle.send))
        )
        assert called.count("encode") == count
        return called

    stream(10)  # what is made at the first use
    more = len(stream(2_000)) - len(stream(1_000))
    assert more <= at_most * 1_000


#: What the package itself may import that asyncio and anyio have not loaded: a server has it
#: already, or it is small.
MAY_IMPORT = {"bisect", "hashlib", "http", "json", "queue", "random"}


def test_importing_loads_little() -> None:
    before = "import asyncio, anyio.from_thread, anyio.to_thread, anyio.lowlevel"
    imported = imported_by_the_package("import sse_asgi, sse_asgi.hub", before=before)
    assert {"json", "random"} <= imported <= MAY_IMPORT  # so they are seen


def test_what_is_imported_is_seen() -> None:
    """Also within a function; and what others import is theirs."""
    code = "import csv; from sse_asgi.models import parse_json; parse_json('[1]', list[int])"
    imported = imported_by_the_package(code)
    assert {"json", "pydantic"} <= imported
    assert not imported & {"csv", "pydantic_core"}
