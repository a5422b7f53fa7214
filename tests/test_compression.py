"""Streams that are compressed: which, how, and that every event can be read when it comes."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware.gzip import GZipMiddleware

from sse_asgi import HTTPError, ServerSentEvent, Shutdown, sse_app
from sse_asgi.compression import Compression
from sse_asgi.compression import _can_import as can_import
from sse_asgi.hub import Hub
from sse_asgi.starlette import EventSourceResponse
from sse_asgi.testing import Connection, connect

from .at_once import Cycle
from .plain import Plain
from .streams import Recorder, http_scope

pytestmark = pytest.mark.anyio

CODINGS = ["gzip", "zstd", "br"]
codings = pytest.mark.parametrize("coding", CODINGS)


def response_app(factory: Any, **options: Any) -> Any:
    """The same with the response for Starlette."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await EventSourceResponse(factory(), sep="\n", **options)(scope, receive, send)

    return app


ways_in = pytest.mark.parametrize("app_of", [sse_app, response_app])


async def letters() -> AsyncIterator[str]:
    yield "a"
    yield "b"


def accepts(value: str) -> dict[str, str]:
    return {"accept-encoding": value}


class Decompressor:
    """What a client that decompresses has so far."""

    def __init__(self, coding: str) -> None:
        self.text = b""
        if coding == "gzip":
            self._object: Any = zlib.decompressobj(16 + zlib.MAX_WBITS)
            self._feed: Callable[[bytes], bytes] = self._object.decompress
        elif coding == "zstd":
            name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
            self._object = import_module(name).ZstdDecompressor()
            self._feed = self._object.decompress
        else:
            self._object = import_module("brotli").Decompressor()
            self._feed = self._object.process

    def feed(self, body: bytes) -> bytes:
        if body:
            self.text += self._feed(body)
        return self.text

    @property
    def ended(self) -> bool:
        """Whether the compressed data has come to its end."""
        ended = getattr(self._object, "eof", None)
        return bool(self._object.is_finished() if ended is None else ended)


# Which coding.


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("GZip", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),  # of those that are liked equally our first
        ("br;q=1.0, gzip;q=0.8", "br"),
        ("gzip;q=0.5,zstd;q=0.8 , br;q=0.1", "zstd"),
        ("gzip; q=0.001", "gzip"),
        ("gzip;q=0, br", "br"),
        ("*", "gzip"),
        ("gzip;q=0, *", "zstd"),
        ("*;q=0.5, br", "br"),
        ("br, identity;q=0", "br"),
        ("gzip, identity", "gzip"),
        ("gzip;q=0.5, identity", None),  # it would rather have it as it is
        ("identity;q=0.5, gzip;q=0.4", None),
        ("identity", None),
        ("deflate", None),
        ("", None),
        (None, None),
        ("gzip;q=0", None),
        ("gzip;q=2", None),  # no such weight
        ("gzip;q=", None),
        ("gzip;q=0.1234", None),
        ("gzip;level=9", "gzip"),
        (",, ,gzip;,", "gzip"),
        (";;gzip", None),
        ("identity;q=0", 406),
        ("*;q=0", 406),
        ("deflate, *;q=0", 406),
        ("deflate;q=1, identity;q=0.0", 406),
        ("identity;q=0.5, *;q=0", None),
    ],
)
@ways_in
async def test_the_client_chooses(app_of: Any, accepted: str | None, coding: Any) -> None:
    """RFC 9110, 12.5.3."""
    app = app_of(letters, compression=CODINGS)
    headers = {} if accepted is None else accepts(accepted)
    for method in ("GET", "HEAD"):
        async with connect(app, method=method, headers=headers) as stream:
            assert stream.headers["vary"] == "accept-encoding"
            if coding == 406:
                assert stream.status_code == 406
                assert stream.headers.get("content-encoding") is None
                continue
            assert stream.status_code == 200
            assert stream.headers.get("content-encoding") == coding
            if method == "GET":
                assert [event.data async for event in stream] == ["a", "b"]
                assert stream.complete


async def test_lines_of_a_field_count_as_one() -> None:
    fields = [("accept-encoding", "gzip;q=0.1"), ("Accept-Encoding", "br;q=0.2")]
    async with connect(sse_app(letters, compression=True), headers=fields) as stream:
        assert stream.headers["content-encoding"] == "br"


