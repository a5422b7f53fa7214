"""One message at a time to the server: what can be said of a ``send`` that is under way, or was."""

from __future__ import annotations

from functools import partial
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING, Any

from ..runtime.base import nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import TypeAlias

    from ..runtime.base import Cancel, Runtime
    from ..servers.base import Server
    from ..types import Message, Send
    from .deadlines import Deadlines

    #: Starts a task, and takes its first step.
    Start: TypeAlias = Callable[[Coroutine[Any, Any, None]], Any]

__all__ = ["ClientGone", "Sender"]


class ClientGone(Exception):
    """The client has left: ``send`` has raised it, or ``receive`` has returned it."""


class Sender:
    """Sends the messages of one response."""

    __slots__ = (
        "_error", "_sending", "_start", "_times", "begun", "clock", "ended", "prompt", "send",
        "server", "torn",
    )  # fmt: skip

    def __init__(self, server: Server, times: Deadlines, clock: Callable[[], float]) -> None:
        self.server: Server = server
        #: ASGI ``send``. The pump calls it by itself where a coroutine more would be felt.
        self.send: Any = server.send
        self._times = times
        #: The clock of the event loop.
        self.clock: Callable[[], float] = clock
        #: Whether the last message was sent, or nothing can be sent any more: ``send`` has raised.
        self.ended: bool = False
        #: Whether a send was interrupted, and nobody knows how far it came. Nothing more can be
        #: sent then, and the response is not complete.
        self.torn: bool = False
        #: Whether the last send that began has not waited for anything.
        self.prompt: bool = False
        # None: no task takes its first step at once here.
        self._start: Start | None = None
        # Makes a coroutine of a send.
        self._sending: Any = None
        #: The task of a send that was begun at once, and waits.
        self.begun: Any = None
        # What such a send has raised.
        self._error: BaseException | None = None

    async def _send(self, message: Message) -> None:
        times = self._times
        times.sending_since = now = self.clock()
        self.prompt = True  # until whoever drives this sees that it waits
        if now + times.timing.looks < times.wakes:
            times.wake(now + times.timing.looks)
        try:
            if self.server.is_lost():
                raise ConnectionError
            await self.send(message)
        except Exception as exc:
            self.fail(exc)
            raise
        except BaseException:
            self.interrupted()
            raise
        times.sending_since = None
        times.last_write = self.clock()

    def fail(self, error: Exception) -> None:
        """Note that ``send`` has raised.

        :raises ClientGone: for an :class:`OSError`, which some servers raise when the client is
            gone (ASGI HTTP specification 2.4); and for anything if the connection is closed.
        """
        self._times.sending_since = None
        self.ended = True  # whatever it is, the response is beyond repair
        if isinstance(error, OSError) or self.server.is_gone():
            raise ClientGone from None

    def interrupted(self) -> None:
        """Note that a send was interrupted."""
        times = self._times
        times.sending_since = None
        if self.server.sends_at_once:  # nothing was written
            self.ended = times.starting = False
        else:
            self.torn = True

    # -- by a task of its own --------------------------------------------------------------------

    def send_by(self, start: Start | None) -> bool:
        """Begin sends at once, by tasks, from now on. Return whether that can be done.

        :param start: starts a task, and takes its first step; ``None``: that can't be done.
        """
        self._start = start
        if start is not None:
            send = self.send
            self._sending = send if _makes_coroutines(send) else partial(_sending, send)
        return start is not None

    def _begin(self, message: Message, has_ended: Callable[..., object], *args: Any) -> bool:
        """Send a message in a task of its own, which most of the time ends with its first step.

        What is around the server's ``send`` may do anything. So what was begun is neither dropped
        nor done a second time.

        :param has_ended: called when it has ended, if that is later, with the arguments and whether
            all is well.
        :returns: whether it was sent.
        """
        times = self._times
        assert self._start is not None
        times.sending_since = now = self.clock()
        try:
            task = self._start(self._sending(message))
        except BaseException:  # SystemExit leaves the event loop
            self.interrupted()
            raise
        if task.done() and not task.cancelled() and task.exception() is None:
            times.sending_since = None
            times.last_write = now
            return True
        self.prompt, self.begun = False, task
        if now + times.timing.looks < times.wakes:
            times.wake(now + times.timing.looks)
        task.add_done_callback(partial(self._has_ended, has_ended, args))
        del task  # the traceback of what it has raised may have this frame: no cycle
        return False

    def _has_ended(
        self, has_ended: Callable[..., object], args: tuple[Any, ...], task: Any
    ) -> None:
        times = self._times
        self.begun = times.sending_since = None
        try:
            task.result()
        except Exception as exc:
            self.ended, self._error = True, exc
        except BaseException as exc:
            self.interrupted()
            self._error = exc
        else:
            times.last_write = self.clock()
        if self._error is not None:
            if self._error.__traceback__ is not None:  # it begins in this frame: no cycle
                self._error.__traceback__ = self._error.__traceback__.tb_next
            times.handed_over = True  # the watchdog has to know
        has_ended(*args, self._error is None)

    def _raise(self) -> None:
        """Raise what such a send has raised."""
        error, self._error = self._error, None
        try:
            if isinstance(error, Exception):
                self.fail(error)
            if error is not None:
                raise error
        finally:
            del error  # its traceback has this frame: no cycle for the collector

    def take_error(self) -> Exception | None:
        """Return what such a send has raised when the stream was closing, if anybody cares."""
        try:
            self._raise()
        except ClientGone:
            pass
        except Exception as exc:
            return exc
        except BaseException:  # noqa: S110  it was cancelled, as the stream was
            pass
        return None

    # -- the connection --------------------------------------------------------------------------

    def abort_in(self, seconds: float, runtime: Runtime) -> Cancel:
        """Abort the connection if a send is under way in so many seconds.

        This is for servers whose sends can't be cancelled. On others nothing happens.
        """
        if self.server.shields_sends:  # on trio this takes a task
            return runtime.after(seconds, self._abort_send)
        return nothing

    def _abort_send(self) -> None:
        if self._times.sending_since is not None:  # else something else has taken so long
            self.server.abort()


def _makes_coroutines(send: Any) -> bool:
    """Return whether to call a ``send`` makes a coroutine, and does nothing else.

    :func:`inspect.iscoroutinefunction` believes what a function is marked as.
    """
    while isinstance(send, partial):
        send = send.func
    return bool(getattr(getattr(send, "__code__", None), "co_flags", 0) & CO_COROUTINE)


async def _sending(send: Send, message: Message) -> None:
    await send(message)
