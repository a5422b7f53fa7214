"""A server whose ``send`` can be called from anywhere, as uvicorn's can, with its client."""

from __future__ import annotations

import asyncio
from typing import Any


class Cycle:
    """One request and its response; ``paused`` while the client does not read."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.messages: list[Any] = []
        self.complete = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.sent)

    def pause(self) -> None:
        self._writable.clear()

    def resume(self) -> None:
        self._writable.set()

    def disconnect(self) -> None:
        self._gone.set()
        self._writable.set()

    async def receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self._writable.is_set() and not self._gone.is_set():
            await self._writable.wait()
        if self._gone.is_set():
            return
        assert not self.complete, "something is sent after the end"
        self.messages.append(message)
        if message["type"] == "http.response.body":
            if message["body"]:
                self.sent.append(message["body"])
            self.complete = not message.get("more_body", False)

    async def has(self, wanted: bytes) -> None:
        """Wait until that was sent."""
        while wanted not in self.body:
            await asyncio.sleep(0.001)


# By this a server is known.
Cycle.__module__ = "uvicorn.protocols.http.httptools_impl"
