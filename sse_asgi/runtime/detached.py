"""A task that no task group holds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .base import Cancel, Runtime

__all__ = ["DetachedTask"]


class DetachedTask:
    """A task that one task may start, and another one may end.

    A task group must be left by the task that has entered it. A fixture of pytest-asyncio, for one,
    is entered in one task and left in another. Whoever starts a detached task has to cancel it, and
    to wait for it with :meth:`join`. If nobody does, it ends with the event loop.

    :param function: what the task runs, with the context variables of the caller.
    """

    def __init__(
        self, runtime: Runtime, function: Callable[[], Coroutine[Any, Any, object]]
    ) -> None:
        self._runtime = runtime
        self._ended = anyio.Event()
        #: What the function has raised, unless that was a cancellation.
        self.error: BaseException | None = None
        #: Cancels the task: on asyncio with ``Task.cancel()``, on trio by a scope.
        self.cancel: Cancel = runtime.spawn(partial(self._run, function))

    async def _run(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        try:
            await function()
        except (self._runtime.cancelled, GeneratorExit):
            raise
        except BaseException as exc:  # nobody waits for this task, so nothing may leave it
            self.error = exc
        finally:
            self._ended.set()

    async def join(self) -> None:
        """Wait until the task has ended.

        A cancellation does not end the wait. One by ``Task.cancel()`` is raised after it.
        """
        cancelled: BaseException | None = None
        while not self._ended.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await self._ended.wait()
            except self._runtime.cancelled as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled
