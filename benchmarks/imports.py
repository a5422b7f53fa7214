"""How long an import takes, beyond a process that has imported asyncio and nothing else."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace

from .results import Session
from .servers import ROOT, Peer

MODULES = {
    "sse_asgi": "sse_asgi",
    "sse_starlette": "sse_starlette",
    "fastapi_sse": "fastapi.sse",
    "litestar": "litestar.response",
}

#: What it rests on, and its adapter, which takes Starlette with it.
MORE = {
    "anyio": "anyio, anyio.lowlevel, anyio.to_thread",
    "sse_asgi.starlette": "sse_asgi.starlette",
}


def run(session: Session) -> None:
    row = session.row("import", "import, beyond a bare asyncio process", "ms")
    ours = next((peer for peer in session.peers if peer.name == "sse_asgi"), None)
    modules = {peer.name: MODULES[peer.name] for peer in session.peers if peer.name in MODULES}
    peers = [peer for peer in session.peers if peer.name in MODULES]
    if ours is not None:
        modules |= MORE
        peers += [replace(ours, name=name) for name in MORE]
    for module in ("asyncio", *modules.values()):
        seconds(module)  # so that it is compiled, and in the cache

    def measure(peer: Peer) -> None:
        row.add(peer.name, (seconds(modules[peer.name]) - seconds("asyncio")) * 1e3)

    session.rounds(peers, measure, [row], count=15)


def seconds(module: str) -> float:
    """The processor time of a process that imports asyncio and this."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What is compiled is kept, as where a package is installed.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(
        [sys.executable, "-c", f"import asyncio, {module}"], check=True, cwd=ROOT, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
