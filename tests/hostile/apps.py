"""The applications that are attacked, one path each; the rest is that of tests/servers/apps.py.

Each is there in the forms that harness.py names: ``sse_app``, a response of Starlette, and both
behind a middleware that runs them in a task of its own.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware

from sse_asgi import HTTPError, Shutdown, SSEApp, SSERequest, sse_app
from sse_asgi.types import ASGIApp, Receive, Scope, Send
from tests.entry_points import starlette_app
from tests.servers import apps as base
from tests.servers.apps import (
    BIG,
    Events,
    app,
    app_for,
    apps,
    identified,
    idle,
    life,
    note,
    respond,
    tag,
    yielded,
)

__all__ = ["app"]

#: One for each tag: a stream that was told to end leaves the others alone.
shutdowns: defaultdict[str, Shutdown] = defaultdict(Shutdown)

#: What sources wait for that do not end by themselves, one for each tag.
released: set[str] = set()


def row(number: int, size: int) -> str:
    """An event that has a number, and a length."""
    return f"{number} ".ljust(size, "x")


def rows(count: int, size: int) -> Callable[[SSERequest], Events]:
    """A source that always has a next event, and ends."""

    async def source(request: SSERequest) -> Events:
        with life():
            for number in range(count):
                yield row(number, size)
                yielded[tag.get()] = number + 1

    return source


#: What `/rows` and `/huge` yield: how many, and how long each. More than all buffers take.
ROWS = (12_000, 1_000)
HUGE = (8, 3 * 2**20)

#: How many there are of /burst's, and how long each; nobody is to read them all, and they are more
#: than the window of a client of HTTP/2.
BURST = (120_000, 200)


async def burst(request: SSERequest) -> Events:
    """Never waits by itself, and notes which events were taken off its hands."""
    with life():
        for number in range(1, BURST[0] + 1):
            yield row(number, BURST[1])
            yielded[tag.get()] = number


def burst_in_thread(request: SSERequest) -> Iterator[str]:
    """The same, in larger events: each is a trip to the thread."""
    with life():
        for number in range(1, BURST[0] + 1):
            yield row(number, 4_000)
            yielded[tag.get()] = number


async def burst_and_error(request: SSERequest) -> Events:
    """The same, and fails when it is told to."""
    async for event in burst(request):
        yield event
        if tag.get() in released:
            raise RuntimeError("meant to happen")


def query() -> None:
    note("query begins")
    time.sleep(1.5)
    note("query ends")


async def database(request: SSERequest) -> Events:
    """Asks a database in a thread, and closes it in the end."""
    with life():
        yield "connected"
        await anyio.to_thread.run_sync(query)
        yield "never"


async def shielded(request: SSERequest) -> Events:
    """Does something that must not be interrupted."""
    with life():
        yield "begun"
        with anyio.CancelScope(shield=True):
            note("query begins")
            await anyio.sleep(1.5)
            note("query ends")
        yield "never"


async def shielded_cleanup(request: SSERequest) -> Events:
    with life():
        try:
            yield "begun"
            note("query begins")
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)
                note("query ends")


async def swallow(request: SSERequest) -> Events:
    """Does not want to hear that it is over."""
    with life():
        yield "begun"
        with anyio.CancelScope(shield=True):
            while tag.get() not in released:
                await anyio.sleep(0.02)


async def waiting_factory(request: SSERequest) -> Events:
    note("factory begins")
    try:
        await anyio.sleep_forever()
    finally:
        note("factory ends")
    raise AssertionError("never")


def guarded(request: SSERequest) -> Events:
    """Refuses everybody without the word."""
    if "let-in" not in request.query_params:
        raise HTTPError(403, "not for you " * 5_000)
    return idle(request)


#: As header fields, so that few refusals fill a buffer.
PADDING = {f"x-padding-{number}": "x" * 1_000 for number in range(6)}
METHODS = ("GET", *(f"{letter * 500}" for letter in "ABCDEFGHIJKL"))


class PanicException(BaseException):
    """As those that leave a library written in Rust."""


async def panic(request: SSERequest) -> Events:
    with life():
        yield "before"
        await anyio.sleep(0.02)
        yield "the end"
        raise PanicException("meant to happen")


async def about_to_fail(request: SSERequest) -> Events:
    with life():
        yield "before"
        await anyio.sleep(0.02)
        raise RuntimeError("meant to happen")


async def forbidden_at_once(request: SSERequest) -> Events:
    raise HTTPError(403, "not for you")
    yield "never"


async def not_found(request: SSERequest) -> Events:
    raise HTTPException(404)
    yield "never"


def as_event(error: Exception) -> str:
    return f"sorry: {error!r}"


#: What clients stumble over, as JSON carries it into a program.
STUMBLES = json.loads(r'{"delta": "\ud83d", "\udc00": ["a\u2028b\u2029c\u0085d", "\ud83d\ude00"]}')


async def stumbling(request: SSERequest) -> Events:
    yield {"data": STUMBLES}
    yield "after"


async def echo_id(request: SSERequest) -> Events:
    with life():
        yield {"data": {"length": len(request.last_event_id or "")}}
        await anyio.sleep_forever()


async def body_first(request: SSERequest) -> AsyncIterator[str]:
    """Reads the body in the factory."""
    length = len(await request.body())

    async def source() -> AsyncIterator[str]:
        with life():
            yield f"{length}"

    return source()


async def body_meanwhile(request: SSERequest) -> Events:
    """Reads the body while it streams."""
    with life():
        yield "begun"
        length = 0
        async for chunk in request.stream():
            length += len(chunk)
        yield f"{length}"


def big_ping() -> str:
    yielded[tag.get()] += 1
    return BIG * 16


def at(path: str, factory: Any, **options: Any) -> None:
    """Offer an application in every form."""
    plain = app_for(factory, entry_point=sse_app, **options)
    starlette = app_for(factory, entry_point=starlette_app, **options)
    apps[path] = plain
    apps[f"/behind{path}"] = BaseHTTPMiddleware(plain, identified)
    apps[f"/starlette{path}"] = starlette
    apps[f"/starlette-behind{path}"] = BaseHTTPMiddleware(starlette, identified)


class ForEachTag:
    """An application that is made anew for each tag, with a `Shutdown` and places of its own."""

    def __init__(self, entry_point: Any, factory: Any, options: dict[str, Any]) -> None:
        self._make: Callable[[], ASGIApp] = lambda: app_for(
            factory, entry_point=entry_point, shutdown=shutdowns[tag.get()], **options
        )
        self.made: dict[str, ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if tag.get() not in self.made:
            self.made[tag.get()] = self._make()
        await self.made[tag.get()](scope, receive, send)


def at_for_each_tag(path: str, factory: Any, **options: Any) -> None:
    """Offer an application whose streams are told to end by `/drain`. They are counted where it
    takes part in what only ``sse_app`` has.
    """
    plain = ForEachTag(sse_app, factory, options)
    apps[path] = plain
    apps[f"/behind{path}"] = BaseHTTPMiddleware(plain, identified)
    if "methods" not in options and "max_connections" not in options:
        starlette = ForEachTag(starlette_app, factory, options)
        apps[f"/starlette{path}"] = starlette
        apps[f"/starlette-behind{path}"] = BaseHTTPMiddleware(starlette, identified)


at("/rows", rows(*ROWS), send_timeout=2, ping=None)
at("/huge", rows(*HUGE), send_timeout=2, ping=None)
at_for_each_tag("/burst", burst)
at_for_each_tag("/burst-in-thread", burst_in_thread)
at("/burst-short", burst, max_lifetime=1.5)
at("/burst-and-error", burst_and_error)
at("/database", database, ping=None, cleanup_timeout=0.3)
at("/shielded", shielded, ping=None, cleanup_timeout=0.3)
at("/shielded-cleanup", shielded_cleanup, ping=None, cleanup_timeout=0.3)
at("/database-short", database, ping=None, cleanup_timeout=0.3, max_lifetime=0.3)
at("/swallow", swallow, ping=None, cleanup_timeout=0.3)
at("/idle-ping", idle, ping=0.1, send_timeout=None)
at("/deaf", idle, ping=0.02, ping_message_factory=big_ping, send_timeout=None, cleanup_timeout=1)
at("/panic", panic)
at("/about-to-fail", about_to_fail)
at("/forbidden-at-once", forbidden_at_once)
at("/not-found", not_found, on_error=as_event, defer_start=True)
at("/stumbling", stumbling)
at("/echo-id", echo_id, ping=None)
at("/one-second", base.big, send_timeout=1, cleanup_timeout=1)
at("/waiting-factory", waiting_factory)
at_for_each_tag("/posted", base.post, methods=("POST",))
at_for_each_tag("/limited", idle, ping=0.2, max_connections=5)
at_for_each_tag("/limited-silent", idle, ping=None, max_connections=5)
at_for_each_tag("/many", idle, ping=None, max_connections=1_000)
at_for_each_tag("/guarded", guarded, ping=None, max_connections=3, methods=METHODS, headers=PADDING,
              send_timeout=2, cleanup_timeout=1)  # fmt: skip
at_for_each_tag("/full", idle, ping=None, max_connections=1, cleanup_timeout=1, send_timeout=2)
at_for_each_tag("/body-first", body_first, methods=("GET", "POST"), ping=None)
at_for_each_tag("/body-meanwhile", body_meanwhile, methods=("GET", "POST"), ping=None)
at_for_each_tag("/idle-post", idle, methods=("GET", "POST"), ping=None)


def its_tag(scope: Scope) -> str:
    """The tag of the streams that a request is about. It has none itself."""
    query: bytes = scope["query_string"]
    return parse_qs(query.decode())["of"][0]


async def drain(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell streams to end."""
    shutdowns[its_tag(scope)].drain()
    await respond(send, 200, b"{}")


async def release(scope: Scope, receive: Receive, send: Send) -> None:
    """Let go those that wait for it."""
    released.add(its_tag(scope))
    await respond(send, 200, b"{}")


async def places(scope: Scope, receive: Receive, send: Send) -> None:
    """How many places the streams of a tag take."""
    made = [each.made.get(its_tag(scope)) for each in apps.values() if isinstance(each, ForEachTag)]
    taken = sum(each.connections for each in made if isinstance(each, SSEApp))
    await respond(send, 200, json.dumps(taken).encode())


apps.update({"/drain": drain, "/release": release, "/places": places})
