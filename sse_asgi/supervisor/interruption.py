"""How the host is woken from whatever it waits for, so that the source can clean up.

A source may wait for something in its ``finally``, since a connection has to go back to its pool.
Scopes of the host, from the outside in:

- the task group of the watchdog;
- ``outer``: cancelled by :meth:`Interruption.now`. It is shielded: a cancellation from around the
  application reaches the watchdog, which decides as in any other case;
- ``cleanup``: shields the source from ``outer``, from the moment that a cancellation has entered
  the source. So the ``finally`` of the source may wait. The deadline of this scope bounds that.

No scope is opened after the source was entered: the source may have scopes of its own open around a
``yield``, and scopes must be left in order.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from ..notes import place_of
from ..reasons import CloseReason
from ..runtime.base import Whose, nothing

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Protocol

    from ..runtime.base import Cancel, CancelScope, Runtime
    from ..source import OpenSource
    from .deadlines import Deadlines
    from .life import Life

    class Cancellable(Protocol):
        """The pump, as far as this file knows it."""

        #: Whether the source has waited on its way to the next event.
        waited: bool
        #: Whether somebody outside has cancelled the source there.
        cancelled: bool


__all__ = ["Destroyed", "Interruption", "Thrown"]

logger: logging.Logger = logging.getLogger("sse_asgi")

_SCOPE_AROUND_YIELD = (
    "the source was cancelled at a yield: a cancel scope, timeout or task group that it holds open "
    "around the yield cancels whoever reads it (PEP 789); open it between two yields, or leave it "
    "to a task of its own that hands over what it has"
)

_AWAITED_CANCELLED = "the source was cancelled, and not by us: it awaited a cancelled task, say"


class Destroyed(BaseException):
    """The coroutine of the host is closed, as when a task is destroyed with its event loop.

    This stands for :class:`GeneratorExit`, which no ``await`` hands on to an async generator before
    Python 3.13.
    """


class Thrown:
    """What is thrown into the pump, in the place of a value that is sent."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException = error


