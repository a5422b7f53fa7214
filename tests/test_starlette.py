"""``EventSourceResponse``: what sse-starlette's users know it for, and what Starlette makes of it.

How its streams live and end is tested in test_supervisor.py, through this entry point too.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import subprocess
import sys
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, fields
from datetime import date
from enum import Enum
from types import MappingProxyType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import sse_asgi
from sse_asgi import CloseReason, HTTPError, Shutdown, StreamOptions, current_thread_limiter
from sse_asgi.starlette import (
    EventSourceResponse,
    JSONServerSentEvent,
    SendTimeoutError,
    ServerSentEvent,
    ensure_bytes,
)
from sse_asgi.testing import connect

from .streams import Recorder, http_scope, never, on_mock_clock

pytestmark = pytest.mark.anyio


def app_of(make: Callable[[Request], Any], **options: Any) -> Starlette:
    """An application whose one route answers with what ``make`` returns."""

    async def endpoint(request: Request) -> Response:
        response: Response = make(request)
        return response

    return Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])], **options)


async def body_of(content: Any, **options: Any) -> bytes:
    return await body_of_response(EventSourceResponse(content, **options))


async def body_of_response(response: EventSourceResponse) -> bytes:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await response(http_scope(), never, send)
    assert [m.get("more_body") for m in messages] == [None, *[True] * (len(messages) - 2), False]
    return b"".join(message["body"] for message in messages[1:])


# -- the constructor -------------------------------------------------------------------------------

#: The parameters of sse-starlette 3.7.0, in their order, with their defaults.
PARAMETERS = {
    "content": inspect.Parameter.empty,
    "status_code": 200,
    "headers": None,
    "media_type": "text/event-stream",
    "background": None,
    "ping": None,
    "sep": None,
    "ping_message_factory": None,
    "data_sender_callable": None,
    "send_timeout": None,
    "client_close_handler_callable": None,
    "shutdown_event": None,
    "shutdown_grace_period": 0,
    "cleanup_timeout": 30.0,
}


def test_the_signature_is_that_of_sse_starlette_and_then_that_of_sse_app() -> None:
    signature = inspect.signature(EventSourceResponse).parameters
    theirs = {p.name: p.default for p in signature.values() if p.kind is not p.KEYWORD_ONLY}
    assert list(theirs.items()) == list(PARAMETERS.items())
    ours = {p.name: p.default for p in signature.values() if p.kind is p.KEYWORD_ONLY}
    options = {f.name: f.default for f in fields(StreamOptions) if f.init}
    options["methods"] = None  # all that the route lets through
    del options["max_body"]  # there the request is Starlette's, which reads its body
    assert ours == {name: value for name, value in options.items() if name not in PARAMETERS}


def test_the_body_of_the_request_is_starlettes_business() -> None:
    with pytest.raises(TypeError, match="max_body"):
        EventSourceResponse(["a"], max_body=5)  # type: ignore[call-arg]


async def test_headers() -> None:
    """Regression 44: a proxy that compresses would buffer (create-react-app#1633)."""
    async with connect(EventSourceResponse(["a"])) as stream:
        assert stream.headers == {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
        }


async def test_own_headers_win_and_may_be_set_later() -> None:
    response = EventSourceResponse(
        ["a"],
        status_code=202,
        media_type="text/plain",
        headers={"Cache-Control": "public, max-age=29", "Connection": "keep-alive", "X-A": "1"},
    )
    response.headers["X-B"] = "2"
    response.headers["Transfer-Encoding"] = "chunked"
    response.set_cookie("c", "3")
    async with connect(response) as stream:
        assert stream.status_code == 202
        assert stream.headers == {
            "content-type": "text/plain; charset=utf-8",
            "cache-control": "public, max-age=29",
            "x-accel-buffering": "no",
            "x-a": "1",
            "x-b": "2",
            "set-cookie": "c=3; Path=/; SameSite=lax",
        }


class Untouchable:
    def __aiter__(self) -> Any:
        raise AssertionError

    __iter__ = __aiter__


def test_content_is_not_touched_when_the_response_is_built() -> None:
    assert isinstance(EventSourceResponse(Untouchable()).body_iterator, Untouchable)


@pytest.mark.parametrize(
    ("media_type", "sent"),
    [
        ("text/event-stream; charset=UTF-8", "text/event-stream; charset=UTF-8"),
        ("application/x-events", "application/x-events"),
        (None, "text/event-stream; charset=utf-8"),
    ],
)
async def test_the_media_type(media_type: str | None, sent: str) -> None:
    async with connect(EventSourceResponse(["a"], media_type=media_type)) as stream:
        assert stream.headers["content-type"] == sent


@pytest.mark.parametrize("content", [None, 0, "text", b"bytes", {"data": "x"}, object()])
def test_content_that_is_no_iterable_of_events_is_refused(content: Any) -> None:
    with pytest.raises(TypeError, match="a source must be an async iterable or an iterable"):
        EventSourceResponse(content)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("ping", -1, ValueError),
        ("ping", "soon", TypeError),
        ("sep", "\n\n", ValueError),
        ("sep", "", ValueError),
        ("shutdown_grace_period", -0.1, ValueError),
        ("cleanup_timeout", -1, ValueError),
        ("send_timeout", 0, ValueError),
        ("headers", {"Content-Length": "3"}, ValueError),
        ("headers", {"X-A": "a\r\nb: c"}, ValueError),
        ("data_sender_callable", 3, TypeError),
        ("client_close_handler_callable", 3, TypeError),
        ("shutdown_event", True, TypeError),
        ("shutdown", 3, TypeError),
        ("lifespan", lambda app: None, TypeError),
        ("compression", "deflate", ValueError),
    ],
)
def test_a_wrong_option_is_refused_when_the_response_is_built(
    option: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"\b{option}|length of a stream is not known"):
        EventSourceResponse([], **{option: value})