@pytest.mark.parametrize(
    ("given_", "offered"),
    [
        (True, CODINGS),
        ("br", ["br"]),
        (["zstd", "br", "zstd"], ["zstd", "br"]),
        (Compression(), CODINGS),
        (Compression("gzip", level=9, window=10), ["gzip"]),
        (Compression(["br", "gzip"], level={"br": 1}), ["br", "gzip"]),
    ],
)
@ways_in
async def test_ways_to_ask_for_it(app_of: Any, given_: Any, offered: list[str]) -> None:
    app = app_of(letters, compression=given_)
    for coding in CODINGS:
        async with connect(app, headers=accepts(coding)) as stream:
            assert stream.headers.get("content-encoding") == (coding if coding in offered else None)
            assert [event.data async for event in stream] == ["a", "b"]
    async with connect(app, headers=accepts("*")) as stream:
        assert stream.headers["content-encoding"] == offered[0]


@pytest.mark.parametrize("value", [None, False])
@ways_in
async def test_off_by_default(app_of: Any, value: Any) -> None:
    for app in (app_of(letters), app_of(letters, compression=value)):
        async with connect(app, headers=accepts("gzip, identity;q=0")) as stream:
            assert stream.status_code == 200
            assert "content-encoding" not in stream.headers
            assert "vary" not in stream.headers


async def test_as_starlette_asks_for_it() -> None:
    response = EventSourceResponse(letters())
    response.enable_compression()
    async with connect(response, headers=accepts("gzip")) as stream:
        assert stream.headers["content-encoding"] == "gzip"
        assert [event.data async for event in stream] == ["a", "b"]


@pytest.mark.parametrize(
    ("headers", "vary", "coding"),
    [
        ({"Vary": "Origin"}, "Origin, accept-encoding", "gzip"),
        ([("vary", "Origin"), ("vary", "Cookie")], "Origin, Cookie, accept-encoding", "gzip"),
        ({"vary": "Accept-Encoding, Origin"}, "Accept-Encoding, Origin", "gzip"),
        ({"vary": "*"}, "*", "gzip"),
        ({"content-encoding": "mine"}, None, "mine"),
    ],
)
@ways_in
async def test_header_fields_of_the_caller_stay(
    app_of: Any, headers: Any, vary: str | None, coding: str
) -> None:
    app = app_of(letters, compression=True, headers=headers)
    async with Plain(app, headers=[(b"accept-encoding", b"gzip")]) as server:
        await server.returns()
        assert server.headers.get(b"vary") == (None if vary is None else vary.encode())
        assert server.headers[b"content-encoding"] == coding.encode()
        assert b"no-transform" in server.headers[b"cache-control"]
        if coding == "mine":
            assert server.body == b"data: a\n\ndata: b\n\n"


@ways_in
async def test_a_client_that_wants_nothing_transformed(app_of: Any) -> None:
    """RFC 9111, 5.2.1.6."""
    headers = {**accepts("gzip"), "cache-control": "no-cache, No-Transform"}
    async with connect(app_of(letters, compression=True), headers=headers) as stream:
        assert "content-encoding" not in stream.headers
        assert [event.data async for event in stream] == ["a", "b"]


async def test_what_is_no_stream_is_not_compressed() -> None:
    def factory() -> Any:
        raise HTTPError(403, "not today")

    async def late() -> AsyncIterator[str]:
        raise HTTPError(403, "not today")
        yield ""

    for app in (
        sse_app(factory, compression=True),
        sse_app(late, compression=True, defer_start=True),
    ):
        async with connect(app, headers=accepts("gzip")) as stream:
            assert stream.status_code == 403
            assert "content-encoding" not in stream.headers
            assert await stream.read() == b"not today"


