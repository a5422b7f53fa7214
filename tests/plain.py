"""A server that does what ASGI says and no more, with one request whose client may do anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.lowlevel import checkpoint, current_token

from .streams import http_scope


def is_an_event(message: Any) -> bool:
    return b"data" in message.get("body", b"")


class Plain:
    """A request as such a server runs it: on asyncio, in a task that anyio does not know.

    ::

        async with Plain(app) as server:
            await server.has(b"data: a")

    Leaving it disconnects the client. It raises what the application has raised, unless the test
    has read :attr:`error`.

    :param stuck: whether the client does not take a message before :meth:`resume`.
    :param receive: answers the application in the place of the client.
    :param scope: what else the ASGI scope has.
    """

    def __init__(
        self,
        app: Any,
        *,
        stuck: Callable[[Any], bool] = lambda message: False,
        receive: Any = None,
        **scope: Any,
    ) -> None:
        self._app = app
        self._scope = http_scope(**scope)
        self._receive = receive or self._wait_for_the_client
        self._tasks = anyio.create_task_group()
        self._task: asyncio.Task[None] | None = None
        self._gone, self._returned = anyio.Event(), anyio.Event()
        self._goes_on, self._stuck = anyio.Event(), stuck
        self._error: BaseException | None = None
        #: Set when a message is not taken.
        self.waits = anyio.Event()
        #: What the client has taken, and when.
        self.messages: list[Any] = []
        self.times: list[float] = []
        #: How long it took until the application returned, in seconds.
        self.took = 0.0
        #: Whether it has ended by ``Task.cancel()``.
        self.cancelled = False

    # -- the client ------------------------------------------------------------------------------

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def complete(self) -> bool:
        last = self.messages[-1] if self.messages else {}
        return last.get("type") == "http.response.body" and not last.get("more_body")

    async def has(self, wanted: bytes) -> None:
        """Wait until the client has that."""
        with anyio.fail_after(20):
            while wanted not in self.body:
                await anyio.sleep(0.001)

    async def gets_stuck(self) -> None:
        """Wait until a message is not taken."""
        with anyio.fail_after(20):
            await self.waits.wait()

    def disconnect(self) -> None:
        self._gone.set()

    def resume(self) -> None:
        self._goes_on.set()

    # -- the server ------------------------------------------------------------------------------

    @property
    def returned(self) -> bool:
        return self._returned.is_set()

    @property
    def error(self) -> BaseException | None:
        """What the application has raised."""
        error, self._error = self._error, None
        return error

    async def returns(self, within: float = 5) -> None:
        """Wait until the application has returned, or raised."""
        with anyio.fail_after(within):
            await self._returned.wait()

    def cancel(self) -> None:
        """Cancel it by ``Task.cancel()``."""
        assert self._task is not None
        self._task.cancel()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        await checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()
        self.resume()
        if exc is not None:
            self._tasks.cancel_scope.cancel()
            if self._task is not None:
                self._task.cancel()
        await self._tasks.__aexit__(exc_type, exc, traceback)
        if exc is None and (error := self.error) is not None:
            raise error

    async def _run(self) -> None:
        began = anyio.current_time()
        try:
            if isinstance(current_token().native_token, asyncio.AbstractEventLoop):
                self._task = asyncio.ensure_future(self._serve())
                await asyncio.wait([self._task])
                self.cancelled = self._task.cancelled()
            else:
                await self._serve()
        finally:
            self.took = anyio.current_time() - began
            self._returned.set()

    async def _serve(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:
            self._error = exc

    async def _wait_for_the_client(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await checkpoint()
        if self._stuck(message) and not self._goes_on.is_set():
            self.waits.set()
            await self._goes_on.wait()
        self.messages.append(message)
        self.times.append(anyio.current_time())


def in_a_scope(app: Any, scope: anyio.CancelScope) -> Any:
    """Where a middleware has a cancel scope around an application, and may cancel it."""

    async def wrapper(*args: Any) -> None:
        with scope:
            await app(*args)

    return wrapper
