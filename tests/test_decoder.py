"""The decoder against the standard, against itself, and against parsers by others."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import random
import re
import subprocess
import tracemalloc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_asgi.decoder import (
    DEFAULT_MAX_EVENT_SIZE,
    MAX_RECONNECTION_TIME,
    DecodedEvent,
    EventStreamDecoder,
)
from sse_asgi.errors import EventTooLargeError, SSEError

from .peers import NODE_DIR, missing, require_node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BOM = b"\xef\xbb\xbf"


@dataclass
class Result:
    """All that can be seen of a stream from its beginning to its end."""

    events: list[DecodedEvent] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    last_event_id: str = ""
    reconnection_time: int | None = None
    too_large: bool = False


def decode(chunks: Iterable[bytes], **options: Any) -> Result:
    result = Result()
    decoder = EventStreamDecoder(on_comment=result.comments.append, **options)
    try:
        for chunk in chunks:
            result.events += decoder.feed(chunk)
        decoder.feed_eof()
    except EventTooLargeError:
        result.too_large = True
    result.last_event_id = decoder.last_event_id
    result.reconnection_time = decoder.reconnection_time
    return result


def bytewise(stream: bytes) -> Iterator[bytes]:
    return (stream[i : i + 1] for i in range(len(stream)))


def message(data: str, id: str = "") -> DecodedEvent:
    return DecodedEvent("message", data, id)


# --- The standard, case by case -----------------------------------------------------------------

# Stream -> its events. Unless it says otherwise, a case is about one clause of WHATWG HTML 9.2.6.
EVENTS: dict[str, tuple[bytes, list[DecodedEvent]]] = {
    # The examples of the standard, as they stand there.
    "standard: stock ticker": (
        b"data: YHOO\ndata: +2\ndata: 10\n\n",
        [message("YHOO\n+2\n10")],
    ),
    "standard: four blocks": (
        b"""\
: test stream

data: first event
id: 1

data:second event
id

data:  third event

