"""The body of a request: who reads it when, and what becomes of it otherwise."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sse_asgi import ClientDisconnectedError, HTTPError, SSERequest
from sse_asgi.body import HELD
from sse_asgi.request import ReceivedRequest

from .streams import http_scope

pytestmark = pytest.mark.anyio

DISCONNECT: dict[str, Any] = {"type": "http.disconnect"}


def request_of(max_body: int | None = 2**20, headers: Any = ()) -> ReceivedRequest:
    return ReceivedRequest(http_scope(method="POST", headers=list(headers)), max_body)


def body_in(*chunks: bytes, complete: bool = True) -> list[dict[str, Any]]:
    """The messages of a body."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    if complete:
        messages[-1:] = [{**messages[-1], "more_body": False}] if messages else []
    return messages


class Receiver:
    """Gives a request what comes, as a stream does: it listens while more is wanted."""

    def __init__(self, request: ReceivedRequest, messages: list[dict[str, Any]]) -> None:
        self.request = request
        self.messages = messages
        self.pauses = 0

    def give(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.disconnect":
            self.request.lost()
        else:
            self.request.deliver(message)

    def give_all(self) -> None:
        """Give what is wanted, without waiting."""
        while self.messages and self.request.wants_more:
            self.give(self.messages.pop(0))

    async def run(self, pace: int = 1) -> None:
        while self.messages:
            for _ in range(pace):
                await anyio.lowlevel.checkpoint()
            if not self.request.wants_more:
                self.pauses += 1
                wanted = anyio.Event()
                self.request.when_wanted(wanted.set)
                await wanted.wait()
                assert self.request.wants_more
            self.give(self.messages.pop(0))


@contextlib.asynccontextmanager
async def receiving(
    request: ReceivedRequest, messages: list[dict[str, Any]], pace: int = 1
) -> AsyncIterator[Receiver]:
    receiver = Receiver(request, messages)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receiver.run, pace)
            yield receiver
            tasks.cancel_scope.cancel()


async def read_by_chunks(request: SSERequest, pace: int = 0) -> bytes:
    chunks: list[bytes] = []
    async for chunk in request.stream():
        assert chunk
        chunks.append(chunk)
        for _ in range(pace):
            await anyio.lowlevel.checkpoint()
    return b"".join(chunks)


# -- whole ---------------------------------------------------------------------------------------


SIZES = st.lists(st.sampled_from([0, 1, 2, 100, HELD - 1, HELD, HELD + 1, 2 * HELD]), max_size=6)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=SIZES,
    early=st.integers(0, 6),
    pace=st.integers(0, 3),
    by_chunks=st.none() | st.integers(0, 3),
    trailer=st.booleans(),
)
@example(sizes=[HELD, HELD, HELD], early=6, pace=0, by_chunks=0, trailer=True)
@example(sizes=[HELD, HELD, HELD], early=0, pace=0, by_chunks=3, trailer=False)
def test_all_of_the_body_comes_however_it_is_cut(
    anyio_backend: str,
    sizes: list[int],
    early: int,
    pace: int,
    by_chunks: int | None,
    trailer: bool,
) -> None:
    async def test() -> None:
        chunks = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
        messages = body_in(*chunks, *([b""] if trailer or not chunks else []))
        request = request_of(None)
        first = Receiver(request, messages[:early])
        first.give_all()  # before anybody reads
        async with receiving(request, first.messages + messages[early:], pace):
            if by_chunks is None:
                assert await request.body() == b"".join(chunks)
            else:
                assert await read_by_chunks(request, by_chunks) == b"".join(chunks)
        assert request.wants_more

    anyio.run(test, backend=anyio_backend)


async def test_the_body_may_be_read_again() -> None:
    request = request_of()
    async with receiving(request, body_in(b"a", b"b")):
        assert await request.body() == b"ab"
    assert await request.body() == b"ab"
    assert await read_by_chunks(request) == b"ab"
    assert await read_by_chunks(request) == b"ab"


async def test_two_readers_of_the_whole_body() -> None:
    request = request_of()
    bodies: list[bytes] = []

    async def read() -> None:
        bodies.append(await request.body())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(Receiver(request, body_in(b"a", b"b")).run)
    assert bodies == [b"ab", b"ab"]


