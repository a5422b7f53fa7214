"""The client: one event after another, whatever happens to its connections."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi import EventTooLargeError
from sse_asgi.client import (
    ContentTypeError,
    EventSource,
    EventSourceError,
    GapError,
    IdleTimeoutError,
    State,
    StateChange,
    StatusError,
    TooManyReconnectsError,
    backoff,
)
from sse_asgi.hub.gap import gap_frame

from .http_peer import LIBRARIES, STREAM, Peer, after, collect, cut, frames
from .streams import on_mock_clock

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no reconnect wait, where the reconnection time is 0."""
    monkeypatch.setattr(backoff, "LEAST", 0.0)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Collect what the test has left: what was not closed warns, and fails the test."""
    yield
    gc.collect()


class Changes(list[StateChange]):
    """What `on_state_change` was called with."""

    @property
    def states(self) -> list[State]:
        return [change.state for change in self]


# What is sent.


async def test_a_stream_and_its_end(library: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.stream(frames(1, 2)), peer.gone()]
    async with peer.client() as client:
        async with EventSource("http://x/events", client=client, retry=0) as source:
            assert (source.state, source.url) == (State.CONNECTING, "http://x/events")
            event = await anext(source)
            assert (event.event, event.data, event.id) == ("message", "1", "1")
            assert (source.state, source.last_event_id) == (State.OPEN, "1")
            assert await collect(source) == ["2"]
            assert (source.state, source.last_event_id) == (State.CLOSED, "2")
            assert await collect(source) == []
        assert not client.is_closed
    request, again = peer.requests
    assert (request.method, str(request.url)) == ("GET", "http://x/events")
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["cache-control"] == "no-cache"
    assert "last-event-id" not in request.headers
    assert again.headers["last-event-id"] == "2"
    assert request.extensions["timeout"]["read"] is None
    assert request.extensions["timeout"]["connect"] == 5
    assert not peer.open


@pytest.mark.usefixtures("at_once")
async def test_a_body_is_sent_again(library: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.stream(frames(1, 1)), peer.stream(frames(2, 2)), peer.gone()]
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, method="POST", json={"prompt": "ü"}, retry=0
        ) as source:
            assert await collect(source) == ["1", "2"]
    assert [(r.method, r.content.replace(b": ", b":")) for r in peer.requests] == [
        ("POST", '{"prompt":"ü"}'.encode())
    ] * 3
    assert peer.requests[2].headers["content-type"] == "application/json"
    assert peer.last_event_ids == [None, "1", "2"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("is_async", [True, False])
async def test_headers_are_asked_for_at_each_attempt(library: str, is_async: bool) -> None:
    peer = Peer(library)
    peer.answers = [peer.stream(frames(1, 1)), peer.error("ConnectError"), peer.gone()]
    tokens = iter("abc")

    def headers() -> dict[str, str]:
        return {"Authorization": f"Bearer {next(tokens)}", "Accept": "text/event-stream, */*"}

    async def headers_async() -> dict[str, str]:
        await anyio.lowlevel.checkpoint()
        return headers()

    async with peer.client(headers={"accept": "nothing", "x-mine": "1"}) as client:
        async with EventSource(
            "http://x/", client=client, headers=headers_async if is_async else headers, retry=0
        ) as source:
            assert await collect(source) == ["1"]
    assert [request.headers["authorization"] for request in peer.requests] == [
        "Bearer a", "Bearer b", "Bearer c",
    ]  # fmt: skip
    assert peer.requests[0].headers["accept"] == "text/event-stream, */*"
    assert peer.requests[0].headers["x-mine"] == "1"


@pytest.mark.usefixtures("at_once")
async def test_a_token_that_can_not_be_had_now(library: str) -> None:
    """It is refreshed through the same network, which may be down."""
    peer = Peer(library)
    peer.answers = [peer.gone()]
    results: list[Any] = [peer.library.ConnectError("down"), {"x": "1"}]

    async def headers() -> dict[str, str]:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return dict(result)

    async with peer.client() as client:
        async with EventSource("http://x/", client=client, headers=headers, retry=0) as source:
            assert await collect(source) == []
        results.append(KeyError("no such user"))
        async with EventSource("http://x/", client=client, headers=headers, retry=0) as source:
            with pytest.raises(KeyError, match="no such user"):
                await collect(source)
            assert source.state is State.CLOSED


@pytest.mark.parametrize(
    ("last_event_id", "sent"),
    [
        ("5", b"5"),
        ("ü☃", "ü☃".encode()),
        (" a\tb\t", b"a\tb"),  # as whoever reads the header field would strip it
        ("", None),
        (None, None),
    ],
)
async def test_the_last_event_id_that_is_given(
    library: str, last_event_id: str | None, sent: bytes | None
) -> None:
    peer = Peer(library)
    peer.answers = [peer.gone()]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, last_event_id=last_event_id) as source:
            assert await collect(source) == []
            assert source.last_event_id == (last_event_id or "")
    assert dict(peer.requests[0].headers.raw).get(b"last-event-id") == sent


async def test_an_id_that_can_not_be_sent(library: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.stream(b"id: a\x0bb\ndata: x\n\n")]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, retry=0) as source:
            with pytest.raises(EventSourceError, match="header field"):
                await collect(source)


async def test_the_id_is_no_header(library: str) -> None:
    async with Peer(library).client() as client:
        async with EventSource(
            "http://x/", client=client, headers={"Last-Event-ID": "1"}
        ) as source:
            with pytest.raises(ValueError, match="as last_event_id"):
                await anext(source)


# What comes back.


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("error", [None, "ReadError", "RemoteProtocolError", "DecodingError"])
async def test_cut_at_every_byte(library: str, error: str | None) -> None:
    """An event comes once, in order, if the server replays what came after the last one."""
    body = (
        b"\xef\xbb\xbf: hi\r\n\r\nid: 1\r\ndata: 1\r\n\r\n"
        b"id:2\ndata: 2\n\nid: 3\rdata: 3\r\rid: 4\n\n"
    )
    rest = [body, frames(2, 3), frames(3, 3), frames(9, 9), frames(9, 9)]
    for size in range(len(body) + 1):
        peer = Peer(library)
        peer.answers = [
            peer.stream(body[:size], error=error),
            lambda request: peer.stream(rest[after(request)])(request),
            peer.stream(frames(9, 9)),
            peer.gone(),
        ]
        async with peer.client() as client:
            async with EventSource("http://x/", client=client, retry=0) as source:
                data = await collect(source)
        once = [n for n in data if n != "9"]
        assert once == ["1", "2", "3"], size
        assert not peer.open


class Replaying:
    """A server whose connections break anywhere, until a client has had all."""

    def __init__(self, library: str, ids: list[int], plan: list[Any]) -> None:
        self.peer = Peer(library)
        self.peer.answers = [self.answer] * (len(plan) + 5)
        self.ids, self.plan = ids, plan

    def answer(self, request: Any) -> Any:
        had = after(request)
        frames_after = [frame(n) for n in self.ids if n > had]
        if not self.plan:
            if not frames_after:
                return self.peer.gone()(request)
            return self.peer.stream(b"".join(frames_after))(request)
        kind, size, sizes = self.plan.pop(0)
        if kind == "refused":
            return self.peer.error("ConnectError")(request)
        if kind == "busy":
            return self.peer.status(503, retry_after="0")(request)
        body = b"".join(frames_after)
        body = body[: size % (len(body) + 1)]
        return self.peer.stream(*cut(body, sizes), error=None if kind == "end" else kind)(request)


def frame(number: int) -> bytes:
    end = (b"\n", b"\r\n", b"\r")[number % 3]
    return end.join((b": %d" % number, b"id: %d" % number, b"data: %d" % number, b"", b""))


@pytest.mark.usefixtures("at_once")
@given(
    count=st.integers(0, 8),
    plan=st.lists(
        st.tuples(
            st.sampled_from(["end", "ReadError", "RemoteProtocolError", "refused", "busy"]),
            st.integers(0, 500),
            st.lists(st.integers(1, 20), max_size=20),
        ),
        max_size=6,
    ),
    library=st.sampled_from(LIBRARIES),
    stop=st.integers(0, 30),
)
@settings(deadline=None)
async def test_nothing_is_lost_and_nothing_comes_twice(
    count: int, plan: list[Any], library: str, stop: int
) -> None:
    """Also when it is another source that goes on, after some events."""
    server = Replaying(library, list(range(1, count + 1)), list(plan))
    data: list[str] = []
    async with server.peer.client() as client:
        async with EventSource("http://x/", client=client, retry=0) as source:
            async for event in source:
                data.append(event.data)
                if len(data) == stop:
                    break
        async with EventSource(
            "http://x/", client=client, retry=0, last_event_id=source.last_event_id
        ) as again:
            data += await collect(again)
    assert data == [str(n) for n in range(1, count + 1)]
    assert not server.peer.open


@pytest.mark.usefixtures("at_once")
async def test_an_id_without_an_event_counts(library: str) -> None:
    peer = Peer(library)
    peer.answers = [
        peer.stream(b"id: 1\ndata: 1\n\nid: 2\n\n"),
        peer.stream(b"data: x\n\nid\n\nid: 7\ndata: cut"),
        peer.gone(),
    ]
    ids: list[str] = []
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, retry=0) as source:
            async for event in source:
                assert source.last_event_id == event.id
                ids.append(event.id)
    assert ids == ["1", "2"]  # an event without an id has the last one, of whatever connection
    assert peer.last_event_ids == [None, "2", None]


async def test_redirects_are_followed_and_each_attempt_begins_anew(library: str) -> None:
    peer = Peer(library)
    peer.answers = [
        peer.status(301, location="/b"),
        peer.status(307, location="http://y/c"),
        peer.stream(b"retry: 0\nid: 1\ndata: 1\n\n"),
        peer.status(308, location="/d"),
        peer.gone(),
    ]
    async with peer.client() as client:
        async with EventSource("http://x/a", client=client) as source:
            assert await collect(source) == ["1"]
    assert [str(request.url) for request in peer.requests] == [
        "http://x/a", "http://x/b", "http://y/c", "http://x/a", "http://x/d",
    ]  # fmt: skip
    assert peer.last_event_ids == [None, None, None, "1", "1"]


@pytest.mark.parametrize("error", ["UnsupportedProtocol", "TooManyRedirects", "LocalProtocolError"])
async def test_errors_that_no_reconnect_helps_are_fatal(library: str, error: str) -> None:
    peer, changes = Peer(library), Changes()
    peer.answers = [peer.error(error)]
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, on_state_change=changes.append
        ) as source:
            with pytest.raises(getattr(peer.library, error)) as caught:
                await anext(source)
            assert [(c.state, c.error) for c in changes] == [(State.CLOSED, caught.value)]
            with pytest.raises(StopAsyncIteration):
                await anext(source)


@pytest.mark.usefixtures("at_once")
async def test_an_error_of_http2_that_is_called_local(library: str) -> None:
    """Both libraries raise it when the connection has ended, and the request comes too late."""
    peer = Peer(library)
    peer.answers = [peer.stream(frames(1, 1)), peer.error("LocalProtocolError"), peer.gone()]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, retry=0) as source:
            assert await collect(source) == ["1"]


@pytest.mark.parametrize("status", [201, 400, 401, 404, 500, 502, 503])
async def test_statuses_that_are_fatal(library: str, status: int) -> None:
    peer = Peer(library)
    peer.answers = [peer.status(status, b"not\nyours " + b"x" * 5000, x_why="because")]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client) as source:
            with pytest.raises(StatusError, match=rf"answers {status}: not yours xxx") as caught:
                await anext(source)
            assert caught.value.status_code == status
            assert caught.value.detail.startswith("not\nyours xxx")
            assert len(caught.value.detail) == 2048
            assert caught.value.headers["X-Why"] == "because"
            assert source.state is State.CLOSED


async def test_a_response_that_is_no_stream(library: str) -> None:
    peer = Peer(library)
    peer.answers = [
        peer.stream(b"<html>", headers={"content-type": "text/html"}),
        peer.stream(b"", headers={}),
    ]
    async with peer.client() as client:
        for content_type in ("text/html", None):
            async with EventSource("http://x/", client=client) as source:
                with pytest.raises(ContentTypeError) as caught:
                    await anext(source)
                assert caught.value.content_type == content_type
                assert repr(content_type) in str(caught.value) or content_type is None
    assert not peer.open


@pytest.mark.parametrize("joined", [True, False])
async def test_an_event_that_is_too_large(library: str, joined: bool) -> None:
    peer, changes = Peer(library), Changes()
    large = b"data: " + b"x" * 100 + b"\n\n"
    peer.answers = [
        peer.stream(*([frames(1, 1) + large] if joined else [frames(1, 1), large[:70], large[70:]]))
    ]
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, max_event_size=50, on_state_change=changes.append
        ) as source:
            assert (await anext(source)).data == "1"
            with pytest.raises(EventTooLargeError, match=r"after the id '1' .*50 bytes"):
                await anext(source)
            assert source.last_event_id == "1"
            assert changes.states == [State.OPEN, State.CLOSED]
            with pytest.raises(StopAsyncIteration):
                await anext(source)
    assert not peer.open


async def test_gaps(library: str) -> None:
    body = (
        gap_frame("gap", "e-1", "e-7", 6, None)
        + b"event: gap\ndata: mind it\n\n"
        + b"id: e-8\ndata: 8\n\n"
    )
    peer = Peer(library)
    peer.answers = [peer.stream(body)] * 2
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, max_reconnects=0) as source:
            assert [event.event async for event in source] == ["gap", "gap", "message"]
        peer.answers = [peer.stream(body)]
        async with EventSource("http://x/", client=client, max_reconnects=0, gap="raise") as source:
            with pytest.raises(GapError, match="6 events after the id 'e-1'") as caught:
                await anext(source)
            assert (caught.value.missed, caught.value.position) == (6, "e-7")
            assert (source.state, source.last_event_id) == (State.OPEN, "e-7")
            assert [event.data async for event in source] == ["mind it", "8"]


# When.


@on_mock_clock
async def test_when_it_connects_again() -> None:
    changes = Changes()
    peer = Peer("httpx2")
    peer.answers = [
        peer.error("ConnectError"),
        peer.error("ConnectTimeout"),
        peer.stream(b": hi\n\n", 7.0, b"retry: 1000\n\n", error="ReadError"),
        peer.stream(),
        peer.status(429, b"slowly", retry_after="30"),
        peer.stream(frames(1, 1)),
        peer.gone(),
    ]
    start = anyio.current_time()
    async with peer.client() as client:
        source = EventSource("http://x/", client=client, on_state_change=changes.append)
        source._backoff = backoff.Backoff(3000, lambda: 1.0)
        async with source:
            assert await collect(source) == ["1"]
            assert source.reconnection_time == 1000
    times = [time - start for time in peer.times]
    assert times == pytest.approx([0, 6, 6 + 9, 15 + 7 + 2, 24 + 3, 27 + 30 + 4, 61 + 2])
    assert [change.delay for change in changes] == pytest.approx(
        [6, 9, None, 2, None, 3, 34, None, 2, None]
    )
    assert changes.states == [
        State.CONNECTING, State.CONNECTING, State.OPEN, State.CONNECTING, State.OPEN,
        State.CONNECTING, State.CONNECTING, State.OPEN, State.CONNECTING, State.CLOSED,
    ]  # fmt: skip
    assert [type(change.error).__name__ for change in changes] == [
        "ConnectError", "ConnectTimeout", "NoneType", "ReadError", "NoneType",
        "NoneType", "StatusError", "NoneType", "NoneType", "NoneType",
    ]  # fmt: skip


@on_mock_clock
async def test_a_connection_that_is_silent_is_dead() -> None:
    changes = Changes()
    peer = Peer("httpx")
    peer.answers = [
        # Pings are life, and so is each byte of an event.
        peer.stream(*(b": ping\n\n", 59.0) * 5, b"id: 1\nda", 59.0, b"ta: 1\n\n", 1e9),
        peer.stream(1e9),
        peer.gone(),
    ]
    start = anyio.current_time()
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, retry=0, on_state_change=changes.append
        ) as source:
            assert await collect(source) == ["1"]
    first, second, third = (time - start for time in peer.times)
    assert first == 0
    assert 59 * 6 + 60 <= second <= 59 * 6 + 60 + 0.1
    assert 60 <= third - second <= 60.2
    assert isinstance(changes[1].error, IdleTimeoutError)
    assert str(changes[1].error) == "nothing has come for 60 seconds"
    assert not peer.open


@on_mock_clock
async def test_a_server_that_does_not_answer_is_dead() -> None:
    peer = Peer("httpx2")

    async def never(request: Any) -> Any:
        await anyio.sleep(1e9)

    client = peer.library.AsyncClient(transport=peer.library.MockTransport(never))
    start = anyio.current_time()
    async with client:
        async with EventSource(
            "http://x/", client=client, retry=0, idle_timeout=5, max_reconnects=1
        ) as source:
            with pytest.raises(TooManyReconnectsError) as caught:
                await anext(source)
    assert isinstance(caught.value.__cause__, IdleTimeoutError)
    assert 10 <= anyio.current_time() - start <= 10.1


@on_mock_clock
async def test_a_quiet_stream_may_be_quiet() -> None:
    """No timeout of the library gets in the way."""
    peer = Peer("httpx2")
    peer.answers = [peer.stream(1e6, frames(1, 1), 1e9)]
    async with peer.client(timeout=1) as client:
        async with EventSource("http://x/", client=client, idle_timeout=None) as source:
            assert (await anext(source)).data == "1"


@on_mock_clock
async def test_time_that_the_user_takes_is_no_silence() -> None:
    peer = Peer("httpx2")
    peer.answers = [peer.stream(frames(1, 1), frames(2, 2), 1e9)]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client) as source:
            assert (await anext(source)).data == "1"
            await anyio.sleep(1e5)
            assert (await anext(source)).data == "2"
    assert len(peer.requests) == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("most", [0, 1, 3])
async def test_reconnects_in_a_row_are_limited(library: str, most: int) -> None:
    peer, changes = Peer(library), Changes()
    peer.answers = [
        *[peer.error("ConnectError")] * most,
        peer.stream(frames(1, 1), error="ReadError"),
        *[peer.error("ConnectError")] * most,
    ]
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, retry=0, max_reconnects=most, on_state_change=changes.append
        ) as source:
            assert (await anext(source)).data == "1"
            with pytest.raises(TooManyReconnectsError, match=f"after {most} in a row") as caught:
                await anext(source)
            error = peer.library.ConnectError if most else peer.library.ReadError
            assert isinstance(caught.value.__cause__, error)
            assert changes[-1] == StateChange(State.CLOSED, caught.value)
    assert not peer.answers


@pytest.mark.usefixtures("at_once")
async def test_responses_that_end_at_once_are_limited_too(library: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.stream()] * 3
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, retry=0, max_reconnects=2) as source:
            with pytest.raises(TooManyReconnectsError, match="the response has ended") as caught:
                await anext(source)
            assert caught.value.__cause__ is None


async def test_one_response_and_no_more(library: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.stream(frames(1, 3), b"data: cut off")]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, max_reconnects=0) as source:
            assert await collect(source) == ["1", "2", "3"]
            assert source.state is State.CLOSED


@pytest.mark.usefixtures("at_once")
async def test_further_statuses_may_be_retried(library: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.status(502), peer.status(504), peer.status(500)]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, retry=0, retry_on=[502, 504]) as source:
            with pytest.raises(StatusError, match="500"):
                await anext(source)


# Leaving.


@pytest.mark.parametrize("chunks", [1, 100])
async def test_leaving_in_the_middle(library: str, chunks: int) -> None:
    peer, changes = Peer(library), Changes()
    peer.answers = [peer.stream(*[frames(1, 2)] * chunks, 1e9)]
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, on_state_change=changes.append
        ) as source:
            async for _ in source:
                break
        assert source.state is State.CLOSED
        assert changes.states == [State.OPEN, State.CLOSED]
        assert changes[-1].error is None
        with pytest.raises(StopAsyncIteration):
            await anext(source)
        await source.aclose()
        assert not peer.open


@pytest.mark.parametrize("when", ["reading", "waiting", "connecting"])
async def test_another_task_closes_it(library: str, when: str) -> None:
    peer = Peer(library)

    async def never(request: Any) -> Any:
        await anyio.sleep(1e9)

    peer.answers = [
        peer.stream(frames(1, 1), 1e9) if when == "reading" else peer.error("ConnectError")
    ]
    client = peer.client()
    if when == "connecting":
        client = peer.library.AsyncClient(transport=peer.library.MockTransport(never))
    data: list[str] = []
    async with client, EventSource("http://x/", client=client, retry=10**9) as source:

        async def follow() -> None:
            data.extend(await collect(source))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await anext(source)
            async with anyio.create_task_group() as closers:  # both wait until it has stopped
                closers.start_soon(source.aclose)
                closers.start_soon(source.aclose)
            assert not peer.open
        assert source.state is State.CLOSED
    assert data == (["1"] if when == "reading" else [])


@on_mock_clock
async def test_a_step_that_is_cancelled_costs_the_connection_and_no_event() -> None:
    peer, changes = Peer("httpx2"), Changes()
    peer.answers = [
        peer.stream(frames(1, 1), b"id: 2\nda", 10.0, b"ta: 2\n\n", 1e9),
        peer.stream(frames(2, 2), 1e9),
    ]
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, retry=5000, on_state_change=changes.append
        ) as source:
            assert (await anext(source)).data == "1"
            steps = 0
            while True:
                steps += 1
                with anyio.move_on_after(1):
                    assert (await anext(source)).data == "2"
                    break
            assert 5 < steps <= 12
            assert changes.states == [State.OPEN, State.CONNECTING, State.OPEN]
    assert peer.last_event_ids == [None, "1"]
    assert not peer.open


@pytest.mark.parametrize("cancelled_in", ["anext", "block"])
async def test_a_task_that_is_cancelled_leaves_nothing(library: str, cancelled_in: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.stream(frames(1, 1), 1e9)]

    async def follow() -> None:
        async with peer.client() as client, EventSource("http://x/", client=client) as source:
            async for _ in source:
                if cancelled_in == "block":
                    await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert not peer.open


async def test_a_hook_that_raises_is_logged(library: str, caplog: pytest.LogCaptureFixture) -> None:
    def hook(change: StateChange) -> None:
        raise RuntimeError("meant to happen")

    peer = Peer(library)
    peer.answers = [peer.stream(frames(1, 1))]
    async with peer.client() as client:
        async with EventSource(
            "http://x/", client=client, max_reconnects=0, on_state_change=hook
        ) as source:
            assert await collect(source) == ["1"]
    assert [(r.levelno, r.name) for r in caplog.records if r.name == "sse_asgi"] == [
        (logging.ERROR, "sse_asgi")
    ] * 2


async def test_memory_is_bounded(library: str) -> None:
    """What is not asked for is not read."""
    peer = Peer(library)
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield frames(1, 1)
            await anyio.lowlevel.checkpoint()

    peer.answers = [lambda request: peer.library.Response(200, headers=STREAM, content=body())]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client) as source:
            for number in range(1, 50):
                await anext(source)
                assert read == number


# What is given.


@pytest.mark.parametrize(
    "options",
    [
        {"json": 1, "content": "1"},
        {"retry": -1},
        {"max_reconnects": -1},
        {"idle_timeout": 0},
        {"idle_timeout": float("nan")},
        {"max_event_size": 0},
        {"gap": "ignore"},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EventSource("http://x/", **options)


def test_clients_of_another_kind(library: str) -> None:
    module = Peer(library).library
    with module.Client() as client:
        with pytest.raises(TypeError, match="is not asynchronous"):
            EventSource("http://x/", client=client)
    with pytest.raises(TypeError, match="AsyncClient of httpx2 or httpx"):
        EventSource("http://x/", client=object())


async def test_a_subclass_of_a_client(library: str) -> None:
    peer = Peer(library)
    peer.answers = [peer.gone()]
    kind: Any = type("Mine", (peer.library.AsyncClient,), {"__module__": "mine"})
    async with kind(transport=peer.library.MockTransport(peer._answer)) as client:
        async with EventSource("http://x/", client=client) as source:
            assert await collect(source) == []


async def test_it_is_entered_once() -> None:
    source = EventSource("http://x/")
    with pytest.raises(RuntimeError, match="enter the source first"):
        await anext(source)
    await source.aclose()
    async with source:
        with pytest.raises(RuntimeError, match="entered once"):
            await source.__aenter__()


async def test_without_httpx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ModuleNotFoundError, match="pip install httpx2"):
        await EventSource("http://x/").__aenter__()
