"""Clients of httpx and httpx2 whose server is a function in the test: no socket, no time."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel

LIBRARIES = ("httpx2", "httpx")

STREAM = {"content-type": "text/event-stream"}


class Peer:
    """Gives one answer after another, and keeps the requests.

    An answer is called with the request, and returns or raises what the library's transport does.
    """

    def __init__(self, library: str) -> None:
        self.library: Any = importlib.import_module(library)
        self.answers: list[Callable[[Any], Any]] = []
        self.requests: list[Any] = []
        self.times: list[float] = []
        #: How many bodies are being read, or were left without being closed.
        self.open = 0

    def client(self, **options: Any) -> Any:
        return self.library.AsyncClient(
            transport=self.library.MockTransport(self._answer), **options
        )

    async def _answer(self, request: Any) -> Any:
        self.requests.append(request)
        self.times.append(anyio.current_time())
        return self.answers.pop(0)(request)

    @property
    def last_event_ids(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.requests]

    def stream(
        self,
        *chunks: bytes | float,
        error: str | None = None,
        headers: dict[str, str] = STREAM,
    ) -> Callable[[Any], Any]:
        """Answer with a stream of chunks, which ends, or fails with an error of the library's.

        A number among them is a time to wait, in seconds.
        """

        async def body() -> AsyncIterator[bytes]:
            self.open += 1
            try:
                for chunk in chunks:
                    if isinstance(chunk, bytes):
                        yield chunk
                    else:
                        await anyio.sleep(chunk)
                await anyio.lowlevel.checkpoint()
                if error is not None:
                    raise getattr(self.library, error)(error)
            finally:
                self.open -= 1

        return lambda request: self.library.Response(200, headers=headers, content=body())

    def status(self, code: int, body: bytes = b"", **headers: str) -> Callable[[Any], Any]:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return lambda request: self.library.Response(code, headers=fields, content=body)

    def error(self, name: str) -> Callable[[Any], Any]:
        def answer(request: Any) -> Any:
            raise getattr(self.library, name)(f"{name} of the test")

        return answer

    def gone(self) -> Callable[[Any], Any]:
        return self.status(204)


def frames(first: int, last: int) -> bytes:
    """Return events whose id and data are a number."""
    return b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(first, last + 1))


async def collect(source: Any) -> list[str]:
    return [event.data async for event in source]


def after(request: Any) -> int:
    """Return the number that a client has had."""
    return int(request.headers.get("last-event-id", "0"))


def cut(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(body[:size])
        body = body[size:]
    return [chunk for chunk in [*chunks, body] if chunk]
