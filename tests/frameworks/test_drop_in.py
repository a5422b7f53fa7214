"""Programs for sse-starlette, as its documentation has them, and the same with another import.

Both are served by uvicorn. Both have to give the client the same bytes, and the same has to happen
to the program. What differs on purpose: the default ping, and when it is due; there is no
`connection` header; and a response that the server's shutdown ends is complete.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.peers import missing
from tests.servers.clients import Response, wait_for

from .programs import Program, serve

THEIRS, OURS = "sse_starlette", "sse_asgi.starlette"

IMPORT = {
    THEIRS: """
from sse_starlette import EventSourceResponse, JSONServerSentEvent, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
""",
    OURS: """
from sse_asgi.starlette import (
    EventSourceResponse, JSONServerSentEvent, SendTimeoutError, ServerSentEvent
)
""",
}

PROGRAM = r"""
import asyncio
import datetime
import enum
import json
import os
import uuid
from functools import partial

import anyio
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.routing import Mount, Route


def say(*what):
    # At once: the server writes to the same file, and a background task runs in a thread.
    os.write(1, " ".join([">", *map(str, what)]).encode() + b"\n")


class Color(str, enum.Enum):
    RED = "red"


async def every_field(request):
    try:
        yield {"data": "one"}
        yield {"data": "first\nsecond\r\nthird\rfourth\n", "event": "update", "id": "1"}
        yield {"data": "", "id": ""}
        yield {"event": "nothing", "retry": 0}
        yield {"comment": "nobody\r\nreads this", "retry": 2500}
        yield {"data": "zürich\u2028\x0b\x0c\x85\U0001f40d", "event": "ü\r\nber", "id": "é\n1"}
        yield {"data": None, "event": None, "id": None, "retry": None, "comment": None}
        for value in (7, -1, 0, True, 2.5, 1e100, float("inf")):
            if await request.is_disconnected():
                break
            yield {"data": value}
        for value in (uuid.UUID(int=5), datetime.datetime(2024, 2, 29, 12), Color.RED, 10**40):
            yield dict(data=value, comment=value)
        yield {}
        await anyio.sleep(0)
        yield {"data": json.dumps({"a": [1, None]}), "sep": "ignored"}
    finally:
        say("closed")


async def objects(request):
    for sep in ("\r\n", "\n", "\r", None):
        yield ServerSentEvent("a\nb", event="x", id="1", retry=10, comment="c\nd", sep=sep)
        yield JSONServerSentEvent({"a": ["ü", 1.5, None, True]}, event="x", sep=sep)
    yield ServerSentEvent()
    yield ServerSentEvent(data=12)
    yield ServerSentEvent(**{"comment": "You can't see\r\nthis"})
    yield JSONServerSentEvent(data="text\n")
    yield JSONServerSentEvent([])
    yield JSONServerSentEvent()


async def anything(request):
    for value in ("text", "two\nlines", "", 1, 0, 2.5, False, Color.RED, uuid.UUID(int=1)):
        yield value
    yield b"data: encoded\r\n\r\n"
    yield memoryview(b": so is this\n\n")
    yield b""
    yield "end"


def sync(request):
    for number in range(3):
        yield {"data": number, "id": str(number)}
    say("closed")


class Stream:
    def __init__(self, limit):
        self.number = 0
        self.limit = limit

    def __aiter__(self):
        say("iterated")
        return self

    async def __anext__(self):
        if self.number == self.limit:
            raise StopAsyncIteration
        self.number += 1
        await asyncio.sleep(0)
        return ServerSentEvent(data=f"message {self.number}")


async def produce(channel, name, count):
    async with channel:
        for number in range(count):
            await channel.send({"data": f"item {number}", "event": name, "id": str(number)})
    say("produced", name)


def channel(buffer, request):
    send, receive = anyio.create_memory_object_stream(buffer)
    return EventSourceResponse(receive, data_sender_callable=partial(produce, send, "p", 20))


async def merged(request):
    send, receive = anyio.create_memory_object_stream(5)

    async def producers():
        async with send, anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(produce, send.clone(), name, 10)

    return EventSourceResponse(receive, data_sender_callable=producers)


async def counted(count=3):
    for number in range(count):
        yield {"data": number}


def respond(**options):
    return lambda request: EventSourceResponse(counted(), **options)


def stream_of(source, **options):
    return lambda request: EventSourceResponse(source(request), **options)


async def pinged(request):
    made = asyncio.Event()

    def ping():
        made.set()
        return ServerSentEvent(comment="still\r\nhere", event="ping")

    async def source():
        yield {"data": "before"}
        await made.wait()
        await asyncio.sleep(0.05)
        yield {"data": "after"}

    return EventSourceResponse(source(), ping=0.1, ping_message_factory=ping)


