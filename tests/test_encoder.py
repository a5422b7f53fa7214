"""Encoding: exact bytes, and decode(encode(event)) == event under any chunking."""

from __future__ import annotations

import enum
from itertools import pairwise
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi import ServerSentEvent, compat
from sse_asgi.decoder import DecodedEvent, EventStreamDecoder
from sse_asgi.encoder import SEPARATORS, check_separator, encode, encode_ping


class Number(enum.IntEnum):
    ONE = 1


class Level(str, enum.Enum):
    HIGH = "high"


class Key(str, enum.Enum):
    DATA = "data"


@pytest.mark.parametrize(
    ("event", "frame"),
    [
        ("hello", b"data: hello\n\n"),
        ("", b"data: \n\n"),
        ("a\nb", b"data: a\ndata: b\n\n"),
        ("a\r\nb\rc\n", b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        (Level.HIGH, b"data: high\n\n"),
        ({"data": Level.HIGH, "event": Level.HIGH}, b"event: high\ndata: high\n\n"),
        ("\u2028\x85\x0b\x0c", "data: \u2028\x85\x0b\x0c\n\n".encode()),
        (b": as it is\r\r", b": as it is\r\r"),
        ({"data": "x", "event": "e", "id": "1"}, b"id: 1\nevent: e\ndata: x\n\n"),
        ({"data": {"a": 1}, "id": 5}, b'id: 5\ndata: {"a":1}\n\n'),
        ({"data": None, "event": None}, b"\n"),
        (MappingProxyType({"data": "x", "id": Number.ONE}), b"id: 1\ndata: x\n\n"),
        ({"retry": 0}, b"retry: 0\n\n"),
        ({"comment": "a\nb"}, b": a\n: b\n\n"),
        ({"id": ""}, b"id: \n\n"),
        (ServerSentEvent("x", id="1"), b"id: 1\ndata: x\n\n"),
        (
            SimpleNamespace(data=[1], event="e", id=None, retry=1, comment=None),
            b"event: e\ndata: [1]\nretry: 1\n\n",
        ),
    ],
    ids=repr,
)
def test_frames(event: Any, frame: bytes) -> None:
    assert encode(event) == frame


@pytest.mark.parametrize(("way", "limit"), [("constants", "Infinity"), ("null", "null")])
def test_a_model_is_the_json_that_it_makes_itself(
    way: Literal["constants", "null"], limit: str
) -> None:
    """Not what JSON its fields would make: that is refused here."""

    class Range(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(ser_json_inf_nan=way)

        limit: float

    model = Range(limit=float("inf"))
    with pytest.raises(ValueError, match="data can't be JSON"):
        encode({"data": model.model_dump()})
    expected = f'data: {{"limit":{limit}}}\n\n'.encode()
    for event in ({"data": model}, ServerSentEvent(model)):
        assert encode(event) == expected


def test_separators() -> None:
    event = ServerSentEvent("a\nb", comment="c\rd")
    for sep in SEPARATORS:
        expected = b": c\n: d\ndata: a\ndata: b\n\n".replace(b"\n", sep.encode())
        assert encode(event, sep) == expected
        assert check_separator(sep) == sep
    for wrong in ("", "\n\n", "\u2028", None, 5):
        with pytest.raises(ValueError, match="sep must be one of"):
            check_separator(wrong)


def test_encoded_bytes_are_passed_through_untouched() -> None:
    frame = b"data: x\n\n"
    assert encode(frame) is frame


ENCODERS = pytest.mark.parametrize("encoder", [encode, compat.encode], ids=["core", "adapter"])

LINE_ENDS = (b"\n", b"\r\n", b"\r")

WHOLE = [
    *(b"data: x" + a + b for a in LINE_ENDS for b in LINE_ENDS if a + b != b"\r\n"),
    *(b": ping" + a + b for a in LINE_ENDS for b in LINE_ENDS if a + b != b"\r\n"),
    *LINE_ENDS,
    b"",
    b"data: a\n\ndata: b\n\n",
    b"lo\n\n",
]


@ENCODERS
@pytest.mark.parametrize("frame", WHOLE)
def test_whole_frames_are_passed_through(encoder: Any, frame: bytes) -> None:
    assert encoder(frame, "\n") is frame


@ENCODERS
@pytest.mark.parametrize(
    "part", [b"hello", b"data: x", b"data: x\n", b"data: x\r\n", b"data: x\r", b":\n", b"a\n\nb"]
)
def test_bytes_that_are_not_whole_frames_are_refused(encoder: Any, part: bytes) -> None:
    """They would eat the event that follows."""
    with pytest.raises(ValueError, match=r"whole frames.*a str to send data.*relay\(chunks\)"):
        encoder(part, "\n")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b":", b" ", b"\n", b"\r", b"\r\n"]), max_size=6).map(b"".join)
)
def test_bytes_are_whole_if_the_next_event_arrives(data: bytes) -> None:
    """Said by a decoder: what comes first is over, so an event that follows is seen."""
    probe = b"data: probe\n\n"
    for before in (b"data: first\n\n", b"data: first\r\r"):
        decoder = EventStreamDecoder()
        events = decoder.feed(before + data + probe)
        seen = [event.data for event in events] == ["first", "probe"]
        try:
            encode(data)
        except ValueError:
            pass  # refused: it may be a line that clients ignore, and it may not
        else:
            assert seen, data


