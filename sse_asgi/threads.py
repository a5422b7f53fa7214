"""A sync iterable as a source: its code runs in threads, and never in the event loop."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import anyio.to_thread

from .errors import HTTPError
from .runtime import current

if TYPE_CHECKING:
    from .types import EventLike, FrameReceiver

__all__ = ["ThreadSource", "current_thread_limiter", "unlimited"]

#: How many sync iterables an event loop serves at once. Each may block a thread for any time, so
#: they have a limiter of their own. A thread that waits costs some 50 KiB.
SYNC_STREAMS = 256

_END = cast("EventLike", object())


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
            self._next, abandon_on_cancel=True, limiter=unlimited()
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


def unlimited() -> anyio.CapacityLimiter:
    """Return a limiter of this event loop that limits nothing."""
    return current().own(_no_limiter)


def _no_limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(math.inf)
