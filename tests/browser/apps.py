"""What the browser is served: an empty page, and streams, one path each.

As in `tests.servers.apps`, whose paths are here too, a test has a tag of its own in the query, and
`/status?tag=...` tells what has happened to the streams of that tag.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

import anyio

from sse_asgi import HTTPError, JSONServerSentEvent, ServerSentEvent, SSERequest
from sse_asgi.types import EventLike, Message, Receive, Scope, Send
from tests.servers import apps
from tests.servers.apps import app_at, note, tag

Events = AsyncIterator[EventLike]

#: `listen` makes an EventSource that keeps a log of all that it does.
PAGE = b"""<!doctype html>
<meta charset="utf-8">
<title>test</title>
<link rel="icon" href="data:,">
<script>
"use strict";
function listen(url, names, init) {
  const source = new EventSource(url, init);
  source.log = [];
  for (const name of new Set(["open", "message", "error", ...names])) {
    source.addEventListener(name, (event) => source.log.push({
      type: event.type,
      data: event instanceof MessageEvent ? event.data : null,
      id: event instanceof MessageEvent ? event.lastEventId : null,
      state: source.readyState,
      at: performance.now(),
    }));
  }
  source.of = (type) => source.log.filter((event) => event.type === type);
  return source;
}
</script>
"""

UNICODE = "snow \u2603, \U0001f389, \u6f22\u5b57, \u2028 \u2029 \x85 \x0b \x0c \x1e \ufeff \x00 ."

#: Some of all there is.
MANY: list[EventLike] = [
    "hello",
    {"comment": "nothing"},
    ServerSentEvent("one\ntwo\r\nthree\rfour\n\n", event="lines", id="1"),
    {"comment": "data: nothing\n\nid: 9\r\n:\revent: lines\n", "event": None},
    {"event": "gr\xfc\xdfe \U0001f389", "id": "\xfc \u6f22\u5b57 \U0001f389", "data": UNICODE},
    {"data": ""},
    {"data": " : indented, and a field: too\n\n :"},
    {"event": "json", "data": {"text": UNICODE, "list": [1, None, True, 0.5, "\n"]}},
    JSONServerSentEvent([{"a": "\u2028"}], event="json", id="2"),
    {"id": "3"},
    b"data: raw\n\n",
    {"id": "", "data": "the id is forgotten"},
    {"event": "constructor", "data": "a name that objects have"},
    {"id": "4", "event": "last", "data": "end"},
]


async def many(request: SSERequest) -> Events:
    for event in MANY:
        yield event
    await anyio.sleep_forever()


async def numbers(request: SSERequest) -> Events:
    """Count on from where the client was, without an end."""
    note(f"from {request.last_event_id}")
    number = int(request.last_event_id or 0)
    while True:
        number += 1
        yield {"id": number, "data": number}
        await anyio.sleep(0.01)


async def three(request: SSERequest) -> Events:
    """Three more, and an end."""
    note(f"from {request.last_event_id}")
    start = int(request.last_event_id or 0)
    for number in range(start + 1, start + 4):
        yield {"id": number, "data": number}


async def remember(request: SSERequest) -> Events:
    """Give the id that the query asks for, and end; then tell what the browser says it was."""
    sent = [v for n, v in request.scope["headers"] if n == b"last-event-id"]
    note(f"last-event-id {sent!r}")
    if not sent:
        yield {"id": request.query_params["id"], "data": "come back"}
        return
    yield JSONServerSentEvent(request.last_event_id, event="back")
    await anyio.sleep_forever()


async def forget(request: SSERequest) -> Events:
    """Give an id, take it back, and end; then tell what the browser says it was."""
    note(f"from {request.last_event_id}")
    yield {"id": "1", "data": "remember"}
    yield {"id": "", "data": "forget"}


async def refuse(request: SSERequest) -> Events:
    """Refuse those who come back, and from the beginning those who ask for it."""
    if request.last_event_id or "now" in request.query_params:
        note(f"refused {request.last_event_id}")
        raise HTTPError(int(request.query_params["code"]), "go away")
    return three(request)


async def named_like_its_own(request: SSERequest) -> Events:
    """Events with the names of those that an EventSource has itself."""
    yield {"event": "error", "id": "1", "data": "an error"}
    yield {"event": "open", "id": "2", "data": "an opening"}
    yield {"event": "message", "id": "3", "data": "a message"}
    await anyio.sleep_forever()


async def pinged(request: SSERequest) -> Events:
    """Be silent until some pings have been sent."""
    yield "before"
    while pings[tag.get()] < 5:
        await anyio.sleep(0.01)
    yield "after"
    await anyio.sleep_forever()


async def told(request: SSERequest) -> Events:
    """Go on each time that the page asks for `/tell`."""
    number = 0
    while True:
        number += 1
        waiting[tag.get()] = event = anyio.Event()
        yield str(number)
        await event.wait()


BIG = "".join(chr(0x1F300 + number % 512) for number in range(300_000))


async def big(request: SSERequest) -> Events:
    """One event of more than a megabyte, all of it characters of four bytes."""
    yield {"id": "big", "data": BIG}
    await anyio.sleep_forever()


BURST = 5000


async def burst(request: SSERequest) -> Events:
    for number in range(BURST):
        yield {"id": number, "data": number}
    await anyio.sleep_forever()


pings: dict[str, int] = {}
waiting: dict[str, anyio.Event] = {}

RETRY = 20
ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}

app_at("/many-lf", many)
app_at("/many-crlf", many, sep="\r\n")
app_at("/many-cr", many, sep="\r")
app_at("/numbers", numbers, retry=RETRY)
app_at("/numbers-for-a-while", numbers, retry=RETRY, max_lifetime=0.3)
app_at("/three", three, retry=RETRY)
app_at("/remember", remember, retry=RETRY)
app_at("/forget", forget, retry=RETRY)
app_at("/refuse", refuse, retry=RETRY)
app_at("/named-like-its-own", named_like_its_own)
app_at("/pinged", pinged, ping=0.02)
app_at("/told", told)
for coding in ("gzip", "br", "zstd"):
    app_at(f"/told-{coding}", told, compression=coding, ping=0.05)
app_at("/big", big)
app_at("/burst", burst)
app_at("/cors", three, retry=RETRY, headers=ANY_ORIGIN)
# Longer than any browser waits by itself (Chromium: 3 s), so that who waits so long has heard it.
app_at("/three-later", three, retry=4000)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        await apps.app(scope, receive, send)
        return
    name = parse_qs(scope["query_string"].decode()).get("tag", [""])[0]
    pings.setdefault(name, 0)

    async def count_pings(message: Message) -> None:
        pings[name] += message.get("body") == b":\n\n"
        await send(message)

    if scope["path"] == "/":
        await answer(send, b"text/html; charset=utf-8", PAGE)
    elif scope["path"] == "/tell":
        waiting.pop(name).set()
        await answer(send, b"text/plain", b"told")
    else:
        await apps.app(scope, receive, count_pings)


async def answer(send: Send, content_type: bytes, body: bytes) -> None:
    headers: list[Any] = [(b"content-type", content_type), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
