"""What the demo answers that is no stream: whom it refuses, and how often something may be done."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from sse_asgi import HTTPError
from sse_asgi.demo.app import create_app
from sse_asgi.demo.web import Rate
from sse_asgi.types import Message, Scope

pytestmark = pytest.mark.anyio

JSON = (b"content-type", b"application/json")


async def ask(method: str, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, str]:
    """The status and the text that the demo answers on the machine box.example."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"text": "hello"}'}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    with anyio.fail_after(10):
        await create_app(names=["box.example"])(scope, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


ACCEPTED = [
    "localhost",
    "localhost:8000",
    "LocalHost:1",
    "127.0.0.1",
    "127.0.0.1:65535",
    "127.1.2.3:8000",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:8000",
    "192.0.2.1:8000",
    "[2001:db8::1]",
    "box.example:8000",
    "BOX.example",
]
REFUSED = [
    "",
    ":8000",
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:127.0.0.1",
    "localhost:evil.example",
    "localhost:8000:8000",
    "localhost:\xb2",
    "localhost@evil.example",
    "evil.example, localhost",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "::1",
    "::1:8000",
    "[::1",
    "[127.0.0.1]",
    "a.box.example",
]


@pytest.mark.parametrize("host", ACCEPTED)
async def test_own_names(host: str) -> None:
    status, text = await ask("GET", "/", (b"host", host.encode("latin-1")))
    assert (status, text[:15]) == (200, "<!doctype html>")


@pytest.mark.parametrize("host", REFUSED)
@pytest.mark.parametrize("path", ["/", "/events", "/say"])
async def test_other_names(host: str, path: str) -> None:
    method = "POST" if path == "/say" else "GET"
    status, text = await ask(method, path, (b"host", host.encode("latin-1")), JSON)
    assert (status, text[:6]) == (421, f"Host {host!r}"[:6])
    assert "--allow-host NAME" in text


async def test_no_host_and_two_hosts() -> None:
    assert (await ask("GET", "/"))[0] == 421
    two = (b"host", b"localhost"), (b"host", b"evil.example")
    assert (await ask("GET", "/", *two))[0] == 421
    assert (await ask("GET", "/", two[1], two[0]))[0] == 421


@pytest.mark.parametrize(
    ("origins", "status"),
    [
        ([], 201),  # a program
        (["http://localhost:8000"], 201),
        (["https://LOCALHOST:8000"], 201),  # behind a proxy
        (["null"], 403),  # a frame without an origin, or a file
        ([""], 403),
        (["http://evil.example"], 403),
        (["http://localhost"], 403),
        (["http://localhost:8001"], 403),
        (["http://127.0.0.1:8000"], 403),
        (["http://localhost:8000.evil.example"], 403),
        (["localhost:8000"], 403),
        (["file://localhost:8000"], 403),
        (["http://localhost:8000", "http://evil.example"], 403),
    ],
)
async def test_pages_that_may_do_something(origins: list[str], status: int) -> None:
    fields = [(b"origin", origin.encode()) for origin in origins]
    got, text = await ask("POST", "/say", (b"host", b"localhost:8000"), JSON, *fields)
    assert got == status
    assert text.startswith("this is for the page of this server") == (status == 403)


@pytest.mark.parametrize("path", ["/disconnect", "/stop"])
async def test_other_pages_can_end_nothing(path: str) -> None:
    stopped: list[bool] = []
    app = create_app(names=["demo"], stop=lambda: stopped.append(True))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:

        async def status(method: str, **options: Any) -> int:
            return (await client.request(method, path, **options)).status_code

        assert await status("GET") == 405
        assert await status("POST", content="{}") == 415
        assert await status("POST", json={}, headers={"origin": "http://evil.example"}) == 403
        assert stopped == []


def test_rate() -> None:
    now = 100.0
    rate = Rate(2, 10, clock=lambda: now)
    rate.use()
    now = 104.0
    rate.use()
    now = 107.5
    for _ in range(2):  # what is refused does not count
        with pytest.raises(HTTPError) as caught:
            rate.use()
        assert caught.value.status_code == 429
        assert caught.value.detail == "this may be done 2 times in 10 s: try again in 3 s"
        assert caught.value.headers == {"retry-after": "3"}
    now = 110.0
    rate.use()
    with pytest.raises(HTTPError, match="try again in 5 s"):
        rate.use()
