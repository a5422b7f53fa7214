"""One connection after another to the same stream (WHATWG HTML 9.2.3), as bytes."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from .errors import IdleTimeoutError, TooManyReconnectsError
from .requests import Ended, Later
from .states import State, StateChange

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .backoff import Backoff
    from .requests import Connection, Requests

__all__ = ["Link"]

logger: logging.Logger = logging.getLogger("sse_asgi")

T = TypeVar("T")


class _Closed(Exception):
    """Another task has closed the link while this one was waiting."""


class Link:
    """Connects when it is asked to, knows when to connect next, and when to stop.

    Only one task at a time may call :meth:`connect` and :meth:`read`. They raise what is fatal, and
    the link is closed then.
    """

    def __init__(
        self,
        requests: Requests,
        backoff: Backoff,
        *,
        max_reconnects: int | None,
        idle_timeout: float | None,
        tell: Callable[[StateChange], object] | None,
    ) -> None:
        self.state: State = State.CONNECTING
        self.backoff = backoff
        self._requests = requests
        self._max_reconnects = max_reconnects
        self._idle_timeout = math.inf if idle_timeout is None else idle_timeout
        self._tell = tell
        self._connection: Connection | None = None
        self._opened = False  # at least once
        self._next_attempt = -math.inf  # by the clock of the event loop
        self._scope: anyio.CancelScope | None = None

    async def connect(self, last_event_id: str) -> bool:
        """Wait until it is time, and connect. Return whether there is a connection now.

        :raises Exception: what is fatal.
        """
        if not await self._wait():
            return False
        try:
            self._connection = await self._within(
                self._requests.open(last_event_id), self._idle_timeout
            )
        except GeneratorExit:  # nothing can be awaited any more
            raise
        except _Closed:
            return False
        except Ended:
            self._change(State.CLOSED)
        except Later as exc:
            self._retry(exc.error, exc.wait)
        except Exception as exc:
            self._fail(exc)
        except BaseException:
            self._plan()
            raise
        else:
            if self.state is not State.CLOSED:
                self._opened = True
                self._change(State.OPEN)
                return True
            await self.drop()
        return False

    async def _wait(self) -> bool:
        """Wait until it is time to connect. Return whether that makes sense still."""
        seconds = self._next_attempt - anyio.current_time()
        if seconds > 0:
            try:
                await self._within(anyio.sleep(seconds), math.inf)
            except _Closed:
                return False
        return self.state is not State.CLOSED  # it may have been closed when the time was over

    async def read(self) -> bytes:
        """Return the next bytes of the connection; nothing: it is over.

        :raises Exception: what is fatal.
        """
        assert self._connection is not None
        try:
            chunk = await self._within(self._connection.read(), self._idle_timeout)
        except GeneratorExit:
            raise
        except _Closed:
            await self.drop()
        except Exception as exc:
            if isinstance(exc, IdleTimeoutError):
                self._connection.distrust()
            await self.drop()
            self._fail(exc)
        except BaseException:
            await self.drop()
            self._plan()
            raise
        else:
            if chunk is not None:
                self.backoff.failures = 0
                return chunk
            await self.drop()
            if self._max_reconnects == 0:
                self._change(State.CLOSED)
            else:
                self._retry(None)
        return b""

    async def drop(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def close(self, error: Exception | None = None) -> None:
        """Connect no more. Whoever waits in here stops to, and drops the connection."""
        self._change(State.CLOSED, error)
        if self._scope is not None:
            self._scope.cancel()

    async def _within(self, step: Coroutine[Any, Any, T], seconds: float) -> T:
        """Do what may take so many seconds, and what :meth:`close` interrupts.

        :raises IdleTimeoutError: it took longer.
        """
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + seconds) as self._scope:
                return await step
        finally:
            self._scope = None
        if self.state is State.CLOSED:
            raise _Closed
        raise IdleTimeoutError(f"nothing has come for {seconds:g} seconds")

    def _fail(self, error: Exception) -> None:
        """Plan another attempt if an error is one of the network; else raise it."""
        if isinstance(error, IdleTimeoutError) or self._requests.is_lost(
            error, opened=self._opened
        ):
            self._retry(error)
        elif self.state is not State.CLOSED:
            self.close(error)
            raise error

    def _retry(self, error: Exception | None, wait: float = 0.0) -> None:
        """Plan another attempt, if one is left.

        :raises TooManyReconnectsError: none is.
        """
        if self.state is State.CLOSED:
            return
        if self._max_reconnects is not None and self.backoff.failures >= self._max_reconnects:
            last = "the response has ended" if error is None else f"{error}" or repr(error)
            failure = TooManyReconnectsError(
                f"no reconnect is left after {self._max_reconnects} in a row: {last}"
            )
            failure.__cause__ = error
            self.close(failure)
            raise failure
        self._plan(error, wait)

    def _plan(self, error: Exception | None = None, wait: float = 0.0) -> None:
        delay = self.backoff.delay(wait)
        self.backoff.failures += 1
        self._next_attempt = anyio.current_time() + delay
        if self.state is not State.CLOSED:
            self._change(State.CONNECTING, error, delay)

    def _change(
        self, state: State, error: Exception | None = None, delay: float | None = None
    ) -> None:
        if state is State.CLOSED is self.state:
            return
        self.state = state
        if self._tell is not None:
            try:
                self._tell(StateChange(state, error, delay))
            except Exception:
                logger.exception("on_state_change of an EventSource has raised")
