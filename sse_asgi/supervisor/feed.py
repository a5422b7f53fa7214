"""What feeds the source: a function of the application's, in a task of its own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..reasons import CloseReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..options import StreamOptions
    from ..runtime.base import CancelScope, Runtime
    from .deadlines import Deadlines
    from .life import Life
    from .pump import Pump
    from .watchdog import Watchdog

__all__ = ["Feed"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: A source that waits has nothing more to come after so many iterations of the event loop.
QUIET = 10

#: How often, in seconds, to look whether a send has ended.
LOOKS = 0.01


class Feed:
    """A function that runs for as long as the source is read.

    If the stream is closing, it ends before the source is closed: it may be about to write to the
    source, and its cleanup would be cut short by an error if the source were closed.
    """

    __slots__ = ("_ended", "_function", "_life", "_options", "_runtime", "_times", "scope")

    def __init__(
        self,
        function: Callable[[], Awaitable[object]],
        runtime: Runtime,
        life: Life,
        times: Deadlines,
        options: StreamOptions,
    ) -> None:
        self._function = function
        self._runtime = runtime
        self._life = life
        self._times = times
        self._options = options
        self._ended = anyio.Event()
        #: What cancels the function. Its cleanup may take as long as the source's and more.
        self.scope: CancelScope = runtime.scope(again=2 * times.timing.cleanup_timeout)

    async def run(self, watchdog: Watchdog, pump: Pump) -> None:
        """Run the function. What it raises ends the stream, when all that it has fed is sent."""
        task = self._runtime.task()
        try:
            with self.scope:
                await self._function()
        except self._runtime.cancelled:
            if self._runtime.cancel_requests(task):  # from around the application
                raise
            await checkpoint_if_cancelled()  # from there, too
            # Else it has cancelled itself, or awaited what was cancelled: it has ended.
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            # The function can't know that nobody reads any more.
            if not self._life.closing and not self._times.finishing:
                await self._fail(exc, watchdog, pump)
        except BaseException as exc:
            await self._fail(exc, watchdog, pump)
        finally:
            self._ended.set()

    async def _fail(self, error: BaseException, watchdog: Watchdog, pump: Pump) -> None:
        """Close the stream when the source waits for more: what was fed before is not lost."""
        self._life.note(error)
        quiet, events = 0, -1
        while quiet < QUIET and not self._life.closing:
            if not pump.stepping:
                quiet = 0
                await anyio.sleep(LOOKS)  # the client is slow
                continue
            if not pump.waited or events != pump.events:
                quiet, events = 0, pump.events
            quiet += 1
            await checkpoint()
        watchdog.close(CloseReason.ERROR)

    async def stop(self) -> None:
        """Cancel the function, and wait for its end, at most ``cleanup_timeout``."""
        self.scope.cancel()
        with anyio.move_on_after(self._options.cleanup_timeout, shield=True) as scope:
            await self._ended.wait()
        if scope.cancelled_caught:
            logger.warning("what feeds the source has not ended within cleanup_timeout")