def test_ping_interval() -> None:
    response = EventSourceResponse([])
    assert response.ping_interval == 15
    response.ping_interval = 0.5
    assert response.ping_interval == 0.5
    response.ping_interval = 0
    assert response.ping_interval == 0
    assert EventSourceResponse([], ping=0).ping_interval == 0
    wrong: Any
    for wrong, error in (("ten", TypeError), (None, TypeError), (-1, ValueError)):
        with pytest.raises(error, match="ping"):
            response.ping_interval = wrong


@on_mock_clock
async def test_the_ping_interval_may_be_set_until_the_response_starts() -> None:
    response = EventSourceResponse(Recorder().source())
    response.ping_interval = 2
    async with connect(response) as stream:
        await anyio.sleep(5)
        assert len(stream.comments) == 2


#: What a response of sse-starlette 3.7.0 has in public.
ATTRIBUTES = {
    "active", "background", "body_iterator", "charset", "client_close_handler_callable",
    "data_sender_callable", "headers", "media_type", "ping_interval", "ping_message_factory",
    "raw_headers", "send_timeout", "sep", "status_code",
}  # fmt: skip


@pytest.mark.parametrize("raises", [False, True])
async def test_a_response_that_is_over_is_not_active(raises: bool) -> None:
    async def content() -> AsyncIterator[str]:
        assert response.active
        yield "a"
        if raises:
            raise LookupError

    response = EventSourceResponse(content())
    try:
        await body_of_response(response)
    except LookupError:
        assert raises
    assert not response.active


def test_the_attributes_of_a_response() -> None:
    def factory() -> ServerSentEvent:
        return ServerSentEvent(comment="x")

    options: dict[str, Any] = {
        "sep": "\r", "send_timeout": 3, "ping_message_factory": factory,
        "shutdown_grace_period": 2, "cleanup_timeout": None,
    }  # fmt: skip
    response = EventSourceResponse([], **options)
    assert {name: getattr(response, name) for name in options} == options
    assert response.active
    assert [name for name in ATTRIBUTES if not hasattr(response, name)] == []
    plain = EventSourceResponse([])
    assert (plain.sep, plain.send_timeout, plain.ping_message_factory) == ("\r\n", None, None)
    assert (plain.shutdown_grace_period, plain.cleanup_timeout) == (0, 30)


