"""asyncio, or an event loop that takes its place, with the cancel scopes of anyio."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio

from .base import Runtime, nothing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from .base import Cancel

__all__ = ["AGAIN", "AsyncioRuntime", "is_shielded", "scopes_of"]

#: A task that goes on although it was cancelled is cancelled again after so many seconds, as anyio
#: would do at once.
AGAIN = 0.1


class AsyncioRuntime(Runtime):
    """See :class:`~sse_asgi.runtime.base.Runtime`."""

    joins: bool = True
    task_type: type[Any] | None = asyncio.Task
    cancelled: type[BaseException] = asyncio.CancelledError

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop: Any = ref(loop)

    @property
    def clock(self) -> Callable[[], float]:
        """The clock of the event loop.

        ``anyio.current_time`` looks the event loop up at each call, and takes ten times as long.
        """
        loop = self._loop()
        if type(loop).time is asyncio.BaseEventLoop.time and "time" not in vars(loop):
            return monotonic  # which is what it calls
        clock: Callable[[], float] = loop.time
        return clock

    def is_over(self) -> bool:
        """Return whether the event loop is closed."""
        loop = self._loop()
        return loop is None or bool(loop.is_closed())

    def runs_here(self) -> bool:
        """Return whether a task runs here in this event loop. There is none if trio is a guest."""
        try:
            return asyncio.current_task() is not None and (
                asyncio.get_running_loop() is self._loop()
            )
        except RuntimeError:
            return False

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> Cancel:
        """Start a task, and return its method ``cancel``."""
        cancel: Cancel = self._loop().create_task(function()).cancel
        return cancel

    def task(self) -> asyncio.Task[Any] | None:
        """Return the running task; ``None`` in a callback."""
        return asyncio.current_task()

    def cancel_requests(self, task: asyncio.Task[Any] | None) -> int:
        """Return how many ``Task.cancel()`` of a task are pending."""
        return 0 if task is None else task.cancelling()

    def scopes(self, task: asyncio.Task[Any]) -> Iterator[Any]:
        """Return the scopes of anyio's that a task is in, from the inside out."""
        return scopes_of(task)

    def knows_cancelled(self, trap: Any) -> bool:
        """Return whether a task that yields this waits for a task that is cancelled already."""
        return type(trap) is asyncio.Task and trap.cancelling() > 0

    def before_wait(self, trap: Any, function: Callable[[], object]) -> None:
        """Call a function just before a task yields something to the event loop."""
        # A future has a mark while it is yielded, with which nobody else can wait for it.
        marked = getattr(trap, "_asyncio_future_blocking", None)
        if marked:
            trap._asyncio_future_blocking = False
        function()
        if marked:
            trap._asyncio_future_blocking = True

    def after(self, seconds: float, function: Callable[[], object]) -> Cancel:
        """Call a function in so many seconds."""
        if seconds == math.inf:
            return nothing
        cancel: Cancel = self._loop().call_later(seconds, function).cancel
        return cancel

    def starter(self) -> Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] | None:
        """Return a function that starts a task, and takes its first step at once."""
        if sys.version_info < (3, 12):
            return None
        return partial(
            asyncio.Task,
            loop=self._loop(),
            context=contextvars.copy_context(),
            eager_start=True,
            name="sse_asgi",
        )

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task until it ends, except while it has put up a shield of anyio's."""
        if not task.done():
            if not is_shielded(task):
                task.cancel()
            loop = task.get_loop()
            loop.call_later(AGAIN, self.cancel, task, context=contextvars.Context())

    async def outlast(self, awaitable: Awaitable[object], seconds: float) -> bool:
        """Await something in a task of its own: no shield keeps ``Task.cancel()`` out of this one.

        This task keeps count of such calls. Who calls this looks at it afterwards.
        """
        task = asyncio.ensure_future(awaitable)
        timer = self._loop().call_later(seconds, task.cancel) if seconds < math.inf else None
        with anyio.CancelScope(shield=True):
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
        in_time = timer is None or timer.when() > self._loop().time()
        if timer is not None:
            timer.cancel()
        if task.cancelled():
            return in_time
        task.result()
        return True

    def is_of(self, loop: object) -> bool:
        """Return whether this is the runtime of an event loop."""
        return self._loop() is loop

    def coroutines(self) -> Iterator[object]:
        """Return the coroutines of all tasks."""
        return (task.get_coro() for task in asyncio.all_tasks())

    def soon(self, function: Callable[[], object]) -> None:
        """Call a function in the next iteration of the event loop.

        The function does not see the context variables of the caller.
        """
        self._loop().call_soon(function, context=contextvars.Context())

    def from_thread(self, function: Callable[..., object], *args: object) -> None:
        """Have a function called in the event loop, from any thread."""
        if (loop := self._loop()) is not None:
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(function, *args)

    def parked(self, hand_over: Callable[[Callable[[], object]], object]) -> Awaitable[None]:
        """Wait in a bare future."""
        future: asyncio.Future[None] = self._loop().create_future()
        hand_over(partial(_set_result, future))
        return future


def scopes_of(task: asyncio.Task[Any]) -> Iterator[Any]:
    """Return the scopes of anyio's that a task is in, from the inside out."""
    # anyio has no function for this. If it calls things otherwise, there is nothing to be seen.
    states = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", {})
    scope = getattr(states.get(task), "cancel_scope", None)
    while scope is not None:
        yield scope
        scope = getattr(scope, "_parent_scope", None)


def is_shielded(task: asyncio.Task[Any]) -> bool:
    """Return whether a task has put up a shield of anyio's, which must keep cancellations out."""
    return any(scope.shield for scope in scopes_of(task))


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
