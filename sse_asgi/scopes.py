"""The cancel scopes and the task group of a stream: anyio's, or asyncio's own where they do.

A task of anyio's with the scopes around it takes three times the memory of a bare one, in every
stream that waits. It is needed on trio, and on asyncio where somebody may cancel the stream by a
scope around it. A server does not: it runs an application in a task of asyncio's, and cancels that.
"""

from __future__ import annotations

import asyncio
import math
import sys
from typing import TYPE_CHECKING, Any, Self

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import TypeAlias

    AnyScope: TypeAlias = "anyio.CancelScope | NativeScope"

__all__ = ["NativeScope", "create_task_group", "native"]

#: A task that goes on although it was cancelled is cancelled again after so many seconds, as anyio
#: would do at once.
AGAIN = 0.1


def native() -> bool:
    """Whether the running task is asyncio's alone, with nothing of anyio's around it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # trio
        return False
    # anyio does not say so, but has a list: the tasks that it made, and those with scopes.
    known = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", None)
    return task is not None and known is not None and task not in known


class NativeScope:
    """What a stream needs of :class:`anyio.CancelScope`, by the means of asyncio.

    A scope within another, entered in the same task, is told of it. Cancelled from other tasks, or
    at its deadline. What catches the cancellation may wait, and is cancelled again after ``again``
    seconds.
    """

    __slots__ = (
        "_again", "_before", "_deadline", "_inner", "_outer", "_requests", "_shield", "_task",
        "_timer",
        "cancel_called", "cancelled_caught",
    )  # fmt: skip

    def __init__(
        self,
        *,
        deadline: float = math.inf,
        outer: NativeScope | None = None,
        again: float = AGAIN,
    ) -> None:
        self._again = again
        self._deadline = deadline
        self._outer = outer
        self._inner: NativeScope | None = None
        self._shield = False
        self._task: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._before = self._requests = 0  # to cancel the task
        self.cancel_called: bool = False
        self.cancelled_caught: bool = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling()
        if self._outer is not None:
            self._outer._inner = self
        if self.cancel_called:
            self._cancel_in(0)
        else:
            self.deadline = self._deadline
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        self._stop_timer()
        for _ in range(self._requests):
            task.uncancel()
        if (outer := self._outer) is not None:
            outer._inner = None
            if outer.cancel_called and self._shield:  # it was kept from that
                outer._cancel_in(0)
        if self._requests and isinstance(exc, asyncio.CancelledError):
            self.cancelled_caught = task.cancelling() <= self._before
        return self.cancelled_caught

    @property
    def deadline(self) -> float:
        """When it is cancelled, in the time of the event loop."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._task is not None and not self.cancel_called:
            self._stop_timer()
            if deadline < math.inf:
                self._timer = self._task.get_loop().call_at(deadline, self.cancel)

    @property
    def shield(self) -> bool:
        """Whether it keeps the cancellation of the outer scope out."""
        return self._shield

    @shield.setter
    def shield(self, shield: bool) -> None:
        self._shield = shield

    def cancel(self) -> None:
        """Cancel the task, wherever it waits within the scope."""
        if not self.cancel_called:
            self.cancel_called = True
            if self._task is not None and asyncio.current_task() is self._task:
                self._cancel_in(0)  # when it waits
            else:
                self._request()

    def _request(self) -> None:
        if self._task is None:
            return
        if self._inner is None or not self._inner.shield:
            self._requests += 1
            self._task.cancel()
        self._cancel_in(self._again)

    def _cancel_in(self, seconds: float) -> None:
        self._stop_timer()
        if self._task is not None and seconds < math.inf:
            self._timer = self._task.get_loop().call_later(seconds, self._request)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class NativeTaskGroup(asyncio.TaskGroup):
    """asyncio's, with the method of anyio's."""

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function`` in a task."""
        self.create_task(function(*args))


def create_task_group(is_native: bool) -> Any:
    """A task group, native or anyio's."""
    if is_native:
        return NativeTaskGroup()
    return anyio.create_task_group()