def test_no_attribute_of_sse_starlette_is_missing() -> None:
    """In a process of its own: to import it changes uvicorn."""
    code = (
        "from sse_starlette import EventSourceResponse as R; r = R(iter([])); "
        "print(*{n for n in {*vars(r), *dir(r)} if n[0] != '_'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "No module named 'sse_starlette'" in run.stderr:
        pytest.skip("sse-starlette is not installed")
    there = set(run.stdout.split())
    assert there >= ATTRIBUTES
    response = EventSourceResponse([])
    assert [name for name in there if not hasattr(response, name)] == []


async def test_attributes_may_be_set_until_the_response_starts() -> None:
    response = EventSourceResponse(["a"])
    response.sep = "\n"
    response.send_timeout = 5
    assert (response.sep, response.send_timeout) == ("\n", 5)
    assert await body_of_response(response) == b"data: a\n\n"
    for name, wrong in (("sep", "x"), ("send_timeout", -1), ("shutdown_grace_period", -1)):
        with pytest.raises(ValueError, match=name):
            setattr(response, name, wrong)


@on_mock_clock
async def test_pings_may_be_set_until_the_response_starts() -> None:
    response = EventSourceResponse(Recorder().source(), ping=1)
    response.ping_message_factory = lambda: {"comment": "mine"}
    async with connect(response) as stream:
        await anyio.sleep(2.5)
        assert stream.comments == ["mine", "mine"]


def test_defaults_may_be_overridden_in_a_subclass() -> None:
    class Mine(EventSourceResponse):
        DEFAULT_PING_INTERVAL = 3
        DEFAULT_SEPARATOR = "\n"

    assert Mine([]).ping_interval == 3
    assert anyio.run(body_of_response, Mine(["a"])) == b"data: a\n\n"


# -- events: the bytes are those of sse-starlette 3.7.0 --------------------------------------------


class Color(Enum):
    RED = "red"


class Model(BaseModel):
    name: str


@dataclass
class Point:
    x: int


class Own:
    def __str__(self) -> str:
        return "own\ntext"


ID = uuid.UUID(int=7)

EVENTS: list[tuple[Any, bytes]] = [
    ("text", b"data: text\r\n\r\n"),
    ("two\nlines", b"data: two\r\ndata: lines\r\n\r\n"),
    (b"event: raw\n\n", b"event: raw\n\n"),
    (memoryview(b"event: raw\n\n"), b"event: raw\n\n"),
    (7, b"data: 7\r\n\r\n"),
    (True, b"data: True\r\n\r\n"),
    (float("nan"), b"data: nan\r\n\r\n"),
    (Own(), b"data: own\r\ndata: text\r\n\r\n"),
    ({"data": "x", "event": "e", "id": "1", "retry": 5, "comment": "c"},
     b": c\r\nid: 1\r\nevent: e\r\ndata: x\r\nretry: 5\r\n\r\n"),
    ({"data": 1}, b"data: 1\r\n\r\n"),
    ({"data": ID}, b"data: %s\r\n\r\n" % str(ID).encode()),
    ({"data": date(2026, 1, 2)}, b"data: 2026-01-02\r\n\r\n"),
    ({"data": Color.RED}, b"data: Color.RED\r\n\r\n"),
    ({"data": None, "event": "e"}, b"event: e\r\n\r\n"),
    ({"data": "x", "event": "a\r\nb", "id": "1\n2"}, b"id: 12\r\nevent: ab\r\ndata: x\r\n\r\n"),
    ({"data": "x", "sep": "\n"}, b"data: x\r\n\r\n"),
    ({"comment": 5}, b": 5\r\n\r\n"),
    (MappingProxyType({"data": 1, "event": "a\nb"}), b"event: ab\r\ndata: 1\r\n\r\n"),
    (ServerSentEvent("x", id="1"), b"id: 1\r\ndata: x\r\n\r\n"),
    (ServerSentEvent("x", sep="\n"), b"data: x\n\n"),
    (ServerSentEvent("a\nb", sep="\r"), b"data: a\rdata: b\r\r"),
    (JSONServerSentEvent({"a": ["ü", None]}), 'data: {"a":["ü",null]}\r\n\r\n'.encode()),
    (JSONServerSentEvent("x"), b'data: "x"\r\n\r\n'),
    (JSONServerSentEvent(None, event="e"), b"event: e\r\n\r\n"),
]  # fmt: skip

#: What would be a repr of Python there, or would do harm.
OTHER_EVENTS: list[tuple[Any, bytes]] = [
    ({"data": {"a": 1}}, b'data: {"a":1}\r\n\r\n'),
    (ServerSentEvent([1, Model(name="m")]), b'data: [1,{"name":"m"}]\r\n\r\n'),
    (Model(name="m"), b'data: {"name":"m"}\r\n\r\n'),
    ({"data": Point(3)}, b'data: {"x":3}\r\n\r\n'),
    ({"data": b"bytes"}, b"data: bytes\r\n\r\n"),
    ({"data": "x", "id": "a\0b"}, b"id: ab\r\ndata: x\r\n\r\n"),
    (sse_asgi.ServerSentEvent("x"), b"data: x\r\n\r\n"),
]


@pytest.mark.parametrize(("event", "frame"), EVENTS + OTHER_EVENTS)
async def test_what_is_sent(event: Any, frame: bytes) -> None:
    assert await body_of([event]) == frame


@pytest.mark.parametrize(
    ("event", "frame"), [*EVENTS, ("data: x\n\n", b"data: data: x\r\ndata: \r\ndata: \r\n\r\n")]
)
def test_ensure_bytes(event: Any, frame: bytes) -> None:
    """Programs import it from ``sse_starlette.event``, and from ``sse_starlette.sse``."""
    if isinstance(event, MappingProxyType):
        return  # whose repr is sent there
    assert ensure_bytes(event, "\r\n") == ensure_bytes(event, sep="\r\n") == frame


def test_ensure_bytes_checks_no_bytes() -> None:
    for part in (b"hello", b"data: x\n", memoryview(b"hello"), b""):
        encoded = ensure_bytes(part, "\n")
        assert encoded == bytes(part)
        assert type(encoded) is bytes
    assert ensure_bytes({"data": "a\nb"}, "\r") == b"data: a\rdata: b\r\r"
    with pytest.raises(ValueError, match="sep must be one of"):
        ensure_bytes("a", "x")


async def test_every_str_is_data() -> None:
    """As in sse-starlette, also if it is a frame of another encoder."""
    for text in ("data: x\n\n", ":\n\n", "event: e\ndata: x\n\n"):
        async with connect(EventSourceResponse([text])) as stream:
            event = await stream.receive()
            assert (event.event, event.data) == ("message", text)


async def test_bytes_must_be_whole_frames() -> None:
    for part in (b"hello", b"data: x\n", memoryview(b"data: x")):
        with pytest.raises(ValueError, match=r"whole frames.*relay\(chunks\)"):
            await body_of([part])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"retry": "5"}, TypeError),
        ({"retry": -5}, ValueError),
        ({"event": 5}, TypeError),
        ({"id": 5.0}, TypeError),
        ({"data": "\ud800"}, ValueError),
        ({"data": object()}, TypeError),
        ({"unknown": "x"}, TypeError),
    ],
)
async def test_what_can_not_be_sent_is_refused_however_it_is_given(
    fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        ServerSentEvent(**fields)
    with pytest.raises(error):
        await body_of([fields])


async def test_an_unknown_key_is_refused_by_name() -> None:
    for event in ({"progress": 1, "data": "x"}, MappingProxyType({"progress": 1})):
        with pytest.raises(TypeError, match="no field 'progress'; its fields are "):
            await body_of([event])
    assert await body_of([{"data": "x", "sep": "\n"}]) == b"data: x\r\n\r\n"


def test_an_event_encodes_itself() -> None:
    event = ServerSentEvent("x", event="e")
    assert event.encode() == b"event: e\r\ndata: x\r\n\r\n"
    assert isinstance(event, sse_asgi.ServerSentEvent)
    with pytest.raises(ValueError, match="sep must be one of"):
        ServerSentEvent("x", sep="\n\n")


async def test_events_of_the_classes_are_encoded_alike_wherever_they_come_from() -> None:
    class Short(ServerSentEvent):
        DEFAULT_SEPARATOR = "\n"

    async def fails() -> AsyncIterator[ServerSentEvent]:
        await anyio.sleep(0.5)
        raise LookupError("why")
        yield Short("never")

    options: dict[str, Any] = {
        "ping": 0.02,
        "ping_message_factory": lambda: Short(comment="p"),
        "on_error": lambda exc: Short(exc, event="e\nrror"),
        "sep": "\r",
    }
    body = await body_of(fails(), **options)
    assert body.startswith(b": p\n\n")
    assert body.endswith(b"event: error\ndata: why\n\n")


async def test_an_event_of_a_subclass_says_how_it_is_encoded() -> None:
    class Shouted(ServerSentEvent):
        def __init__(self, data: str) -> None:
            super().__init__(data, sep="\n")
            self.mark = "!"

        def encode(self) -> bytes:
            assert isinstance(self.data, str)
            return ServerSentEvent(self.data.upper() + self.mark, sep=self._sep).encode()

    assert await body_of([Shouted("x")]) == b"data: X!\n\n"


# -- what runs during and after a stream -----------------------------------------------------------


async def test_a_memory_channel_that_is_fed_meanwhile() -> None:
    send, receive = anyio.create_memory_object_stream[Any](1)

    async def feed() -> None:
        async with send:
            for number in range(3):
                await send.send({"data": number})

    body = await body_of(receive, data_sender_callable=feed)
    assert body == b"data: 0\r\n\r\ndata: 1\r\n\r\ndata: 2\r\n\r\n"


async def test_the_sender_is_cancelled_before_the_content_is_closed() -> None:
    ended = []
    send, receive = anyio.create_memory_object_stream[Any](0)

    async def feed() -> None:
        try:
            while True:
                await send.send("x")
        except anyio.get_cancelled_exc_class():
            ended.append("cancelled")
            raise
        except anyio.BrokenResourceError:
            ended.append("broken")
            raise
        finally:
            send.close()

    async with connect(EventSourceResponse(receive, data_sender_callable=feed)) as stream:
        await stream.receive()
    assert ended == ["cancelled"]


@on_mock_clock
async def test_a_sender_that_fails_while_a_ping_is_stuck() -> None:
    """The content has `cleanup_timeout` to end, and not as long as it likes."""

    async def content() -> AsyncIterator[str]:
        try:
            await anyio.sleep_forever()
            yield "never"
        finally:
            await anyio.sleep_forever()

    async def feed() -> None:
        await anyio.sleep(2)
        raise RuntimeError("no more")

    async def stuck(message: Any) -> None:
        if message.get("body"):
            await anyio.sleep_forever()

    response = EventSourceResponse(
        content(), data_sender_callable=feed, ping=1, send_timeout=5, cleanup_timeout=1
    )
    with anyio.fail_after(60), pytest.raises(RuntimeError, match="no more"):
        await response(http_scope(), never, stuck)


async def test_a_sender_that_still_writes_when_the_content_ends_is_no_error() -> None:
    send, receive = anyio.create_memory_object_stream[Any](0)

    async def content() -> AsyncIterator[str]:
        with receive:
            yield await receive.receive()

    async def feed() -> None:
        with send:
            while True:
                await send.send("a")

    messages: list[Any] = []

    async def slow_send(message: Any) -> None:
        await anyio.sleep(0.01)
        messages.append(message)

    await EventSourceResponse(content(), data_sender_callable=feed)(http_scope(), never, slow_send)
    assert messages[-1]["more_body"] is False


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_sender_that_awaits_something_cancelled_has_ended() -> None:
    """So has one that raises the cancelled class, as an inference server does."""
    recorder, ended = Recorder(), anyio.Event()

    async def feed() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, future.cancel)
        try:
            await future
        finally:
            ended.set()

    async def content() -> AsyncIterator[str]:
        yield "a"
        await ended.wait()
        yield "b"

    response = EventSourceResponse(content(), data_sender_callable=feed, on_close=recorder.on_close)
    async with connect(response) as stream:
        assert [event.data async for event in stream] == ["a", "b"]
    assert stream.complete
    assert recorder.report.reason is CloseReason.FINISHED


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize("raises", ["an error", "the cancelled class", "a panic"])
async def test_what_a_sender_has_sent_before_it_raises_comes_first(size: int, raises: str) -> None:
    class Panic(BaseException):
        pass

    error = {
        "an error": LookupError(),
        "the cancelled class": anyio.get_cancelled_exc_class().__new__(
            anyio.get_cancelled_exc_class()
        ),
        "a panic": Panic(),
    }[raises]
    send_channel, receive_channel = anyio.create_memory_object_stream[str](size)

    async def feed() -> None:
        async with send_channel:
            for number in range(50):
                await send_channel.send(str(number))
            await send_channel.send("[DONE]")
            raise error

    async def pipeline() -> AsyncIterator[str]:
        async with receive_channel:
            async for data in receive_channel:
                await anyio.lowlevel.checkpoint()
                yield data

    response = EventSourceResponse(pipeline(), data_sender_callable=feed)
    received: list[str] = []
    raised: BaseException | None = None

    async def app(*args: Any) -> None:
        nonlocal raised
        try:
            await response(*args)
        except (LookupError, Panic) as exc:
            raised = exc

    async with connect(app) as stream:
        with pytest.raises((anyio.EndOfStream, anyio.IncompleteRead)):
            while True:
                received.append((await stream.receive()).data)
    assert raised is (None if raises == "the cancelled class" else error)
    assert stream.complete is (raised is None)
    assert received == [*map(str, range(50)), "[DONE]"]