@pytest.mark.parametrize("size", [2, 2 * HELD])
async def test_a_reader_that_was_cancelled_loses_nothing(size: int) -> None:
    request = request_of()
    receiver = Receiver(request, body_in(b"a" * size, b"b" * size))
    receiver.give(receiver.messages.pop(0))
    with anyio.move_on_after(0.01) as scope:
        await request.body()
    assert scope.cancelled_caught
    receiver.give_all()
    assert await request.body() == b"a" * size + b"b" * size


async def test_a_body_by_chunks_is_read_once() -> None:
    request = request_of()
    Receiver(request, body_in(b"a", b"b")).give_all()
    assert await read_by_chunks(request) == b"ab"
    with pytest.raises(RuntimeError, match=r"read already: call stream\(\) once, or body\(\)"):
        await request.body()
    with pytest.raises(RuntimeError, match="read already"):
        await read_by_chunks(request)


async def test_messages_after_the_end_are_ignored() -> None:
    """A middleware may answer every ``receive()`` with the body again."""
    request = request_of()
    for _ in range(3):
        Receiver(request, body_in(b"again")).give_all()
    assert await request.body() == b"again"
    Receiver(request, body_in(b"again")).give_all()
    assert await request.body() == b"again"


# -- empty ---------------------------------------------------------------------------------------


def test_an_empty_body_that_nobody_reads_takes_no_memory() -> None:
    requests = [request_of() for _ in range(1000)]
    (message,) = body_in(b"")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for request in requests:
            assert request.wants_more
            request.deliver(message)
            assert request.wants_more
            request.drop()
            request.lost()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 8 * len(requests)


async def test_an_empty_body_is_read_like_any_other() -> None:
    for _ in range(2):  # what is shared does not change
        request = request_of()
        Receiver(request, body_in(b"")).give_all()
        request.drop()
        request.lost()
        assert await read_by_chunks(request) == b""
        assert await request.body() == b""
        with pytest.raises(HTTPError, match=r"400 .*is empty"):
            await request.json()
        assert request.wants_more


async def test_a_reader_that_waits_for_an_empty_body() -> None:
    request = request_of()
    async with receiving(request, body_in(b""), pace=5):
        assert await request.body() == b""


async def test_a_request_that_was_not_received_has_no_body() -> None:
    request = SSERequest(http_scope())
    for read_it in (request.body, request.json, lambda: read_by_chunks(request)):
        with pytest.raises(RuntimeError, match="not made by sse_app"):
            await read_it()


# -- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"text": "ä☃"}, [], None, 0, "", {"nested": [{}]}])
async def test_json(value: Any) -> None:
    request = request_of()
    Receiver(request, body_in(json.dumps(value, ensure_ascii=False).encode())).give_all()
    for _ in range(2):
        assert await request.json() == value


@pytest.mark.parametrize(
    "body",
    [b"{", b"text", b"\xff", '"ä"'.encode("utf-16"), b"[" * 100_000, b"1" * 5000, b" "],
    ids=["cut", "text", "bytes", "UTF-16", "deep", "long", "blank"],
)
async def test_what_is_not_json_is_a_bad_request(body: bytes) -> None:
    """It is the client's fault, so it must not be a traceback in the log of the server."""
    request = request_of()
    Receiver(request, body_in(body)).give_all()
    with pytest.raises(HTTPError, match="is not JSON") as caught:
        await request.json()
    assert caught.value.status_code == 400
    assert len(caught.value.detail) < 200


# -- too large -----------------------------------------------------------------------------------


async def read(request: SSERequest, how: str) -> bytes:
    return await (request.body() if how == "body" else read_by_chunks(request))


