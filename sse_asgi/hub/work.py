"""The background work of a log, while a hub is open."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from ..runtime import current
from ..runtime.detached import DetachedTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from .log import Log

__all__ = ["Work"]

logger: logging.Logger = logging.getLogger("sse_asgi")


class Work:
    """Runs :meth:`Log.run` in a task of its own, which any task may end.

    It is the ``task_status`` of that call.

    :param on_failure: called if the log fails later than at its start.
    """

    def __init__(self, log: Log, on_failure: Callable[[], object]) -> None:
        self._log = log
        self._on_failure = on_failure
        # A cancellation comes again and again by a scope, as in a task group. Once may be too few.
        self._scope = anyio.CancelScope()
        self._ready = anyio.Event()
        self._has_started = False
        self._task = DetachedTask(current(), self._run)

    def started(self, value: object = None) -> None:
        """See :class:`anyio.abc.TaskStatus`."""
        self._has_started = True
        self._ready.set()

    async def ready(self) -> None:
        """Wait until the log can be used.

        :raises Exception: the exception that the log has raised instead.
        """
        try:
            await self._ready.wait()
        except BaseException:
            await self.end()
            raise
        if not self._has_started:
            raise self._task.error or RuntimeError(
                f"run() has returned without task_status.started(): {self._log!r}"
            )

    async def end(self) -> BaseException | None:
        """End the work, wait until it has ended, and return the error with which it has failed."""
        self._scope.cancel()
        await self._task.join()
        return self._task.error

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._log.run(task_status=self)
        except BaseException as exc:
            if self._has_started and not isinstance(exc, current().cancelled):
                logger.exception("the log of a hub has failed, and so the hub is closed")
                self._on_failure()
            raise
        finally:
            self._ready.set()