async def test_what_is_no_exception_of_a_sender_leaves_as_itself() -> None:
    class Exit(BaseException):
        pass

    recorder = Recorder()

    async def feed() -> None:
        await anyio.sleep(0.01)
        raise Exit

    response = EventSourceResponse(recorder.source("a"), data_sender_callable=feed)

    async def send(message: Any) -> None: ...

    with pytest.raises(Exit):
        await response(http_scope(), never, send)
    assert recorder.closed


async def test_a_sender_that_takes_long_leaves_the_content_its_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()

    async def feed() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.3)

    response = EventSourceResponse(
        recorder.source("a", cleanup=0.05), data_sender_callable=feed, cleanup_timeout=0.1
    )
    async with connect(response) as stream:
        await stream.receive()
    assert recorder.closed
    assert ["feeds the source" in record.message for record in caplog.records] == [True]


async def test_a_stream_that_is_over_before_it_starts_asks_nobody() -> None:
    shutdown = Shutdown()
    shutdown.drain()

    async def feed() -> None:
        raise AssertionError

    async def source() -> AsyncIterator[str]:
        raise AssertionError
        yield "never"

    response = EventSourceResponse(source(), data_sender_callable=feed, shutdown=shutdown)
    async with connect(response) as stream:
        assert await stream.read() == b""
    assert stream.complete