""",
        [message("first event", "1"), message("second event"), message(" third event")],
    ),
    "standard: empty, two empty lines, unfinished": (
        b"data\n\ndata\ndata\n\ndata:",
        [message(""), message("\n")],
    ),
    "standard: identical": (b"data:test\n\ndata: test\n\n", [message("test")] * 2),
    "standard: named": (
        b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
        [DecodedEvent("add", "73857293"), DecodedEvent("remove", "2153")],
    ),
    # Line ends.
    "LF": (b"data: a\ndata: b\n\n", [message("a\nb")]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\n", [message("a\nb")]),
    "CR": (b"data: a\rdata: b\r\r", [message("a\nb")]),
    "LF CR: two line ends": (b"data: a\n\rdata: b\n\r", [message("a"), message("b")]),
    "mixed": (b"data: a\rdata: b\ndata: c\r\n\r", [message("a\nb\nc")]),
    "CR CRLF: a line and a blank one": (
        b"data: a\r\r\ndata: b\r\r\n",
        [message("a"), message("b")],
    ),
    "no other character ends a line": (
        "data: a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\n\n".encode(),
        [message("a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i")],
    ),
    "blank lines dispatch nothing": (b"\n\n\r\r\n\ndata: a\n\n\n\n", [message("a")]),
    "a line with a space is not blank": (b"data: a\n \n\n", [message("a")]),
    # Fields.
    "no colon": (b"event\ndata\n\n", [message("")]),
    "only one space is removed": (b"data:  a\n\n", [message(" a")]),
    "a tab is not a space": (b"data:\ta\n\n", [message("\ta")]),
    "nor is a no-break space": ("data:\xa0a\n\n".encode(), [message("\xa0a")]),
    "space before the colon": (b"data : a\n\n", []),
    "space before the name": (b" data: a\n\n", []),
    "colons in the value": (b"data: a:b: c\n\n", [message("a:b: c")]),
    "space at the end": (b"data: a \n\n", [message("a ")]),
    "names in other cases": (b"Data: a\nDATA: b\n\n", []),
    "longer and shorter names": (b"dat: a\ndatas: b\ndata\0: c\n\n", []),
    "unknown field": (b"priority: 1\ndata: a\nfoo\n\n", [message("a")]),
    "comments in an event": (b"data: a\n: data: b\n:\ndata: c\n\n", [message("a\nc")]),
    "comment that looks like a field": (b":data: a\n\n", []),
    "NUL in data and event": (b"event: \0\ndata: a\0b\n\n", [DecodedEvent("\0", "a\0b")]),
    "last event type wins": (b"event: a\nevent: b\ndata\n\n", [DecodedEvent("b")]),
    "empty event type is message": (b"event: a\nevent:\ndata\n\n", [message("")]),
    "event type of one space": (b"event:  \ndata\n\n", [DecodedEvent(" ")]),
    # Dispatch.
    "no data, no event": (b"event: a\nid: 1\n\n", []),
    "the event type does not outlive that": (b"event: a\n\ndata: b\n\n", [message("b")]),
    "nor an event": (b"event: a\ndata\n\ndata\n\n", [DecodedEvent("a"), message("")]),
    "one line feed is removed, not two": (b"data: a\ndata\ndata\n\n", [message("a\n\n")]),
    "unfinished: no line end": (b"data: a\n\ndata: b", [message("a")]),
    "unfinished: no blank line": (b"data: a\n\ndata: b\n", [message("a")]),
    # The last event ID.
    "an id stays": (b"id: 1\ndata: a\n\ndata: b\n\n", [message("a", "1"), message("b", "1")]),
    "an id after the data": (b"data: a\nid: 1\n\n", [message("a", "1")]),
    "an event without data sets it": (b"id: 1\n\ndata: a\n\n", [message("a", "1")]),
    "an empty id resets it": (b"id: 1\n\nid:\ndata: a\n\n", [message("a")]),
    "last id wins": (b"id: 1\nid: 2\ndata\n\n", [message("", "2")]),
    "an id with NUL is ignored": (b"id: 1\nid: 2\0\ndata\n\n", [message("", "1")]),
    "and leaves the last one": (b"id: 1\n\nid: \0\ndata\n\n", [message("", "1")]),
    "an id is text": ("id: ü 😀\ndata\n\n".encode(), [message("", "ü 😀")]),
    # UTF-8 decode (Encoding Standard): one BOM, U+FFFD for each maximal broken part.
    "BOM": (BOM + b"data: a\n\n", [message("a")]),
    "BOM before a comment": (BOM + b": a\ndata: b\n\n", [message("b")]),
    "only one BOM": (BOM + BOM + b"data: a\n\n", []),
    "BOM later": (b"\n" + BOM + b"data: a\ndata: b\n\n", [message("b")]),
    "BOM in a value": (b"data:" + BOM + b" a\n\n", [message("\ufeff a")]),
    "half a BOM": (BOM[:2] + b"\ndata: a\n\n", [message("a")]),
    "UTF-8": ("event: ö\ndata: é ‰ 😀\n\n".encode(), [DecodedEvent("ö", "é ‰ 😀")]),
    "not UTF-8": (
        b"data: \xff|\x80|\xc0\x80|\xe2\x82|\xed\xa0\x80|\xf0\x9f\x98|\xf4\x90\x80\x80\n\n",
        [message("�|�|��|�|���|�|����")],
    ),
    "broken by a line end": (b"data: a\xe2\x82\ndata: b\xf0\r\n\n", [message("a�\nb�")]),
    "broken by a colon": (b"data\xc3: a\ndata:\xc3 b\n\n", [message("� b")]),
    "a sequence does not go on in the next line": (b"data:\xc3\ndata:\xa9\n\n", [message("�\n�")]),
}


@pytest.mark.parametrize(("stream", "events"), EVENTS.values(), ids=EVENTS)
def test_events(stream: bytes, events: list[DecodedEvent]) -> None:
    assert decode([stream]).events == events


@pytest.mark.parametrize("stream", [case[0] for case in EVENTS.values()], ids=EVENTS)
def test_events_in_every_two_pieces_and_bytewise(stream: bytes) -> None:
    whole = decode([stream])
    for i in range(len(stream) + 1):
        assert decode([stream[:i], b"", stream[i:]]) == whole
    assert decode(bytewise(stream)) == whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b": 0", 0),
        (b":3000", 3000),
        (b": 0010", 10),
        (b"", None),
        (b":", None),
        (b":  1", None),
        (b": 1 ", None),
        (b": -1", None),
        (b": +1", None),
        (b": 1.5", None),
        (b": 1e3", None),
        (b": 1_000", None),
        (b": 0x10", None),
        (b": 1\0", None),
        (": \u0661\u0662".encode(), None),  # ARABIC-INDIC DIGIT
        (": \uff11\uff12".encode(), None),  # FULLWIDTH DIGIT
        (": 1\u00b2".encode(), None),  # str.isdigit() is true of a superscript
        (b": %d" % (MAX_RECONNECTION_TIME - 1), MAX_RECONNECTION_TIME - 1),
        (b": %d" % MAX_RECONNECTION_TIME, MAX_RECONNECTION_TIME),
        (b": %d" % (MAX_RECONNECTION_TIME + 1), MAX_RECONNECTION_TIME),
        (b": " + b"9" * 10_000, MAX_RECONNECTION_TIME),  # int() refuses that many
        (b": " + b"0" * 10_000, 0),
        (b": " + b"0" * 10_000 + b"7", 7),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) and len(value) < 30 else None,
)
def test_retry(value: bytes, expected: int | None) -> None:
    assert decode([b"retry" + value + b"\n"]).reconnection_time == expected


def test_retry_applies_at_once_and_an_invalid_one_changes_nothing() -> None:
    decoder = EventStreamDecoder()
    times = [decoder.reconnection_time]
    for chunk in (b"retry: 10\n", b"retry: x\nretry\n\n", b"retry: 20\r"):
        decoder.feed(chunk)
        times.append(decoder.reconnection_time)
    assert times == [None, 10, 10, 20]


def test_last_event_id_is_set_by_dispatch_not_by_the_field() -> None:
    decoder = EventStreamDecoder()
    decoder.feed(b"id: 1\ndata: a\n")
    assert decoder.last_event_id == ""
    decoder.feed(b"\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"id: 2\n")
    decoder.feed_eof()
    assert decoder.last_event_id == "1"


def test_last_event_id_of_an_earlier_connection() -> None:
    decoder = EventStreamDecoder(last_event_id="41")
    assert decoder.last_event_id == "41"
    assert decoder.feed(b"data: a\n\n") == [message("a", "41")]
    assert decoder.feed(b"id: 42\ndata: b\n\n") == [message("b", "42")]
    assert decoder.feed(b"id\ndata: c\n\n") == [message("c")]


def test_comments() -> None:
    stream = b":\n: \n: a\n:  b\n:c : d\n:\xc3\xa9\xff\n\n: unfinished"
    assert decode([stream]).comments == ["", "", "a", " b", "c : d", "é\ufffd"]


def test_comments_nobody_asked_for() -> None:
    assert EventStreamDecoder().feed(b": a\ndata: b\n\n") == [message("b")]


def test_events_are_given_as_soon_as_they_are_complete() -> None:
    decoder = EventStreamDecoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\r") == [message("a")]  # no waiting for an LF
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: b\n\ndata: c\n\ndata") == [message("b"), message("c")]


def test_end_of_stream() -> None:
    decoder = EventStreamDecoder()
    assert decoder.feed(b"data: a\n\ndata: b\n") == [message("a")]
    decoder.feed_eof()
    decoder.feed_eof()
    with pytest.raises(ValueError, match="has ended"):
        decoder.feed(b"\n")


def test_decoded_event() -> None:
    event = DecodedEvent()
    assert (event.event, event.data, event.id) == ("message", "", "")
    assert event == DecodedEvent("message", "", "")
    assert hash(event) == hash(DecodedEvent())
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.data = "a"  # type: ignore[misc]


# --- Streams at random --------------------------------------------------------------------------

# What means something to a parser, what almost does, and what must not.
TOKENS = [
    *(b"data", b"event", b"id", b"retry", b"data:", b"data: ", b"event: a", b"id: 1", b"retry: 5"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b" ", b": "),
    *(b"\0", b"\t", b"\x0b", b"\x0c", b"\x1c", b"\x85", "\x85".encode(), "\xa0".encode()),
    *("\u2028".encode(), "\u2029".encode(), "é".encode(), "😀".encode(), "\u0661".encode()),
    *(BOM, BOM[:1], BOM[1:2], BOM[2:], BOM[:2]),
    *(b"\xff", b"\x80", b"\xc0\x80", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf4\x90"),
    *(b"a", b"0", b"7", b"-", b"+1", b"9" * 15, b"9" * 17, b"9" * 400, b"dat", b"a", b"Data", b"X"),
]
tokens = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=20).map(b"".join)
names = st.sampled_from([b"data", b"data", b"event", b"id", b"retry", b""]) | tokens
line_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
blank_lines = line_ends.map(lambda end: end + end)
values = st.sampled_from([b"", b"a", b"a", b" a", b"1", b"23", b"\0", b"a\0b", BOM]) | tokens
lines = st.tuples(
    names, st.sampled_from([b":", b": ", b":  ", b""]), values, line_ends | blank_lines
)
# Half of the streams have no form at all, half consist of lines, most of which mean something.
streams = tokens | st.tuples(
    st.sampled_from([b"", b"", BOM, BOM + BOM, BOM[:2]]),
    st.lists(lines.map(b"".join), max_size=12).map(b"".join),
).map(b"".join)


@st.composite
def chunked_streams(draw: st.DrawFn) -> list[bytes]:
    stream = draw(streams)
    if draw(st.integers(0, 3)) == 0:
        return list(bytewise(stream))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@given(chunked_streams(), st.integers(1, 60))
@example([b"", BOM[:1], b"", BOM[1:], b"data\n\n"], 9)
@example([b"data\r", b"", b"\ndata\r", b"\n\r", b"\n\n"], 9)
@settings(max_examples=400, deadline=None)
def test_chunks_make_no_difference(chunks: list[bytes], max_event_size: int) -> None:
    assert decode(chunks) == decode([b"".join(chunks)])
    limited = decode(chunks, max_event_size=max_event_size)
    assert limited == decode([b"".join(chunks)], max_event_size=max_event_size)


def reference(stream: bytes) -> Result:
    """WHATWG HTML 9.2.6 in its own order: the whole text first, then the lines, then the fields."""
    result = Result()
    data = event_type = last_event_id = ""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    for line in re.split("\r\n|\n|\r", text)[:-1]:
        if line == "":
            result.last_event_id = last_event_id
            if data != "":
                result.events.append(
                    DecodedEvent(event_type or "message", data[:-1], last_event_id)
                )
            data = event_type = ""
            continue
        name, colon, value = re.fullmatch("([^:]*)(:?) ?(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        if not colon:
            name, value = line, ""
        if name == "" and colon:
            result.comments.append(value)
        if name == "event":
            event_type = value
        if name == "data":
            data += value + "\n"
        if name == "id" and "\0" not in value:
            last_event_id = value
        if name == "retry" and re.fullmatch("[0-9]+", value):
            result.reconnection_time = min(int(value), MAX_RECONNECTION_TIME)
    return result


@given(streams)
@settings(max_examples=400, deadline=None)
def test_agrees_with_a_naive_reading_of_the_standard(stream: bytes) -> None:
    assert decode([stream]) == reference(stream)


# --- Another parser: npm eventsource-parser, and Node's TextDecoder for the UTF-8 part -----------


class Oracle:
    """tests/node/parse.mjs, one process for many streams."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def decode(self, chunks: Iterable[bytes]) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = json.dumps([base64.b64encode(chunk).decode() for chunk in chunks])
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died, which the answer will show
        answer = self._process.stdout.readline()
        if not answer:
            raise EOFError(f"tests/node/parse.mjs has ended, exit code {self._process.wait()}")
        result = json.loads(answer)
        retry = result["reconnectionTime"]
        return Result(
            events=[DecodedEvent(**event) for event in result["events"]],
            comments=result["comments"],
            last_event_id=result["lastEventId"],
            # It is not limited there, so beyond 2**53 it is no longer exact, in the end Infinity.
            reconnection_time=retry and int(min(float(retry), MAX_RECONNECTION_TIME)),
        )


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with subprocess.Popen(
        [require_node(), "parse.mjs"],
        cwd=NODE_DIR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        oracle = Oracle(process)
        try:
            oracle.decode([])
        except EOFError as exc:  # a node too old for the package, for one
            missing("node", str(exc))
        yield oracle
        with contextlib.suppress(OSError):
            process.communicate(timeout=10)


# The one deviation of eventsource-parser 4.1.3 that was found: it also removes a BOM that was
# decoded as Latin-1, which is U+00EF U+00BB U+00BF, from the beginning of the text.
LATIN_1_BOM = BOM.decode("latin-1").encode()


@given(chunked_streams().filter(lambda chunks: not b"".join(chunks).startswith(LATIN_1_BOM)))
@settings(max_examples=400, deadline=None)
def test_agrees_with_eventsource_parser(oracle: Oracle, chunks: list[bytes]) -> None:
    assert decode(chunks) == oracle.decode(chunks)


@pytest.mark.parametrize("stream", [case[0] for case in EVENTS.values()], ids=EVENTS)
def test_eventsource_parser_agrees_on_the_cases(oracle: Oracle, stream: bytes) -> None:
    assert decode([stream]) == oracle.decode([stream])


def test_where_eventsource_parser_deviates(oracle: Oracle) -> None:
    # When this fails the parser has changed: generate such streams, too.
    stream = LATIN_1_BOM + b"data: a\n\n"
    assert decode([stream]).events == []
    assert oracle.decode([stream]).events == [message("a")]


# --- Limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (b"data: a\n", 7),
        (b": a\n", 3),
        (b"foo\n", 3),
        (b"data: a\ndata: b\n", 2 + 7),
        (b"data\ndata\ndata\n", 2 + 4),
        (b"event: abcd\ndata: abcdef\n", 4 + 12),
        (b"event: abcd\nevent\ndata: abcdef\n", 12),
        (b"id: abcd\ndata: abcdef\n", 4 + 12),
        (b"id: abcd\nid: e\ndata: abcd\n", 1 + 10),
        (b"retry: 10\ndata: abc\n", 9),
        ("data: 😀\n".encode(), 10),
        (BOM + b"data: a\n", 7),
        (b"id: abcd\ndata: a\n\ndata: abcdef\n", 12),
        (b"event: abcd\n\ndata: abcdef\n", 12),
    ],
)
def test_what_counts_as_the_size_of_an_event(stream: bytes, size: int) -> None:
    for chunks in ([stream], [stream[:-1]], list(bytewise(stream))):
        assert not decode(chunks, max_event_size=size).too_large
        assert decode(chunks, max_event_size=size - 1).too_large


