"""``relay``: the bytes of an upstream, cut anywhere, become whole frames, the same bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sse_asgi
from sse_asgi import EventTooLargeError, SSERequest, relay
from sse_asgi.decoder import DecodedEvent, EventStreamDecoder
from sse_asgi.encoder import encode
from sse_asgi.testing import connect

from .streams import http_scope, never, on_mock_clock

pytestmark = pytest.mark.anyio

through_every_entry_point = pytest.mark.usefixtures("through_every_entry_point")

sse_app: Any = sse_asgi.sse_app  # each of the entry points, one after another

BOM = b"\xef\xbb\xbf"

#: Full of what may end a line, a frame or a chunk.
streams = st.lists(
    st.sampled_from(
        [b"data: a", b"id: 1", b": c", b"x", b"\n", b"\n", b"\r\n", b"\r\n", b"\r", BOM]
    )
).map(b"".join)


def decoded(*chunks: bytes) -> list[DecodedEvent]:
    decoder = EventStreamDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


class Upstream:
    """Gives chunks, and notes how often it was closed."""

    def __init__(self, *chunks: Any, error: Exception | None = None, forever: bool = False) -> None:
        self.chunks = list(chunks)
        self.error = error
        self.forever = forever
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.chunks:
            chunk: bytes = self.chunks.pop(0)
            return chunk
        if self.error is not None:
            raise self.error
        if self.forever:
            await anyio.sleep_forever()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


class SyncUpstream(Iterator[bytes]):
    def __init__(self, *chunks: Any) -> None:
        self.chunks = list(chunks)
        self.closed = 0

    def __next__(self) -> bytes:
        if not self.chunks:
            raise StopIteration
        chunk: bytes = self.chunks.pop(0)
        return chunk

    def close(self) -> None:
        self.closed += 1


@settings(deadline=None)
@given(streams, st.lists(st.integers(0, 1000), max_size=12))
def test_any_chunks_give_the_same_frames(data: bytes, cuts: list[int]) -> None:
    frames = list(relay([data]))
    assert list(relay(cut(data, cuts))) == frames
    assert list(relay(bytes([byte]) for byte in data)) == frames


@settings(deadline=None)
@given(streams)
def test_the_bytes_stay_what_they_are(data: bytes) -> None:
    joined = b"".join(relay([data]))
    data = data.removeprefix(BOM)
    assert data.startswith(joined)
    assert not decoded(data[len(joined) :], b"")  # only what no client would dispatch is left out
    assert decoded(joined) == decoded(data)


@settings(deadline=None)
@given(streams, st.sampled_from([b":\n\n", b": ping\r\n\r\n", b":\n", b":\r"]))
def test_no_ping_can_come_inside_an_event(data: bytes, ping: bytes) -> None:
    # With two byte order marks the second belongs to a name, unless it comes to be the first.
    assume(not data.startswith(BOM * 2))
    frames = list(relay([data]))
    assert decoded(*(part for frame in frames for part in (ping, frame)), ping) == decoded(*frames)
    for frame in frames:
        assert encode(frame) is frame  # so it is whole
        assert len(decoded(frame)) <= 1
    # After a line end, since a byte order mark means something only at the very start.
    alone = [event for frame in frames for event in decoded(b"\n", frame)]
    assert [(e.event, e.data) for e in alone] == [(e.event, e.data) for e in decoded(*frames)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_a_frame_is_there_when_its_last_byte_is(end: bytes) -> None:
    """With CR LF there may be one more byte to come; with CR alone nothing is waited for."""
    frame = b"data: x" + end + end
    frames = relay(Upstream(frame, forever=True))
    with anyio.fail_after(5):
        assert await anext(frames) == frame
    await frames.aclose()


def test_line_ends_at_the_border_of_chunks() -> None:
    assert list(relay([b"data: a\r\n\r", b"\ndata: b\n\r", b"data: c\r\r", b"\ndata: d\r\r"])) == [
        b"data: a\r\n\r\n",
        b"data: b\n\r",
        b"data: c\r\r",
        b"\ndata: d\r\r",
    ]
    assert list(relay([b"data: a\r\n\r"])) == [b"data: a\r\n\r"]  # and nothing follows


@pytest.mark.parametrize(
    "chunks", [[BOM + b"data: a\n\n"], [BOM[:1], BOM[1:2], BOM[2:], b"data: a\n\n"]]
)
def test_a_byte_order_mark_is_left_out(chunks: list[bytes]) -> None:
    """In the middle of a stream it would belong to the name of the first field."""
    assert list(relay(chunks)) == [b"data: a\n\n"]
    assert list(relay([b"data: " + BOM + b"\n\n"])) == [b"data: " + BOM + b"\n\n"]


def test_an_event_that_is_not_finished_is_dropped() -> None:
    for tail in (b"data: b", b"data: b\n", b"data: b\r\n", b"\n", BOM[:2]):
        assert list(relay([b"data: a\n\n", tail])) == [b"data: a\n\n"]
    assert list(relay([BOM[:2]])) == list(relay([])) == []


@settings(deadline=None)
@given(streams, st.lists(st.integers(0, 1000), max_size=8), st.integers(1, 20))
def test_the_limit_does_not_depend_on_the_chunks(data: bytes, cuts: list[int], limit: int) -> None:
    def frames_until_error(chunks: list[bytes]) -> tuple[list[bytes], bool]:
        cut_off: list[bytes] = []
        try:
            cut_off.extend(relay(chunks, max_event_size=limit))  # keeps what came before the error
        except EventTooLargeError:
            return cut_off, True
        return cut_off, False

    frames, failed = frames_until_error([data])
    assert frames_until_error(cut(data, cuts)) == (frames, failed)
    unlimited = list(relay([data]))
    rest = len(data.removeprefix(BOM)) - sum(map(len, unlimited))
    assert failed == any(size > limit for size in (*map(len, unlimited), rest))


@pytest.mark.parametrize("cuts", [[], [1], [5, 9]])
def test_the_limit_is_the_size_of_a_frame(cuts: list[int]) -> None:
    frame = b"data: x\r\n\r\n"
    chunks = cut(frame * 2, cuts)
    assert list(relay(chunks, max_event_size=len(frame))) == [frame, frame]
    with pytest.raises(EventTooLargeError):
        next(relay(chunks, max_event_size=len(frame) - 1))


async def test_an_event_that_is_too_large_closes_the_upstream() -> None:
    upstream = Upstream(b"data: a\n\n", b"data: " + b"b" * 100, b"c\n\n")
    frames = relay(upstream, max_event_size=50)
    assert await anext(frames) == b"data: a\n\n"
    with pytest.raises(EventTooLargeError, match=r"max_event_size \(50 bytes\)"):
        await anext(frames)
    assert upstream.closed == 1
    assert upstream.chunks == [b"c\n\n"]
    with pytest.raises(StopAsyncIteration):
        await anext(frames)


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        (b"data: x\n\n", "not bytes"),
        ("data: x\n\n", "not str"),
        (5, "not int: 5"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_iterable_of_bytes_is_refused(chunks: Any, error: str) -> None:
    with pytest.raises(TypeError, match=rf"such as response\.aiter_bytes\(\), {error}"):
        relay(chunks)


async def test_what_is_wrong_is_said() -> None:
    async def chunks() -> list[bytes]:
        return []

    coroutine: Any = chunks()
    with pytest.raises(TypeError, match="await it first"):
        relay(coroutine)
    coroutine.close()
    upstream = Upstream("data: x\n\n")
    with pytest.raises(TypeError, match=r"chunks of bytes, .* not str: 'data: x"):
        await anext(relay(upstream))
    assert upstream.closed == 1
    with pytest.raises(ValueError, match="max_event_size must be at least 1 byte, not 0"):
        relay([], max_event_size=0)
    wrong: Any = "1"
    with pytest.raises(TypeError, match="max_event_size must be an int, not '1'"):
        relay([], max_event_size=wrong)


async def test_the_upstream_is_closed_on_every_way_out() -> None:
    for steps in range(3):  # not begun, in the middle, at the end
        upstream, sync_upstream = Upstream(b"data: a\n\n"), SyncUpstream(b"data: a\n\n")
        frames, sync_frames = relay(upstream), relay(sync_upstream)
        for _ in range(steps):
            assert await anext(frames, b"end") == next(sync_frames, b"end")
        await frames.aclose()
        await frames.aclose()
        sync_frames.close()
        sync_frames.close()
        assert (upstream.closed, sync_upstream.closed) == (1, 1)
        assert await anext(frames, b"end") == next(sync_frames, b"end") == b"end"
    upstream = Upstream(b"data: a\n\ndata: b", error=ZeroDivisionError())
    frames = relay(upstream)
    assert await anext(frames) == b"data: a\n\n"
    with pytest.raises(ZeroDivisionError):
        await anext(frames)
    assert upstream.closed == 1


@through_every_entry_point
async def test_a_factory_may_return_a_relay() -> None:
    upstream = Upstream(b"data: a\n", b"\nevent: x\nda", b"ta: b\r\n\r\n", b"data: never")
    async with connect(sse_app(lambda: relay(upstream))) as stream:
        assert [(event.event, event.data) async for event in stream] == [
            ("message", "a"),
            ("x", "b"),
        ]
    assert upstream.closed == 1
    sync_upstream = SyncUpstream(b"data: a\r", b"\rdata: b\r\r")
    async with connect(sse_app(lambda: relay(sync_upstream))) as stream:
        assert [event.data async for event in stream] == ["a", "b"]
    assert sync_upstream.closed == 1


@through_every_entry_point
async def test_a_client_that_leaves_closes_the_upstream() -> None:
    upstream = Upstream(b"data: a\n\n", forever=True)
    async with connect(sse_app(lambda: relay(upstream))) as stream:
        assert (await stream.receive()).data == "a"
        await stream.disconnect()
    assert upstream.closed == 1


@through_every_entry_point
async def test_a_generator_closes_its_upstream(entry_point: str) -> None:
    closed: list[str] = []

    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b"data: a\n"
            yield b"\n"
            await anyio.sleep_forever()
        finally:
            closed.append("upstream")

    async def proxy(request: SSERequest) -> AsyncIterator[bytes]:
        try:
            async with aclosing(relay(chunks())) as frames:
                async for frame in frames:
                    yield frame
        finally:
            closed.append("source")

    async with connect(sse_app(proxy)) as stream:
        assert (await stream.receive()).data == "a"
        await stream.disconnect()
    assert closed == ["upstream", "source"]


@through_every_entry_point
async def test_chunks_that_are_yielded_as_they_come_are_refused() -> None:
    """Regression 40: codex2api#696, verifiers#1688, sse-starlette#61."""

    async def proxy(request: SSERequest) -> AsyncIterator[bytes]:
        yield b"data: whole\n\n"
        yield b"data: a "
        yield b"part\n\n"

    with pytest.raises(ValueError, match=r"whole frames.*relay\(chunks\)"):
        async with connect(sse_app(proxy)) as stream:
            await stream.receive()
            await stream.receive()


@on_mock_clock
async def test_pings_come_between_the_frames_of_an_upstream() -> None:
    """Regression 40, and the other half of it: chunks that come slowly, cut anywhere."""
    frame = b"event: x\ndata: hello\n\n"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            for byte in frame:
                yield bytes([byte])
                await anyio.sleep(1)

    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    app = sse_asgi.sse_app(lambda: relay(chunks()), ping=0.7)
    await app(http_scope(), never, send)
    assert b"".join(sent).replace(b":\n\n", b"") == frame * 3
    assert sent.count(frame) == 3
    assert sent.count(b":\n\n") > 60