async def test_headers_that_are_wrong_later_are_refused_and_leave_nothing_behind() -> None:
    limiter = current_thread_limiter()
    contents: list[Any] = [endless(), SyncCloseable(), Closeable()]
    for content in contents:
        response = EventSourceResponse(content)
        response.headers["Content-Length"] = "3"
        with pytest.raises(ValueError, match="the length of a stream is not known"):
            await response(http_scope(), never, never)  # type: ignore[arg-type]
        assert getattr(content, "closed", True)
    assert limiter.borrowed_tokens == 0


async def test_a_memory_channel_is_freed_without_the_garbage_collector() -> None:
    send, receive = anyio.create_memory_object_stream[Any](1)
    send.send_nowait("a")
    send.close()
    response = EventSourceResponse(receive)
    references: list[Any] = [weakref.ref(response), weakref.ref(receive)]
    gc.disable()
    try:
        async with connect(response) as stream:
            assert (await stream.receive()).data == "a"
            await stream.read()
        del response, receive, stream
        await anyio.wait_all_tasks_blocked()
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("buffer", [0, 1])
async def test_the_cleanup_of_a_sender_may_still_send(buffer: int) -> None:
    ended = []
    send, receive = anyio.create_memory_object_stream[Any](buffer)

    async def feed() -> None:
        with send:
            try:
                await send.send("x")
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    try:
                        await send.send("nobody will read this")
                    finally:
                        ended.append(receive.statistics().open_receive_streams)

    response = EventSourceResponse(receive, data_sender_callable=feed, cleanup_timeout=0.05)
    async with connect(response) as stream:
        await stream.receive()
    # Where there is no room for it, it waits until the time for cleanups is over.
    assert ended == [buffer]


async def test_a_sender_may_go_on_when_the_content_ends_and_is_cancelled_then() -> None:
    ended = []

    async def feed() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    assert await body_of(["a"], data_sender_callable=feed) == b"data: a\r\n\r\n"
    assert ended


async def test_a_sender_that_fails_ends_the_stream_with_its_error() -> None:
    recorder = Recorder()
    error = KeyError("sender")

    async def feed() -> None:
        await sent.wait()
        raise error

    async def content() -> AsyncIterator[str]:
        async for event in recorder.source("a"):
            yield event

    sent = anyio.Event()
    response = EventSourceResponse(
        recorder.source("a"), data_sender_callable=feed, on_close=recorder.on_close
    )
    with pytest.raises(KeyError) as raised:
        async with connect(response) as stream:
            await stream.receive()
            sent.set()
            await stream.read()
    assert raised.value is error
    assert not stream.complete  # no end that looks regular
    assert recorder.closed
    assert recorder.report.error is error


