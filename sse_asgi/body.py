"""The body of a request: what comes of it is kept until somebody reads it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from .errors import ClientDisconnectedError, HTTPError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from .types import Message

__all__ = ["DEFAULT_MAX_BODY", "EMPTY", "HELD", "LOST", "Body"]

#: In bytes: the default of the option ``max_body``. nginx has the same (``client_max_body_size``).
DEFAULT_MAX_BODY = 1_048_576

#: How many bytes may be held, in addition to one message, before the next message waits: while
#: nobody reads the body, and while a reader takes it in chunks. It is the size at which servers
#: stop reading, too: the high-water mark of the transports of asyncio.
HELD = 65_536


class Body:
    """The body of a request. One task receives it, and others read it.

    The receiver calls :meth:`deliver`, :meth:`lost` and :meth:`drop`, in the event loop of the
    readers. None of these waits. It asks :attr:`wants_more` before each ``receive()``.

    A body that is too large, lost or dropped keeps nothing, and wants more: the receiver has to
    hear of the disconnect.

    :param max_body: how many bytes the body may have; ``None``: any number.
    :param content_length: how many bytes the client has announced; ``None``: it has not.
    """

    __slots__ = (
        "_arrived", "_chunks", "_held", "_limit", "_reader", "_readers", "_received", "_state",
        "_whole", "on_read", "on_wanted",
    )  # fmt: skip

    def __init__(self, max_body: int | None, content_length: int | None = None) -> None:
        self._limit = max_body
        self._chunks: deque[bytes] = deque()
        self._held = 0  # the size of the chunks
        self._received = 0
        # "open", or how it has ended: "complete", "lost", "dropped", "too large".
        self._state = "open"
        # How it is read: "" (not yet), "whole", "chunks", or "spent" after the chunks.
        self._reader = ""
        self._readers = 0  # that have begun and not ended
        self._whole: bytes | None = None
        self._arrived: anyio.Event | None = None  # while a reader waits
        #: Called when a reader has made :attr:`wants_more` true. Set this before a pause.
        self.on_wanted: Callable[[], object] | None = None
        #: Called by a reader, in its task, when it has made :attr:`is_read` false.
        self.on_read: Callable[[], object] | None = None
        if max_body is not None and content_length is not None and content_length > max_body:
            self._end("too large")

    # -- the receiver ----------------------------------------------------------------------------

    @property
    def wants_more(self) -> bool:
        """Whether ``receive()`` should be called: for more of the body, or for the disconnect."""
        return self._state != "open" or self._reader in ("whole", "spent") or self._held < HELD

    @property
    def is_read(self) -> bool:
        """Whether somebody is reading the body, and it may still be refused.

        Until then the response must not start: its status is not known.
        """
        return self._readers > 0

    def deliver(self, message: Message) -> None:
        """Take an ``http.request`` message. Messages after the end of the body are ignored."""
        if self._state != "open":
            return
        chunk: bytes = message.get("body") or b""
        self._received += len(chunk)
        if self._limit is not None and self._received > self._limit:
            self._end("too large")
        else:
            if chunk and self._reader != "spent":
                self._chunks.append(chunk)
                self._held += len(chunk)
            if not message.get("more_body", False):
                self._state = "complete"
        self._wake()

    def lost(self) -> None:
        """Note that the client has left: readers of a body that is not complete get an error."""
        if self._state == "open":
            self._end("lost")
            self._wake()

    def drop(self) -> None:
        """Drop what is held if that is too much to keep, and nobody has begun to read."""
        if not self._reader and self._held >= HELD:
            self._end("dropped")

    def _end(self, state: str) -> None:
        self._state = state
        self._chunks.clear()
        self._held = 0

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    # -- readers ---------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Wait for the whole body, and return it. See :meth:`SSERequest.body`."""
        if self._whole is None:
            self._begin("whole")
            try:
                while self._state != "complete":
                    await self._wait()
            finally:
                self._leave()
        if self._whole is None:  # else another reader was first
            self._whole = b"".join(self._chunks)
            self._chunks.clear()
            self._held = 0
        return self._whole

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Return the chunks of the body as they come. See :meth:`SSERequest.stream`."""
        if self._whole is not None:
            if self._whole:
                yield self._whole
            return
        self._begin("chunks")
        try:
            while True:
                while self._chunks:
                    paused = not self.wants_more
                    chunk = self._chunks.popleft()
                    self._held -= len(chunk)
                    self._want(paused)
                    yield chunk
                if self._state == "complete":
                    return
                await self._wait()
        finally:  # also if the reader has had enough: the rest is not for it
            paused = not self.wants_more
            self._reader = "spent"
            self._chunks.clear()
            self._held = 0
            self._want(paused)
            self._leave()

    def _begin(self, reader: str) -> None:
        """Begin to read.

        :raises RuntimeError: the body was read in chunks, or dropped.
        :raises HTTPError: 413, if the body is too large.
        :raises ClientDisconnectedError: the client has left.
        """
        self._check()
        if self._reader in ("chunks", "spent") or (self._reader and reader == "chunks"):
            raise RuntimeError(
                "the body of the request is read already: call stream() once, or body() instead, "
                "which may be called again"
            )
        paused = not self.wants_more
        self._reader = reader
        self._readers += 1
        self._want(paused)

    def _leave(self) -> None:
        self._readers -= 1
        if not self._readers and self.on_read is not None:
            self.on_read()

    def _want(self, paused: bool) -> None:
        """Tell the receiver to go on if it had to pause, and need not now."""
        if paused and self.wants_more and self.on_wanted is not None:
            self.on_wanted()

    async def _wait(self) -> None:
        """Wait until something of the body, or its end, may have come."""
        self._check()
        if self._arrived is None:
            self._arrived = anyio.Event()
        await self._arrived.wait()

    def _check(self) -> None:
        """Raise the error for a body that can't be read."""
        if self._state == "too large":
            raise HTTPError(413, f"the body of the request is larger than {self._limit} bytes")
        if self._state == "lost":
            raise ClientDisconnectedError(
                "the client has left before the body of its request was complete"
            )
        if self._state == "dropped":
            raise RuntimeError(
                f"the body of the request was dropped: it is larger than {HELD} bytes, and nobody "
                f"had begun to read it. Read it before the first event"
            )


def _shared(state: str, whole: bytes | None = None) -> Body:
    body = Body(None)
    body._state, body._whole = state, whole
    return body


#: A body that has come, and is empty. All requests share it, since nothing changes it.
EMPTY: Body = _shared("complete", b"")

#: A body of which nothing had come when the client left. All requests share it, too.
LOST: Body = _shared("lost")
