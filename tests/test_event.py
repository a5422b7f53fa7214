"""What an event accepts, what it refuses, and what its data becomes."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import json
import pickle
import types
import uuid
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi import JSONServerSentEvent, ServerSentEvent, compat
from sse_asgi.encoder import encode


class Price(pydantic.BaseModel):
    amount: float = pydantic.Field(serialization_alias="a")
    at: datetime.date = datetime.date(2026, 1, 2)


@dataclasses.dataclass
class Point:
    x: int
    inner: Price | None = None


class Struct(msgspec.Struct):
    name: str


class Colour(enum.Enum):
    RED = "red"


class Level(str, enum.Enum):
    HIGH = "high"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("hello", "hello"),
        ("", ""),
        ("häß ☃ \u2028 \x0b", "häß ☃ \u2028 \x0b"),
        (b"h\xc3\xa4", "hä"),
        (bytearray(b"abc"), "abc"),
        (memoryview(b"abc"), "abc"),
        ({"a": [1, 2.5, None, True, "ä"]}, '{"a":[1,2.5,null,true,"ä"]}'),
        ([], "[]"),
        ((1, 2), "[1,2]"),
        (0, "0"),
        (False, "false"),
        (1.5, "1.5"),
        (Price(amount=2), '{"a":2.0,"at":"2026-01-02"}'),
        ({"price": Price(amount=2)}, '{"price":{"a":2.0,"at":"2026-01-02"}}'),
        (Point(1, Price(amount=3)), '{"x":1,"inner":{"a":3.0,"at":"2026-01-02"}}'),
        (Struct("n"), '{"name":"n"}'),
        ([Struct("n")], '[{"name":"n"}]'),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
        ({"when": datetime.datetime(2026, 1, 2, 3, 4)}, '{"when":"2026-01-02T03:04:00"}'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (Colour.RED, '"red"'),
        (frozenset({1}), "[1]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_becomes_text(data: object, text: str) -> None:
    assert ServerSentEvent(data).data == text


def test_a_str_enum_is_sent_as_its_value() -> None:
    assert ServerSentEvent(Level.HIGH).data == "high"
    assert type(ServerSentEvent(Level.HIGH, event=Level.HIGH, id=Level.HIGH).event) is str


@pytest.mark.parametrize(
    "data",
    [object(), {"a": object()}, Price, lambda: 1, 1j],
    ids=["object", "inside", "class", "function", "complex"],
)
def test_data_without_defined_text_is_refused_and_never_repr(data: object) -> None:
    with pytest.raises(TypeError, match="no defined text"):
        ServerSentEvent(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_nan_is_not_json(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        ServerSentEvent(value)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ValueError, match="data is not UTF-8"):
        ServerSentEvent(b"\xff")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"event": "a\nb"}, "event must not contain CR or LF"),
        ({"event": "a\rb"}, "event must not contain CR or LF"),
        ({"id": "a\nb"}, "id must not contain CR or LF"),
        ({"id": "1\r\n2"}, "id must not contain CR or LF"),
        ({"id": "a\0b"}, "id must not contain NUL"),
        ({"retry": -1}, "retry must not be negative"),
        ({"data": "\ud800"}, "data has a lone surrogate"),
        ({"event": "\ud800"}, "event has a lone surrogate"),
        ({"id": "\ud800"}, "id has a lone surrogate"),
        ({"comment": "\ud800"}, "comment has a lone surrogate"),
    ],
    ids=repr,
)
def test_fields_that_would_change_their_meaning_are_refused(
    fields: dict[str, Any], error: str
) -> None:
    """Regression 18: django-eventstream#185, fastapi#15187, flask-sse#40."""
    with pytest.raises(ValueError, match=error):
        ServerSentEvent(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"event": 1},
        {"event": b"x"},
        {"id": 1.5},
        {"id": True},
        {"id": b"x"},
        {"retry": "5"},
        {"retry": 1.5},
        {"retry": True},
        {"comment": 1},
    ],
    ids=repr,
)
def test_fields_of_a_wrong_type_are_refused(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(TypeError, match=f"^{name} must be"):
        ServerSentEvent(**fields)


def test_an_event_is_immutable_comparable_and_hashable() -> None:
    event: ServerSentEvent = ServerSentEvent({"a": 1}, event="x", id=7, retry=0, comment="c\nd")
    assert (event.data, event.event, event.id, event.retry, event.comment) == (
        '{"a":1}',
        "x",
        "7",
        0,
        "c\nd",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.data = "other"  # type: ignore[misc]
    assert event == ServerSentEvent('{"a":1}', event="x", id="7", retry=0, comment="c\nd")
    assert len({event, ServerSentEvent("b")}) == 2
    with pytest.raises(AttributeError):
        event.other = 1  # type: ignore[attr-defined]


def test_fields_are_keyword_only_but_data() -> None:
    with pytest.raises(TypeError):
        ServerSentEvent("data", "event")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("data", "text"), [("a", '"a"'), (None, "null"), ({"a": 1}, '{"a":1}'), ("ä\n", '"ä\\n"')]
)
def test_a_json_event_is_always_json(data: object, text: str) -> None:
    event = JSONServerSentEvent(data, event="e", id=1, retry=2, comment="c")
    assert event.data == text
    assert json.loads(text) == data
    assert isinstance(event, ServerSentEvent)
    assert (event.event, event.id, event.retry, event.comment) == ("e", "1", 2, "c")


@dataclasses.dataclass
class Delta:
    delta: str


class Model(pydantic.BaseModel):
    delta: Any


class StructDelta(msgspec.Struct):
    delta: str


@pytest.mark.parametrize(
    "make",
    [
        lambda text: {"delta": text},
        lambda text: {"delta": 0, text: ["x", text]},
        lambda text: [MappingProxyType({"delta": text})],
        Delta,
        StructDelta,
        lambda text: Model(delta=text),
        lambda text: [Model(delta={text: text})],
    ],
    ids=["dict", "key", "mapping", "dataclass", "msgspec", "model", "inside"],
)
@pytest.mark.parametrize(
    "text",
    [
        "\ud83d",
        "a\udfffb",
        "\u2028",
        "\u2029",
        "\x85",
        "é\u2028☃ \ud800\x85\xa0😀",
        "\u3000é\x0b\x7f",
    ],
    ids=ascii,
)
def test_json_escapes_what_clients_stumble_over(make: Callable[[str], Any], text: str) -> None:
    """Regression 30: hermes-agent#84281, python-sdk#1356, dify#39008."""
    value = make(text)
    plain: Any = make("mark")
    mark = ServerSentEvent(plain).data
    assert mark is not None
    expected = json.loads(mark.replace('"mark"', json.dumps(text)))
    by_name: Any = {"data": value}
    frames = [
        encode(event)
        for event in (
            by_name,
            ServerSentEvent(value),
            JSONServerSentEvent(value),
            compat.ServerSentEvent(value, sep="\n"),
            compat.JSONServerSentEvent(value, sep="\n"),
        )
    ]
    frames.append(compat.encode(by_name, "\n"))
    for frame in frames:
        sent = frame.decode()
        assert len(sent.splitlines()) == 2  # which is what httpx and requests read lines with
        assert json.loads(sent.removeprefix("data: ")) == expected
        assert frame == frames[0]


@settings(deadline=None)
@given(
    st.recursive(
        st.text(st.characters())
        | st.text(st.sampled_from('a\ud83d\ude00\u2028\u2029\x85é\xa0"\\')),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    )
)
def test_json_is_what_json_dumps_means(value: Any) -> None:
    text = JSONServerSentEvent(value).data
    assert text is not None
    assert json.loads(text) == json.loads(json.dumps(value))
    assert text.encode().decode().splitlines() == [text]


def test_text_is_sent_as_it_is() -> None:
    """What is not JSON can't be escaped: nobody would take it back."""
    text = "a\u2028b\u2029c\x85d"
    for event in (text, {"data": text}, ServerSentEvent(text)):
        assert encode(event) == f"data: {text}\n\n".encode()
    for wrong in ("\ud83d", {"data": "\ud83d"}):
        with pytest.raises(ValueError, match="data has a lone surrogate at 0"):
            encode(wrong)


def test_a_model_that_fails_for_another_reason_says_so() -> None:
    class Failing(pydantic.BaseModel):
        @pydantic.field_serializer("value")
        def fail(self, value: int) -> int:
            raise ValueError("not today")

        value: int = 1

    with pytest.raises(ValueError, match="not today"):
        ServerSentEvent(Failing())


def test_a_model_gives_text() -> None:
    class Odd:
        def model_dump_json(self, by_alias: bool) -> bytes:
            return b"1"

    with pytest.raises(TypeError, match=r"model_dump_json\(\) must return a str, not b'1'"):
        ServerSentEvent(Odd())


class Tick(ServerSentEvent[int]):
    def __init__(self, number: int) -> None:
        super().__init__(number, event="tick")
        self.number = number


@pytest.mark.parametrize("event", [ServerSentEvent("a", id=7), JSONServerSentEvent([1]), Tick(3)])
def test_events_can_be_copied_and_pickled(event: ServerSentEvent) -> None:
    for copied in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event))):
        assert copied == event
        assert type(copied) is type(event)
        assert getattr(copied, "number", None) == getattr(event, "number", None)