class Event(str):
    """As the events of Datastar are: a str that is a frame."""


FRAMES = [
    'data: {"type":"RUN_STARTED"}\n\n',
    "event: datastar-patch-elements\nretry: 1000\ndata: elements <div></div>\n\n",
    "data: [DONE]\r\n\r\n",
    "data:x\r\r",
    "data: a\n\ndata: b\n\n",
    ": hello\ndata: x\n\n",
    "id: 7\n\n",
    "data:\ndata: x\n\n",
]


@pytest.mark.parametrize("kind", [str, Event])
@pytest.mark.parametrize("frame", FRAMES)
def test_a_str_that_is_a_frame_is_refused(frame: str, kind: type[str]) -> None:
    """Regression 40: the encoders of AG-UI and Datastar make such; it is not data."""
    with pytest.raises(ValueError, match=r"a frame already: .*frame\.encode\(\)"):
        encode(kind(frame))
    assert encode(frame.encode()) == frame.encode()
    assert encode({"data": frame}) == encode(ServerSentEvent(frame))  # said, so it is meant


@pytest.mark.parametrize(
    "text",
    [
        ":\n\n",  # one of the most frequent tokens of language models
        ": the answer is\n\n",
        "data:\n\n",
        "data: \n\n",
        "data: x\n",
        "data: x",
        "data: x\n\nand more",
        "data: see below\nand here\n\n",
        " data: x\n\n",
        "data x\n\n",
        "name: x\n\n",
        "event\n\n",
        "\n\n",
        "id:\n\n",
    ],
)
def test_text_that_only_begins_like_a_frame_is_data(text: str) -> None:
    for kind in (str, Event):
        (event,) = EventStreamDecoder().feed(encode(kind(text)))
        assert event.data == text


@settings(deadline=None)
@given(st.text(st.sampled_from("da: \r\nid"), max_size=12))
def test_a_str_is_data_or_refused(text: str) -> None:
    try:
        frame = encode(text)
    except ValueError:
        assert text.startswith(("data:", "id:", ":"))
        assert lf(text).endswith("\n\n")
    else:
        (event,) = EventStreamDecoder().feed(frame)
        assert event.data == lf(text)


@pytest.mark.parametrize("text", [*FRAMES, ":\n\n"])
def test_the_adapter_takes_every_str_for_data(text: str) -> None:
    (event,) = EventStreamDecoder().feed(compat.encode(text, "\r\n"))
    assert event.data == lf(text)
    assert compat.encode(Event(text), "\r\n") == compat.encode(text, "\r\n")


@ENCODERS
def test_a_ping_may_be_comment_lines(encoder: Any) -> None:
    for ping in (
        b":\n",
        b":\r\n",
        b":\r",
        b": a\n: b\n",
        b": a\r:\n",
        b":\n\n",
        b"data: x\n\n",
        b"",
    ):
        assert encode_ping(ping, "\n", encoder) == ping
    assert encode_ping({"comment": "x"}, "\n", encoder) == b": x\n\n"
    assert encode_ping({"event": "ping"}, "\r\n", encoder) == b"event: ping\r\n\r\n"
    for wrong in (b":", b": x", b"data: x\n", b": a\nb\n", b": a\n b: \n", b"x"):
        with pytest.raises(ValueError, match="whole frames"):
            encode_ping(wrong, "\n", encoder)


