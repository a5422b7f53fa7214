"""trio. Its cancel scopes are used through anyio's, which are a thin wrapper."""

from __future__ import annotations

import contextvars
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

import trio
import trio.lowlevel

from .base import Runtime, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from .base import Cancel, CancelScope

__all__ = ["TrioRuntime"]


class TrioRuntime(Runtime):
    """See :class:`~sse_asgi.runtime.base.Runtime`. Make it within ``trio.run``."""

    #: A task that is about to wait can't be made to send first.
    joins: bool = False
    cancelled: type[BaseException] = trio.Cancelled

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        super().__init__()
        self._token: Any = ref(token)
        self._clock: Callable[[], float] = trio.lowlevel.current_clock().current_time

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that ``trio.run`` was given."""
        return self._clock

    def scope(
        self,
        *,
        deadline: float = math.inf,
        shield: bool = False,
        within: CancelScope | None = None,
        again: float | None = None,
    ) -> CancelScope:
        """Make a scope of trio's: one of anyio's has it within, and is not found in a task."""
        scope: Any = trio.CancelScope(deadline=deadline, shield=shield)
        made: CancelScope = scope
        return made

    def is_over(self) -> bool:
        """Return whether ``trio.run`` has ended."""
        if (token := self._token()) is not None:
            try:
                token.run_sync_soon(nothing, idempotent=True)
            except trio.RunFinishedError:
                return True
        return token is None

    def scopes(self, task: trio.lowlevel.Task) -> Iterator[Any]:
        """Return the scopes that a task is in, from the inside out."""
        # trio has no function for this. If it calls things otherwise, there is nothing to be seen.
        status = getattr(task, "_cancel_status", None)
        while (scope := getattr(status, "_scope", None)) is not None:
            yield scope
            status = getattr(status, "_parent", None)

    def groups(self, task: trio.lowlevel.Task) -> list[Any]:
        """Return the nurseries that a task has open, the innermost last.

        A task that waits for its children does not learn of a cancellation where it waits.
        """
        return list(task.child_nurseries)

    def has_ended(self, group: trio.Nursery) -> bool:
        """Return whether a nursery has come to its end, and was not cancelled."""
        # trio has no function for this. If it calls things otherwise, the answer is False.
        return getattr(group, "_closed", False) and not group.cancel_scope.cancel_called

    def waits_for_group(self, task: trio.lowlevel.Task) -> bool:
        """Return whether a task waits for the end of a nursery."""
        # trio has no function for this. If it calls things otherwise, the answer is False.
        nurseries = task.child_nurseries
        return bool(nurseries) and not getattr(nurseries[-1], "_nested_child_running", True)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> Cancel:
        """Start a task of the system, and return what cancels a scope around it.

        A KeyboardInterrupt does not come out of such a task, but of the main task.
        """
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await function()

        context = contextvars.copy_context()
        trio.lowlevel.spawn_system_task(run, name=function, context=context)
        return scope.cancel

    def task(self) -> trio.lowlevel.Task:
        """Return the running task."""
        return trio.lowlevel.current_task()

    def cancel_requests(self, task: object) -> int:
        """Return 0: trio cancels by scopes only."""
        return 0

    def passes(self, trap: Any) -> bool:
        """Return whether a task that yields this to trio is at a checkpoint."""
        # trio has no name for it in public. What it calls otherwise is taken for a wait.
        return getattr(trap, "__name__", type(trap).__name__) == "CancelShieldedCheckpoint"

    def after(self, seconds: float, function: Callable[[], object]) -> Cancel:
        """Call a function in so many seconds. This takes a task."""
        if seconds == math.inf:
            return nothing
        scope = trio.CancelScope()
        functions = [function]

        async def call() -> None:
            with scope:
                await trio.sleep(seconds)
                functions.pop()()

        def cancel() -> None:
            functions.clear()  # the task ends a little later, and keeps nothing until then
            scope.cancel()

        trio.lowlevel.spawn_system_task(call)
        return cancel

    def is_of(self, loop: object) -> bool:
        """Return whether this is the runtime of the ``trio.run`` that a token belongs to."""
        return self._token() is loop

    def coroutines(self) -> Iterator[object]:
        """Return the coroutines of all tasks, those of the system too."""
        unseen = [trio.lowlevel.current_root_task()]
        while unseen:
            if (task := unseen.pop()) is not None:
                yield task.coro
                for nursery in task.child_nurseries:
                    unseen += nursery.child_tasks

    def soon(self, function: Callable[[], object]) -> None:
        """Call a function at once: later would take a task."""
        function()

    def from_thread(self, function: Callable[..., object], *args: object) -> None:
        """Have a function called in the event loop, from any thread."""
        if (token := self._token()) is not None:
            with suppress(RuntimeError):  # trio.RunFinishedError is one
                token.run_sync_soon(function, *args)

    async def parked(self, hand_over: Callable[[Callable[[], object]], object]) -> None:
        """Wait until the task is rescheduled."""
        task = trio.lowlevel.current_task()
        waits = True

        def wake() -> None:
            nonlocal waits
            if waits:
                waits = False
                trio.lowlevel.reschedule(task)

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            nonlocal waits
            waits = False
            return trio.lowlevel.Abort.SUCCEEDED

        hand_over(wake)
        await trio.lowlevel.wait_task_rescheduled(abort)
