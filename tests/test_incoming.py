"""What a client sends while its stream is open, and a ``receive()`` that always has an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from sse_asgi import CloseReason, sse_app
from sse_asgi.starlette import EventSourceResponse

from .plain import Plain
from .streams import Recorder, http_scope, on_mock_clock

pytestmark = pytest.mark.anyio
through_all = pytest.mark.usefixtures("through_every_entry_point")

#: What a middleware may answer every receive() with, at once.
ANSWERS: dict[str, dict[str, Any]] = {
    "an end": {"type": "http.request", "body": b"", "more_body": False},
    "an empty part": {"type": "http.request", "body": b"", "more_body": True},
    "no body": {"type": "http.request"},
    "more and no body": {"type": "http.request", "more_body": True},
    "None": {"type": "http.request", "body": None, "more_body": True},
    "the whole body": {"type": "http.request", "body": b"x" * 100, "more_body": False},
    "a byte": {"type": "http.request", "body": b"x", "more_body": True},
    "a part": {"type": "http.request", "body": b"x" * 65536, "more_body": True},
    "a large part": {"type": "http.request", "body": b"x" * 2**21, "more_body": True},
    "something unknown": {"type": "http.response.debug"},
    "something unknown that is large": {"type": "x", "body": b"x" * 65536, "more_body": True},
}

answers = pytest.mark.parametrize("answer", list(ANSWERS))

#: Ten minutes: were there a loop without a wait, a clock that jumps could not jump.
LONG = 600


class Answering:
    """A ``receive()`` that answers at once, and does not wait: not even for the event loop."""

    def __init__(self, answer: str) -> None:
        self.calls = 0
        self.gone = False
        self._message = ANSWERS[answer]

    async def __call__(self) -> dict[str, Any]:
        self.calls += 1
        assert self.calls < 50_000, "this is a busy loop"
        return {"type": "http.disconnect"} if self.gone else self._message


async def idle(seconds: float = 1) -> AsyncIterator[str]:
    await anyio.sleep(seconds)
    yield "a"


@through_all
@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_there_is_no_busy_loop(number: int) -> None:
    @on_mock_clock
    async def test() -> None:
        receive = Answering(list(ANSWERS)[number])
        async with Plain(sse_app(lambda: idle(LONG)), receive=receive) as server:
            await server.returns(2 * LONG)
            assert server.error is None
            assert server.complete
            receive.gone = True
        assert server.took == LONG
        assert receive.calls < LONG + 1500  # once a second, and first what may be a real body

    test()


@through_all
@answers
async def test_the_event_loop_stays_responsive(answer: str) -> None:
    receive, recorder = Answering(answer), Recorder()
    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
    times: list[float] = []
    async with Plain(app, receive=receive) as server:
        # Time of this thread's own, so that a busy machine changes nothing.
        end = time.thread_time() + 0.03
        while len(times) < 20 or time.thread_time() < end:
            began = time.thread_time()
            await checkpoint()
            times.append(time.thread_time() - began)
        await server.has(b"data: a")
        receive.gone = True
        await server.returns()
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    *_, second, _slowest = sorted(times)
    assert second < 0.2  # the slowest may have collected the garbage of all tests


@through_all
@answers
async def test_while_an_answer_is_not_taken(answer: str) -> None:
    """The other task that watches meanwhile is no busy loop either."""
    receive, recorder = Answering(answer), Recorder()

    def is_the_start(message: Any) -> bool:
        return bool(message["type"] == "http.response.start")

    app = sse_app(lambda: recorder.source(), send_timeout=None, on_close=recorder.on_close)
    async with Plain(app, receive=receive, stuck=is_the_start) as server:
        await server.gets_stuck()
        await anyio.sleep(0.05)
        assert receive.calls < 1024 + 20  # so many may come in a row
        receive.gone = True
        await server.returns()
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


@through_all
@on_mock_clock
async def test_a_disconnect_is_seen_within_a_second_however_long_that_went_on() -> None:
    for answer in ANSWERS:
        for after in (0.5, 30, LONG):
            receive, recorder = Answering(answer), Recorder()
            app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
            async with Plain(app, receive=receive) as server:
                await trio.sleep(after)
                receive.gone = True
                await server.returns(100)
            assert after <= server.took <= after + 1.001, answer
            assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


@on_mock_clock
async def test_while_a_factory_is_awaited() -> None:
    async def factory() -> Any:
        await trio.sleep(LONG)
        return idle(1)

    for answer in ANSWERS:
        receive = Answering(answer)
        await sse_app(factory)(http_scope(), receive, send)
        assert receive.calls < LONG + 1500, answer


async def send(message: Any) -> None:
    await checkpoint()


# -- a body that somebody else waits for -----------------------------------------------------------


class Client:
    """A ``receive()`` with some messages, one after the other, and then nothing."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)
        self.empty, self.gone = anyio.Event(), anyio.Event()

    async def __call__(self) -> Any:
        await checkpoint()
        if self.messages:
            return self.messages.pop(0)
        self.empty.set()
        await self.gone.wait()
        return {"type": "http.disconnect"}


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


