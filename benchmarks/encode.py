"""The encoder, compared with an f-string and other encoders. In process: no server, no socket."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from .peer import Before, Peer
from .results import Session

DATA = {"small": "hello", "1 KiB": "x" * 1024, "10 lines": "\n".join(["a line of text"] * 10)}

OPERATIONS = 20_000

#: Makes a frame of the data, without a name and with one.
Encoders: TypeAlias = tuple[Callable[[str], bytes], Callable[[str], bytes]]


def raw() -> Encoders:
    def lines(data: str) -> str:  # as one writes it who knows that there may be several
        return data.replace("\n", "\ndata: ") if "\n" in data else data

    return (
        lambda data: f"data: {lines(data)}\n\n".encode(),
        lambda data: f"event: tick\ndata: {lines(data)}\n\n".encode(),
    )


def sse_asgi() -> Encoders:
    from sse_asgi import encoder

    return _ours(encoder)


def before(folder: Path) -> Encoders:
    """The package of a folder, under another name: what it imports of itself is relative."""
    package = ModuleType("sse_asgi_before")
    package.__path__ = [str(folder / "sse_asgi")]
    sys.modules[package.__name__] = package
    return _ours(importlib.import_module(f"{package.__name__}.encoder"))


def _ours(encoder: Any) -> Encoders:
    encode = encoder.encode
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
    peers = [peer for peer in session.peers if peer.program in ENCODERS]
    encoders = {
        peer.name: before(peer.folder) if isinstance(peer, Before) else ENCODERS[peer.program]()
        for peer in peers
    }
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
