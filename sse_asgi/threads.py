"""A sync iterable as a source: its code runs in a thread of its own, and never in the event loop.

Each of these threads is a daemon: the process may exit while one of them blocks for ever. The
threads of :func:`anyio.to_thread.run_sync`, which the application uses too, are not.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

import anyio

from .errors import HTTPError, unavailable
from .runtime import current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .runtime.base import Runtime
    from .types import EventLike, FrameReceiver

__all__ = ["YIELDS_IN_CLEANUP", "ThreadSource", "close_in_thread", "current_thread_limiter"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: How many sync iterables an event loop serves at once. Each may block a thread for any time, so
#: they have a limiter of their own. A thread that waits costs some 50 KiB.
SYNC_STREAMS = 256

#: How often a source may yield while it is being closed.
YIELDS_IN_CLEANUP = 10_000

_END = cast("EventLike", object())

_UNKNOWN_THREAD = (
    "a sync source runs in a thread that anyio does not know: give anyio.from_thread.run() the "
    "token= of the event loop, which anyio.lowlevel.current_token() returns in the function that "
    "makes the generator"
)


class ThreadSource:
    """A sync iterable. Its code runs in one daemon thread, from its first step to its ``close()``.

    It holds a token of the limiter from its opening until ``close()`` has returned. So a thread
    that nobody waits for any longer still counts.

    :raises HTTPError: 503, if the limiter has no token left.
    """

    def __init__(self, source: Iterable[EventLike]) -> None:
        self._runtime = current()
        self._thread = _Thread(source, self._runtime)
        self._thread.take_token()

    async def step(self) -> EventLike:
        """Call ``next()`` in the thread. If this is cancelled, the call goes on there.

        :raises HTTPError: 503, if the thread can't be started.
        """
        thread = self._thread
        if thread.closing:
            raise StopAsyncIteration
        if not thread.started:
            thread.start()
        await self._runtime.parked(thread.calls.put)
        if thread.error is not None:
            thread.raise_error()
        event, thread.event = thread.event, _END
        if event is _END:
            raise StopAsyncIteration
        return event

    @property
    def iterator(self) -> object:
        """What is stepped, to name it in a message."""
        return self._thread.iterator

    def give_to(self, receiver: FrameReceiver) -> None:
        """Do nothing: a sync iterable gives events only when it is stepped."""

    async def aclose(self) -> None:
        """Call ``close()`` after the last step. If this is cancelled, the call goes on.

        This raises what ``close()`` raises, or the last step if nobody has waited for that.
        """
        await self._thread.close()

    def __del__(self) -> None:
        self._thread.close_unseen()


async def close_in_thread(source: object) -> None:
    """Close a source that was never stepped. If this is cancelled, that goes on.

    This raises what ``close()`` raises.
    """
    await _Thread(source, current()).close()


class _Thread:
    """What the event loop and the thread share. The thread does not keep its ThreadSource alive.

    The event loop puts functions into ``calls``. For each the thread calls ``next()``, and then has
    the function called in the event loop, which takes ``event`` or ``error``. ``None`` is the last.
    """

    __slots__ = (
        "_closed", "_context", "_limiter", "_runtime", "_unseen", "calls", "closing",
        "error", "event", "iterator", "started",
    )  # fmt: skip

    def __init__(self, source: Any, runtime: Runtime) -> None:
        self._runtime = runtime
        self._limiter: anyio.CapacityLimiter | None = None
        # Not iter() here: it is user code, and may block.
        self.iterator: Any = source
        # One context for all calls. It is a copy of the one in which the source is opened.
        self._context = contextvars.copy_context()
        self.calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.event: EventLike = _END
        self.error: BaseException | None = None
        self.started: bool = False
        self.closing: bool = False
        self._closed = anyio.Event()
        self._unseen = False  # whether nobody waits for the end any more

    # -- in the event loop -----------------------------------------------------------------------

    def take_token(self) -> None:
        """Take a token of the limiter. It is given back when the source is closed."""
        limiter = current_thread_limiter()
        if limiter.available_tokens < 1:
            self.closing = True  # by the caller
            raise unavailable("all threads for streams are busy")
        limiter.acquire_on_behalf_of_nowait(self)
        self._limiter = limiter

    def start(self) -> None:
        """Start the thread."""
        thread = threading.Thread(
            target=self._context.run, args=(self._run,), name="sse_asgi source", daemon=True
        )
        self.started = True  # also if a signal interrupts what follows
        try:
            thread.start()
        except RuntimeError as exc:  # the system has its limits, too
            self.started = False
            raise unavailable("no thread can be started") from exc

    async def close(self) -> None:
        """Close the iterator, after the last step, and end the thread. Wait for that."""
        self._begin_to_close()
        if not self._closed.is_set():
            try:
                await self._closed.wait()
            except BaseException:
                self._unseen = True
                self._log_unseen_error()
                raise
        if self.error is not None:
            self.raise_error()

    def close_unseen(self) -> None:
        """Do what :meth:`close` does, and wait for nothing. Any thread may call this."""
        if not self.closing:
            self._unseen = True
            if self.started:  # the event loop may be closed
                self._begin_to_close()
            else:
                self._runtime.from_thread(self._begin_to_close)

    def raise_error(self) -> None:
        """Raise what the thread has caught."""
        error, self.error = self.error, None
        assert error is not None
        try:
            if isinstance(error, anyio.NoEventLoopError):
                error.add_note(_UNKNOWN_THREAD)
            if isinstance(error, StopAsyncIteration):  # here that would be a regular end
                raise RuntimeError("a sync source raised StopAsyncIteration") from error
            raise error
        finally:
            del error  # its traceback refers to this frame: avoid a cycle

    def _begin_to_close(self) -> None:
        if self.closing:
            return
        self.closing = True
        iterator = self.iterator
        if not self.started:
            if _is_unused_generator(iterator):
                iterator.close()  # this runs no code of it
            elif hasattr(iterator, "close"):
                try:
                    self.start()
                except HTTPError as exc:
                    self.error = exc
        if self.started:
            self.calls.put(None)
        else:
            self._note_closed()

    def _note_closed(self) -> None:
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
        self._closed.set()
        self._log_unseen_error()

    def _log_unseen_error(self) -> None:
        if self._unseen and self.error is not None and self._closed.is_set():
            if "ignored GeneratorExit" in str(self.error):
                logger.warning("a source yielded while it was being closed; that is not sent")
            else:
                logger.error(
                    "a source raised when nobody waited for it any more", exc_info=self.error
                )
            self.error = None

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        _forget_event_loop()
        begun = False
        while (wake := self.calls.get()) is not None:
            if not self.closing:
                try:
                    if not begun:
                        self.iterator = iter(self.iterator)
                        begun = True
                    self.event = next(self.iterator, _END)
                except BaseException as exc:
                    self.error = exc
            self._runtime.from_thread(wake)
            del wake  # it refers to the stream
        try:
            close = getattr(self.iterator, "close", None)
            if close is not None:
                close()
        except BaseException as exc:
            if "ignored GeneratorExit" in str(exc):
                self._finish_cleanup()
            if self.error is None:
                self.error = exc
        close = self.iterator = None  # what they refer to is freed here, not in the event loop
        self._runtime.from_thread(self._note_closed)

    def _finish_cleanup(self) -> None:
        """Let a generator that has yielded in its cleanup come to the end of that."""
        for _ in range(YIELDS_IN_CLEANUP):
            if self._unseen:  # nobody waits for that any more
                break
            try:
                next(self.iterator)  # it can't be closed a second time
            except (StopIteration, GeneratorExit):
                break
            except BaseException as exc:
                self.error = self.error or exc
                break


def _is_unused_generator(iterator: object) -> bool:
    return (
        inspect.isgenerator(iterator) and inspect.getgeneratorstate(iterator) == inspect.GEN_CREATED
    )


def _forget_event_loop() -> None:
    """Have anyio see that no event loop runs in this thread, in the context of one."""
    # anyio asks sniffio, if that is installed, which asks this context variable.
    if (sniffio := sys.modules.get("sniffio")) is not None:
        sniffio.current_async_library_cvar.set(None)


def current_thread_limiter() -> anyio.CapacityLimiter:
    """Return the limiter of this event loop for streams from sync iterables.

    Each stream takes one token. Set ``total_tokens`` to allow more or fewer streams. A stream that
    finds no token gets 503.
    """
    return current().own(_limiter)


def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(SYNC_STREAMS)
