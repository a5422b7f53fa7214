"""What a ping may be, and what it is for clients that are not browsers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from sse_asgi import sse_app
from sse_asgi.starlette import EventSourceResponse

from .streams import http_scope, never, on_mock_clock


async def slowly() -> AsyncIterator[Any]:
    for number in range(3):
        yield {"data": str(number), "id": number}
        await anyio.sleep(5)


def by_sse_app(**options: Any) -> Any:
    return sse_app(slowly, ping=2, **options)


def by_response(**options: Any) -> Any:
    return EventSourceResponse(slowly(), ping=2, sep="\n", **options)


WAYS = {"sse_app": by_sse_app, "starlette": by_response}


async def body_of(app: Any) -> bytes:
    body = b""

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    await app(http_scope(), never, send)
    return body


def strict_events(body: bytes) -> list[str]:
    """As a client that takes every blank line for the end of an event, once it knows an id.

    The SDK of OpenAI does so, and it parses the data as JSON, which nothing is not. It takes a
    block that only has a ``retry`` for an event, too.
    """
    events: list[str] = []
    data: list[str] = []
    known = retry = False
    for line in body.decode().split("\n")[:-1]:
        name, _, value = line.partition(": ")
        if not line and (data or known or retry):
            events.append("\n".join(data))
            data, retry = [], False
        elif name == "data":
            data.append(value)
        elif name == "id":
            known = True
        elif name == "retry":
            retry = True
    return events


def check(way: str, options: dict[str, Any], expected: list[str]) -> None:
    @on_mock_clock
    async def run() -> None:
        body = await body_of(WAYS[way](**options))
        assert body.count(b":\n") == 6
        assert strict_events(body) == expected

    run()


@pytest.mark.parametrize("way", WAYS)
def test_a_ping_without_a_blank_line_is_no_event_for_anybody(way: str) -> None:
    check(way, {"ping_message_factory": lambda: b":\n"}, ["0", "1", "2"])
    check(way, {}, ["0", "", "", "1", "", "", "2", "", ""])  # which is why


@pytest.mark.parametrize("way", WAYS)
def test_a_retry_in_an_event_is_no_event_of_its_own(way: str) -> None:
    factory = {"ping_message_factory": lambda: b":\n"}
    check(way, {**factory, "retry": 9}, ["", "0", "1", "2"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ping", [b": x", b"x\n", b": a\nb\n", b"data: x\n"])
def test_a_ping_that_is_neither_comment_lines_nor_a_frame_is_refused(way: str, ping: bytes) -> None:
    @on_mock_clock
    async def run() -> None:
        with pytest.raises(ValueError, match="whole frames"):
            await body_of(WAYS[way](ping_message_factory=lambda: ping))

    run()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ping", [b": a\r\n: b\r\n", b":\r", b"event: ping\ndata: x\n\n"])
def test_whole_comment_lines_and_whole_frames_are_pings(way: str, ping: bytes) -> None:
    @on_mock_clock
    async def run() -> None:
        body = await body_of(WAYS[way](ping_message_factory=lambda: ping))
        assert body.count(ping) == 6
        assert body.replace(ping, b"") == b"".join(
            b"id: %d\ndata: %d\n\n" % (n, n) for n in range(3)
        )

    run()