async def background(request):
    return EventSourceResponse(counted(), background=BackgroundTask(say, "background"))


async def one_then_wait(request):
    try:
        yield {"data": "open"}
        await anyio.sleep_forever()
    except asyncio.CancelledError:
        say("cancelled")
        raise
    finally:
        say("closed")


async def goodbye(request):
    try:
        yield {"data": "open"}
        await anyio.sleep_forever()
    except asyncio.CancelledError:
        yield {"event": "goodbye", "data": "cancelled"}
        raise
    finally:
        say("closed")


async def ticks(request):
    try:
        number = 0
        while True:
            if await request.is_disconnected():
                break
            number += 1
            yield {"data": f"tick {number}", "id": str(number)}
            await asyncio.sleep(0.01)
    finally:
        say("closed")


async def handle_close(message):
    say("client has left:", message["type"])


def leaving(source):
    return lambda request: EventSourceResponse(
        source(request),
        client_close_handler_callable=handle_close,
        background=BackgroundTask(say, "background"),
    )


async def endless_channel(request):
    send, receive = anyio.create_memory_object_stream(10)

    async def producer():
        async with send:
            try:
                number = 0
                while True:
                    await send.send({"data": number})
                    number += 1
                    await anyio.sleep(0.01)
            except anyio.get_cancelled_exc_class():
                say("cancelled")
                with anyio.move_on_after(1, shield=True):
                    await anyio.sleep(0.01)
                    say("cleaned up")
                raise

    return EventSourceResponse(receive, data_sender_callable=producer)


async def unheard(request):
    send, receive = anyio.create_memory_object_stream(10)

    async def producer():
        async with send:
            try:
                await send.send({"data": "open"})
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                with anyio.move_on_after(1, shield=True):
                    await send.send({"data": "nobody hears this"})
                    say("cleaned up")
                raise

    return EventSourceResponse(receive, data_sender_callable=producer)


async def flood(request):
    try:
        while True:
            yield {"data": "x" * 65536}
    finally:
        say("closed")


async def fails(request):
    yield {"data": "fine"}
    raise LookupError("in the middle")


async def fails_at_once(request):
    raise LookupError("before all")
    yield


async def fails_to_encode(request):
    try:
        yield {"data": "fine"}
        yield {"data": "fine", "unknown": 1}
    finally:
        say("closed")


async def handles_errors(request):
    for number in range(5):
        try:
            if number == 1:
                raise ValueError("simulated")
            yield {"data": number, "event": "success"}
        except ValueError as exc:
            yield {"data": f"Error: {exc}", "event": "error"}


async def producer_fails(request):
    send, receive = anyio.create_memory_object_stream(0)

    async def producer():
        await send.send("fine")
        await anyio.sleep(0.05)
        raise LookupError("in the producer")

    return EventSourceResponse(receive, data_sender_callable=producer)


async def until_told(request):
    shutdown = anyio.Event()

    async def source():
        try:
            yield {"data": "open"}
            with anyio.move_on_after(60):
                await shutdown.wait()
            yield {"event": "shutdown", "data": "goodbye"}
            await anyio.sleep(0.05)
            yield {"event": "shutdown", "data": "really"}
        except asyncio.CancelledError:
            say("cancelled")
            raise
        finally:
            say("closed", shutdown.is_set())

    return EventSourceResponse(
        source(),
        shutdown_event=shutdown,
        shutdown_grace_period=20,
        background=BackgroundTask(say, "background"),
    )


async def stubborn(request):
    return EventSourceResponse(
        one_then_wait(request), shutdown_event=anyio.Event(), shutdown_grace_period=0.2
    )


fast = FastAPI()


async def session():
    yield "session"


@fast.get("/numbers/{start}/{end}")
async def numbers(start: int, end: int, session: str = Depends(session)) -> EventSourceResponse:
    async def source():
        for number in range(start, end + 1):
            yield {"data": f"{session} {number}"}

    return EventSourceResponse(source(), ping=5)


@fast.get("/text")
async def text():
    async def source():
        for number in range(3):
            yield f"You\r\ncan see me and I'm the {number}"

    return EventSourceResponse(source(), headers={"Server": "nini"})


class Catch:
    # What leaves the application, as a middleware gets it.
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        try:
            await self.app(scope, receive, send)
        except Exception as exc:
            timeout = isinstance(exc, SendTimeoutError) and isinstance(exc, TimeoutError)
            say("raised", "SendTimeoutError" if timeout else repr(exc)[:40])
            raise
        finally:
            if scope["type"] == "http":
                say("over")


