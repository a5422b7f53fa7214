"""Answers that are no streams: as bounded, as watched and as short of places as streams are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from sse_asgi import HTTPError, Shutdown, sse_app
from sse_asgi.starlette import EventSourceResponse

from .entry_points import ENTRY_POINTS
from .plain import Plain, in_a_scope
from .streams import Recorder, on_mock_clock

pytestmark = pytest.mark.anyio


async def refuses() -> AsyncIterator[str]:
    raise HTTPError(403, "not you")
    yield "never"


async def refuses_in_the_factory() -> Any:
    raise HTTPError(403, "not you")


async def full() -> AsyncIterator[str]:
    yield "a"
    await anyio.sleep_forever()


class Case:
    """A request that is not answered by a stream."""

    def __init__(self, name: str, status: int, factory: Any = full, method: str = "GET") -> None:
        self.name, self.status, self.factory, self.method = name, status, factory, method

    def __repr__(self) -> str:
        return self.name

    def app(self, **options: Any) -> Any:
        return sse_app(self.factory, max_connections=1, **options)


ANSWERS = [
    Case("HEAD", 200, method="HEAD"),
    Case("head", 200, method="head"),
    Case("OPTIONS", 204, method="OPTIONS"),
    Case("options", 204, method="options"),
    Case("405", 405, method="DELETE"),
    Case("403 of the source", 403, refuses),
    Case("403 of the factory", 403, refuses_in_the_factory),
    Case("503", 503),
]
FEW = [case for case in ANSWERS if case.name in ("HEAD", "OPTIONS", "403 of the source", "405")]

answers = pytest.mark.parametrize("case", ANSWERS, ids=repr)

#: Which message of the answer is not taken.
STUCK: dict[str, Any] = {
    "the start": lambda message: message["type"] == "http.response.start",
    "the body": lambda message: message["type"] == "http.response.body",
}
stuck_at = pytest.mark.parametrize("at", list(STUCK))


class Held:
    """An application whose one place is taken, where the case is about that."""

    def __init__(self, case: Case, **options: Any) -> None:
        self.app = case.app(**options)
        self._holder = Plain(self.app) if case.status == 503 else None

    async def __aenter__(self) -> Any:
        if self._holder is not None:
            await self._holder.__aenter__()
            await self._holder.has(b"data: a")
        return self.app

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._holder is not None:
            await self._holder.__aexit__(exc_type, exc, traceback)


@answers
async def test_what_is_answered(case: Case) -> None:
    async with Held(case) as app, Plain(app, method=case.method) as server:
        await server.returns()
        assert server.error is None
        assert server.status == case.status
        assert server.complete
        assert len(server.messages) == 2
        assert bool(server.body) is (case.method not in ("HEAD", "head", "OPTIONS", "options"))
        if case.status == 503:
            assert server.headers[b"retry-after"] == b"5"
        if case.status in (204, 405):
            assert server.headers[b"allow"] == b"GET, HEAD, OPTIONS"
        if case.method.upper() == "HEAD":
            assert server.headers[b"content-type"].startswith(b"text/event-stream")
            assert b"content-length" not in server.headers
        elif case.status != 204:
            assert int(server.headers[b"content-length"]) == len(server.body)


@pytest.mark.usefixtures("through_every_entry_point")
@pytest.mark.parametrize("method", ["HEAD", "head", "Head"])
async def test_a_head_in_any_case_starts_nothing(method: str, entry_point: str) -> None:
    if entry_point in ("starlette", "fastapi") and method != "HEAD":
        pytest.skip("a router of Starlette's answers 405")
    began = False

    async def source() -> AsyncIterator[str]:
        nonlocal began
        began = True
        yield "a"

    async with Plain(sse_app(source), method=method) as server:
        await server.returns()
        assert server.status == 200
        assert server.body == b""
        assert server.complete
    assert not began


@pytest.mark.parametrize("method", ["head", "Head"])
async def test_a_head_in_any_case_of_a_response(method: str) -> None:
    recorder = Recorder()
    source = recorder.source("a")
    async with Plain(EventSourceResponse(source), method=method) as server:
        await server.returns()
        assert server.status == 200
        assert server.body == b""
        assert server.complete
    assert not recorder.cleanup_began
    with pytest.raises(StopAsyncIteration):  # it is closed
        await anext(source)


@pytest.mark.parametrize("method", ["get", "Get"])
async def test_a_get_in_any_case_is_a_stream(method: str) -> None:
    async with Plain(sse_app(full), method=method) as server:
        await server.has(b"data: a")


# -- the client takes nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(ANSWERS)))
@stuck_at
def test_an_answer_is_bounded_by_the_send_timeout(number: int, at: str) -> None:
    @on_mock_clock
    async def test() -> None:
        case = ANSWERS[number]
        async with Held(case, send_timeout=7, ping=None) as app:
            async with Plain(app, method=case.method, stuck=STUCK[at]) as server:
                await server.returns(1000)
                assert server.error is None
                assert not server.complete
            assert server.took == pytest.approx(7)

    test()


@pytest.mark.parametrize("number", range(len(ANSWERS)))
@stuck_at
def test_an_answer_is_bounded_by_cleanup_timeout_at_a_drain(number: int, at: str) -> None:
    @on_mock_clock
    async def test() -> None:
        case = ANSWERS[number]
        shutdown, takes = Shutdown(), (3, 1000)
        for seconds in takes:
            shutdown = Shutdown()
            async with Held(case, send_timeout=None, cleanup_timeout=7, shutdown=shutdown) as app:
                async with Plain(app, method=case.method, stuck=STUCK[at]) as server:
                    await trio.sleep(50)
                    assert not server.returned
                    shutdown.drain()
                    with trio.move_on_after(seconds):
                        await server.returns(1000)
                    server.resume()
                    await server.returns(1000)
                    assert server.error is None
                    assert server.complete is (seconds == 3)
                    if at == "the body" or seconds == 3:
                        assert server.status == case.status
                assert server.took == pytest.approx(50 + min(seconds, 7))

    test()


@answers
@stuck_at
async def test_a_client_that_leaves_meanwhile_is_seen_at_once(case: Case, at: str) -> None:
    async with Held(case, send_timeout=None, cleanup_timeout=0.2) as app:
        async with Plain(app, method=case.method, stuck=STUCK[at]) as server:
            await server.gets_stuck()
            server.disconnect()
            await server.returns()
            assert server.error is None
            assert not server.complete


@answers
async def test_a_scope_around_cancels_an_answer(case: Case) -> None:
    scope = anyio.CancelScope()
    async with Held(case, send_timeout=None, cleanup_timeout=100) as app:
        async with Plain(
            in_a_scope(app, scope), method=case.method, stuck=STUCK["the start"]
        ) as server:
            await server.gets_stuck()
            scope.cancel()
            await server.returns()
            assert scope.cancelled_caught
            assert server.messages == []


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_the_head_of_a_response_is_bounded(framework: str) -> None:
    @on_mock_clock
    async def test() -> None:
        async def factory() -> Any:
            return full()

        app = ENTRY_POINTS[framework](factory, send_timeout=7)
        async with Plain(app, method="HEAD", stuck=STUCK["the body"]) as server:
            await server.returns(1000)
        assert server.took == pytest.approx(7)

    test()


@pytest.mark.parametrize("refusal", ["405", "503"])
def test_a_refusal_of_a_response_is_bounded(refusal: str) -> None:
    """Where there is no application that answers in its place."""

    @on_mock_clock
    async def test() -> None:
        def response() -> EventSourceResponse:
            return EventSourceResponse(
                full(), send_timeout=7, max_connections=1, methods=["GET"], ping=1000
            )

        async with Plain(response()) as holder:
            await holder.has(b"data: a")
            async with Plain(
                response(), method="POST" if refusal == "405" else "GET", stuck=STUCK["the start"]
            ) as server:
                await server.returns(1000)
                assert server.error is None
                assert server.messages == []
            assert server.took == pytest.approx(7)

    test()


# -- an answer takes no place ----------------------------------------------------------------------


@pytest.mark.parametrize("case", FEW, ids=repr)
@stuck_at
async def test_answers_that_nobody_reads_take_no_place(case: Case, at: str) -> None:
    refusing = case.factory is not full

    async def factory(request: Any) -> Any:
        if refusing and request.path == "/refused":
            raise HTTPError(403, "not you")
        return full()

    async def source(request: Any) -> AsyncIterator[str]:
        if refusing and request.path == "/refused":
            raise HTTPError(403, "not you")
        async for event in full():
            yield event

    for each in (factory, source):
        app = sse_app(each, max_connections=1, send_timeout=None)
        async with (
            Plain(app, method=case.method, path="/refused", stuck=STUCK[at]) as first,
            Plain(app, method=case.method, path="/refused", stuck=STUCK[at]) as second,
        ):
            await first.gets_stuck()
            await second.gets_stuck()
            assert app.connections == 0
            async with Plain(app) as server:
                await server.has(b"data: a")
                assert server.status == 200
                assert app.connections == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_answer_to_who_comes_while_draining_takes_no_place(method: str) -> None:
    shutdown = Shutdown()
    shutdown.drain()
    app = sse_app(
        full, methods=["GET", "POST"], max_connections=1, shutdown=shutdown, cleanup_timeout=0.2
    )
    async with Plain(app, method="POST", stuck=STUCK["the start"]) as first:
        await first.gets_stuck()
        assert app.connections == 0
        async with Plain(app, method=method) as second:
            await second.returns()
            assert second.status == (200 if method == "GET" else 503)
            if method == "POST":
                assert b"stopping" in second.body


async def test_a_client_gets_its_refusal_although_it_has_sent_much() -> None:
    """What comes of its body meanwhile is no error of anybody's."""

    async def receive() -> Any:
        await anyio.lowlevel.checkpoint()
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async with Plain(sse_app(refuses), receive=receive) as server:
        await server.returns()
        assert server.status == 403
        assert server.complete