@pytest.mark.parametrize("how", ["body", "stream"])
@pytest.mark.parametrize("limit", [0, 1, 1000, HELD, 3 * HELD])
@pytest.mark.parametrize("early", [False, True])
async def test_a_body_that_is_too_large(how: str, limit: int, early: bool) -> None:
    for size in (limit, limit + 1):
        request = request_of(limit)
        chunk = max(1, limit // 3)
        chunks = [b"x" * min(chunk, size - begin) for begin in range(0, size, chunk)]
        receiver = Receiver(request, [*body_in(*chunks, b""), DISCONNECT])
        if early:
            receiver.give_all()
        async with receiving(request, receiver.messages) as receiver:
            if size == limit:
                assert await read(request, how) == b"x" * size
            else:
                for _ in range(2):
                    with pytest.raises(HTTPError, match=f"413 .* larger than {limit} bytes"):
                        await read(request, how)
                while receiver.messages:  # the disconnect is heard
                    await anyio.sleep(0.001)


@pytest.mark.parametrize("how", ["body", "stream"])
async def test_a_body_that_is_announced_as_too_large_is_not_read(how: str) -> None:
    request = request_of(1000, [(b"content-length", b"1001")])
    with anyio.fail_after(5), pytest.raises(HTTPError) as caught:
        await read(request, how)
    assert caught.value.status_code == 413


@pytest.mark.parametrize("announced", [b"2", b"-5", b"x", b"", b"\xb2\xb2\xb2\xb2", b"9" * 5000])
async def test_what_else_is_announced_is_not_believed(announced: bytes) -> None:
    request = request_of(2, [(b"content-length", announced)])
    Receiver(request, body_in(b"ab")).give_all()
    assert await request.body() == b"ab"
    request = request_of(2, [(b"content-length", announced)])
    Receiver(request, body_in(b"abc")).give_all()
    with pytest.raises(HTTPError, match="413"):
        await request.body()


# -- incomplete ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["body", "stream"])
@pytest.mark.parametrize("before", [[], [b"a"], [b"a", b""]])
@pytest.mark.parametrize("early", [False, True])
async def test_a_client_that_leaves_before_the_end(
    how: str, before: list[bytes], early: bool
) -> None:
    for _ in range(2):  # what is shared does not change
        request = request_of()
        messages = [*body_in(*before, complete=False), DISCONNECT]
        receiver = Receiver(request, messages)
        if early:
            receiver.give_all()
        async with receiving(request, receiver.messages, pace=3):
            for _ in range(2):
                with pytest.raises(ClientDisconnectedError, match="before the body"):
                    await read(request, how)
        assert request.wants_more


async def test_a_client_that_leaves_after_the_end() -> None:
    request = request_of()
    Receiver(request, [*body_in(b"a"), DISCONNECT]).give_all()
    assert await request.body() == b"a"


# -- held back -----------------------------------------------------------------------------------


async def test_what_nobody_has_asked_for_is_bounded() -> None:
    request = request_of()
    receiver = Receiver(request, body_in(*[b"x" * 1000] * 200))
    receiver.give_all()
    given = 200 - len(receiver.messages)
    assert HELD <= given * 1000 < HELD + 1000
    async with receiving(request, receiver.messages) as receiver:
        await anyio.wait_all_tasks_blocked()
        assert receiver.pauses == 1
        assert len(receiver.messages) == 200 - given
        assert await request.body() == b"x" * 200_000


async def test_a_slow_reader_of_chunks_slows_the_client() -> None:
    request = request_of(None)
    async with receiving(request, body_in(*[b"x" * 10_000] * 100)) as receiver:
        read = 0
        async for chunk in request.stream():
            read += len(chunk)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            received = (100 - len(receiver.messages)) * 10_000
            assert received - read <= HELD + 10_000
        assert read == 1_000_000
        assert receiver.pauses > 10


async def test_a_reader_of_chunks_that_has_had_enough() -> None:
    """The rest is not kept, and the disconnect after it is heard."""
    request = request_of(None)
    async with receiving(request, [*body_in(*[b"x" * HELD] * 20), DISCONNECT]) as receiver:
        chunks = request.stream()
        async for _chunk in chunks:
            break
        await anyio.wait_all_tasks_blocked()
        assert len(receiver.messages) > 15
        await chunks.aclose()  # type: ignore[attr-defined]
        while receiver.messages:
            await anyio.sleep(0.001)


async def abandon(request: ReceivedRequest) -> None:
    chunks = request.stream()
    await anext(chunks)
    await chunks.aclose()  # type: ignore[attr-defined]


async def ask_late(request: ReceivedRequest) -> None:
    request.drop()
    with pytest.raises(RuntimeError, match="was dropped"):
        await request.body()


async def lose(request: ReceivedRequest) -> None:
    request.lost()
    with pytest.raises(ClientDisconnectedError):
        await request.body()


async def exceed(request: ReceivedRequest) -> None:
    request.deliver(body_in(b"x" * 2**20)[0])
    with anyio.fail_after(5), pytest.raises(HTTPError, match="413"):
        await request.body()


@pytest.mark.parametrize("end", [abandon, ask_late, lose, exceed])
async def test_what_can_not_be_read_any_more_takes_no_memory(end: Any) -> None:
    request = request_of(10 * HELD)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(8):
            Receiver(request, body_in(bytes([number]) * (HELD // 4), complete=False)).give_all()
        await end(request)
        for number in range(8):
            Receiver(request, body_in(bytes([number]) * (HELD // 4), complete=False)).give_all()
        assert tracemalloc.get_traced_memory()[0] - before < HELD / 2
    finally:
        tracemalloc.stop()


async def test_a_body_that_was_read_is_kept_once() -> None:
    request = request_of(None)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        async with receiving(request, [*body_in(bytes(HELD) + b"1", bytes(HELD) + b"2")]):
            body = await request.body()
        assert tracemalloc.get_traced_memory()[0] - before < len(body) * 3 / 2
    finally:
        tracemalloc.stop()


# -- dropped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["body", "stream"])
@pytest.mark.parametrize("complete", [False, True])
async def test_a_body_that_was_dropped(how: str, complete: bool) -> None:
    request = request_of()
    receiver = Receiver(request, body_in(b"x" * HELD, complete=complete))
    receiver.give_all()
    request.drop()
    assert request.wants_more
    Receiver(request, [*body_in(*[b"x" * HELD] * 50), DISCONNECT]).give_all()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"was dropped: .* before the first event"):
            await read(request, how)


async def test_a_small_body_is_not_dropped() -> None:
    request = request_of()
    request.drop()
    receiver = Receiver(request, body_in(b"x" * (HELD - 2), b"y"))
    while receiver.messages:
        receiver.give(receiver.messages.pop(0))
        request.drop()
    assert await request.body() == b"x" * (HELD - 2) + b"y"


@pytest.mark.parametrize("how", ["body", "stream"])
async def test_a_body_that_somebody_reads_is_not_dropped(how: str) -> None:
    request = request_of()
    bodies: list[bytes] = []

    async def reader() -> None:
        bodies.append(await read(request, how))

    async with receiving(request, body_in(*[b"x" * HELD] * 4), pace=2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader)
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
                request.drop()
    assert bodies == [b"x" * 4 * HELD]


# -- while it is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["body", "stream"])
@pytest.mark.parametrize(
    ("messages", "ends"),
    [
        (body_in(b"a", b"b"), contextlib.nullcontext()),
        (body_in(b"a", b"toolarge"), pytest.raises(HTTPError)),
        ([*body_in(b"a", complete=False), DISCONNECT], pytest.raises(ClientDisconnectedError)),
    ],
    ids=["complete", "too large", "lost"],
)
async def test_the_response_does_not_start_while_the_body_is_read(
    how: str, messages: list[dict[str, Any]], ends: Any
) -> None:
    """Whoever sends the start learns that it may when the reader runs, and not before."""
    request = request_of(5)
    receiver = Receiver(request, list(messages))
    log: list[str] = []

    async def source() -> None:
        with ends:
            await read(request, how)
        log.append("the source goes on")

    assert not request.is_read
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(source)
        await anyio.wait_all_tasks_blocked()
        assert request.is_read
        request.when_read(lambda: log.append("may start"))
        while receiver.messages:
            assert request.is_read
            receiver.give(receiver.messages.pop(0))
            assert log == []
    assert log == ["may start", "the source goes on"]
    assert not request.is_read


async def test_the_response_may_start_when_a_reader_was_cancelled() -> None:
    request = request_of()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request.body)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            await request.body()
        assert request.is_read  # by the other one
        tasks.cancel_scope.cancel()
    assert not request.is_read


async def test_the_response_may_start_when_there_is_nothing_to_wait_for() -> None:
    for messages in (body_in(b""), body_in(b"a")):
        request = request_of()
        Receiver(request, messages).give_all()
        await request.body()
        await request.body()
        assert not request.is_read