app = Catch(
    Starlette(
        routes=[
            Route("/fields", stream_of(every_field)),
            Route("/fields-lf", stream_of(every_field, sep="\n")),
            Route("/fields-cr", stream_of(every_field, sep="\r")),
            Route("/objects", stream_of(objects)),
            Route("/objects-lf", stream_of(objects, sep="\n")),
            Route("/anything", stream_of(anything)),
            Route("/sync", stream_of(sync)),
            Route("/list", lambda request: EventSourceResponse([{"data": 1}, "two", 3])),
            Route("/iterator", lambda request: EventSourceResponse(Stream(5))),
            Route("/channel-0", partial(channel, 0)),
            Route("/channel-10", partial(channel, 10)),
            Route("/merged", merged),
            Route("/plain", respond()),
            Route("/headers", respond(headers={"Cache-Control": "public, max-age=29", "X-A": "ü"})),
            Route("/own", respond(headers={"X-Accel-Buffering": "no", "Connection": "close"})),
            Route("/type", respond(media_type="text/x-events", status_code=201)),
            Route("/type-header", respond(headers={"Content-Type": "text/event-stream"})),
            Route("/no-ping", respond(ping=0, send_timeout=10, cleanup_timeout=None)),
            Route("/ping", pinged),
            Route("/background", background),
            Route("/wait", leaving(one_then_wait)),
            Route("/goodbye", stream_of(goodbye)),
            Route("/ticks", leaving(ticks)),
            Route("/endless-channel", endless_channel),
            Route("/unheard", unheard),
            Route("/flood", stream_of(flood, send_timeout=0.5)),
            Route("/fails", stream_of(fails)),
            Route("/fails-at-once", stream_of(fails_at_once)),
            Route("/fails-to-encode", stream_of(fails_to_encode)),
            Route("/handles-errors", stream_of(handles_errors)),
            Route("/producer-fails", producer_fails),
            Route("/until-told", until_told),
            Route("/stubborn", stubborn),
            Mount("/fast", fast),
        ]
    )
)
"""

#: Responses that end by themselves.
FINITE = [
    "/fields",
    "/fields-lf",
    "/fields-cr",
    "/objects",
    "/objects-lf",
    "/anything",
    "/sync",
    "/list",
    "/iterator",
    "/channel-0",
    "/channel-10",
    "/plain",
    "/headers",
    "/own",
    "/type",
    "/type-header",
    "/no-ping",
    "/background",
    "/handles-errors",
    "/fast/numbers/5/15",
    "/fast/text",
]

BROKEN = ["/fails", "/fails-to-encode", "/producer-fails"]


class Answer(NamedTuple):
    """What the client got, and what the program has said meanwhile."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ending: str | None
    said: list[str]


class Served(Program):
    """The program with one of the imports."""

    _heard = 0

    def said(self) -> list[str]:
        """What the program has said since this was called last, when it has said it all."""
        wait_for(
            lambda: "> over\n" in self.log(self._heard), lambda: f"not over: {self.log()[-3000:]}"
        )
        log = self.log(self._heard)
        self._heard += len(log.encode())
        return [line for line in log.splitlines() if line.startswith("> ")]

    def answer(self, response: Response) -> Answer:
        """Everything there is to compare, when the response is over."""
        known = (b"connection", b"date")
        headers = sorted(
            # Ours asks proxies not to compress, too.
            (name, value.removesuffix(b", no-transform"))
            for name, value in response.headers
            if name not in known
        )
        assert response.status
        return Answer(response.status, headers, bytes(response.body), response.ending, self.said())


Pair = dict[str, Served]


