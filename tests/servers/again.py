"""Run uvicorn on one port after another, each until SIGTERM, in one process.

Arguments: `same-loop` or `new-loop`, and the ports.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvicorn


def main() -> None:
    how, *ports = sys.argv[1:]
    # uvicorn puts the handler back that it has found, and raises the signal again: for this one.
    signal.signal(signal.SIGTERM, lambda *_: print("stopped", flush=True))
    servers = [
        uvicorn.Server(uvicorn.Config("tests.servers.apps:app", port=int(port))) for port in ports
    ]

    async def serve_all() -> None:
        for server in servers:
            await server.serve()

    if how == "same-loop":
        asyncio.run(serve_all())
    else:
        for server in servers:
            server.run()


if __name__ == "__main__":
    main()
