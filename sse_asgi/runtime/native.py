"""The scopes and the task group of asyncio, for a task with nothing of anyio's around it.

A scope of anyio's takes three times the memory, in every stream that waits. See
:func:`sse_asgi.runtime.of_task` for which task may do without.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from typing import TYPE_CHECKING, Any, Self

from .asyncio import AGAIN, AsyncioRuntime, is_shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from .base import CancelScope, Runtime

__all__ = ["NativeRuntime", "NativeScope"]


class NativeScope:
    """A cancel scope that is made with asyncio only.

    A task may be cancelled by its deadline or from another task. What catches the cancellation may
    wait, and is cancelled again after ``again`` seconds. A scope that is entered within another, in
    the same task, is told of that one: a shield of the inner one keeps the outer one out.
    """

    __slots__ = (
        "_again", "_before", "_context", "_deadline", "_held_back", "_inner", "_outer", "_requests",
        "_task", "_timer", "cancel_called", "cancelled_caught", "shield",
    )  # fmt: skip

    def __init__(
        self,
        *,
        deadline: float = math.inf,
        shield: bool = False,
        outer: NativeScope | None = None,
        again: float = AGAIN,
        context: contextvars.Context | None = None,
    ) -> None:
        self._again = again
        # The context of its timers. Without it each timer copies the running one.
        self._context = context
        self._deadline = deadline
        self._outer = outer
        self._inner: NativeScope | None = None
        self._task: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._before = self._requests = 0  # to cancel the task
        # Whether a shield of anyio's kept a request back.
        self._held_back = False
        self.shield: bool = shield
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
            if outer.cancel_called and self.shield:  # which has held that back until now
                outer._cancel_in(0)
        if self._requests and isinstance(exc, asyncio.CancelledError):
            self.cancelled_caught = task.cancelling() <= self._before
        return self.cancelled_caught

    @property
    def deadline(self) -> float:
        """When the scope is cancelled, by the clock of the event loop."""
        return self._deadline

    @deadline.setter
    def deadline(self, value: float) -> None:
        self._deadline = deadline = value
        if self._task is not None and not self.cancel_called:
            self._stop_timer()
            if deadline < math.inf:
                self._timer = self._task.get_loop().call_at(
                    deadline, self.cancel, context=self._context
                )

    def cancel(self) -> None:
        """Cancel the task, wherever it waits within the scope."""
        if not self.cancel_called:
            self.cancel_called = True
            if self._task is not None and asyncio.current_task() is self._task:
                self._cancel_in(0)  # when it waits
            else:
                self._request()

    def renew(self) -> None:
        """Cancel the task where it waits next, if only a shield of anyio's was in the way."""
        if self._held_back and not is_shielded(self._task):
            self._request()

    def _request(self) -> None:
        self._held_back = False
        if self._task is None:
            return
        if self._inner is not None and self._inner.shield:
            self._cancel_in(self._again)
        elif is_shielded(self._task):
            self._held_back = True
            self._cancel_in(AGAIN)
        else:
            self._requests += 1
            self._task.cancel()
            self._cancel_in(self._again)

    def _cancel_in(self, seconds: float) -> None:
        self._stop_timer()
        if self._task is not None and seconds < math.inf:
            self._timer = self._task.get_loop().call_later(
                seconds, self._request, context=self._context
            )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class NativeTaskGroup(asyncio.TaskGroup):
    """The task group of asyncio, with the method of anyio's."""

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a coroutine function in a task of the group."""
        # With a name of its own each would take more memory.
        self.create_task(function(*args), name="sse_asgi")


class NativeRuntime(AsyncioRuntime):
    """See :class:`~sse_asgi.runtime.base.Runtime`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, of_loop: Runtime) -> None:
        super().__init__(loop)
        self._of_loop = of_loop
        self._own = of_loop._own
        self._context = contextvars.Context()

    @property
    def of_loop(self) -> Runtime:
        """The runtime of the tasks that are not bare."""
        return self._of_loop

    def scope(
        self,
        *,
        deadline: float = math.inf,
        shield: bool = False,
        within: CancelScope | None = None,
        again: float | None = None,
    ) -> CancelScope:
        """Make a :class:`NativeScope`."""
        assert within is None or isinstance(within, NativeScope)
        return NativeScope(
            deadline=deadline,
            shield=shield,
            outer=within,
            again=AGAIN if again is None else again,
            context=self._context,
        )

    def renew(self, scope: CancelScope) -> None:
        """Cancel the task where it waits next, if only a shield was in the way."""
        assert isinstance(scope, NativeScope)
        scope.renew()

    def task_group(self) -> Any:
        """Make a task group of asyncio's."""
        return NativeTaskGroup()
