"""The event loop that a hub belongs to."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from ..errors import HubClosedError
from ..runtime import current

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ..runtime.base import Runtime

__all__ = ["Affinity"]

T = TypeVar("T")

_OPENING = "async with hub, or lifespan=hub.lifespan,"


class Affinity:
    """The event loop that a hub belongs to: the one in which it is used first.

    When the hub has no users and is not open, another event loop may use it.

    :param in_use: returns whether there are subscriptions that have begun.
    """

    def __init__(self, in_use: Callable[[], bool]) -> None:
        #: Functions that return whether the hub has users.
        self.in_use: list[Callable[[], bool]] = [in_use]
        self._token: Any = None
        self._thread: int | None = None
        #: The event loop; ``None``: the hub has not been used yet.
        self.runtime: Runtime | None = None
        #: The clock of that event loop.
        self.clock: Callable[[], float] = float
        #: Whether the hub is open.
        self.open: bool = False
        #: Whether the hub is closed. It may be opened again.
        self.closed: bool = False

    def use(self) -> None:
        """Bind the hub to the running event loop.

        :raises HubClosedError: the hub is closed.
        :raises RuntimeError: the hub is in use in another event loop; no event loop is running
            (:class:`anyio.NoEventLoopError`).
        """
        if self.closed:
            raise HubClosedError(f"the hub is closed: {_OPENING} opens it")
        if self.runtime is not None and self.runtime.runs_here():
            return
        try:
            runtime = current()
        except anyio.NoEventLoopError:
            raise anyio.NoEventLoopError(
                "no event loop is running here: subscribe and publish in a coroutine or a factory, "
                "not while a module is loaded; from another thread: hub.publish_from_thread()"
            ) from None
        if runtime is self.runtime:
            return
        if self.open or any(in_use() for in_use in self.in_use):
            raise RuntimeError("the hub belongs to another event loop: hub.publish_from_thread()")
        self.runtime, self.clock = runtime, runtime.clock
        self._token, self._thread = current_token(), threading.get_ident()

    def run_from_thread(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function in the event loop, from another thread, and wait for it.

        :raises RuntimeError: this is the thread of the event loop.
        :raises HubClosedError: the hub has no event loop yet, or that is closed.
        """
        if self._token is None:
            raise HubClosedError(f"the hub is not in use yet: {_OPENING} opens it")
        if threading.get_ident() == self._thread:
            raise RuntimeError("this is the event loop's own thread: await hub.publish()")
        try:
            return anyio.from_thread.run(function, token=self._token)
        except anyio.RunFinishedError:
            raise HubClosedError("the event loop of the hub is closed") from None