def test_too_large_is_refused_for_good() -> None:
    decoder = EventStreamDecoder(max_event_size=10)
    for chunk in (b"data: abcdef", b"\n\ndata: a\n\n", b""):
        with pytest.raises(EventTooLargeError, match=r"larger than max_event_size \(10 bytes\)"):
            decoder.feed(chunk)
    with pytest.raises(EventTooLargeError):
        decoder.feed_eof()
    assert issubclass(EventTooLargeError, ValueError)
    assert issubclass(EventTooLargeError, SSEError)


def test_events_before_one_that_is_too_large_are_not_lost() -> None:
    decoder = EventStreamDecoder(max_event_size=10)
    chunk = b"data: a\n\nid: 2\ndata: b\n\ndata: abcdef\n\ndata: c\n\n"
    assert decoder.feed(chunk) == [message("a"), message("b", "2")]
    with pytest.raises(EventTooLargeError):
        decoder.feed(b"")
    assert decoder.last_event_id == "2"


def test_too_large_in_the_last_chunk_does_not_go_unnoticed() -> None:
    decoder = EventStreamDecoder(max_event_size=10)
    assert decoder.feed(b"data: a\n\ndata: abcdef\n\n") == [message("a")]
    with pytest.raises(EventTooLargeError):
        decoder.feed_eof()


