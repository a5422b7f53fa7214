"""The applications under test, one path each, and what the tests may know of their process.

A test puts `?tag=...` of its own into the paths it uses. `/status?tag=...` then tells what has
happened to the streams of that tag, and how the process is doing: a test can wait until the server
has noticed something, and looks into it from outside.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import logging
import os
import queue
import sqlite3
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

import anyio
import psutil
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from sse_asgi import (
    CloseReport,
    HTTPError,
    JSONServerSentEvent,
    ServerSentEvent,
    SSERequest,
    current_thread_limiter,
)
from sse_asgi.servers import connections
from sse_asgi.types import ASGIApp, EventLike, Message, Receive, Scope, Send
from tests.entry_points import ENTRY_POINTS

from . import looks

# What has no handler is written without its level, and the tests look for that. Not the root
# logger: servers that have handlers of their own would say everything twice.
_handler = logging.StreamHandler()
_handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
for _name in ("sse_asgi", "asyncio"):
    logging.getLogger(_name).addHandler(_handler)

#: Tests need not wait for 5 s until somebody looks for connections that were closed.
connections.PERIOD = 1.0

Events = AsyncIterator[EventLike]

#: Says that it is this process that answers, and not another one that got the same port.
TOKEN = os.environ.get("SSE_ASGI_TEST_TOKEN")

ENTRY_POINT = ENTRY_POINTS[os.environ.get("SSE_ASGI_TEST_ENTRY_POINT", "sse_app")]

#: What /big yields: as much as one may expect a server to take in one go.
BIG = "x" * 65536

tag: ContextVar[str] = ContextVar("tag")
history: defaultdict[str, list[str]] = defaultdict(list)
yielded: Counter[str] = Counter()
wanted: Counter[str] = Counter()
running: Counter[str] = Counter()
stopped = False
loop_threads: set[int] = set()
apps: dict[str, ASGIApp] = {}


def note(what: str) -> None:
    history[tag.get()].append(sys.intern(what))  # test_soak.py looks at the memory


def note_cleanup() -> None:
    note(
        f"source cleaned up on the {'loop' if threading.get_ident() in loop_threads else 'thread'}"
    )


@contextmanager
def life() -> Iterator[None]:
    """Note the beginning and the end of a generator, and where the end takes place."""
    note("source started")
    try:
        yield
    finally:
        note_cleanup()


async def events(request: SSERequest) -> Events:
    """Some of all there is, and an end."""
    with life():
        yield "hello"
        yield ServerSentEvent("one\ntwo\r\nthree", event="lines", id="1")
        yield {"event": "grüße", "id": "ü", "data": "snow ☃ and 🎉\u2028here"}
        yield JSONServerSentEvent({"a": [1, None]}, id="3")
        yield {"comment": "nothing", "retry": 1500}
        yield b"data: raw\n\n"


#: What `events` is on the wire.
EVENTS = (
    "data: hello\n\n"
    "id: 1\nevent: lines\ndata: one\ndata: two\ndata: three\n\n"
    "id: ü\nevent: grüße\ndata: snow ☃ and 🎉\u2028here\n\n"
    'id: 3\ndata: {"a":[1,null]}\n\n'
    ": nothing\nretry: 1500\n\n"
    "data: raw\n\n"
).encode()


async def clock(request: SSERequest) -> Events:
    """Has a cleanup that waits for something."""
    number = 0
    note("source started")
    try:
        while True:
            yielded[tag.get()] += 1
            yield {"event": "tick", "id": number, "data": number}
            number += 1
            await anyio.sleep(0.01)
    finally:
        await anyio.sleep(0.01)
        note_cleanup()


async def idle(request: SSERequest) -> Events:
    with life():
        await anyio.sleep_forever()
        yield "never"


async def stubborn(request: SSERequest) -> Events:
    """Takes its time when it is cancelled, and can't be hurried."""
    with life():
        try:
            await anyio.sleep_forever()
            yield "never"
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)


async def first(request: SSERequest) -> Events:
    """There is no second event that could push the first one out of a buffer."""
    with life():
        yield "first"
        await anyio.sleep_forever()


async def spin(request: SSERequest) -> Events:
    """Never waits for anything."""
    with life():
        while True:
            yielded[tag.get()] += 1
            yield "again"


def in_thread(request: SSERequest) -> Iterator[EventLike]:
    with life():
        while True:
            yield "from a thread"
            time.sleep(0.05)


