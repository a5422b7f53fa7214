"""Whether the client may still listen: a function of the application's says so, now and then."""

from __future__ import annotations

from inspect import isawaitable, iscoroutinefunction
from random import uniform
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ..runtime import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.base import Runtime
    from .deadlines import Deadlines

__all__ = ["Recheck"]

#: How many streams of an event loop ask at once by a function that is not async.
THREADS = 16


class Recheck:
    """Asks now and then, in a task that is there for that alone.

    Streams that were opened together do not ask together.

    :param function: returns whether the client may still listen, or an awaitable of that.
    :param argument: what it is called with.
    :param every: how often to ask, in seconds, and how long to wait for the answer.
    :param refused: called if the answer is no.
    :param failed: called with an exception that there was instead.
    """

    __slots__ = (
        "_argument", "_every", "_failed", "_function", "_refused", "_runtime", "_scope", "_times",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[[Any], object],
        argument: object,
        every: float,
        times: Deadlines,
        runtime: Runtime,
        *,
        refused: Callable[[], object],
        failed: Callable[[Exception], object],
    ) -> None:
        self._function = function
        self._argument = argument
        self._every = every
        self._times = times
        self._runtime = runtime
        self._refused = refused
        self._failed = failed
        self._scope: anyio.CancelScope | None = None
        self._later()

    def _later(self) -> None:
        self._times.recheck(self._runtime.clock() + self._every * uniform(0.9, 1))

    async def run(self) -> None:
        """Ask once."""
        try:
            with anyio.CancelScope() as self._scope, anyio.fail_after(self._every):
                if await self._ask():
                    self._later()
                else:
                    self._refused()
        except Exception as exc:
            self._failed(exc)

    async def _ask(self) -> object:
        function: Any = self._function
        if iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__):
            answer = function(self._argument)
        else:  # it may ask a database
            answer = await anyio.to_thread.run_sync(
                function, self._argument, abandon_on_cancel=True, limiter=current().own(_limiter)
            )
        return await answer if isawaitable(answer) else answer

    def stop(self) -> None:
        """Wait no longer for the answer."""
        if self._scope is not None:
            self._scope.cancel()


def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(THREADS)
