"""Relay another event stream: cut its bytes, as they come, into whole frames. No I/O of its own."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from inspect import isawaitable
from typing import Any, TypeAlias, overload

from .errors import DEFAULT_MAX_EVENT_SIZE, EventTooLargeError

__all__ = ["AsyncRelay", "Relay", "relay"]

Chunk: TypeAlias = bytes | bytearray | memoryview

_BOM = b"\xef\xbb\xbf"

#: The end of a line, and a blank line. After LF CR it has to be seen whether LF follows: it would
#: belong to that CR. After CR CR it has not: an LF there is left to the next frame, where it means
#: nothing. So a stream whose lines end with CR is never a frame behind.
_BLANK_LINE = re.compile(rb"\n\n|\r\r|\n\r(?:\n|(?!\Z))")
_LONGEST = 3


@overload
def relay(
    chunks: AsyncIterable[Chunk], *, max_event_size: int = DEFAULT_MAX_EVENT_SIZE
) -> AsyncRelay: ...
@overload
def relay(chunks: Iterable[Chunk], *, max_event_size: int = DEFAULT_MAX_EVENT_SIZE) -> Relay: ...
def relay(chunks: Any, *, max_event_size: int = DEFAULT_MAX_EVENT_SIZE) -> Any:
    """Cut the bytes of another event stream into whole frames, for a source to yield.

    ::

        async def proxy(request):
            async with (
                client.stream("GET", UPSTREAM) as response,
                contextlib.aclosing(relay(response.aiter_bytes())) as frames,
            ):
                async for frame in frames:
                    yield frame

    The frames are the bytes of the upstream, unchanged: each is one event with its blank line, or a
    comment with its blank line. How the chunks are cut makes no difference. The library sends
    pings only between frames, so no ping gets into an event.

    Two things are left out, as by every client (WHATWG HTML 9.2.5 and 9.2.6): a byte order mark at
    the start, and an event at the end that is not finished.

    :param chunks: an async iterable or an iterable of ``bytes``, cut anywhere, such as
        ``response.aiter_bytes()`` of httpx. It is closed (``aclose()`` or ``close()``) when it has
        ended, when it fails, and when the relay is closed.
    :param max_event_size: in bytes, the limit for one frame.
    :returns: an async iterator of an async iterable, and an iterator of an iterable. It may be what
        a factory returns.
    :raises TypeError: for something else than an iterable of ``bytes``.
    :raises ValueError: for a ``max_event_size`` less than 1.
    :raises EventTooLargeError: while it is iterated over, if a frame is larger than
        ``max_event_size``; the frames before it come first.
    """
    if isinstance(chunks, AsyncIterable):
        return AsyncRelay(chunks, _Cutter(max_event_size))
    if isinstance(chunks, Iterable) and not isinstance(chunks, (str, bytes, bytearray, memoryview)):
        return Relay(chunks, _Cutter(max_event_size))
    hint = "; await it first" if isawaitable(chunks) else ""
    raise TypeError(
        "relay() takes an async iterable or an iterable of bytes, such as response.aiter_bytes(), "
        f"not {type(chunks).__name__}: {chunks!r:.80}{hint}"
    )


class AsyncRelay(AsyncIterator[bytes]):
    """The frames of an upstream that is an async iterable: see :func:`~sse_asgi.relay`."""

    def __init__(self, chunks: AsyncIterable[Chunk], cutter: _Cutter) -> None:
        self._chunks: AsyncIterator[Chunk] = aiter(chunks)
        self._cutter = cutter
        self._closed = False

    async def __anext__(self) -> bytes:
        """Return the next frame."""
        cutter = self._cutter
        try:
            while not cutter.frames and not cutter.ended:
                try:
                    cutter.feed(await anext(self._chunks))
                except StopAsyncIteration:
                    cutter.feed_eof()
            if (frame := cutter.next()) is not None:
                return frame
        except Exception:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the upstream, if it can be closed. There are no more frames."""
        self._cutter.close()
        if not self._closed:
            if (aclose := getattr(self._chunks, "aclose", None)) is not None:
                await aclose()
            self._closed = True


