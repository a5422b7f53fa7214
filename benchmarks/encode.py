"""The encoder, beside an f-string and the encoders of others. In process: no server, no socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

from .results import Session
from .servers import Peer

DATA = {"small": "hello", "1 KiB": "x" * 1024, "10 lines": "\n".join(["a line of text"] * 10)}

OPERATIONS = 20_000

#: Makes a frame of the data, without a name and with one.
Encoders: TypeAlias = tuple[Callable[[str], bytes], Callable[[str], bytes]]


def raw() -> Encoders:
    return (
        lambda data: f"data: {data}\n\n".encode(),
        lambda data: f"event: tick\ndata: {data}\n\n".encode(),
    )


def sse_asgi() -> Encoders:
    from sse_asgi.encoder import encode

    return encode, lambda data: encode({"event": "tick", "data": data})


def sse_starlette() -> Encoders:
    from sse_starlette.event import ensure_bytes

    return (
        lambda data: ensure_bytes(data, "\n"),
        lambda data: ensure_bytes({"event": "tick", "data": data}, "\n"),
    )


def fastapi_sse() -> Encoders:
    from fastapi.sse import format_sse_event

    return (
        lambda data: format_sse_event(data_str=data),
        lambda data: format_sse_event(data_str=data, event="tick"),
    )


def litestar() -> Encoders:
    from litestar.response.sse import ServerSentEventMessage

    return (
        lambda data: ServerSentEventMessage(data, sep="\n").encode(),
        lambda data: ServerSentEventMessage(data, event="tick", sep="\n").encode(),
    )


ENCODERS = {each.__name__: each for each in (raw, sse_asgi, sse_starlette, fastapi_sse, litestar)}


def run(session: Session) -> None:
    peers = [peer for peer in session.peers if peer.name in ENCODERS]
    encoders = {peer.name: ENCODERS[peer.name]() for peer in peers}
    for named, what in enumerate(("a str", "a dict with data and a name")):
        for size, data in DATA.items():
            row = session.row("encode", f"encode {what}, {size}", "events/s", more_is_better=True)

            def measure(peer: Peer, named: int = named, data: str = data, row: Any = row) -> None:
                row.add(peer.name, rate(encoders[peer.name][named], data))

            session.rounds(peers, measure, [row], count=9)


def rate(function: Callable[[Any], bytes], value: Any) -> float:
    """How many a second of processor time."""
    began = time.process_time()
    for _ in range(OPERATIONS):
        function(value)
    return OPERATIONS / (time.process_time() - began)
