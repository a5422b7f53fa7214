"""The encoder, compared with an f-string and other encoders. In process: no server, no socket.

An event is built in what is measured, and then encoded.
"""

from __future__ import annotations

import importlib
import sys
import time
import timeit
from functools import partial
from pathlib import Path
from types import ModuleType

from .expressions import Code, InexpressibleError, code_of, frame_of
from .peer import Before, Peer
from .results import Row, Session
from .shapes import BYTES, ENCODED, Shape

PEERS = ("raw", "sse_asgi", "sse_starlette", "fastapi_sse", "litestar")

#: Rounds, and how often an event is encoded in each.
ROUNDS, OPERATIONS = 9, 5000


def run(session: Session) -> None:
    peers = [peer for peer in session.peers if peer.program in PEERS]
    packages = {peer.name: package_of(peer) for peer in peers}
    for shape in ENCODED:
        row = session.row("encode", f"encode {shape.name}", "events/s", more_is_better=True)
        codes: dict[str, Code] = {}
        for peer in peers:
            try:
                codes[peer.name] = checked(peer, shape, packages[peer.name])
            except InexpressibleError as exc:
                row.missing[peer.name] = str(exc)
        able = [peer for peer in peers if peer.name in codes]
        session.rounds(able, partial(measure, codes, row), [row], ROUNDS)


def checked(peer: Peer, shape: Shape, package: str) -> Code:
    """Return what is measured.

    :raises InexpressibleError: the peer can't send such an event.
    """
    if peer.program == "raw" and shape.kind == BYTES:
        raise InexpressibleError("has nothing to encode")
    code = code_of(peer.program, shape, package)
    if peer.program in ("raw", "sse_asgi"):
        frame = eval(code.frame, dict(code.names))
        if frame != frame_of(shape):
            raise AssertionError(f"{peer.name} encodes {shape.name} as {frame!r:.200}")
    return code


def measure(codes: dict[str, Code], row: Row, peer: Peer) -> None:
    code = codes[peer.name]
    timer = timeit.Timer(code.frame, timer=time.process_time, globals=dict(code.names))
    row.add(peer.name, OPERATIONS / timer.timeit(OPERATIONS))


def package_of(peer: Peer) -> str:
    """Return what the library is imported as: another checkout of it under another name."""
    return before(peer.folder) if isinstance(peer, Before) else "sse_asgi"


def before(folder: Path) -> str:
    """Have the package of a folder under another name: what it imports of itself is relative."""
    package = ModuleType("sse_asgi_before")
    package.__path__ = [str(folder / "sse_asgi")]
    sys.modules[package.__name__] = package
    importlib.import_module(f"{package.__name__}.encoder")
    return package.__name__
