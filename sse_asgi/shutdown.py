"""How an application says, or learns, that it is stopping: :class:`Shutdown`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.lowlevel import checkpoint

from .runtime import current
from .signals import ServerSignals

if TYPE_CHECKING:
    from collections.abc import Callable

    from .runtime.base import Runtime

__all__ = ["Shutdown", "server_shutdown"]


class Listener(Protocol):
    """What is told to end: a stream. It is an object since a method kept is memory for each."""

    def shut_down(self, grace: float | None) -> None:
        """End within so many seconds, if :meth:`Shutdown.drain` was given them.

        This is called in the event loop of the listener.
        """
        ...


#: How often, in seconds, to tell some streams to end where not all are told at once.
TICK = 0.05


class Shutdown:
    """How an application says, or learns, that it is stopping.

    Every event loop has one of its own, used by the streams that were given no other; it learns
    from the signals of the server. Make one to say so yourself, or to wait for it::

        shutdown = Shutdown()
        app = sse_app(clock, shutdown=shutdown)

    It may serve any number of applications, event loops and threads.

    :param streams_per_second: how many streams are told to end in a second, in each event loop,
        the oldest first, so that their clients do not all come back at once; ``None``: no limit.
        Give the server as long as that takes.
    :raises TypeError: for what is no number.
    :raises ValueError: for a limit that is not above 0.
    """

    def __init__(self, *, streams_per_second: float | None = None) -> None:
        if streams_per_second is not None:
            if not isinstance(streams_per_second, (int, float)) or isinstance(
                streams_per_second, bool
            ):
                raise TypeError(
                    f"streams_per_second must be a number or None, not {streams_per_second!r}"
                )
            if not streams_per_second > 0:
                raise ValueError(f"streams_per_second must be > 0, not {streams_per_second!r}")
        self._streams_per_second = None if streams_per_second == math.inf else streams_per_second
        self._said = False
        # Apart from what was said: this is about one server, and another may follow it.
        self.signalled: bool = False
        self.is_of_loop: bool = False  # and of no other
        self._listeners: dict[Listener, Runtime] = {}  # and their event loops
        self._hear_at_once: set[Listener] = set()
        self._queues: dict[Runtime, _Queue] = {}  # of the event loops where not all are told yet

    def __repr__(self) -> str:
        return f"<Shutdown draining={self.draining} streams={len(self._listeners)}>"

    @property
    def draining(self) -> bool:
        """Whether streams are being told to end. A stream that starts now ends at once."""
        return self._said or self.signalled

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
        """Wait until :meth:`drain` is called or the server is told to stop.

        Whoever waits is told at once, whatever ``streams_per_second`` says.
        """
        listener = _Waits()
        self.listen(listener, at_once=True)
        try:
            if self.draining:
                await checkpoint()
            else:
                await listener.event.wait()
        finally:
            self.forget(listener)

    # What follows is for the supervisor.

    def listen(
        self, listener: Listener, runtime: Runtime | None = None, *, at_once: bool = False
    ) -> None:
        """Call ``listener`` in this event loop when draining starts; look at ``draining`` too.

        It waits for its turn where not all are told at once, unless it is to hear ``at_once``.
        """
        runtime = runtime or current()
        self._listeners[listener] = runtime
        if at_once:
            self._hear_at_once.add(listener)
        runtime.own(ServerSignals).attach(self, is_own=self.is_of_loop)

    def forget(self, listener: Listener) -> None:
        """Undo :meth:`listen`, in the same event loop."""
        runtime = self._listeners.pop(listener)
        self._hear_at_once.discard(listener)
        if (queue := self._queues.get(runtime)) is not None:
            queue.forget(listener)
            if not queue.waiting:
                del self._queues[runtime]
        runtime.own(ServerSignals).detach(self)

    def note(self, stopping: bool) -> None:
        """Note whether the server was told to stop."""
        if stopping and not self.signalled:
            self._notify()
        self.signalled = stopping

    def _notify(self, grace: float | None = None) -> None:
        # One call an event loop: each wakes its loop by a system call. No lock: this may run in
        # a signal handler, on top of a thread that holds it.
        for runtime in set(self._listeners.values()):
            runtime.from_thread(self._notify_here, runtime, grace)

    def _notify_here(self, runtime: Runtime, grace: float | None) -> None:
        for listener, its_runtime in list(self._listeners.items()):
            if its_runtime is not runtime:
                continue
            if self._streams_per_second is None or listener in self._hear_at_once:
                listener.shut_down(grace)
            else:
                if runtime not in self._queues:
                    self._queues[runtime] = _Queue(runtime, self._streams_per_second)
                self._queues[runtime].append(listener, grace)


class _Waits:
    """Somebody who waits in :meth:`Shutdown.wait`."""

    def __init__(self) -> None:
        self.event = anyio.Event()

    def shut_down(self, grace: float | None) -> None:
        self.event.set()


class _Queue:
    """Tells the listeners of one event loop, so many a second."""

    def __init__(self, runtime: Runtime, per_second: float) -> None:
        self._runtime = runtime
        self._per_second = per_second
        self._allowance = 1.0
        self._ticked = 0.0
        self.waiting: dict[Listener, list[float | None]] = {}
        self._stop: Callable[[], object] | None = None

    def append(self, listener: Listener, grace: float | None) -> None:
        self.waiting.setdefault(listener, []).append(grace)
        if self._stop is None:
            self._ticked = self._runtime.clock() + TICK  # one at the first tick
            self._stop = self._runtime.every(TICK, self._tell_some)

    def forget(self, listener: Listener) -> None:
        self.waiting.pop(listener, None)
        if not self.waiting and self._stop is not None:
            self._stop()
            self._stop = None

    def _tell_some(self) -> None:
        now = self._runtime.clock()
        self._allowance += max(now - self._ticked, 0) * self._per_second
        self._ticked = now
        while self._allowance >= 1 and self.waiting:
            self._allowance -= 1
            listener = next(iter(self.waiting))
            for grace in self.waiting[listener]:
                listener.shut_down(grace)
            self.forget(listener)


def server_shutdown(runtime: Runtime) -> Shutdown:
    """Return the Shutdown that belongs to an event loop."""
    return runtime.own(_of_loop)


def _of_loop() -> Shutdown:
    shutdown = Shutdown()
    shutdown.is_of_loop = True
    return shutdown
