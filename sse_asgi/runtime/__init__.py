"""The event loop that is running, asyncio's or trio's, as one interface (``base.py``).

Only this module asks which of the two runs.
"""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop, current_task, get_running_loop
from typing import TYPE_CHECKING

from anyio.lowlevel import RunVar, current_token

if TYPE_CHECKING:
    from .base import Runtime

__all__ = ["current", "of_task"]

_of_loop: RunVar[Runtime] = RunVar("sse_asgi.runtime")
_native_of_loop: RunVar[Runtime] = RunVar("sse_asgi.runtime.native")


def current() -> Runtime:
    """Return the runtime of the running event loop: one object for each loop.

    :raises anyio.NoEventLoopError: no event loop runs in this thread, or this is a callback of
        trio's that no task has made.
    """
    try:
        return _of_loop.get()
    except LookupError:
        made = _make()
        _of_loop.set(made)
        return made


def of_task() -> Runtime:
    """Return the runtime that fits the running task.

    A task of anyio's with scopes around it takes three times the memory of a bare one, in every
    stream that waits. anyio's are needed on trio, and on asyncio if somebody may cancel the stream
    by a scope around it. A server does not: it runs an application in a task of asyncio's, and
    cancels that. Such a task gets :class:`~sse_asgi.runtime.native.NativeRuntime`.
    """
    if not _is_bare_task():
        return current()
    try:
        return _native_of_loop.get()
    except LookupError:
        from .native import NativeRuntime

        made = NativeRuntime(get_running_loop(), current())
        _native_of_loop.set(made)
        return made


def _make() -> Runtime:
    # Not asyncio.get_running_loop(): trio may run in guest mode.
    native = current_token().native_token
    if isinstance(native, AbstractEventLoop):
        from .asyncio import AsyncioRuntime

        return AsyncioRuntime(native)
    from trio.lowlevel import current_trio_token

    from .trio import TrioRuntime

    return TrioRuntime(current_trio_token())


def _is_bare_task() -> bool:
    """Return whether the running task is asyncio's alone, with nothing of anyio's around it."""
    try:
        task = current_task()
    except RuntimeError:  # trio
        return False
    # anyio has no function for this, and has a list: of its tasks, and of those with scopes.
    known = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", None)
    return task is not None and known is not None and task not in known
