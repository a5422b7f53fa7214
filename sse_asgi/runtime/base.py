"""What the library needs of an event loop, and anyio lacks or makes expensive."""

from __future__ import annotations

import math
import types
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType
    from typing import Protocol, Self

    class CancelScope(Protocol):
        """A cancel scope: what a stream needs of :class:`anyio.CancelScope`."""

        @property
        def deadline(self) -> float:
            """When the scope is cancelled, by the clock of the event loop."""
            ...

        @deadline.setter
        def deadline(self, value: float) -> None: ...

        @property
        def shield(self) -> bool:
            """Whether the scope keeps out the cancellation of a scope around it."""
            ...

        @shield.setter
        def shield(self, value: bool) -> None: ...

        @property
        def cancel_called(self) -> bool:
            """Whether the scope has been cancelled, by a call or by its deadline."""
            ...

        @property
        def cancelled_caught(self) -> bool:
            """Whether the scope was left by its own cancellation."""
            ...

        def cancel(self) -> None:
            """Cancel whatever waits within the scope."""
            ...

        def __enter__(self) -> Self: ...

        def __exit__(
            self,
            exc_type: type[BaseException] | None,
            exc: BaseException | None,
            traceback: TracebackType | None,
        ) -> bool | None: ...


__all__ = ["Cancel", "Runtime", "Whose", "driven", "nothing"]

T = TypeVar("T")

#: Cancels the call that has returned it. It may be called at any time, and more than once.
Cancel: TypeAlias = Callable[[], object]


def nothing() -> None:
    """Do nothing. This is the :data:`Cancel` of a call that is never made."""


class Whose(Enum):
    """Who has cancelled a task that waits within a scope."""

    OUTSIDE = auto()  #: something around the scope, and nothing within it
    INSIDE = auto()  #: something within the scope, which what is around it does not reach
    UNKNOWN = auto()


@types.coroutine
def driven(
    coroutine: Coroutine[Any, Any, T],
    waits: Callable[[], object],
    passes: Callable[[Any], bool] | None = None,
) -> Generator[Any, Any, T]:
    """Await a coroutine, and call a function when it waits for the first time.

    :param passes: whether that is no wait: see :meth:`Runtime.passes`.
    """
    value: Any = None
    error: BaseException | None = None
    first = True
    try:
        while True:
            try:
                trap = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            if first and (passes is None or not passes(trap)):
                first = False
                waits()
            value = error = None
            try:
                value = yield trap
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as exc:
                error = exc  # thrown later: from here, it would be the context of what comes of it
    finally:
        del error  # its traceback has this frame: no cycle for the collector