def serve_both(directory: Path) -> Iterator[Pair]:
    if importlib.util.find_spec("sse_starlette") is None:
        missing("frameworks", "sse-starlette is not installed")
    programs: Pair = {}
    try:
        for library, statement in IMPORT.items():
            (place := directory / library).mkdir()
            programs[library] = serve(statement + PROGRAM, place, "--no-access-log", kind=Served)
        yield programs
    finally:
        for program in programs.values():
            program.kill()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The two programs; a test leaves them running, and with nothing open."""
    yield from serve_both(tmp_path_factory.mktemp("drop-in"))


@pytest.fixture
def both_to_stop(tmp_path: Path) -> Iterator[Pair]:
    """The two programs, for one test alone."""
    yield from serve_both(tmp_path)


def read(program: Served, path: str, method: str = "GET") -> Answer:
    with program.open(path, method=method) as response:
        response.read_to_end()
        return program.answer(response)


@pytest.mark.parametrize("path", FINITE)
def test_same_answer(both: Pair, path: str) -> None:
    theirs, ours = (read(both[library], path) for library in (THEIRS, OURS))
    assert theirs.ending == "complete"
    assert theirs.body
    assert ours == theirs


@pytest.mark.parametrize("path", FINITE)
def test_same_answer_to_head(both: Pair, path: str) -> None:
    theirs, ours = (read(both[library], path, "HEAD") for library in (THEIRS, OURS))
    assert theirs.ending == "complete"
    assert theirs.body == b""
    assert ours == theirs


def test_merged_producers(both: Pair) -> None:
    """What each of them produces is in order. The event loop decides how they alternate."""

    def of_each(answer: Answer) -> list[list[bytes]]:
        events = answer.body.split(b"\r\n\r\n")
        return [[event for event in events if b"event: %c" % name in event] for name in b"abc"]

    theirs, ours = (read(both[library], "/merged") for library in (THEIRS, OURS))
    assert [len(events) for events in of_each(theirs)] == [10, 10, 10]
    assert of_each(ours) == of_each(theirs)
    assert sorted(ours.said) == sorted(theirs.said)
    assert ours.ending == theirs.ending == "complete"


def test_no_hop_by_hop_header(both: Pair) -> None:
    for path in ("/plain", "/own"):
        with both[OURS].open(path) as response:
            response.read_to_end()
            # uvicorn adds it where the application wants to close; ours wants nothing.
            assert response.header(b"connection") == []
        both[OURS].said()


def test_ping(both: Pair) -> None:
    """One's own ping is sent in the same bytes; how often is another matter."""
    ping = b": still\r\n: here\r\nevent: ping\r\n\r\n"
    theirs, ours = (read(both[library], "/ping") for library in (THEIRS, OURS))
    for answer in theirs, ours:
        assert answer.body.startswith(b"data: before\r\n\r\n" + ping)
    assert ours.body.replace(ping, b"") == theirs.body.replace(ping, b"")


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("path", ["/wait", "/ticks", "/endless-channel", "/unheard"])
def test_client_leaves(both: Pair, path: str, how: str) -> None:
    """The same code of the program runs, and the server has nothing to complain about."""

    def leave(program: Served) -> list[str]:
        start = len(program.log_file.read_bytes())
        with program.open(path) as response:
            response.read_until(lambda body: b"\r\n\r\n" in body)
            response.close() if how == "closes" else response.reset()
        said = program.said()
        if program is both[OURS]:  # theirs leaves memory channels open
            assert program.complaints(start) == []
        # They call the handler before the source is closed.
        return sorted(said)

    theirs, ours = (leave(both[library]) for library in (THEIRS, OURS))
    assert ours == theirs
    assert len(theirs) > 1


@pytest.mark.parametrize("path", BROKEN)
def test_exception(both: Pair, path: str) -> None:
    """It leaves as itself, and the client can tell that there was one."""
    theirs, ours = (read(both[library], path) for library in (THEIRS, OURS))
    assert theirs.ending == ours.ending == "broken"
    assert ours.body == theirs.body
    assert ours.status == theirs.status == 200
    if path == "/fails-to-encode":  # by another sentence
        for answer in theirs, ours:
            raised = answer.said.pop(1)
            assert raised.startswith("> raised TypeError(")
    assert ours.said == theirs.said


def test_exception_before_the_first_event(both: Pair) -> None:
    """Theirs has sent the headers by then; here it can still be told by the status."""
    theirs, ours = (read(both[library], "/fails-at-once") for library in (THEIRS, OURS))
    assert (theirs.status, theirs.ending) == (200, "broken")
    assert (ours.status, ours.ending) == (500, "complete")
    assert ours.said == theirs.said == ["> raised LookupError('before all')", "> over"]


def test_send_timeout(both: Pair) -> None:
    """A client that stops reading: the source is closed, and the error says what it was."""

    def stall(program: Served) -> list[str]:
        with program.address.open("/flood", receive_buffer=4096) as response:
            response.read_until(lambda body: b"x" in body)
            return program.said()

    theirs, ours = (stall(both[library]) for library in (THEIRS, OURS))
    assert ours == theirs == ["> closed", "> raised SendTimeoutError", "> over"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: str(n.name))
