"""A server with more connections than a process may have open files: without their sockets.

Everything else is there: uvicorn's server and one of its protocols for each connection, which is
told that a connection was made and given the bytes of a request, and whose transport counts what
is written to it. What the kernel does and the event loop's own part of a connection are missing.

``python -m benchmarks.scale_objects FILE PORT``, where FILE is the number of an open file that has
room for what the connections have heard. It is asked by requests: ``/connect?count=…``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn

from .scale_app import app, nothing, question, start
from .scale_clients import REQUEST, Heard, shared, watches

#: So many connections come in one iteration of the event loop.
AT_ONCE = 20


class Transport(asyncio.Transport):
    __slots__ = ("_closing", "_heard", "_number", "_protocol", "_watches")

    def __init__(self, heard: Heard, protocol: asyncio.Protocol, number: int, watch: bool) -> None:
        self._heard, self._protocol, self._number, self._watches = heard, protocol, number, watch
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", self._number) if name in ("peername", "sockname") else default

    def write(self, data: Any) -> None:
        self._heard.piece(data, watch=self._watches)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._lost)

    def _lost(self) -> None:
        self._protocol.connection_lost(None)
        self._heard.end()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Connections:
    """An application that is asked for connections to the other one."""

    def __init__(self, heard: Heard, port: int) -> None:
        self.heard = heard
        config = uvicorn.Config(
            self, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
        )
        self.config, self.server = config, uvicorn.Server(config)
        self.transports: list[Transport] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/connect":
            start(self.connect(int(question(scope)["count"])))
            await nothing(send)
        elif scope["type"] == "http" and scope["path"] == "/disconnect":
            while self.transports:
                self.transports.pop().close()
            await nothing(send)
        else:
            await app(scope, receive, send)

    async def connect(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        make: Any = self.config.http_protocol_class
        state = self.server.server_state
        for number in range(count):
            protocol = make(config=self.config, server_state=state, app_state={}, _loop=loop)
            transport = Transport(self.heard, protocol, number, watches(number, count))
            self.transports.append(transport)
            protocol.connection_made(transport)
            protocol.data_received(REQUEST)
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)


if __name__ == "__main__":
    file, port = map(int, sys.argv[1:])
    Connections(shared(file), port).server.run()