async def test_on_error_may_speak_for_a_sender_that_fails() -> None:
    async def feed() -> None:
        raise KeyError("sender")

    response = EventSourceResponse(
        Recorder().source(),
        data_sender_callable=feed,
        on_error=lambda exc: {"event": "error", "data": repr(exc)},
    )
    async with connect(response) as stream:
        assert (await stream.receive()).data == "KeyError('sender')"
        await stream.read()
    assert stream.complete


@pytest.mark.parametrize("seen_by", ["receive", "send"])
async def test_the_client_close_handler_is_told_when_the_client_is_seen_to_leave(
    seen_by: str,
) -> None:
    """The content may wait in its cleanup for what the handler says."""
    told: list[Any] = []
    said, recorder = anyio.Event(), Recorder()

    async def left(message: Any) -> None:
        await anyio.lowlevel.checkpoint()
        told.append(message)
        said.set()

    async def content() -> AsyncIterator[str]:
        try:
            yield "a"
            if seen_by == "receive":
                await anyio.sleep_forever()
            yield "b"
        finally:
            await said.wait()
            recorder.closed = True

    async def send_until_b(message: Any) -> None:
        if b"b" in message.get("body", b""):
            raise OSError

    response = EventSourceResponse(
        content(), client_close_handler_callable=left, on_close=recorder.on_close
    )
    if seen_by == "receive":
        async with connect(response) as stream:
            await stream.receive()
    else:
        await response(http_scope(), never, send_until_b)
    assert told == [{"type": "http.disconnect"}]
    assert recorder.closed
    assert recorder.report.duration < 20  # not cleanup_timeout


async def test_the_client_close_handler_may_wait_where_all_around_it_is_cancelled() -> None:
    recorder, told = Recorder(), []

    async def left(message: Any) -> None:
        await anyio.sleep(0.01)
        told.append(message)

    response = EventSourceResponse(
        recorder.source("a", cleanup=0.05), client_close_handler_callable=left
    )
    scope = anyio.CancelScope()

    async def in_scope(*args: Any) -> None:
        with scope:
            await response(*args)

    async with connect(in_scope) as stream:
        await stream.receive()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.disconnect)
            while not recorder.cleanup_began:
                await anyio.sleep(0.001)
            scope.cancel()
    assert recorder.closed
    assert told


async def test_the_client_close_handler_is_not_told_of_another_end() -> None:
    async def left(message: Any) -> None:
        raise AssertionError

    assert await body_of(["a"], client_close_handler_callable=left)


async def test_an_error_of_the_client_close_handler_leaves_as_itself() -> None:
    async def left(message: Any) -> None:
        raise KeyError("handler")

    response = EventSourceResponse(Recorder().source("a"), client_close_handler_callable=left)
    with pytest.raises(KeyError, match="handler"):
        async with connect(response) as stream:
            await stream.receive()


@pytest.mark.parametrize("end", ["finished", "disconnect", "head", "shutdown"])
async def test_the_background_task_runs_when_the_stream_is_over(end: str) -> None:
    recorder, shutdown = Recorder(), Shutdown()
    ran = []
    response = EventSourceResponse(
        ["a"] if end == "finished" else recorder.source("a"),
        background=BackgroundTask(lambda: ran.append(True)),
        shutdown=shutdown,
    )
    async with connect(response, method="HEAD" if end == "head" else "GET") as stream:
        if end in ("disconnect", "shutdown"):
            await stream.receive()
            assert not ran
        if end == "shutdown":
            shutdown.drain()
        if end != "disconnect":
            await stream.read()
    assert ran == [True]


async def test_no_background_task_after_an_error() -> None:
    async def content() -> AsyncIterator[str]:
        yield "a"
        raise KeyError

    response = EventSourceResponse(content(), background=BackgroundTask(pytest.fail))
    with pytest.raises(KeyError):
        async with connect(response) as stream:
            await stream.read()


@on_mock_clock
async def test_the_shutdown_event_lets_the_content_end_by_itself() -> None:
    for max_lifetime in (None, 50):
        event, shutdown = anyio.Event(), Shutdown()

        async def content(event: anyio.Event = event) -> AsyncIterator[str]:
            yield "a"
            await event.wait()
            await anyio.sleep(4)
            yield "goodbye"

        response = EventSourceResponse(
            content(),
            shutdown=shutdown,
            shutdown_event=event,
            shutdown_grace_period=5,
            max_lifetime=max_lifetime,
        )
        async with connect(response) as stream:
            await stream.receive()
            assert not event.is_set()
            if max_lifetime is None:
                shutdown.drain()
            assert (await stream.receive()).data == "goodbye"
            await stream.read()
            assert stream.complete


@on_mock_clock
async def test_the_grace_period_is_over_some_time() -> None:
    event, shutdown, recorder = anyio.Event(), Shutdown(), Recorder()
    response = EventSourceResponse(
        recorder.source("a"), shutdown=shutdown, shutdown_event=event, shutdown_grace_period=5
    )
    async with connect(response) as stream:
        await stream.receive()
        began = anyio.current_time()
        shutdown.drain()
        await stream.read()
        assert anyio.current_time() == began + 5
    assert event.is_set()
    assert recorder.closed
    assert stream.complete


