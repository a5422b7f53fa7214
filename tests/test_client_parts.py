"""The parts of the client that know no network: when to connect, what a response means."""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_asgi.client.answer import Answer, Meaning, answer_of
from sse_asgi.client.backoff import MOST, Backoff
from sse_asgi.client.gaps import gap_of
from sse_asgi.decoder import DecodedEvent, EventStreamDecoder
from sse_asgi.hub.gap import gap_frame

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STREAM = Answer(Meaning.STREAM)


# When to connect.


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        (3000, [(3, 6), (3, 9), (3, 15), (3, 27), (3, 51), (3, 63), (3, 63)]),
        (0, [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.8)]),
        (120_000, [(120, 180), (120, 180)]),
    ],
)
def test_a_delay_doubles_up_to_a_minute(retry: int, delays: list[tuple[float, float]]) -> None:
    for chance in (0.0, 1.0):
        backoff = Backoff(retry, lambda chance=chance: chance)  # type: ignore[misc]
        for delay in delays:
            assert backoff.delay() == pytest.approx(delay[int(chance)])
            backoff.failures += 1


@given(
    retry=st.integers(0, 2**53 - 1),
    failures=st.integers(0, 10**9),
    asked=st.floats(0, 10**12),
    chance=st.floats(0, 1),
)
def test_a_delay_is_never_shorter_than_was_asked(
    retry: int, failures: int, asked: float, chance: float
) -> None:
    backoff = Backoff(retry, lambda: chance)
    backoff.failures = failures
    least = max(retry / 1000, asked)
    assert least <= backoff.delay(asked) <= least + MOST


# What a response means.


@pytest.mark.parametrize(
    ("content_type", "meaning"),
    [
        ("text/event-stream", Meaning.STREAM),
        ("text/event-stream; charset=utf-8", Meaning.STREAM),
        ("text/event-stream;charset=latin-1", Meaning.STREAM),  # it is UTF-8 all the same
        (" TEXT/Event-Stream\t;x", Meaning.STREAM),
        ("text/event-streams", Meaning.WRONG_TYPE),
        # Of several, the last counts that is a type.
        ("text/event-stream, text/html", Meaning.WRONG_TYPE),
        ("text/html, text/event-stream", Meaning.STREAM),
        ("text/html; a=b,text/event-stream;c=d , nothing, */*, */, /b", Meaning.STREAM),
        ('text/event-stream; a="b, text/html"', Meaning.STREAM),
        ('text/event-stream; a="b\\", text/html', Meaning.STREAM),
        ('text/html; a="b, text/event-stream', Meaning.WRONG_TYPE),
        ("text/ event-stream", Meaning.WRONG_TYPE),
        ("text/event-stream x", Meaning.WRONG_TYPE),
        (", ,", Meaning.WRONG_TYPE),
        ("*/*", Meaning.WRONG_TYPE),
        ("text/html", Meaning.WRONG_TYPE),
        ("", Meaning.WRONG_TYPE),
        (None, Meaning.WRONG_TYPE),
    ],
)
def test_content_types(content_type: str | None, meaning: Meaning) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert answer_of(200, headers, (), NOW) == Answer(meaning)


@pytest.mark.parametrize("status", [201, 202, 205, 206, 304, 305, 400, 401, 404, 500, 502, 503])
def test_other_statuses_are_fatal(status: int) -> None:
    headers = {"content-type": "text/event-stream"}
    assert answer_of(status, headers, (), NOW) == Answer(Meaning.WRONG_STATUS)
    assert answer_of(status, headers, {status}, NOW) == Answer(Meaning.LATER)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "0"}, 0),
        ({"retry-after": " 120 "}, 120),
        ({"retry-after": "9" * 5000}, 999999999999),
        ({"retry-after": "Fri, 02 Jan 2026 03:05:05 GMT"}, 60),
        ({"retry-after": "Friday, 02-Jan-26 03:05:05 GMT"}, 60),
        ({"retry-after": "Fri Jan  2 03:05:05 2026"}, 60),
        ({"retry-after": "Thu, 01 Jan 2026 03:05:05 GMT"}, 0),
        # By the clock of the server.
        (
            {
                "retry-after": "Fri, 02 Jan 2026 03:05:05 GMT",
                "date": "Fri, 02 Jan 2026 03:05:00 GMT",
            },
            5,
        ),
    ],
)
def test_retry_after(status: int, headers: dict[str, str], wait: float) -> None:
    assert answer_of(status, headers, (), NOW) == Answer(Meaning.LATER, wait)
    # Another status is fatal, whatever it says.
    assert answer_of(500, headers, (), NOW) == Answer(Meaning.WRONG_STATUS)
    assert answer_of(500, headers, {500}, NOW) == Answer(Meaning.LATER, wait)


@pytest.mark.parametrize("value", ["", "-1", "1.5", "soon", "Fri, 99 Jan 2026 03:05:05 GMT", "٣"])
def test_a_retry_after_that_is_none(value: str) -> None:
    assert answer_of(503, {"retry-after": value}, (), NOW) == Answer(Meaning.WRONG_STATUS)


@given(
    st.sampled_from([200, 204, 429, 503]),
    st.dictionaries(st.sampled_from(["content-type", "retry-after", "date"]), st.text()),
)
def test_no_header_is_an_error(status: int, headers: dict[str, str]) -> None:
    assert answer_of(status, headers, (), NOW).retry_after >= 0


# Gaps.


@pytest.mark.parametrize("missed", [None, 7])
@pytest.mark.parametrize("position", ["e-8", ""])
@pytest.mark.parametrize("topic", [None, "news"])
def test_a_gap_of_a_hub(position: str, missed: int | None, topic: str | None) -> None:
    (event,) = EventStreamDecoder().feed(gap_frame("gap", "e-1", position, missed, topic))
    gap = gap_of(event)
    assert gap is not None
    assert (gap.after, gap.position, gap.missed, gap.topic) == (
        "e-1", position or None, missed, topic,
    )  # fmt: skip
    assert "e-1" in str(gap)
    assert ("7 events" in str(gap)) == (missed == 7)


@pytest.mark.parametrize(
    "data",
    ["", "gap", "[]", "1", "{}", '{"after": 1, "position": null, "missed": 1}', "[" * 100_000],
)
def test_another_event_of_that_name(data: str) -> None:
    assert gap_of(DecodedEvent("gap", data)) is None


# Typed events.


class Model(pydantic.BaseModel):
    a: int


class Struct(msgspec.Struct):
    a: int


@dataclasses.dataclass
class Data:
    a: int


def test_typed_events() -> None:
    event = DecodedEvent(data='{"a": 1}')
    assert event.json() == {"a": 1}
    assert event.json(Model) == Model(a=1)
    assert event.json(Struct) == Struct(1)
    assert event.json(Data) == Data(1)
    assert event.json(dict[str, int]) == {"a": 1}
    assert DecodedEvent(data="[1, 2]").json(list[int]) == [1, 2]


@pytest.mark.parametrize("model", [None, Model, Struct, Data, list[int]])
def test_data_that_is_something_else(model: Any) -> None:
    with pytest.raises(ValueError):
        DecodedEvent(data="{").json(model)
    if model is not None:
        with pytest.raises(ValueError):
            DecodedEvent(data='{"b": 1}').json(model)


def test_a_type_without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert DecodedEvent(data="[1]").json() == [1]
    with pytest.raises(TypeError, match="needs Pydantic"):
        DecodedEvent(data="[1]").json(list[int])