async def test_a_source_that_nothing_is_acceptable_for_is_closed() -> None:
    recorder = Recorder()
    source = recorder.source("a")
    response = EventSourceResponse(source, compression=True)
    async with connect(response, headers=accepts("*;q=0")) as stream:
        assert stream.status_code == 406
        assert b"identity" in await stream.read()
    with pytest.raises(StopAsyncIteration):
        await source.__anext__()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"codings": "deflate"}, ValueError, "'deflate' is no content coding for streams"),
        ({"codings": [["gzip"]]}, TypeError, "must be names, not ['gzip']"),
        ({"codings": ()}, ValueError, "gzip, zstd or br"),
        ({"codings": 5}, TypeError, "5"),
        ({"codings": [5]}, TypeError, "must be names, not 5"),
        ({"codings": b"gzip"}, TypeError, "b'gzip'"),
        ({"level": 0}, ValueError, "the level of gzip must be 1 to 9, not 0"),
        ({"level": 12, "codings": "br"}, ValueError, "the level of br must be 0 to 11, not 12"),
        ({"level": {"zstd": 30}}, ValueError, "the level of zstd must be 1 to 22, not 30"),
        ({"level": {"br": 3}, "codings": "gzip"}, ValueError, "'br', which is none of gzip"),
        ({"level": True}, TypeError, "must be an int, not True"),
        ({"level": "9"}, TypeError, "must be an int, not '9'"),
        ({"window": 9}, ValueError, "window must be 10 to 23, not 9"),
        ({"window": 24}, ValueError, "window must be 10 to 23, not 24"),
        ({"window": 14.0}, TypeError, "window must be an int, not 14.0"),
    ],
)
def test_wrong_values(arguments: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as refused:
        Compression(**arguments)
    assert said in str(refused.value)


@pytest.mark.parametrize("coding", ["zstd", "br"])
def test_a_coding_that_is_not_installed(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brotli", "backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("sse_asgi.compression._can_import", can_import.__wrapped__)
    package = {"zstd": r"backports\.zstd|compression\.zstd", "br": "brotli"}[coding]
    with pytest.raises(ImportError, match=rf"{coding} needs ({package}): pip install"):
        sse_app(letters, compression=coding)
    assert Compression().codings == ("gzip",)


# Every event can be read before the next is produced.


@codings
@ways_in
async def test_each_event_before_the_next(app_of: Any, coding: str) -> None:
    read = anyio.Event()

    async def source() -> AsyncIterator[Any]:
        nonlocal read
        for number in range(50):
            yield ServerSentEvent(data={"number": number}, id=number)
            await read.wait()
            read = anyio.Event()

    async with connect(app_of(source, compression=coding), headers=accepts(coding)) as stream:
        with anyio.fail_after(30):
            for number in range(50):
                event = await stream.receive()
                assert (event.id, event.json()) == (str(number), {"number": number})
                read.set()


@codings
async def test_pings_and_the_reconnection_time(coding: str) -> None:
    async def source() -> AsyncIterator[str]:
        await anyio.sleep_forever()
        yield ""

    app = sse_app(source, compression=coding, ping=0.02, retry=7)
    async with connect(app, headers=accepts(coding)) as stream:
        with anyio.fail_after(20):
            while len(stream.comments) < 3:
                await anyio.sleep(0.01)
        assert stream.reconnection_time == 7


@codings
async def test_what_is_joined_is_flushed_once(coding: str, anyio_backend: str) -> None:
    async def source() -> AsyncIterator[str]:
        for number in range(1000):
            yield f"event number {number}"

    app = sse_app(source, compression=coding)
    async with Plain(app, headers=[(b"accept-encoding", coding.encode())]) as server:
        await server.returns()
    decompressor, sizes = Decompressor(coding), []
    for message in server.messages[1:]:
        before = len(decompressor.text)
        sizes.append(len(decompressor.feed(message["body"])) - before)
        assert decompressor.text.endswith(b"\n\n") or not decompressor.text
    assert decompressor.ended
    assert decompressor.text == b"".join(
        b"data: event number %d\n\n" % number for number in range(1000)
    )
    if anyio_backend == "asyncio":  # on trio nothing is joined
        assert max(sizes) > 1000
        assert len(server.body) < len(decompressor.text) / 5


@codings
async def test_an_error_does_not_look_like_the_end(coding: str) -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        raise ValueError("mine")

    app = sse_app(source, compression=coding)
    async with Plain(app, headers=[(b"accept-encoding", coding.encode())]) as server:
        await server.returns()
        assert isinstance(server.error, ValueError)
    decompressor = Decompressor(coding)
    assert decompressor.feed(server.body) == b"data: a\n\n"
    assert not decompressor.ended
    assert not server.complete


@codings
async def test_a_last_event(coding: str) -> None:
    """Of ``on_error``, and the farewell of a stream that is told to end."""
    shutdown = Shutdown()

    async def fails() -> AsyncIterator[str]:
        yield "a"
        raise ValueError

    app = sse_app(fails, compression=coding, on_error=lambda exc: {"event": "sorry", "data": ""})
    async with connect(app, headers=accepts(coding)) as stream:
        assert [event.event async for event in stream] == ["message", "sorry"]
        assert stream.complete
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), compression=coding, shutdown=shutdown, retry=5)
    async with connect(app, headers=accepts(coding)) as stream:
        assert (await stream.receive()).data == "a"
        shutdown.drain()
        assert [event async for event in stream] == []
        assert stream.complete
        assert stream.reconnection_time in range(5, 11)


