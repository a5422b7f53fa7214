"""Run uvicorn on one port after another, in one process, each until it is told to stop: by SIGTERM,
or by SIGUSR1, of which uvicorn learns nothing but that it should exit.

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

    def stop(*_: object) -> None:
        running = next(server for server in servers if not server.should_exit)
        running.should_exit = True
        print("stopped", flush=True)

    signal.signal(signal.SIGUSR1, stop)

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
