"""How a process learns that its server is stopping.

A server that gets SIGTERM waits for its responses to end, and an event stream ends only when it
is told to. ASGI has no message for that: ``lifespan.shutdown`` comes after the last response. So
while streams are open, the signal handlers that the server installed are chained: ours tells the
streams and then calls the server's. Handlers are put back when the last stream ends. Where there
is no handler to chain (another thread, a server that handles signals in another process),
:meth:`Shutdown.drain` is the way to say it.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio.lowlevel import RunVar, checkpoint

from .loops import call_soon, current_loop, of_this_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import TypeGuard

__all__ = ["Shutdown"]

#: Called in its own event loop with the grace period in seconds that drain() was given, if any.
Listener: TypeAlias = "Callable[[float | None], None]"

Handler: TypeAlias = "Callable[[int, FrameType | None], Any]"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Shutdown:
    """How an application says, or learns, that it is stopping.

    Every event loop has one of its own, used by the streams that were given no other; it learns
    from the signals of the server. Make one to say so yourself, or to wait for it::

        shutdown = Shutdown()
        app = sse_app(clock, shutdown=shutdown)

    It may serve any number of applications, event loops and threads.
    """

    def __init__(self) -> None:
        self._said = False
        # Apart from what was said: a signal speaks of one server, and another may follow it.
        self._signalled = False
        self._listeners: dict[Listener, object] = {}

    def __repr__(self) -> str:
        return f"<Shutdown draining={self.draining} streams={len(self._listeners)}>"

    @property
    def draining(self) -> bool:
        """Whether streams are being told to end. A stream that starts now ends at once."""
        return self._said or self._signalled

    def drain(self, grace: float | None = None) -> None:
        """Tell every stream to end. Safe from any thread and from a signal handler.

        :param grace: seconds that sources get to end by themselves, instead of the
            ``shutdown_grace_period`` of each application. Called again, the earlier end counts.
        :raises ValueError: for a negative grace.
        """
        if grace is not None and not grace >= 0:
            raise ValueError(f"grace must be a number of seconds >= 0, not {grace!r}")
        self._said = True
        self._notify(grace)

    async def wait(self) -> None:
        """Wait until :meth:`drain` is called or the server is told to stop."""
        event = anyio.Event()

        def listener(grace: float | None) -> None:
            event.set()

        self.listen(listener)
        try:
            if self.draining:
                await checkpoint()
            else:
                await event.wait()
        finally:
            self.forget(listener)

    # What follows is for the supervisor.

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` in this event loop when draining starts; look at ``draining`` too."""
        self._listeners[listener] = current_loop()
        _server_signals().attach(self)

    def forget(self, listener: Listener) -> None:
        """Undo :meth:`listen`, in the same event loop."""
        del self._listeners[listener]
        _server_signals().detach(self)

    def signalled(self, stopping: bool) -> None:
        """Note whether the server was told to stop."""
        if stopping and not self._signalled:
            self._notify()
        self._signalled = stopping

    def _notify(self, grace: float | None = None) -> None:
        # One call an event loop: each wakes its loop by a system call. No lock: this may run in
        # a signal handler, on top of a thread that holds it.
        for loop in set(self._listeners.values()):
            call_soon(loop, self._notify_here, loop, grace)

    def _notify_here(self, loop: object, grace: float | None) -> None:
        for listener, its_loop in list(self._listeners.items()):
            if its_loop is loop:
                listener(grace)


class _ServerSignals:
    """The signal handlers of the server in this event loop, chained while streams are open."""

    def __init__(self) -> None:
        self.shutdown = Shutdown()
        self._stopping = False
        self._attached: Counter[Shutdown] = Counter()

    def attach(self, shutdown: Shutdown) -> None:
        self._attached[shutdown] += 1
        # Handlers can be installed in the main thread only, and they run there.
        if threading.current_thread() is threading.main_thread():
            self._chain()
            shutdown.signalled(self._stopping)

    def detach(self, shutdown: Shutdown) -> None:
        self._attached[shutdown] -= 1
        if not self._attached[shutdown]:
            del self._attached[shutdown]
        if not self._attached:
            self._restore()

    def _chain(self) -> None:
        # Looked at anew with every stream: a server puts the handlers that it found back when
        # it stops, and the next one installs its own.
        found = {number: signal.getsignal(number) for number in _SIGNALS}
        another = not any(map(self._is_ours, found.values()))
        if another:
            self._stopping = False  # that was the server of before, if there was one
        for number, handler in found.items():
            if self._is_ours(handler) or handler is signal.default_int_handler:
                continue
            if callable(handler):
                signal.signal(number, partial(self._handle, handler))
        # Only now: the signal may come at any moment, and until here it went to the server alone.
        if another and any(map(_is_stopping, found.values())):
            self._stopping = True

    def _restore(self) -> None:
        for number in _SIGNALS:
            # Ours only: somebody may have chained it in turn, and will call it.
            while self._is_ours(link := signal.getsignal(number)):
                signal.signal(number, link.args[0])

    def _is_ours(self, handler: object) -> TypeGuard[partial[Any]]:
        return isinstance(handler, partial) and handler.func == self._handle

    def _handle(self, chained: Handler, number: int, frame: FrameType | None) -> None:
        # Each link carries the handler that it was put before: others may put theirs in between.
        self._stopping = True
        for shutdown in list(self._attached):
            shutdown.signalled(True)
        chained(number, frame)


def _is_stopping(handler: object) -> bool:
    """Whether the server that ``handler`` belongs to is stopping already.

    uvicorn's handler is a method of its Server, and a request may arrive between the signal and
    the moment the server stops accepting.
    """
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True


_signals: RunVar[_ServerSignals] = RunVar("sse_asgi.shutdown")


def _server_signals() -> _ServerSignals:
    return of_this_loop(_signals, _ServerSignals)


def server_shutdown() -> Shutdown:
    """The Shutdown of the running event loop."""
    return _server_signals().shutdown