async def test_an_event_that_can_not_be_set_ends_its_stream_and_no_other() -> None:
    class Broken:
        def set(self) -> None:
            raise KeyError("broken")

    shutdown, recorder, other = Shutdown(), Recorder(), Recorder()
    response = EventSourceResponse(recorder.source("a"), shutdown=shutdown, shutdown_event=Broken())
    async with connect(EventSourceResponse(other.source("a"), shutdown=shutdown)) as second:
        await second.receive()
        with pytest.raises(KeyError, match="broken"):
            async with connect(response) as stream:
                await stream.receive()
                shutdown.drain()
                await stream.read()
        await second.read()
    assert second.complete
    assert recorder.closed
    assert other.closed


@on_mock_clock
async def test_a_client_that_does_not_read_is_a_send_timeout_error() -> None:
    recorder = Recorder()
    response = EventSourceResponse(
        recorder.source("a", "b", "c"),
        send_timeout=2,
        background=BackgroundTask(pytest.fail),
        on_close=recorder.on_close,
    )
    with pytest.raises(SendTimeoutError) as raised:
        async with connect(response) as stream:
            await stream.receive()
            stream.stall()
            await anyio.sleep(100)
    assert isinstance(raised.value, TimeoutError)
    assert recorder.closed
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT


# -- requests that are not answered with a stream --------------------------------------------------


class Closeable:
    """Content that may be closed, and nothing else."""

    closed = False

    def __aiter__(self) -> AsyncIterator[str]:
        raise AssertionError

    async def aclose(self) -> None:
        self.closed = True


class SyncCloseable:
    closed = False

    def __iter__(self) -> Iterator[str]:
        raise AssertionError

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("kind", [Closeable, SyncCloseable])
async def test_head_answers_the_headers_and_closes_what_it_does_not_start(kind: Any) -> None:
    content = kind()

    async def feed() -> None:
        raise AssertionError

    response = EventSourceResponse(content, headers={"X-A": "1"}, data_sender_callable=feed)
    async with connect(response, method="HEAD") as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["x-a"] == "1"
        assert await stream.read() == b""
    assert content.closed


async def test_a_post_opens_a_stream() -> None:
    async with connect(EventSourceResponse(["a"]), method="POST", body=b"{}") as stream:
        assert (await stream.receive()).data == "a"


@pytest.mark.parametrize(
    ("methods", "method", "allowed"),
    [
        (["GET"], "POST", "GET, HEAD"),
        (["post"], "GET", "POST"),
        (["POST"], "HEAD", "POST"),
        (["GET"], "HEAD", None),
        (["POST"], "POST", None),
    ],
)
async def test_methods(methods: list[str], method: str, allowed: str | None) -> None:
    content = Closeable() if allowed else ["a"]
    app = app_of(lambda request: EventSourceResponse(content, methods=methods))
    async with connect(app, method=method) as stream:
        assert stream.status_code == (405 if allowed else 200)
        if method != "HEAD":
            assert stream.headers.get("allow") == allowed
    assert not isinstance(content, Closeable) or content.closed


