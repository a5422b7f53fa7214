"""The in-process client, against applications that are written out by hand."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from sse_asgi.testing import connect

pytestmark = pytest.mark.anyio

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"text/event-stream"), (b"x-one", b"\xe4")],
}


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_the_scope() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, await receive()))
        await send(START)
        await send(body(b"", False))

    headers = {"X-One": "1", "X-Two": "ä"}
    async with connect(
        app, "/a%20b?c=%20", method="post", headers=headers, body=b"in", scope={"extra": 5}
    ):
        pass
    scope, message = seen
    assert scope["method"] == "POST"
    assert scope["path"] == "/a b"
    assert scope["raw_path"] == b"/a%20b"
    assert scope["query_string"] == b"c=%20"
    assert scope["headers"] == [(b"x-one", b"1"), (b"x-two", b"\xe4")]
    assert scope["extra"] == 5
    assert message == {"type": "http.request", "body": b"in", "more_body": False}


async def test_events_and_comments_however_they_are_cut() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for byte in b": ping\nretry: 7\nevent: x\nid: 5\ndata: a\ndata: b\n\ndata: c\n\ndata: lost":
            await send(body(bytes([byte])))
        await send(body(b"", False))

    async with connect(app) as stream:
        assert stream.status_code == 200
        assert stream.headers == {"content-type": "text/event-stream", "x-one": "ä"}
        event = await stream.receive()
        assert (event.event, event.data, event.id) == ("x", "a\nb", "5")
        assert [event.data async for event in stream] == ["c"]
        assert stream.comments == ["ping"]
        assert stream.last_event_id == "5"
        assert stream.reconnection_time == 7
        assert stream.complete
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_an_error_before_the_start_is_raised_on_entering() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("early")

    with pytest.raises(KeyError, match="early"):
        async with connect(app):
            raise AssertionError("entered")


async def test_an_application_without_an_answer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    with pytest.raises(anyio.IncompleteRead):
        async with connect(app):
            raise AssertionError("entered")


async def test_an_error_comes_once_after_the_events_before_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"data: a\n\n"))
        raise KeyError("late")

    async with connect(app) as stream:
        assert (await stream.receive()).data == "a"
        with pytest.raises(KeyError, match="late"):
            await stream.receive()
        assert stream.returned
    with pytest.raises(KeyError, match="late"):
        async with connect(app) as stream:
            pass


async def test_a_response_that_is_broken_off_is_no_end() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)

    async with connect(app) as stream:
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive()
        with pytest.raises(anyio.IncompleteRead):
            await stream.read()
        assert not stream.complete


async def test_other_responses_can_be_read() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send(body(b"tea"))
        await send({"type": "http.response.body", "body": b"pot"})

    async with connect(app) as stream:
        assert stream.status_code == 418
        assert await stream.read() == b"teapot"


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_disconnect(spec_version: str) -> None:
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        log.append(await receive())
        try:
            await send(body(b"data: into the void\n\n"))
        except OSError:
            log.append("OSError")
        await anyio.sleep(0.01)
        log.append("returned")

    asgi = {"version": "3.0", "spec_version": spec_version}
    async with connect(app, scope={"asgi": asgi}) as stream:
        assert log == []
        await stream.disconnect()
        raised = ["OSError"] if spec_version == "2.4" else []
        assert log == [{"type": "http.disconnect"}, *raised, "returned"]
        assert [event async for event in stream] == []


async def test_a_client_that_stops_reading() -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for number in range(3):
            await send(body(b"data: %d\n\n" % number, number < 2))
            sent.append(number)

    async with connect(app) as stream:
        stream.stall()
        await anyio.wait_all_tasks_blocked()
        stalled_at = len(sent)
        assert stalled_at < 3
        stream.resume()
        assert [event.data async for event in stream] == ["0", "1", "2"]


async def test_what_is_not_read_is_bounded() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(START)
        while True:
            await send(body(b"data: %s\n\n" % (b"x" * 1000)))
            sent += 1
            if sent == 200:
                return

    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        assert 60 < sent < 70
        for _ in range(10):
            await stream.receive()
        await anyio.wait_all_tasks_blocked()
        assert 70 < sent < 80


async def test_the_applications_error_does_not_hide_the_tests() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await receive()
        await receive()

    with pytest.raises(LookupError, match="of the test"):
        async with connect(app):
            raise LookupError("of the test")


async def test_cancelling_the_test_cancels_the_application() -> None:
    ended = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await send(START)
        try:
            await anyio.sleep_forever()
        finally:
            ended = True

    with anyio.move_on_after(0.05):
        async with connect(app) as stream:
            await stream.receive()
    assert ended


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([body(b"x")], "has not started"),
        ([START, START], "has started already"),
        ([START, body(b"", False), body(b"x")], "is complete"),
        ([{"type": "http.nonsense"}], "unexpected ASGI message 'http.nonsense'"),
    ],
    ids=["early", "twice", "late", "nonsense"],
)
async def test_an_application_that_breaks_the_protocol_is_told(
    messages: list[Any], error: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    with pytest.raises(RuntimeError, match=error):
        async with connect(app):
            await anyio.wait_all_tasks_blocked()


def test_a_connection_has_to_be_entered() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def main() -> None:
        with pytest.raises(RuntimeError, match="enter the connection first"):
            connect(app).status_code  # noqa: B018

    anyio.run(main)
