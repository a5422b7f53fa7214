"""How an event loop learns that its server is stopping.

A server that gets SIGTERM waits for its responses to end, and an event stream ends only when it
is told to. ASGI has no message for that: ``lifespan.shutdown`` comes after the last response. So
while streams are open, the signal handlers that the server installed are chained: ours tells the
streams and then calls the server's. Handlers are put back when the last stream ends.

Where there is no signal, the server is watched, if it is one that can be watched: see
``servers/running.py``. There is none if the server runs in another thread, if it was stopped by a
limit or by its program, or if it handles signals in another process.
"""

from __future__ import annotations

import math
import signal
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from .runtime import current

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Protocol, TypeGuard

    class Attached(Protocol):
        """What is told whether the server is stopping: a ``Shutdown``."""

        def note(self, stopping: bool) -> None:
            """Note whether the server was told to stop."""
            ...


__all__ = ["ServerSignals"]

Handler: TypeAlias = "Callable[[int, FrameType | None], Any]"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: How often, in seconds, to check a server that may give no signal. uvicorn itself does not look
#: more often.
WATCH = 0.1

#: How soon to look for a server again if none was found.
LOOK_AGAIN = 1.0


class ServerSignals:
    """Tells each ``Shutdown`` of an event loop when its servers stop, while streams are open."""

    def __init__(self) -> None:
        self._stopping = False
        self._attached: Counter[Attached] = Counter()
        self._runtime = current()
        self._see_stopping: Callable[[], bool] | None = None
        self._looked = -math.inf
        self._stop_watching: Callable[[], object] | None = None

    def attach(self, shutdown: Attached, *, is_own: bool) -> None:
        """Tell ``shutdown`` when the server stops. It may be attached several times.

        :param is_own: whether it belongs to this event loop alone.
        """
        self._attached[shutdown] += 1
        # Handlers can be installed in the main thread only, and they run there.
        handles_signals = threading.current_thread() is threading.main_thread()
        if handles_signals:
            self._chain()
        stopping = self._stopping or self._sees_stopping()
        # The main thread may have told a shared one: do not take that back.
        if stopping or handles_signals or is_own:
            shutdown.note(stopping)
        if self._stop_watching is None and self._see_stopping is not None:
            self._stop_watching = self._runtime.every(WATCH, self._watch)

    def detach(self, shutdown: Attached) -> None:
        """Undo one :meth:`attach`. The last one puts the handlers of the server back."""
        self._attached[shutdown] -= 1
        if not self._attached[shutdown]:
            del self._attached[shutdown]
        if not self._attached:
            self._restore()
            if self._stop_watching is not None:
                self._stop_watching()
                self._stop_watching = None
            if self._see_stopping is not None:
                # It holds the server, which holds the event loop: neither would be freed.
                self._see_stopping, self._looked = None, -math.inf

    def _sees_stopping(self) -> bool:
        """Return whether a new stream comes to servers that are stopping."""
        see = self._see_stopping
        if see is not None and not see():
            return False
        # The known servers are stopping, so look for a new one. If none is known, look only now and
        # then: this goes through all tasks.
        if see is not None or self._runtime.clock() >= self._looked + LOOK_AGAIN:
            self._looked = self._runtime.clock()
            from .servers.running import stopping_servers  # not before there is a stream

            self._see_stopping = see = stopping_servers()
        return see is not None and see()

    def _watch(self) -> None:
        if self._see_stopping is not None and self._see_stopping():
            self._tell()

    def _tell(self) -> None:
        for shutdown in list(self._attached):
            shutdown.note(True)

    def _chain(self) -> None:
        # Each stream looks anew: a server puts the handlers that it found back when it stops, and
        # the next one installs its own.
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
            # Only ours: somebody else may have chained it, and will call it.
            while self._is_ours(link := signal.getsignal(number)):
                signal.signal(number, link.args[0])

    def _is_ours(self, handler: object) -> TypeGuard[partial[Any]]:
        return isinstance(handler, partial) and handler.func == self._handle

    def _handle(self, chained: Handler, number: int, frame: FrameType | None) -> None:
        # Each partial holds the handler that it has replaced: others may put theirs in between.
        self._stopping = True
        self._tell()
        chained(number, frame)


def _is_stopping(handler: object) -> bool:
    """Return whether the server that ``handler`` belongs to is stopping already.

    uvicorn's handler is a method of its Server, and a request may arrive between the signal and
    the moment the server stops accepting.
    """
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True
