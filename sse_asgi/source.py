"""One interface to every source, async or sync: to step it, and to close it."""

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

#: How many sync iterables an event loop serves at once. Each may block a thread for any time, so
#: they have a limiter of their own. A thread that waits costs some 50 KiB.
SYNC_STREAMS = 256

_END = cast("EventLike", object())


class OpenSource(Protocol):
    """A source that is being read."""

    @property
    def step(self) -> Callable[[], Awaitable[EventLike]]:
        """Return an awaitable of the next event. At the end it raises ``StopAsyncIteration``."""
        ...

    def give_to(self, receiver: FrameReceiver) -> None:
        """Let the source give ``receiver`` the events that come while a step waits, if it can."""
        ...

    async def aclose(self) -> None:
        """Close the source. This raises what its cleanup raises."""
        ...


def open_source(source: object) -> OpenSource:
    """Open ``source`` for reading.

    :raises TypeError: if it is not an iterable of events.
    :raises HTTPError: 503, if all threads for sync iterables are busy.
    """
    if isinstance(source, AsyncIterable):
        return AsyncSource(source)
    return ThreadSource(check_source(source))


def check_source(source: Any) -> Any:
    """Return ``source`` untouched, if it can be a source.

    :raises TypeError: if it is not an iterable of events.
    """
    if not isinstance(source, AsyncIterable) and (
        isinstance(source, (str, bytes, dict)) or not isinstance(source, Iterable)
    ):
        hint = ""
        if hasattr(source, "__await__"):
            hint = "; await it first"
        elif callable(source):
            hint = "; call it first"
        raise TypeError(
            "a source must be an async iterable or an iterable of events, not "
            f"{type(source).__name__}: {source!r:.80}{hint}"
        )
    return source


async def discard(source: object, timeout: float | None) -> None:
    """Close a source that will not be read.

    :param timeout: how long that may take, in seconds; ``None``: no limit.
    """
    with anyio.move_on_after(timeout, shield=True):
        if (aclose := getattr(source, "aclose", None)) is not None:
            await aclose()
        elif (close := getattr(source, "close", None)) is not None:
            await anyio.to_thread.run_sync(close, abandon_on_cancel=True, limiter=_unlimited())


class AsyncSource:
    """An async iterable. Its code runs in the task of the stream."""

    __slots__ = ("_iterator", "step")

    def __init__(self, source: AsyncIterable[EventLike]) -> None:
        self._iterator: AsyncIterator[EventLike] = aiter(source)
        # The iterator's own method: a wrapper would cost time for each event.
        self.step: Any = self._iterator.__anext__

    def give_to(self, receiver: FrameReceiver) -> None:
        """Let the iterator give events to ``receiver``, if it is a subscription."""
        give_to = getattr(self._iterator, "give_to", None)
        if give_to is not None:
            give_to(receiver)

    async def aclose(self) -> None:
        """Close the iterator, if it can be closed."""
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()


class ThreadSource:
    """A sync iterable. Its code runs in worker threads, one call at a time.

    It holds a token of the limiter from before its first step until ``close()`` has returned. So a
    thread that nobody waits for any longer still counts.

    :raises HTTPError: 503, if the limiter has no token left.
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
        # One context for all calls, as in one thread: the next step sees a ContextVar that a step
        # has set, and the last can reset it.
        self._context = contextvars.copy_context()
        self._running = threading.Lock()
        self._closing = False
        self._closed = anyio.Event()
        self._close_error: BaseException | None = None

    async def step(self) -> EventLike:
        """Call ``next()`` in a thread. If this is cancelled, the call goes on there."""
        event = await anyio.to_thread.run_sync(
            self._next, abandon_on_cancel=True, limiter=_unlimited()
        )
        if event is _END:
            raise StopAsyncIteration
        return event

    def give_to(self, receiver: FrameReceiver) -> None:
        """Do nothing: a sync iterable gives events only when it is stepped."""

    async def aclose(self) -> None:
        """Call ``close()`` after the last step. If this is cancelled, the call goes on."""
        self._closing = True
        if not hasattr(self._iterator, "close") and not self._running.locked():
            self._note_closed()
            return
        # Not a worker thread: if that were abandoned early, it would never start.
        threading.Thread(target=self._close, name="sse_asgi close", daemon=True).start()
        await self._closed.wait()
        if self._close_error is not None:
            error, self._close_error = self._close_error, None
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame: avoid a cycle

    def _next(self) -> EventLike:
        with self._running:
            if self._closing:  # an abandoned thread may start late
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
    """Return the limiter of this event loop for streams from sync iterables.

    Each stream takes one token. Set ``total_tokens`` to allow more or fewer streams. A stream that
    finds no token gets 503.
    """
    return current().own(_limiter)


def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(SYNC_STREAMS)


def _unlimited() -> anyio.CapacityLimiter:
    return current().own(_no_limiter)


def _no_limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(math.inf)