def waiting_thread(request: SSERequest) -> Iterator[EventLike]:
    """Waits for ever, and nothing can interrupt it."""
    note("source started")
    yield "first"
    queue.SimpleQueue[None]().get()


def database(request: SSERequest) -> Iterator[EventLike]:
    """Has a connection that only the thread that has made it may use, and close."""
    db = sqlite3.connect(":memory:")
    with life(), closing(db):
        db.execute("create table numbers(n)")
        db.executemany("insert into numbers values(?)", [(n,) for n in range(50)])
        for (number,) in db.execute("select n from numbers order by n"):
            yield {"id": number, "data": number}
            time.sleep(0.005)
        assert db.execute("select count(*) from numbers").fetchone() == (50,)


async def big(request: SSERequest) -> Events:
    with life():
        while True:
            yielded[tag.get()] += 1
            yield BIG


async def noise(request: SSERequest) -> Events:
    """What can't be compressed much."""
    with life():
        while True:
            yielded[tag.get()] += 1
            yield os.urandom(len(BIG) // 2).hex()


async def echo(request: SSERequest) -> Events:
    yield JSONServerSentEvent(request.last_event_id)


async def broken(request: SSERequest) -> Events:
    with life():
        yield "before"
        yield "the end"
        raise RuntimeError("meant to happen")


async def told(request: SSERequest) -> Events:
    """Yields the next event when the client asks for it by `/tell`, and ends after ten."""
    for number in range(10):
        yield {"id": number, "event": "told", "data": {"number": number, "text": "☃" * 50}}
        while wanted[tag.get()] <= number:
            await anyio.sleep(0.005)


async def forbidden(request: SSERequest) -> Events:
    with life():
        await anyio.sleep(0.01)
        raise HTTPError(403, "not for you")
        yield "never"


async def gone(request: SSERequest) -> Events:
    raise HTTPError(204)
    yield "never"


async def post(request: SSERequest) -> Events:
    yield request.method


async def where(request: SSERequest) -> Events:
    """What a proxy has made of the request."""
    yield JSONServerSentEvent(
        {
            "path": request.path,
            "root_path": request.scope["root_path"],
            "scheme": request.scope["scheme"],
            "client": request.client and request.client[0],
        }
    )


async def countdown(request: SSERequest) -> Events:
    """Ends after two events; a client that has come back often enough is told to stay away."""
    note(f"last_event_id {request.last_event_id!r}")
    start = int(request.last_event_id or 0)
    if start >= 6:
        raise HTTPError(204)
    yield {"retry": 5}
    yield {"event": "number", "id": start + 1, "data": f"number\n{start + 1} ☃"}
    yield {"id": start + 2, "data": start + 2}


async def unicode_id(request: SSERequest) -> Events:
    """Gives an id that is not ASCII, and the client goes away and comes back with it."""
    note(f"last_event_id {request.last_event_id!r}")
    if request.last_event_id:
        raise HTTPError(204)
    yield {"id": "é-ü-ÿ", "retry": 5, "data": "come back"}


async def identified(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """A middleware that has the application run in a task of its own, and with another scope."""
    request.scope["headers"] = [*request.scope["headers"], (b"x-request-id", b"1")]
    return await call_next(request)


def app_for(factory: Any, *, entry_point: Any = ENTRY_POINT, **options: Any) -> ASGIApp:
    """An application that notes how its streams end."""

    def on_close(report: CloseReport) -> None:
        note(f"closed {report.reason.value}")

    app: ASGIApp = entry_point(factory, on_close=on_close, **options)
    return app


def app_at(path: str, factory: Any, **options: Any) -> None:
    apps[path] = app_for(factory, **options)


app_at("/events", events)
app_at("/clock", clock)
app_at("/idle", idle, ping=None)
app_at("/first", first, ping=None)
app_at("/retry", idle, ping=None, retry=1500)
app_at("/ping", idle, ping=0.05)
app_at("/spin", spin)
app_at("/thread", in_thread)
app_at("/waiting-thread", waiting_thread, ping=0.1, cleanup_timeout=0.5)
app_at("/database", database)
app_at("/big", big, send_timeout=0.5, cleanup_timeout=1)
app_at("/big-patient", big, send_timeout=None, cleanup_timeout=1)
app_at("/told", told, ping=0.02, compression=True, retry=5)
app_at("/big-compressed", noise, compression=True, send_timeout=0.5, cleanup_timeout=1)
app_at("/clock-compressed", clock, compression=True)
app_at("/stubborn", stubborn, ping=None)
app_at("/grace", idle, ping=None, shutdown_grace_period=1)
apps["/big-behind"] = BaseHTTPMiddleware(apps["/big"], identified)
app_at(
    "/big-ping",
    idle,
    ping=0.05,
    ping_message_factory=lambda: BIG * 16,
    send_timeout=0.5,
    cleanup_timeout=1,
)
apps.update(looks.APPS)
app_at("/echo", echo)
app_at("/broken", broken)
app_at("/forbidden", forbidden, defer_start=True)
app_at("/gone", gone, defer_start=True)
app_at("/where", where)
app_at("/post", post, methods=("POST",))
app_at("/countdown", countdown, defer_start=True)
app_at("/unicode-id", unicode_id, defer_start=True)
app_at(
    "/hop-by-hop",
    events,
    headers=[
        ("Connection", "keep-alive, x-mine"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Transfer-Encoding", "identity"),
        ("Upgrade", "h2c"),
        ("X-Mine", "stays"),
    ],
)


def tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        import trio  # takes its time, which other servers need not

        return trio.lowlevel.current_statistics().tasks_living


def threads_in_sources() -> int:
    """How many threads run one of the generators here.

    The number of all threads does not say that: servers have threads, too.
    """
    count = 0
    for ident, frame in sys._current_frames().items():
        while ident not in loop_threads and frame.f_back is not None:
            if frame.f_code.co_filename == __file__:
                count += 1
                break
            frame = frame.f_back
    return count


def left() -> dict[str, int]:
    """What streams are made of, and may leave behind."""
    gc.collect()
    kinds = ("Stream", "AsyncSource", "ThreadSource", "StreamOptions", "SSERequest")
    things = gc.get_objects()
    counted = Counter(type(thing).__name__ for thing in things)
    return {
        **{kind: counted[kind] for kind in kinds},
        "objects": len(things),
        "running": sum(running.values()),
        "tasks": tasks(),
        "threads": threading.active_count(),
        "threads in sources": threads_in_sources(),
        "thread tokens": current_thread_limiter().borrowed_tokens,
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "resident KiB": psutil.Process().memory_info().rss // 1024,
    }


def status() -> dict[str, Any]:
    return {
        "token": TOKEN,
        "pid": os.getpid(),
        "tasks": tasks(),
        "threads": threading.active_count(),
        "threads_in_sources": threads_in_sources(),
        "thread_tokens": current_thread_limiter().borrowed_tokens,
        "connections": sum(running.values()),
        "history": history[tag.get()],
        "yielded": yielded[tag.get()],
        "running": running[tag.get()],
    }


def print_summary() -> None:
    """Say what there has been, when the lifespan is over, and again when each stream that is left
    then is. hypercorn ends the lifespan while streams that it has cancelled are still being closed,
    and granian may leave some.
    """
    total = Counter(what for notes in history.values() for what in notes)
    # In one piece, as there may be several processes.
    sys.stdout.write(f"summary of {os.getpid()} {json.dumps(total)}\n")
    sys.stdout.flush()


if "daphne" in sys.modules:  # it has no lifespan
    atexit.register(print_summary)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        await apps["/idle"](scope, receive, send)
        global stopped
        stopped = True
        print_summary()
        return
    loop_threads.add(threading.get_ident())
    query = parse_qs(scope["query_string"].decode())
    token = tag.set(query.get("tag", [""])[0])
    try:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == "/status":
            await respond(send, 200, json.dumps(status()).encode())
        elif path == "/tell":
            wanted[tag.get()] += 1
            await respond(send, 200, b"{}")
        elif path == "/left":
            await respond(send, 200, json.dumps(left()).encode())
        elif path in apps:
            running[tag.get()] += 1
            try:
                await apps[path](scope, receive, send)
            except BaseException as exc:
                note(f"app raised {type(exc).__name__}")
                raise
            else:
                note("app returned")
            finally:
                running[tag.get()] -= 1
                if stopped:
                    print_summary()
        else:
            await respond(send, 404, b"not found")
    finally:
        tag.reset(token)


async def respond(send: Send, code: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    start: Message = {"type": "http.response.start", "status": code, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