#: Bodies that come in the middle, and how many bytes the log says are lost, in all.
LOST: dict[str, tuple[list[Any], int]] = {
    "whole": ([part(b"x" * 17, False)], 17),
    "many parts": ([part(b"x" * 17, True)] * 300 + [part(b"y" * 3, False)], 17),
    "two parts": ([part(b"x" * 17, True), part(b"y" * 3, False)], 17),
    "the end later": ([part(b"x" * 17, True), part(b"", False)], 17),
}


@pytest.mark.parametrize("body", list(LOST))
async def test_a_body_that_comes_while_a_response_streams_is_logged_once(
    body: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads it would wait for ever, and nobody would know why."""
    messages, size = LOST[body]
    client, recorder = Client(*messages), Recorder()
    response = EventSourceResponse(recorder.source("a"), on_close=recorder.on_close)
    async with Plain(response, receive=client, method="POST") as server:
        await client.empty.wait()
        await anyio.sleep(0.02)
        assert not recorder.closed  # it is no disconnect
        client.gone.set()
        await server.returns()
    (error,) = errors(caplog)
    assert f"{size} bytes of the request's body" in error
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


@pytest.mark.parametrize("messages", [[], [part(b"", False)], [part(b"", True), part(b"", False)]])
async def test_an_empty_body_is_nothing_to_lose(
    messages: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, recorder = Client(*messages), Recorder()
    response = EventSourceResponse(recorder.source("a"))
    async with Plain(response, receive=client, method="POST") as server:
        await client.empty.wait()
        client.gone.set()
        await server.returns()
    assert errors(caplog) == []


@pytest.mark.parametrize("times", [2, 3, 4])
async def test_a_body_that_is_replayed_is_not_lost(
    times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A middleware answers every receive() with the whole body again."""
    client, recorder = Client(*[part(b"x" * 17, False)] * times), Recorder()
    response = EventSourceResponse(recorder.source("a"))
    async with Plain(response, receive=client, method="POST") as server:
        await client.empty.wait()
        client.gone.set()
        await server.returns()
    assert errors(caplog) == []


async def test_a_body_that_is_replayed_for_long_is_not_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receive, recorder = Answering("the whole body"), Recorder()
    response = EventSourceResponse(recorder.source("a"), ping=0.05)
    async with Plain(response, receive=receive, method="POST") as server:
        await anyio.sleep(0.8)  # pings come while nobody is asked
        assert receive.calls > 3
        receive.gone = True
        await server.returns()
    assert errors(caplog) == []


async def test_a_body_that_nobody_repeats_is_lost_before_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, recorder = Client(part(b"x" * 17, False)), Recorder()
    response = EventSourceResponse(recorder.source("a"), ping=0.02)
    async with Plain(response, receive=client, method="POST") as server:
        with anyio.fail_after(5):
            while not errors(caplog):
                await anyio.sleep(0.001)
        assert not server.returned
        await anyio.sleep(0.1)
        client.gone.set()
    assert len(errors(caplog)) == 1


async def test_a_body_of_an_answer_that_is_no_stream_is_not_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Client(part(b"x" * 17, True), part(b"y", False))
    async with Plain(sse_app(idle), receive=client, method="DELETE") as server:
        await server.returns()
        assert server.status == 405
    assert errors(caplog) == []


# -- receive() raises ------------------------------------------------------------------------------


@through_all
async def test_an_oserror_of_receive_is_a_disconnect(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()

    async def receive() -> Any:
        await anyio.sleep(0.02)
        raise ConnectionResetError

    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
    async with Plain(app, receive=receive) as server:
        await server.returns()
        assert server.error is None
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    assert recorder.closed
    assert caplog.records == []
