"""``raw`` with its events in a stream of Redis: ``XADD``, and one task with ``XREAD``, by hand."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import coredis
from coredis import PureToken

from . import raw
from .common import start_publishing

STREAM, KEPT = "news", 1000

client = coredis.Redis.from_url(os.environ["BENCHMARK_REDIS"])
reading: list[asyncio.Task[None]] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and not reading:
        reading.append(asyncio.ensure_future(read()))
    if scope["type"] == "http" and scope["path"] == "/publish":
        start_publishing(publish, scope["query_string"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    else:
        await raw.bare(scope, receive, send)


async def publish(text: str) -> None:
    await client.xadd(
        STREAM,
        {"data": text},
        trim_strategy=PureToken.MAXLEN,
        trim_operator=PureToken.APPROXIMATELY,
        threshold=KEPT,
    )


async def read() -> None:
    async with client:
        last: Any = "$"
        while True:
            found: Any = await client.xread({STREAM: last}, block=5000)
            for entries in (found or {}).values():
                for entry in entries:
                    await raw.publish(entry.field_values[b"data"].decode())
                    last = entry.identifier
