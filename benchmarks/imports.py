"""How long an import takes, beyond a process that has imported asyncio and nothing else."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace

from .peer import Peer
from .results import Session

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
    peers = [peer for peer in session.peers if peer.program in MODULES]
    modules = {peer.name: MODULES[peer.program] for peer in peers}
    if ours is not None:
        modules |= MORE
        peers += [replace(ours, name=name) for name in MORE]
    for peer in peers:
        seconds(modules[peer.name], peer)  # so that it is compiled, and in the cache

    def measure(peer: Peer) -> None:
        took = seconds(modules[peer.name], peer) - seconds("asyncio", peer)
        row.add(peer.name, took * 1e3)

    session.rounds(peers, measure, [row], count=15)


def seconds(module: str, peer: Peer) -> float:
    """The processor time of a process that imports asyncio and this."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What is compiled is kept, as where a package is installed.
    path = os.pathsep.join(map(str, peer.import_path))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
    # With -P the working directory, which has a package too, does not come first.
    command = [sys.executable, "-P", "-c", f"import asyncio, {module}"]
    subprocess.run(command, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