class Relay(Iterator[bytes]):
    """The frames of an upstream that is a sync iterable: see :func:`~sse_asgi.relay`."""

    def __init__(self, chunks: Iterable[Chunk], cutter: _Cutter) -> None:
        # Not iter() here: it is user code, and may block.
        self._source = chunks
        self._chunks: Iterator[Chunk] | None = None
        self._cutter = cutter
        self._closed = False

    def __next__(self) -> bytes:
        """Return the next frame."""
        cutter = self._cutter
        try:
            if self._chunks is None:
                self._chunks = iter(self._source)
            while not cutter.frames and not cutter.ended:
                try:
                    cutter.feed(next(self._chunks))
                except StopIteration:
                    cutter.feed_eof()
            if (frame := cutter.next()) is not None:
                return frame
        except Exception:
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Close the upstream, if it can be closed. There are no more frames."""
        self._cutter.close()
        if not self._closed:
            upstream = self._source if self._chunks is None else self._chunks
            if (close := getattr(upstream, "close", None)) is not None:
                close()
            self._closed = True


class _Cutter:
    """Cuts bytes into frames. The same frames come out, wherever the bytes are cut."""

    def __init__(self, max_event_size: int) -> None:
        if not isinstance(max_event_size, int) or isinstance(max_event_size, bool):
            raise TypeError(f"max_event_size must be an int, not {max_event_size!r}")
        if max_event_size < 1:
            raise ValueError(f"max_event_size must be at least 1 byte, not {max_event_size}")
        self._max_event_size = max_event_size
        self._rest = bytearray()
        self._seen = 0  # so much of it has no blank line
        self._at_start = True
        self._too_large = False
        self.frames: deque[bytes] = deque()
        self.ended: bool = False

    def feed(self, chunk: Chunk) -> None:
        """Cut off the frames that ``chunk`` completes.

        :raises TypeError: for a chunk that is not ``bytes``.
        """
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise TypeError(
                "relay() takes chunks of bytes, as response.aiter_bytes() gives them, not "
                f"{type(chunk).__name__}: {chunk!r:.80}"
            )
        rest = self._rest
        rest += chunk
        if self._at_start:
            if len(rest) < len(_BOM) and _BOM.startswith(rest):
                return
            self._at_start = False
            if rest.startswith(_BOM):
                del rest[: len(_BOM)]
        start = 0
        while found := _BLANK_LINE.search(rest, max(start, self._seen)):
            self._add(start, found.end())
            start = found.end()
        del rest[:start]
        self._seen = max(0, len(rest) - _LONGEST + 1)
        if len(rest) > self._max_event_size:
            self._refuse()

    def feed_eof(self) -> None:
        """End the stream. What is not finished is dropped (WHATWG HTML 9.2.6)."""
        if self._rest.endswith(b"\n\r"):  # no LF has followed
            self._add(0, len(self._rest))
        self._rest.clear()
        self.ended = True

    def next(self) -> bytes | None:
        """Return the next frame, or ``None`` after the last.

        :raises EventTooLargeError: after the last frame, if the next one was too large.
        """
        if self.frames:
            return self.frames.popleft()
        if self._too_large:
            raise EventTooLargeError(
                f"an event of the upstream is larger than max_event_size "
                f"({self._max_event_size} bytes)"
            )
        return None

    def close(self) -> None:
        """Forget everything, and end."""
        self.frames.clear()
        self._rest.clear()
        self._too_large = False
        self.ended = True

    def _add(self, start: int, end: int) -> None:
        if end - start > self._max_event_size:
            self._refuse()
        if not self.ended:
            self.frames.append(bytes(self._rest[start:end]))

    def _refuse(self) -> None:
        self._too_large = self.ended = True