def test_nothing_happens_behind_an_event_that_is_too_large() -> None:
    behind = b": b\nretry: 1\nid: 1\ndata: c\n\n" * 10_000
    assert decode([b"data: abcdef\n" + behind], max_event_size=10) == Result(too_large=True)
    result = decode([b"data: a\n\ndata: abcdef\n" + behind], max_event_size=10)
    assert result == Result([message("a")], too_large=True)


def test_max_event_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_event_size must be at least 1 byte, not 0"):
        EventStreamDecoder(max_event_size=0)


def test_default_max_event_size() -> None:
    stream = b"data: " + b"a" * (DEFAULT_MAX_EVENT_SIZE - 6)
    assert not decode([stream]).too_large
    assert decode([stream + b"a"]).too_large


def peak_memory(chunks: Iterable[bytes], *, too_large: bool) -> int:
    """Bytes allocated at the most while decoding, the chunks not included."""
    decoder = EventStreamDecoder(max_event_size=30_000)
    tracemalloc.start()
    try:
        with pytest.raises(EventTooLargeError) if too_large else contextlib.nullcontext():
            for chunk in chunks:
                decoder.feed(chunk)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# The event twice, when a buffer grows and while a line is put together, and one block of lines.
MEMORY = 60_000 + 400_000


@pytest.mark.parametrize("chunk_size", [1, 4096, 1_000_000])
@pytest.mark.parametrize(
    ("beginning", "repeated"),
    [
        (b"", b"a"),
        (b":", b"a"),
        (b"data: ", b"a"),
        (b"data: \xf0\x9f\x98\x80", b"\xff"),
        (b"", b"data\n"),
        (b"", "data: \u0101\n".encode()),
        (b"event: a\n", b"data\r"),
        (b"id: 1\n", b"data:\r\n"),
    ],
    ids=["line", "comment", "data", "not UTF-8", "tiny", "tiny text", "tiny CR", "tiny CRLF"],
)
def test_memory_is_bounded_in_an_endless_event(
    beginning: bytes, repeated: bytes, chunk_size: int
) -> None:
    chunk = repeated * (1 + chunk_size // len(repeated)) if chunk_size > 1 else repeated
    chunks = [beginning, *[chunk] * (1 + 300_000 // len(chunk))]
    assert peak_memory(chunks, too_large=True) < MEMORY


def test_an_event_that_is_too_large_is_not_kept() -> None:
    decoder = EventStreamDecoder()
    tracemalloc.start()
    try:
        decoder.feed(b"data: " + b"a" * 500_000 + b"\n" + b"data: " + b"a" * 500_000)
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(EventTooLargeError):
            decoder.feed(b"a" * 100_000)
        assert before > 1_000_000
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk_size", [4096, 1_000_000])
@pytest.mark.parametrize("repeated", [b"\n", b":\n", b": ping\r\n", b"retry: 1\n", b"event: abc\r"])
def test_what_is_not_kept_does_not_count(repeated: bytes, chunk_size: int) -> None:
    chunk = repeated * (1 + chunk_size // len(repeated))
    chunks = [chunk] * (1 + 500_000 // len(chunk))
    assert peak_memory(chunks, too_large=False) < MEMORY


# No test of seconds: were the decoder quadratic, these would run into the timeout of the suite.


def test_many_single_bytes() -> None:
    size = 500_000
    stream = b"data: " + b"a" * size + b"\n\n"
    result = decode(bytewise(stream), max_event_size=2 * size)
    assert [len(event.data) for event in result.events] == [size]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_large_chunks(end: bytes) -> None:
    size = 2_000_000
    lines = size // len(b"data: ab" + end)
    result = decode([(b"data: ab" + end) * lines + end], max_event_size=size)
    assert result.events == [message("\n".join(["ab"] * lines))]

    result = decode([(b"data: ab" + end + end) * 100_000])
    assert len(result.events) == 100_000

    result = decode([b"data: " + b"a" * size + end + end], max_event_size=size + 6)
    assert [len(event.data) for event in result.events] == [size]


def test_a_decoded_event_is_a_value() -> None:
    """It can't be changed, and equal events are one key."""
    event = message("a", id="1")
    for name in ("event", "data", "id"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, "b")
    assert event == message("a", id="1")
    assert len({event, message("a", id="1"), message("a", id="2"), message("b", id="1")}) == 3


def test_many_blocks_of_random_lines() -> None:
    """Lines, line ends and characters also lie across the blocks of a large chunk."""
    rng = random.Random(1)
    ends = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"]
    stream = b"".join(
        b"data: " + "é😀".encode() * rng.randrange(50) + rng.choice(ends) for _ in range(20_000)
    )
    assert decode([stream]) == reference(stream)
    assert decode([stream[:1], stream[1:]]) == reference(stream)