@codings
async def test_a_hub(coding: str) -> None:
    async with Hub() as hub:
        app = sse_app(lambda: hub.subscribe("news", history=5), compression=coding)
        await hub.publish("news", {"data": "before"})
        async with connect(app, headers=accepts(coding)) as stream:
            assert (await stream.receive()).data == "before"
            for number in range(20):
                await hub.publish("news", {"data": {"number": number}})
                assert (await stream.receive()).json() == {"number": number}


@codings
@ways_in
async def test_under_a_middleware_that_compresses(app_of: Any, coding: str) -> None:
    app = GZipMiddleware(app_of(letters, compression=coding), minimum_size=0)
    async with connect(app, headers=accepts(f"gzip;q=0.5, {coding}")) as stream:
        assert stream.headers["content-encoding"] == coding
        assert [event.data async for event in stream] == ["a", "b"]


async def test_bytes_in_the_report_are_those_that_were_sent() -> None:
    recorder = Recorder()
    app = sse_app(letters, compression="gzip", on_close=recorder.on_close)
    async with Plain(app, headers=[(b"accept-encoding", b"gzip")]) as server:
        await server.returns()
    assert recorder.report.bytes == len(server.body)
    assert recorder.report.events == 2


# Where a send takes no task, and the client stops reading now and then.


def compressed_scope() -> dict[str, Any]:
    return http_scope(headers=[(b"accept-encoding", b"gzip")])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["event", "burst", "wait", "pause", "resume", "yield"]), max_size=30
    ),
    ending=st.sampled_from(
        ["end", "drain", "error", "cancel", "drain while it ends", "cancel while it ends"]
    ),
)
async def test_nothing_is_lost_or_doubled(steps: list[str], ending: str) -> None:
    """What was compressed is sent once, whoever has to send it after all."""
    recorder, shutdown, cycle = Recorder(), Shutdown(), Cycle()
    produced: list[str] = []

    async def source() -> AsyncIterator[Any]:
        for step in steps:
            if step == "event":
                produced.append(f"event {len(produced)}")
                yield produced[-1]
            elif step == "burst":
                for _ in range(7):
                    produced.append(f"event {len(produced)}")
                    yield produced[-1]
            elif step == "wait":
                await asyncio.sleep(0.003)
            elif step == "pause":
                cycle.pause()
            elif step == "resume":
                cycle.resume()
            else:
                await asyncio.sleep(0)
        if ending == "error":
            raise ValueError
        if ending.endswith("while it ends"):
            cycle.pause()
            return
        if ending != "end":
            await asyncio.sleep(20)

    app = sse_app(
        source, compression="gzip", ping=0.002, shutdown=shutdown, retry=9,
        on_close=recorder.on_close,
    )  # fmt: skip
    task = asyncio.ensure_future(app(compressed_scope(), cycle.receive, cycle.send))
    await asyncio.sleep(0.01)
    if ending.startswith("drain"):
        shutdown.drain()
    elif ending.startswith("cancel"):
        task.cancel()
    with anyio.fail_after(20):
        while not task.done():
            await asyncio.sleep(0.003)
            cycle.resume()
    if not task.cancelled():
        assert type(task.exception()) in (ValueError, type(None))
    decompressor = Decompressor("gzip")
    text = decompressor.feed(cycle.body).decode()
    sent = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert sent == produced[: len(sent)]
    assert recorder.report.events == len(sent)
    assert recorder.report.bytes == len(cycle.body)
    assert decompressor.ended == cycle.complete
    if cycle.complete:
        assert sent == produced


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@codings
async def test_a_hub_whose_client_stops_reading(coding: str) -> None:
    """An event that comes at once, to a client that takes nothing: it is compressed once."""
    cycle = Cycle()
    scope = http_scope(headers=[(b"accept-encoding", coding.encode())])
    async with Hub() as hub:
        app = sse_app(lambda: hub.subscribe("news"), compression=coding, ping=0.005)
        task = asyncio.ensure_future(app(scope, cycle.receive, cycle.send))
        await asyncio.sleep(0.02)
        for number in range(30):
            if number % 5 == 1:
                cycle.pause()
            if number % 5 == 4:
                cycle.resume()
            await hub.publish("news", {"data": number})
            await asyncio.sleep(0.002 * (number % 3))
        cycle.resume()
        decompressor = Decompressor(coding)
        bodies = 0
        with anyio.fail_after(20):
            while b"data: 29\n\n" not in decompressor.text:
                await asyncio.sleep(0.001)
                for body in cycle.sent[bodies:]:
                    decompressor.feed(body)
                    bodies += 1
        cycle.disconnect()
        await asyncio.wait([task], timeout=20)
    data = [int(line[6:]) for line in decompressor.text.splitlines() if line[:5] == b"data:"]
    assert data == list(range(30))


