"""What a factory returned, as one kind of thing: something to step, and to close."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio.to_thread

from .errors import HTTPError
from .runtime import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .types import EventLike, FrameReceiver

__all__ = [
    "AsyncSource",
    "ThreadSource",
    "check_source",
    "current_thread_limiter",
    "discard",
    "open_source",
]

#: How many sync iterables an event loop serves at once. Each may block a thread for as long as
#: it likes, so they have a pool of their own; a thread that waits costs some 50 KiB.
SYNC_STREAMS = 256

_END = cast("EventLike", object())


class OpenSource(Protocol):
    """A source that is being read."""

    def step(self) -> Awaitable[EventLike]:
        """Start on the next event; ``StopAsyncIteration`` comes out of it at the end."""
        ...

    def give_to(self, receiver: FrameReceiver) -> None:
        """Give events to ``receiver`` that come while a step waits, if it can."""
        ...

    async def aclose(self) -> None:
        """Close the source. Anything that its cleanup raises comes out."""
        ...


def open_source(source: object) -> OpenSource:
    """Make ``source`` ready to be read.

    :raises TypeError: for what is no iterable of events.
    :raises HTTPError: 503, where all threads for sync iterables are taken.
    """
    if isinstance(source, AsyncIterable):
        return AsyncSource(source)
    return ThreadSource(check_source(source))


def check_source(source: Any) -> Any:
    """Return ``source``, if it can be one: it is not touched.

    :raises TypeError: for what is no iterable of events.
    """
    if not isinstance(source, AsyncIterable) and (
        isinstance(source, (str, bytes, dict)) or not isinstance(source, Iterable)
    ):
        raise TypeError(
            "a source must be an async iterable or an iterable of events, not "
            f"{type(source).__name__}: {source!r:.80}"
        )
    return source


async def discard(source: object, timeout: float | None) -> None:
    """Close a source that will not be read, in at most ``timeout`` seconds."""
    with anyio.move_on_after(timeout, shield=True):
        if (aclose := getattr(source, "aclose", None)) is not None:
            await aclose()
        elif (close := getattr(source, "close", None)) is not None:
            await anyio.to_thread.run_sync(close, abandon_on_cancel=True, limiter=_unlimited())


class AsyncSource:
    """An async iterable: its code runs in the task of the stream."""

    __slots__ = ("_iterator", "step")

    def __init__(self, source: AsyncIterable[EventLike]) -> None:
        self._iterator: AsyncIterator[EventLike] = aiter(source)
        # Its own, with nothing around it.
        self.step: Callable[[], Awaitable[EventLike]] = self._iterator.__anext__

    def give_to(self, receiver: FrameReceiver) -> None:
        """Give events to ``receiver``, if it is a subscription."""
        give_to = getattr(self._iterator, "give_to", None)
        if give_to is not None:
            give_to(receiver)

    async def aclose(self) -> None:
        """Close the iterator, if it can be closed."""
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()


class ThreadSource:
    """A sync iterable: its code runs in worker threads, one call at a time.

    It holds a place in the limiter from before the first step to the end of ``close()``, so a
    thread that nobody waits for any longer still counts.
    """

    def __init__(self, source: Iterable[EventLike]) -> None:
        self._runtime = current()
        self._limiter = current_thread_limiter()
        if self._limiter.available_tokens < 1:
            raise HTTPError(503, "all threads for streams are busy", headers={"retry-after": "5"})
        self._limiter.acquire_on_behalf_of_nowait(self)
        self._source = source
        # Not iter() here: it is user code, and may block.
        self._iterator = source if isinstance(source, Iterator) else None
        # One context for all calls, as in one thread: a ContextVar set in one step is there in
        # the next, and its token is good in the last.
        self._context = contextvars.copy_context()
        self._running = threading.Lock()
        self._closing = False
        self._closed = anyio.Event()
        self._close_error: BaseException | None = None

    async def step(self) -> EventLike:
        """Call ``next()``; one that is left alone goes on in its thread."""
        event = await anyio.to_thread.run_sync(
            self._next, abandon_on_cancel=True, limiter=_unlimited()
        )
        if event is _END:
            raise StopAsyncIteration
        return event

    def give_to(self, receiver: FrameReceiver) -> None:
        """Give nothing but what its steps return."""

    async def aclose(self) -> None:
        """Call ``close()`` when the last step has ended; it goes on without us if need be."""
        self._closing = True
        if not hasattr(self._iterator, "close") and not self._running.locked():
            self._note_closed()
            return
        # In a thread of its own: a worker thread that is abandoned in time never starts.
        threading.Thread(target=self._close, name="sse_asgi close", daemon=True).start()
        await self._closed.wait()
        if self._close_error is not None:
            error, self._close_error = self._close_error, None
            try:
                raise error
            finally:
                del error  # its traceback has this frame: no cycle for the collector

    def _next(self) -> EventLike:
        with self._running:
            if self._closing:  # a thread that was abandoned may start late
                return _END
            if self._iterator is None:
                self._iterator = self._context.run(iter, self._source)
            return self._context.run(next, self._iterator, _END)

    def _close(self) -> None:
        with self._running:
            try:
                close = getattr(self._iterator, "close", None)
                if close is not None:
                    self._context.run(close)
            except BaseException as exc:
                self._close_error = exc
        self._runtime.from_thread(self._note_closed)

    def _note_closed(self) -> None:
        self._limiter.release_on_behalf_of(self)
        self._closed.set()


def current_thread_limiter() -> anyio.CapacityLimiter:
    """The limiter of this event loop for streams from sync iterables, one token a stream.

    Set its ``total_tokens`` to allow more or fewer; a stream that finds none gets 503.
    """
    return current().own(_limiter)


def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(SYNC_STREAMS)


def _unlimited() -> anyio.CapacityLimiter:
    return current().own(_no_limiter)


def _no_limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(math.inf)