class Runtime(ABC):
    """An event loop, as the library uses it.

    It does not keep the loop alive. If it did, nothing that is kept for a loop
    (:class:`anyio.lowlevel.RunVar`) would ever be freed.
    """

    #: Whether a stream may join events: see ``supervisor/pump.py``.
    joins: bool

    #: What a task yields that waits for another task; ``None``: something else.
    task_type: type[Any] | None = None

    #: The exception class of a cancellation.
    cancelled: type[BaseException]

    def __init__(self) -> None:
        self._own: dict[Callable[[], Any], Any] = {}

    @property
    def of_loop(self) -> Runtime:
        """The runtime that all tasks of the event loop share: a key for what belongs to it."""
        return self

    def own(self, make: Callable[[], T]) -> T:
        """Return what ``make`` has returned at the first call in this event loop."""
        try:
            found: T = self._own[make]
        except KeyError:
            found = self._own[make] = make()
        return found

    def is_cancellation(self, exc: BaseException) -> bool:
        """Return whether an exception is no code's own, or has such a one in it."""
        if isinstance(exc, BaseExceptionGroup):
            return exc.split(self.cancelled)[0] is not None
        return isinstance(exc, (self.cancelled, GeneratorExit))

    def runs_here(self) -> bool:
        """Return whether this is the running event loop, if that is known at once.

        It takes a tenth of the time of :func:`sse_asgi.runtime.current`. ``False`` may be wrong.
        """
        return False

    @abstractmethod
    def is_over(self) -> bool:
        """Return whether the event loop has ended, from any thread."""

    @property
    @abstractmethod
    def clock(self) -> Callable[[], float]:
        """The clock of the event loop, in seconds. Deadlines of scopes are times of this clock."""

    def scope(
        self,
        *,
        deadline: float = math.inf,
        shield: bool = False,
        within: CancelScope | None = None,
        again: float | None = None,
    ) -> CancelScope:
        """Make a cancel scope.

        :param deadline: when the scope is cancelled.
        :param shield: whether the scope keeps out cancellations from around it.
        :param within: the scope of the same task that will be entered directly around this one.
        :param again: after how many seconds a task that goes on although it was cancelled is
            cancelled again. The scopes of anyio do that at once.
        """
        scope: Any = anyio.CancelScope(deadline=deadline, shield=shield)
        made: CancelScope = scope
        return made

    def renew(self, scope: CancelScope) -> None:  # noqa: B027  it is not needed everywhere
        """Cancel a task again by a scope, if a shield within the scope was in the way.

        Call this when the task is about to wait. The scopes of anyio do this by themselves.
        """

    def task_group(self) -> Any:
        """Make a task group, with the method ``start_soon`` of anyio's."""
        return anyio.create_task_group()

    def whose(self, scope: CancelScope, task: Any) -> Whose:
        """Return who has cancelled a task, in the moment before it learns that.

        A timeout of its own is one of those.

        :param scope: a scope of the task, that may be cancelled from around it.
        """
        cancelled = False
        for inner in self.scopes(task):
            if inner is scope:
                return Whose.UNKNOWN if cancelled else Whose.OUTSIDE
            if inner.shield:
                return Whose.INSIDE
            cancelled = cancelled or inner.cancel_called
        return Whose.UNKNOWN

    @abstractmethod
    def scopes(self, task: Any) -> Iterator[Any]:
        """Return the scopes that a task is in, from the inside out, as far as that can be seen."""

    def groups(self, task: Any) -> list[Any]:
        """Return the task groups that a task has open, if they wait for it to be cancelled."""
        return []

    def has_ended(self, group: Any) -> bool:
        """Return whether such a group has come to its end, and was not cancelled."""
        return False

    def waits_for_group(self, task: Any) -> bool:
        """Return whether a task waits for the end of such a group: for its other tasks."""
        return False

    @abstractmethod
    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> Cancel:
        """Start a task that belongs to the event loop, and return what cancels it.

        The task has the context variables of the caller. On asyncio it is a bare task, as those in
        which servers run applications. Only a cancellation may leave the function.
        """

    @abstractmethod
    def task(self) -> Any:
        """Return the running task."""

    @abstractmethod
    def cancel_requests(self, task: Any) -> int:
        """Return how many ``Task.cancel()`` of a task are pending.

        trio has no such calls. Cancellations by a scope of anyio's do not count.
        """

    def passes(self, trap: Any) -> bool:
        """Return whether a task that yields this to the event loop only lets others run."""
        return trap is None

    def knows_cancelled(self, trap: Any) -> bool:
        """Return whether a task that yields this waits for a task that is cancelled already."""
        return False

    def before_wait(self, trap: Any, function: Callable[[], object]) -> None:
        """Call a function just before a task yields something to the event loop.

        The function may run another task, which may wait for the same thing.
        """
        function()

    @abstractmethod
    def after(self, seconds: float, function: Callable[[], object]) -> Cancel:
        """Call a function in so many seconds. Use this within the event loop."""

    def every(self, seconds: float, function: Callable[[], object]) -> Cancel:
        """Call a function every so many seconds. Use this within the event loop."""
        cancel: Cancel

        def again() -> None:
            nonlocal cancel
            cancel = self.after(seconds, again)
            function()

        cancel = self.after(seconds, again)
        return lambda: cancel()

    def starter(self) -> Callable[[Coroutine[Any, Any, None]], Any] | None:
        """Return a function that starts a task, and takes its first step at once.

        The function returns the task, a future of asyncio's. It may be called in another task or in
        a callback. All of its tasks have the context variables that the caller of this has now.
        :meth:`cancel` cancels them.

        :returns: ``None`` if that can't be done: on trio, and on Python 3.11.
        """
        return None

    def cancel(self, task: Any) -> None:
        """Cancel a task until it ends, except while it has put up a shield of anyio's."""
        raise NotImplementedError

    async def outlast(self, awaitable: Awaitable[object], seconds: float) -> bool:
        """Await something, whoever cancels this task meanwhile.

        :param seconds: how long that may take. Then it is cancelled.
        :returns: whether it has ended in time.
        """
        with anyio.move_on_after(seconds, shield=True) as scope:
            await awaitable
        return not scope.cancelled_caught

    @abstractmethod
    def is_of(self, loop: object) -> bool:
        """Return whether this is the runtime of an event loop: asyncio's, or a token of trio's."""

    @abstractmethod
    def coroutines(self) -> Iterator[object]:
        """Return the coroutines of all tasks of the event loop."""

    @abstractmethod
    def soon(self, function: Callable[[], object]) -> None:
        """Call a function in the next iteration of the event loop, in an empty context.

        On trio that would take a task, so the function is called at once.
        """

    @abstractmethod
    def from_thread(self, function: Callable[..., object], *args: object) -> None:
        """Have a function called in the event loop, from any thread or from a signal handler.

        This does not wait. Nothing happens if the event loop is closed.
        """

    @abstractmethod
    def parked(self, hand_over: Callable[[Callable[[], object]], object]) -> Awaitable[None]:
        """Wait until somebody calls the function that ``hand_over`` is given.

        After that the function does nothing. This is what :class:`anyio.Event` is for, at a fifth
        of its memory. Await it at once, within the event loop.
        """
