"""How an application says, or learns, that it is stopping: :class:`Shutdown`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from .runtime import current
from .signals import ServerSignals

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from .runtime.base import Runtime

    class Listener(Protocol):
        """What is told to end, such as a stream. A bound method would take more memory."""

        def shut_down(self, grace: float | None) -> None:
            """End within ``grace`` seconds. ``None``: within a grace period of the listener's own.

            This is called in the event loop of the listener.
            """
            ...


__all__ = ["Shutdown", "server_shutdown"]


#: With ``streams_per_second``: how often, in seconds, some more streams are told to end.
TICK = 0.05


class Shutdown:
    """Tell the streams of an application that it is stopping, or wait for that.

    Every event loop has a Shutdown that learns from the signals of the server. A stream listens to
    it unless it was given another. Make one to tell streams to end, or to wait for a shutdown::

        shutdown = Shutdown()
        app = sse_app(clock, shutdown=shutdown)

    A Shutdown may serve any number of applications, event loops and threads.

    :param streams_per_second: how many streams of an event loop are told to end in a second, the
        oldest first, so that their clients do not all reconnect at once. The server has to wait as
        long as that takes. ``None``: no limit.
    :raises TypeError: for a limit that is not a number.
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
        # Not the same as `_said`: this is about one server, and another may follow it.
        self.signalled: bool = False
        self.is_of_loop: bool = False  # and of no other
        self._listeners: dict[Listener, Runtime] = {}  # with the runtime of its event loop
        self._hear_at_once: set[Listener] = set()
        self._queues: dict[Runtime, _Queue] = {}  # of event loops with listeners still to tell

    def __repr__(self) -> str:
        streams = len(self._listeners) - len(self._hear_at_once)
        return f"<Shutdown draining={self.draining} streams={streams}>"

    @property
    def draining(self) -> bool:
        """Whether streams are told to end. A stream that starts now ends at once."""
        return self._said or self.signalled

    def drain(self, grace: float | None = None) -> None:
        """Tell every stream to end. Any thread and any signal handler may call this.

        :param grace: how many seconds sources have to end by themselves, instead of the
            ``shutdown_grace_period`` of each application. After a second call the earlier end
            counts.
        :raises TypeError: for a grace that is not a number.
        :raises ValueError: for a negative grace.
        """
        if grace is not None:
            if not isinstance(grace, (int, float)) or isinstance(grace, bool):
                raise TypeError(f"grace must be a number of seconds or None, not {grace!r}")
            if not grace >= 0:
                raise ValueError(f"grace must be a number of seconds >= 0, not {grace!r}")
        self._said = True
        self._notify(grace)

    async def wait(self) -> None:
        """Wait until :meth:`drain` is called or the server is told to stop.

        ``streams_per_second`` does not delay this.
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

    # The supervisor uses the methods that follow.

    def listen(
        self, listener: Listener, runtime: Runtime | None = None, *, at_once: bool = False
    ) -> None:
        """Call ``listener`` in this event loop when draining starts.

        The caller checks :attr:`draining` too, since draining may have started before. With
        ``streams_per_second`` the listener is told after those before it, unless ``at_once``.
        """
        runtime = (runtime or current()).of_loop
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
        """Note whether the server is stopping, and tell every listener if that is new."""
        if stopping and not self.signalled:
            self._notify()
        self.signalled = stopping

    def _notify(self, grace: float | None = None) -> None:
        # One call for each event loop, since a call wakes the loop by a system call. No lock: this
        # may run in a signal handler, which has interrupted the thread that holds the lock. Other
        # threads may listen meanwhile: a copy is made in one step, on free-threaded builds too.
        for runtime in set(self._listeners.copy().values()):
            runtime.from_thread(self._notify_here, runtime, grace)

    def _notify_here(self, runtime: Runtime, grace: float | None) -> None:
        for listener, its_runtime in self._listeners.copy().items():
            if its_runtime is not runtime:
                continue
            if self._streams_per_second is None or listener in self._hear_at_once:
                listener.shut_down(grace)
            else:
                if runtime not in self._queues:
                    self._queues[runtime] = _Queue(runtime, self._streams_per_second)
                self._queues[runtime].append(listener, grace)


class _Waits:
    """A listener that waits in :meth:`Shutdown.wait`."""

    def __init__(self) -> None:
        self.event = anyio.Event()

    def shut_down(self, grace: float | None) -> None:
        self.event.set()


class _Queue:
    """The listeners of one event loop that wait to be told, so many in a second."""

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
            self._ticked = self._runtime.clock() + TICK  # the first tick tells one
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