class Interruption:
    """The scopes of the host, and who has cancelled it."""

    __slots__ = (
        "_before", "_cleanup_timer", "_groups", "_late_timer", "_life", "_pump", "_runtime",
        "_source", "_task", "_times", "_was_late", "cleanup", "entered", "feed", "outer",
    )  # fmt: skip

    def __init__(
        self,
        runtime: Runtime,
        life: Life,
        times: Deadlines,
        pump: Cancellable,
        source: OpenSource,
    ) -> None:
        self._source = source
        self._runtime = runtime
        self._pump = pump
        self._cleanup_timer: Cancel = nothing
        self._late_timer: Cancel = nothing
        self._groups: Sequence[Any] = ()
        self._was_late = False
        self._life = life
        self._times = times
        self._task = runtime.task()
        self._before = runtime.cancel_requests(self._task)
        self.outer: CancelScope = runtime.scope(shield=True)
        self.cleanup: CancelScope = runtime.scope(within=self.outer)
        #: The scope of what feeds the source, if something does: it is interrupted, too.
        self.feed: CancelScope | None = None
        #: Whether the last cancellation that has entered the source was our interruption.
        self.entered: bool = False

    def now(self) -> None:
        """Wake the host, which then closes the source. What feeds the source ends, too."""
        self._note_groups()
        self.stop_feed()
        if self._in_cleanup():
            self.cleanup.shield = True
        self.outer.cancel()

    def about_to_wait(self) -> None:
        """Look who is to wake the host from the wait that it is about to begin.

        Call this when the stream is closing.
        """
        runtime, groups = self._runtime, self._runtime.groups(self._task)
        still_open = [group for group in self._groups if group in groups]
        if len(still_open) < len(self._groups) and not self.entered:
            # The source has waited for a task group of its own, and that has raised it.
            self.entered = self.cleanup.shield = True
        if not self.entered:
            self._note_groups()
        elif self._groups:
            # One of those must see that it was cancelled from around it. Else it would take the
            # cancellation for its own, and let the source go on.
            self._groups = still_open
            waits = groups[-1:] == still_open[-1:] != [] and runtime.waits_for_group(self._task)
            self.cleanup.shield = not waits
        # A shield of the source's own may have been in the way, and has gone.
        runtime.renew(self.cleanup)
        runtime.renew(self.outer)

    def _note_groups(self) -> None:
        """Note the task groups of the source that an interruption reaches where it waits now."""
        runtime, task = self._runtime, self._task
        inside = self._whose() is Whose.INSIDE
        groups = [] if inside else runtime.groups(task)
        self._groups = [group for group in groups if not runtime.has_ended(group)]

    def stop_feed(self) -> None:
        """Cancel what feeds the source, if something does."""
        if self.feed is not None:
            self.feed.cancel()

    def stop(self) -> None:
        """Interrupt nothing more: the host is done."""
        self._cleanup_timer()
        self.stop_feed()

    def bound(self) -> None:
        """Give the source ``cleanup_timeout`` to clean up, from now on."""
        if self.cleanup.deadline == math.inf:
            seconds = self._times.timing.cleanup_timeout
            self.cleanup.deadline = self._runtime.clock() + seconds
            self._late_timer = self._runtime.after(seconds, self._late)

    def unbound(self) -> None:
        """Take that back."""
        self.cleanup.deadline = math.inf
        self._late_timer()

    def closed(self) -> None:
        """Note that the source is closed."""
        self._late_timer()
        if self.cleanup.cancel_called:  # at the same moment, or by a Task.cancel() before
            self._late()

    def _late(self) -> None:
        if not self._was_late:
            self._was_late = True
            logger.warning(
                "the source %s was not closed within cleanup_timeout=%s s",
                place_of(self._source.iterator),
                self._times.timing.cleanup_timeout,
            )

    def resume(self, running: Coroutine[Any, Any, None], value: Any) -> object:
        """Resume the pump with an exception, or with an outcome of trio's.

        :returns: what the pump waits for next.
        """
        error: Any = getattr(value, "error", None)
        cancels = self._pump.waited and isinstance(error, self._runtime.cancelled)
        if cancels:
            whose = self._whose()
            self.entered = self._life.closing and whose is not Whose.INSIDE
            if self.entered and whose is Whose.OUTSIDE:
                self.cleanup.shield = True  # before trio looks at it, which it may do very early
                if self._whose() is not Whose.OUTSIDE:
                    self.cleanup.shield = False  # trio has seen the deadline of a scope within
        try:
            if not isinstance(value, Thrown):
                trap = running.send(value)
            elif isinstance(error, GeneratorExit):
                trap = running.throw(Destroyed())
            else:
                trap = running.throw(error)
        except Destroyed:
            raise GeneratorExit from None
        finally:
            del error, value  # its traceback has this frame: no cycle for the collector
        if cancels and self._pump.waited:  # in the same step
            self._source_waits_again()
        return trap

    def _whose(self) -> Whose:
        """Return who has cancelled the source, in the moment before it learns that."""
        return self._runtime.whose(self.cleanup, self._task)

    def _source_waits_again(self) -> None:
        """See whether what a cancelled source waits for is its cleanup."""
        if self.entered:
            # Cancel scopes cancel every wait from now on, and the source has got that once. The
            # shield comes no earlier if it is not known who has cancelled the source. A scope of
            # its own, whose deadline has come too, must first see that a scope around it is
            # cancelled. Else it would take the cancellation for its own, and let the source go on.
            self.cleanup.shield = True
        elif self.by_task():
            # The server has, it seems, and no scope can tell. (A scope of the source's own has
            # taken its cancellation back by now, unless it is slow.) Look again when the time for
            # a cleanup is over.
            self._pump.cancelled = True
            self._cleanup_timer()
            self._cleanup_timer = self._runtime.after(
                self._times.timing.cleanup_timeout, self._cleanup_over
            )

    def _cleanup_over(self) -> None:
        if self._in_cleanup() and not self._life.closing:  # else another deadline bounds it
            self._life.close(CloseReason.CANCELLED)
            self.stop_feed()
            self.cleanup.cancel()
            self._late()
            if self._times.sending_since is None:  # else the watchdog sends, and leaves after that
                self._times.wake(-math.inf)

    def _in_cleanup(self) -> bool:
        """Return whether the source cleans up because somebody outside has cancelled it."""
        return self._pump.cancelled and self.by_task()

    def from_outside(self) -> bool:
        """Return whether a cancellation in the cleanup comes from outside the source."""
        return self.cleanup.cancel_called or self.by_task()

    def by_task(self) -> bool:
        """Return whether somebody has called ``Task.cancel()`` on the host (asyncio)."""
        return self._runtime.cancel_requests(self._task) > self._before

    def explain(self, exc: BaseException, *, at_yield: bool) -> RuntimeError | None:
        """Return the error of a source that was cancelled, and not by us.

        :returns: ``None`` if somebody has called ``Task.cancel()``: that is no error.
        """
        if self.by_task():
            return None
        error = RuntimeError(_SCOPE_AROUND_YIELD if at_yield else _AWAITED_CANCELLED)
        error.__cause__ = exc
        return error