async def test_max_connections_of_an_endpoint() -> None:
    refused = Closeable()
    contents: list[Any] = [Recorder().source("a"), refused, ["again"]]
    other: list[Any] = [["other"]]

    def route(path: str, contents: list[Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            return EventSourceResponse(contents.pop(0), max_connections=1)

        return Route(path, endpoint)

    app = Starlette(routes=[route("/", contents), route("/other", other)])
    async with connect(app) as first:
        await first.receive()
        async with connect(app) as second:
            assert second.status_code == 503
            assert second.headers["retry-after"] == "5"
        assert refused.closed
        async with connect(app, "/other") as third:
            assert (await third.receive()).data == "other"
    async with connect(app) as fourth:
        assert (await fourth.receive()).data == "again"


async def test_an_endpoint_is_not_remembered() -> None:
    def endpoint() -> Any:
        async def endpoint(request: Request) -> Response:
            return EventSourceResponse(["a"], max_connections=1)

        return endpoint

    app = Starlette(routes=[Route("/", remembered := endpoint())])
    reference = weakref.ref(remembered)
    async with connect(app) as stream:
        await stream.receive()
    del app, remembered, stream
    gc.collect()
    assert reference() is None


async def test_no_thread_left_is_a_503() -> None:
    limiter = current_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    content = SyncCloseable()
    app = app_of(lambda request: EventSourceResponse(content))
    try:
        async with connect(EventSourceResponse(endless())) as stream:
            await stream.receive()
            async with connect(app) as refused:
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "5"
            assert content.closed
    finally:
        limiter.total_tokens = before


def endless() -> Iterator[str]:
    while True:
        yield "a"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(403, "no"), 403),
        (HTTPError(403, "no", {"X-A": "1"}), 403),
        (LookupError("no"), 404),
    ],
)
async def test_an_exception_before_the_start_reaches_the_handlers_of_the_application(
    error: Exception, status: int
) -> None:
    async def content() -> AsyncIterator[str]:
        await anyio.sleep(0.01)
        raise error
        yield "never"

    async def as_json(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        return JSONResponse({"detail": exc.detail}, exc.status_code, headers=exc.headers)

    async def not_found(request: Request, exc: Exception) -> Response:
        return JSONResponse({"detail": str(exc)}, 404)

    app = app_of(
        lambda request: EventSourceResponse(content(), defer_start=True),
        exception_handlers={HTTPException: as_json, LookupError: not_found},
    )
    async with connect(app) as stream:
        assert stream.status_code == status
        assert json.loads(await stream.read()) == {"detail": "no"}
        assert stream.headers.get("x-a") == ("1" if isinstance(error, HTTPError) else None)


async def test_an_http_error_where_there_is_no_application() -> None:
    async def content() -> AsyncIterator[str]:
        raise HTTPError(204)
        yield "never"

    async with connect(EventSourceResponse(content(), defer_start=True)) as stream:
        assert stream.status_code == 204
        assert await stream.read() == b""


async def test_an_http_error_after_the_start_is_an_error() -> None:
    async def content() -> AsyncIterator[str]:
        yield "a"
        raise HTTPError(403)

    app = app_of(lambda request: EventSourceResponse(content()))
    with pytest.raises(HTTPError):
        async with connect(app) as stream:
            await stream.read()
    assert stream.status_code == 200
    assert not stream.complete


# -- a websocket that is denied with a stream ------------------------------------------------------


class Denied:
    """A client that asks for a websocket, and is answered over HTTP."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = anyio.Event()
        self._connected = False
        self.scope = http_scope(
            type="websocket", extensions={"websocket.http.response": {}}, subprotocols=[]
        )
        del self.scope["method"]

    async def receive(self) -> dict[str, Any]:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        await self.left.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        assert all(m["type"] == "websocket.http.response.body" for m in self.sent[1:])
        return b"".join(message["body"] for message in self.sent[1:])


async def test_a_websocket_is_denied_with_a_stream() -> None:
    client = Denied()

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.send_denial_response(EventSourceResponse(["a"], status_code=403))

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    await app(client.scope, client.receive, client.send)
    assert client.sent[0]["type"] == "websocket.http.response.start"
    assert client.sent[0]["status"] == 403
    assert client.body == b"data: a\r\n\r\n"
    assert client.sent[-1]["more_body"] is False


async def test_a_websocket_may_be_denied_for_another_reason() -> None:
    client = Denied()

    async def content() -> AsyncIterator[str]:
        raise HTTPError(404, "no such stream")
        yield "never"

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.send_denial_response(EventSourceResponse(content(), defer_start=True))

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    await app(client.scope, client.receive, client.send)
    assert client.sent[0]["status"] == 404
    assert client.body == b"no such stream"


async def test_a_client_that_leaves_while_it_is_denied_is_a_disconnect() -> None:
    client, recorder = Denied(), Recorder()
    response = EventSourceResponse(recorder.source("a"), on_close=recorder.on_close)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(response, client.scope, client.receive, client.send)
        while not client.sent[1:]:
            await anyio.sleep(0.001)
        client.left.set()
    assert recorder.closed
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


# -- in between ------------------------------------------------------------------------------------


class PassThrough(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


MIDDLEWARES = [
    Middleware(PassThrough),
    Middleware(GZipMiddleware, minimum_size=1),
    Middleware(CORSMiddleware, allow_origins=["*"]),
    Middleware(SessionMiddleware, secret_key="secret"),
]


@pytest.mark.filterwarnings("ignore:.*Request.stream:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", ["disconnect", "shutdown"])
@pytest.mark.parametrize("which", [[0], [1], [2], [3], [0, 1, 2, 3], [3, 2, 1, 0]])
async def test_streams_go_through_middlewares_at_once(which: list[int], end: str) -> None:
    recorder, shutdown = Recorder(), Shutdown()

    def respond(request: Request) -> Response:
        if 3 in which:
            request.session["user"] = "u"
        return EventSourceResponse(recorder.source("a"), shutdown=shutdown)

    app = app_of(respond, middleware=[MIDDLEWARES[number] for number in which])
    with anyio.fail_after(10):
        async with connect(
            app, headers={"Accept-Encoding": "gzip", "Origin": "http://example.com"}
        ) as stream:
            assert (await stream.receive()).data == "a"
            assert "content-encoding" not in stream.headers
            assert ("set-cookie" in stream.headers) is (3 in which)
            assert ("access-control-allow-origin" in stream.headers) is (2 in which)
            if end == "shutdown":
                shutdown.drain()
                await stream.read()
                assert stream.complete
    assert recorder.closed


async def test_a_generator_may_ask_the_request_whether_the_client_is_there() -> None:
    asked = []

    async def content(request: Request) -> AsyncIterator[str]:
        while not await request.is_disconnected():
            asked.append(True)
            yield "a"
            await anyio.sleep(0.001)

    app = app_of(lambda request: EventSourceResponse(content(request)))
    with anyio.fail_after(10):
        async with connect(app) as stream:
            for _ in range(3):
                await stream.receive()
    assert len(asked) >= 3