def test_a_ping_that_is_a_comment_is_no_str() -> None:
    """It would be data, and so an event."""
    for wrong in (":\n\n", ": ping"):
        with pytest.raises(ValueError, match=r"a ping that is a str is sent as data: return b':"):
            encode_ping(wrong, "\n")
        assert encode_ping(wrong, "\n", compat.encode) == compat.encode(wrong, "\n")
    assert encode_ping("alive", "\n") == b"data: alive\n\n"


@pytest.mark.parametrize("event", [None, 5, 1.5, ["a"], object(), ("a",), bytearray(b"x")])
def test_what_is_no_event_is_refused(event: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(event).__name__}: .*; to send it as data"):
        encode(event)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"no field 'dat', 'nope'; its fields are data, event"):
        encode({"dat": 1, "event": "x", "nope": 2})
    for key in ("sep", 5, None):
        wrong: Any = {key: "x", "event": "a\nb"}
        with pytest.raises(TypeError, match=f"^an event has no field {key!r}; its fields are"):
            encode(wrong)


def test_a_key_may_be_a_member_of_an_enum() -> None:
    assert encode({Key.DATA: "x"}) == b"data: x\n\n"


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "a\nb"},
        {"id": "a\0"},
        {"retry": -1},
        {"data": "\ud800"},
        {"data": "a\nb\ud800"},
        {"comment": "\ud800"},
        {"event": 5},
        {"retry": True},
        {"data": ServerSentEvent},
        {"data": float("nan")},
    ],
    ids=repr,
)
def test_a_dict_is_refused_as_the_event_would_be(fields: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as by_event:
        ServerSentEvent(**fields)
    for event in (fields, SimpleNamespace(**{**dict.fromkeys(NAMES), **fields})):
        with pytest.raises(type(by_event.value)) as refused:
            encode(event)
        assert str(refused.value) == str(by_event.value)


def test_a_surrogate_in_a_plain_str_is_refused_in_the_same_words() -> None:
    with pytest.raises(ValueError, match="data has a lone surrogate at 1"):
        encode("a\ud800")


NAMES = ("data", "event", "id", "retry", "comment")

any_text = st.text(st.characters(exclude_categories=["Cs"]))
#: Full of what splits lines, in the standard and elsewhere.
tricky_text = st.text(st.sampled_from("ab: \r\n\t\0\x0b\x0c\x1c\x85\u2028\u2029\ufeffé☃😀"))
texts = st.one_of(any_text, tricky_text)
lines = texts.map(lambda text: text.replace("\r", "").replace("\n", ""))
events = st.builds(
    ServerSentEvent,
    st.none() | texts,
    event=st.none() | lines,
    id=st.none() | lines.map(lambda text: text.replace("\0", "")),
    retry=st.none() | st.integers(0, 2**53 - 1),
    comment=st.none() | texts,
)


def lf(text: str) -> str:
    """What a client gets to see of line ends: they all become LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(
    st.lists(events, max_size=5),
    st.sampled_from(SEPARATORS),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_decoding_gives_back_what_was_encoded(
    sent: list[ServerSentEvent], sep: str, cuts: list[int]
) -> None:
    comments: list[str] = []
    decoder = EventStreamDecoder(on_comment=comments.append)
    received: list[DecodedEvent] = []
    for chunk in chunked(b"".join(encode(event, sep) for event in sent), cuts):
        received += decoder.feed(chunk)

    last_id = ""
    expected: list[DecodedEvent] = []
    expected_comments: list[str] = []
    retry = None
    for event in sent:
        last_id = last_id if event.id is None else event.id
        retry = retry if event.retry is None else event.retry
        if event.data is not None:
            # An empty event name is no name (WHATWG HTML 9.2.6).
            expected.append(DecodedEvent(event.event or "message", lf(event.data), last_id))
        if event.comment is not None:
            expected_comments += lf(event.comment).split("\n")
    assert received == expected
    assert comments == expected_comments
    assert decoder.reconnection_time == retry
    assert decoder.last_event_id == last_id


@given(events, st.sampled_from(SEPARATORS))
def test_all_ways_to_give_an_event_make_the_same_frame(event: ServerSentEvent, sep: str) -> None:
    fields = {name: getattr(event, name) for name in NAMES}
    frame = encode(event, sep)
    assert encode(fields, sep) == encode(SimpleNamespace(**fields), sep) == frame
    if event.data is not None:
        assert encode(event.data, sep) == encode(ServerSentEvent(event.data), sep)
