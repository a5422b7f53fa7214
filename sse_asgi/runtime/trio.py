"""trio. Its cancel scopes are used through anyio's, which are a thin wrapper."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

import trio
import trio.lowlevel

from .base import Runtime, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .base import Cancel

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

    def task(self) -> trio.lowlevel.Task:
        """Return the running task."""
        return trio.lowlevel.current_task()

    def cancel_requests(self, task: object) -> int:
        """Return 0: trio cancels by scopes only."""
        return 0

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
