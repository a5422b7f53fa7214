"""How a process learns that its server is stopping.

A server that gets SIGTERM waits for its responses to end, and an event stream ends only when it
is told to. ASGI has no message for that: ``lifespan.shutdown`` comes after the last response. So
while streams are open, the signal handlers that the server installed are chained: ours tells the
streams and then calls the server's. Handlers are put back when the last stream ends.

Where there is no signal (a server in another thread, one that was stopped by a limit or by its
program, or that handles signals in another process), the server is watched, if it is one that can
be: see ``servers/running.py``. And there is :meth:`Shutdown.drain`.
"""

from __future__ import annotations

import math
import signal
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio.lowlevel import RunVar, checkpoint

from .runtime import current, of_this_loop
from .servers.running import stopping_servers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import TypeGuard

    from .runtime.base import Runtime

__all__ = ["Shutdown"]

#: Called in its own event loop with the grace period in seconds that drain() was given, if any.
Listener: TypeAlias = "Callable[[float | None], None]"

Handler: TypeAlias = "Callable[[int, FrameType | None], Any]"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: How often, in seconds, to look whether a server is stopping that may not say so. uvicorn does
#: not look more often itself.
WATCH = 0.1

#: How soon to look for a server again where none was found.
LOOK_AGAIN = 1.0

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
        event = anyio.Event()

        def listener(grace: float | None) -> None:
            event.set()

        self.listen(listener, at_once=True)
        try:
            if self.draining:
                await checkpoint()
            else:
                await event.wait()
        finally:
            self.forget(listener)

    # What follows is for the supervisor.

    def listen(self, listener: Listener, *, at_once: bool = False) -> None:
        """Call ``listener`` in this event loop when draining starts; look at ``draining`` too.

        It waits for its turn where not all are told at once, unless it is to hear ``at_once``.
        """
        self._listeners[listener] = current()
        if at_once:
            self._hear_at_once.add(listener)
        _servers().attach(self)

    def forget(self, listener: Listener) -> None:
        """Undo :meth:`listen`, in the same event loop."""
        runtime = self._listeners.pop(listener)
        self._hear_at_once.discard(listener)
        if (queue := self._queues.get(runtime)) is not None:
            queue.forget(listener)
            if not queue.waiting:
                del self._queues[runtime]
        _servers().detach(self)

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
                listener(grace)
            else:
                if runtime not in self._queues:
                    self._queues[runtime] = _Queue(runtime, self._streams_per_second)
                self._queues[runtime].append(listener, grace)


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
                listener(grace)
            self.forget(listener)


class _Servers:
    """What the servers of this event loop let it know, while streams are open."""

    def __init__(self) -> None:
        self.shutdown = Shutdown()
        self._stopping = False
        self._attached: Counter[Shutdown] = Counter()
        self._runtime = current()
        self._see_stopping: Callable[[], bool] | None = None
        self._looked = -math.inf
        self._stop_watching: Callable[[], object] | None = None

    def attach(self, shutdown: Shutdown) -> None:
        self._attached[shutdown] += 1
        # Handlers can be installed in the main thread only, and they run there.
        handles_signals = threading.current_thread() is threading.main_thread()
        if handles_signals:
            self._chain()
        stopping = self._stopping or self._sees_stopping()
        # One that is shared with the main thread may have been told there.
        if stopping or handles_signals or shutdown is self.shutdown:
            shutdown.note(stopping)
        if self._stop_watching is None and self._see_stopping is not None:
            self._stop_watching = self._runtime.every(WATCH, self._watch)

    def detach(self, shutdown: Shutdown) -> None:
        self._attached[shutdown] -= 1
        if not self._attached[shutdown]:
            del self._attached[shutdown]
        if not self._attached:
            self._restore()
            if self._stop_watching is not None:
                self._stop_watching()
                self._stop_watching = None

    def _sees_stopping(self) -> bool:
        """Whether a new stream comes to servers that are stopping."""
        see = self._see_stopping
        if see is not None and not see():
            return False
        # Those that were known are about to go, and another may have come. Where none is known,
        # not for every stream: this looks at all tasks.
        if see is not None or self._runtime.clock() >= self._looked + LOOK_AGAIN:
            self._looked = self._runtime.clock()
            self._see_stopping = see = stopping_servers()
        return see is not None and see()

    def _watch(self) -> None:
        if self._see_stopping is not None and self._see_stopping():
            self._tell()

    def _tell(self) -> None:
        for shutdown in list(self._attached):
            shutdown.note(True)

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
        self._tell()
        chained(number, frame)


def _is_stopping(handler: object) -> bool:
    """Whether the server that ``handler`` belongs to is stopping already.

    uvicorn's handler is a method of its Server, and a request may arrive between the signal and
    the moment the server stops accepting.
    """
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True


_of_loop: RunVar[_Servers] = RunVar("sse_asgi.shutdown")


def _servers() -> _Servers:
    return of_this_loop(_of_loop, _Servers)


def server_shutdown() -> Shutdown:
    """The Shutdown of the running event loop."""
    return _servers().shutdown