# How much it is.

NAMES = ["Ada Lovelace", "Grace Hopper", "Linus Torvalds", "Guido van Rossum"]


def orders(seed: int) -> list[dict[str, Any]]:
    """Events as a shop has them: 200 to 500 bytes of JSON."""
    chosen = random.Random(seed)
    return [
        {
            "id": number,
            "event": "order",
            "data": {
                "id": number,
                "type": chosen.choice(["order.created", "order.shipped", "order.paid"]),
                "at": f"2026-11-27T12:{number // 60:02}:{number % 60:02}Z",
                "customer": {"id": chosen.randrange(10**6), "name": chosen.choice(NAMES)},
                "amount": chosen.randrange(100, 99999) / 100,
                "currency": chosen.choice(["EUR", "USD"]),
                "items": [
                    {"sku": f"SKU-{chosen.randrange(500):04}", "quantity": chosen.randrange(1, 5)}
                    for _ in range(chosen.randrange(1, 4))
                ],
            },
        }
        for number in range(1000)
    ]


@codings
async def test_json_takes_a_fifth(coding: str) -> None:
    events = orders(1)

    async def source() -> AsyncIterator[Any]:
        for event in events:
            yield event
            await anyio.lowlevel.checkpoint()  # so that they are not joined

    sent: dict[str, int] = {}

    def on_close(report: Any) -> None:
        sent[accepted] = report.bytes

    app = sse_app(source, compression=coding, on_close=on_close)
    for accepted in (coding, "identity"):
        async with connect(app, headers=accepts(accepted)) as stream:
            received = [event.json() async for event in stream]
        assert received == [event["data"] for event in events]
    assert 200 < sent["identity"] / len(events) < 500
    assert sent[coding] * 5 < sent["identity"]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("window", [10, 17, 23])
@pytest.mark.parametrize("level", [1, 9])
async def test_every_level_and_window(coding: str, window: int, level: int) -> None:
    async def source() -> AsyncIterator[Any]:
        yield "x" * 100_000
        yield json.dumps(list(range(20_000)))

    app = sse_app(source, compression=Compression(coding, level=level, window=window))
    async with connect(app, headers=accepts(coding)) as stream:
        events = [event.data async for event in stream]
    assert events == ["x" * 100_000, json.dumps(list(range(20_000)))]


async def test_the_test_client_says_what_it_does_not_know() -> None:
    async def open_stream() -> Connection:
        app = sse_app(letters, headers={"content-encoding": "compress"})
        async with connect(app) as stream:
            await stream.receive()
        return stream

    with pytest.raises(ValueError, match="'compress'"):
        await open_stream()
