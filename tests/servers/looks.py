"""An application that says what can be seen of its connection, by the objects of its server.

It sends as fast as it may, without a stream around it. `/looks?tag=...` tells of the one of a tag.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qs

import anyio
import anyio.lowlevel
from starlette.middleware.base import BaseHTTPMiddleware

from sse_asgi import Shutdown, servers
from sse_asgi.runtime import of_task
from sse_asgi.types import ASGIApp, Message, Receive, Scope, Send

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}

#: How often to look, in seconds.
EVERY = 0.05


@dataclass
class Look:
    """What was seen of a connection."""

    #: How often somebody has looked, and the number of the send that waited then, or 0.
    looked: int = 0
    waits: int = 0
    #: Whether progress could be seen, and how often there was some while one send waited.
    seen: bool = False
    changes: int = 0
    #: Whether the application was told that the client is gone, or was called about it.
    told: bool = False
    lost: bool = False
    gone: bool = False
    over: bool = False
    aborted: bool = False


_looks: dict[str, Look] = {}


def _tag(scope: Scope) -> str:
    query: dict[str, list[str]] = parse_qs(scope["query_string"].decode())
    return query.get("tag", [""])[0]


class _Application:
    """One request: sends, listens, and looks."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.server = servers.recognise(scope, send, of_task(), Shutdown())
        # Pipelined requests have one for all: the second may begin before the first is asked about.
        self.look = _looks.setdefault(_tag(scope), Look())
        #: After how many messages to send the last one.
        self.most = float(parse_qs(scope["query_string"].decode()).get("most", ["inf"])[0])
        self.sends = 0
        self.sending = False

    async def run(self, idle: bool, seconds: float) -> None:
        """Serve the request, and abort it after so many seconds."""
        self.ended = anyio.Event()
        self.server.attach(lambda: None, self._lost)
        try:
            await self.server.send(START)
            await self.server.send(
                {"type": "http.response.body", "body": b":\n\n", "more_body": True}
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen)
                tasks.start_soon(self._watch)
                if not idle:
                    tasks.start_soon(self._send)
                with anyio.move_on_after(seconds):
                    await self.ended.wait()
                if not self.ended.is_set():
                    self.server.abort()
                    self.look.aborted = self.server.aborted
                    await self.server.abort_is_seen(self.receive)
                tasks.cancel_scope.cancel()
        finally:
            self.server.detach()
            self.server.release()
            self.look.over = True

    def _lost(self) -> None:
        self.look.lost = True
        self.ended.set()

    async def _listen(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.look.told = True
        self.ended.set()

    async def _send(self) -> None:
        while not self.ended.is_set():
            self.sends += 1
            self.sending = True
            more = self.sends < self.most
            await self.server.send(
                {"type": "http.response.body", "body": b"x" * 65536, "more_body": more}
            )
            if not more:
                break
            self.sending = False
            await anyio.lowlevel.checkpoint()
        self.sending = False
        self.ended.set()

    async def _watch(self) -> None:
        before: Any = None
        look = self.look
        while True:
            now = self.sends, self.server.progress()
            if self.sending and look.waits == self.sends:
                look.seen = look.seen or now[1] is not None
                look.changes += now != before
            look.looked += 1
            look.waits = self.sends if self.sending else 0
            look.gone = look.gone or self.server.is_gone()
            before = now
            await anyio.sleep(EVERY)


async def _looked_at(scope: Scope, receive: Receive, send: Send) -> None:
    query = parse_qs(scope["query_string"].decode())
    await _Application(scope, receive, send).run(
        "idle" in query, float(query.get("seconds", ["inf"])[0])
    )


async def _idle(scope: Scope, receive: Receive, send: Send) -> None:
    """One that nobody looks at but the timer."""
    application = _Application(scope, receive, send)
    application.ended = anyio.Event()
    application.server.attach(lambda: None, application._lost)
    try:
        await send(START)
        await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(application._listen)
            await application.ended.wait()
            tasks.cancel_scope.cancel()
    finally:
        application.server.detach()
        application.look.over = True


async def _tell(scope: Scope, receive: Receive, send: Send) -> None:
    body = json.dumps(asdict(_looks.get(_tag(scope), Look()))).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _changed(request: Any, call_next: Any) -> Any:
    """Give the application another scope, with addresses that the request has brought."""
    request.scope["headers"] = [*request.scope["headers"], (b"x-request-id", b"1")]
    return await call_next(request)


APPS: dict[str, ASGIApp] = {
    "/looks": _tell,
    "/looked-at": _looked_at,
    "/looked-at-behind": BaseHTTPMiddleware(_looked_at, _changed),
    "/looked-at-idle": _idle,
    "/looked-at-idle-behind": BaseHTTPMiddleware(_idle, _changed),
}