@pytest.mark.parametrize(
    "path",
    ["/wait", "/ticks", "/endless-channel", "/unheard", "/until-told", "/goodbye", "/stubborn"],
)
def test_server_is_stopped(both_to_stop: Pair, path: str, number: signal.Signals) -> None:
    """The same last events, the same end of the program, the same exit code."""

    def stop(program: Served) -> tuple[bytes, list[str], int]:
        with program.open(path) as response:
            response.read_until(lambda body: b"\r\n\r\n" in body)
            program.signal(number)
            ending = response.read_to_end()
            body = bytes(response.body)
            if path in ("/ticks", "/endless-channel"):
                body = body[:10]  # how far it comes is a matter of time
            said = program.said()
            code = program.wait()
        if program is ours:
            assert ending == "complete"
            assert program.complaints() == []
        return body, said, code

    ours = both_to_stop[OURS]
    assert stop(ours) == stop(both_to_stop[THEIRS])


def test_signature() -> None:
    """The parameters that they have come first, with the same names, kinds and defaults."""

    def parameters(library: str, name: str) -> list[tuple[str, object, object]]:
        signature = inspect.signature(getattr(importlib.import_module(library), name))
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    if importlib.util.find_spec("sse_starlette") is None:
        missing("frameworks", "sse-starlette is not installed")
    for name in ("EventSourceResponse", "ServerSentEvent"):
        theirs, ours = (parameters(library, name) for library in (THEIRS, OURS))
        assert ours[: len(theirs)] == theirs
        assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in ours[len(theirs) :])
    constants = {n for n in dir(their_response()) if n.startswith("DEFAULT_")}
    assert len(constants) == 3
    for constant in constants:
        assert getattr(our_response(), constant) == getattr(their_response(), constant)


def our_response() -> Any:
    return importlib.import_module(OURS).EventSourceResponse


def their_response() -> Any:
    return importlib.import_module(THEIRS).EventSourceResponse


# The bytes of an event, whatever is in it.

separators = st.sampled_from(["\r\n", "\n", "\r"])
#: No lone surrogates, which UTF-8 can't carry; more line ends than usual.
texts = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("\r\n\0 :\u2028\x85\x0b\ufeff"))
)
ids = texts.map(lambda text: text.replace("\0", ""))
values = st.one_of(
    texts,
    st.integers(),
    st.floats(),
    st.booleans(),
    st.decimals(),
    st.uuids(),
    st.datetimes(),
    st.fractions(),
)
milliseconds = st.integers(min_value=0)
fields = st.fixed_dictionaries(
    {},
    optional={
        "data": st.none() | values,
        "event": st.none() | texts,
        "id": st.none() | ids,
        "retry": st.none() | milliseconds,
        "comment": st.none() | values,
    },
)
#: Without what is escaped in JSON only here.
json_texts = texts.map(lambda text: re.sub("[\x85\u2028\u2029]", "", text))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    json_texts,
)
json_values = st.one_of(
    scalars,
    st.lists(scalars | st.dictionaries(json_texts, scalars)),
    st.dictionaries(json_texts, scalars | st.lists(scalars)),
)

#: Makes an event with the classes of a library.
Recipe = Callable[[Any], Any]


def built(name: str, arguments: dict[str, Any]) -> Recipe:
    def recipe(library: Any) -> Any:
        return getattr(library, name)(**arguments)

    return recipe


def as_it_is(value: Any) -> Recipe:
    return lambda library: value


with_sep = {"sep": separators | st.none()}
recipes: st.SearchStrategy[Recipe] = st.one_of(
    fields.map(as_it_is),
    values.map(as_it_is),
    # What is no whole frame is refused here.
    st.binary().map(lambda value: as_it_is(value + b"\n\n")),
    st.builds(
        lambda arguments, sep: built("ServerSentEvent", {**arguments, "sep": sep}),
        fields,
        separators | st.none(),
    ),
    st.builds(
        lambda arguments, data, sep: built(
            "JSONServerSentEvent", {**arguments, "data": data, "sep": sep}
        ),
        fields,
        json_values,
        separators | st.none(),
    ),
)


def body_of(library: Any, events: list[Recipe], sep: str) -> bytes:
    """What a response with these events sends."""
    sent: list[bytes] = []

    async def source() -> AsyncIterator[Any]:
        for recipe in events:
            yield recipe(library)

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def main() -> None:
        response = library.EventSourceResponse(source(), sep=sep, ping=0)
        await response({"type": "http", "method": "GET", "path": "/"}, receive, send)

    anyio.run(main)
    return b"".join(sent)


@settings(deadline=None)
@given(st.lists(recipes, min_size=1, max_size=20), separators)
def test_same_bytes(events: list[Recipe], sep: str) -> None:
    if importlib.util.find_spec("sse_starlette") is None:
        missing("frameworks", "sse-starlette is not installed")
    theirs, ours = (
        body_of(importlib.import_module(library), events, sep) for library in (THEIRS, OURS)
    )
    assert ours == theirs
