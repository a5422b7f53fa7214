"""What streams need of an event loop and anyio has no cheap name for: asyncio's or trio's."""

from __future__ import annotations

import asyncio
import contextvars
import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.lowlevel import RunVar, current_token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def current_loop() -> object:
    """The running event loop, to be kept for the functions below: in a callback that no task has
    made this raises.
    """
    # Not asyncio.get_running_loop(): trio may be a guest in asyncio's.
    return current_token().native_token


def is_asyncio(loop: object) -> bool:
    """Whether ``loop`` is asyncio's, or one that takes its place."""
    return isinstance(loop, asyncio.AbstractEventLoop)


def call_soon(loop: Any, function: Callable[..., object], *args: object) -> None:
    """Have ``function`` called in ``loop``, from any thread, or a signal handler, without waiting.

    Nothing happens where the loop is closed.
    """
    soon = getattr(loop, "run_sync_soon", None) or loop.call_soon_threadsafe
    with suppress(RuntimeError):
        soon(function, *args)


def soon(loop: object) -> Callable[[Callable[[], object]], object]:
    """How to have a function called in ``loop``, from within, after what is going on now: on trio,
    where that would take a task, at once.
    """
    if isinstance(loop, asyncio.AbstractEventLoop):
        # In no context of anybody's: whoever asks for it is not whom it is done for.
        return partial(loop.call_soon, context=contextvars.Context())
    return lambda function: function()


def after(loop: Any, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
    """Call ``function`` in so many seconds, unless what is returned is called before.

    To be called in ``loop``.
    """
    if seconds == math.inf:
        return lambda: None
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.call_later(seconds, function).cancel
    import trio.lowlevel

    scope = trio.CancelScope()
    functions = [function]

    async def call() -> None:
        with scope:
            await trio.sleep(seconds)
            functions.pop()()

    def cancel() -> None:
        functions.clear()  # the task ends when it has its turn, and keeps nothing until then
        scope.cancel()

    trio.lowlevel.spawn_system_task(call)
    return cancel


def repeat(loop: Any, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
    """Call ``function`` every so many seconds, until what is returned is called.

    To be called in ``loop``.
    """
    cancel: Callable[[], object]

    def again() -> None:
        nonlocal cancel
        cancel = after(loop, seconds, again)
        function()

    cancel = after(loop, seconds, again)
    return lambda: cancel()


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def parked(loop: Any, hand_over: Callable[[Callable[[], object]], object]) -> Awaitable[None]:
    """Wait until the function is called that ``hand_over`` is given; from then on it does nothing.

    What :class:`anyio.Event` is for, at a fifth of its memory. To be awaited at once, in ``loop``.
    """
    if isinstance(loop, asyncio.AbstractEventLoop):
        future = loop.create_future()
        hand_over(partial(_set_result, future))
        return future
    return _parked_on_trio(hand_over)


async def _parked_on_trio(hand_over: Callable[[Callable[[], object]], object]) -> None:
    import trio.lowlevel

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


def clock(loop: Any) -> Callable[[], float]:
    """The clock of an event loop, the one that deadlines of cancel scopes use.

    ``anyio.current_time`` looks the event loop up at each call, at ten times the price.
    """
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.time
    import trio.lowlevel

    return trio.lowlevel.current_clock().current_time


def cancel_requests() -> Callable[[], int]:
    """A function that tells how many native cancellations of the calling task are pending.

    Native means by ``Task.cancel()``, not by a cancel scope. trio has none.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return int if task is None else task.cancelling


def of_this_loop(var: RunVar[T], make: Callable[[], T]) -> T:
    """The value of ``var`` in this event loop, made at the first call."""
    try:
        return var.get()
    except LookupError:
        value = make()
        var.set(value)
        return value
