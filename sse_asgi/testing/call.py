"""A call of an ASGI application in a task of its own: what a server does, in the same process."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import anyio
from anyio.lowlevel import checkpoint

from ..runtime import current
from ..runtime.detached import DetachedTask

if TYPE_CHECKING:
    from ..types import ASGIApp, Message, Scope

__all__ = ["BUFFER_SIZE", "AppCall", "check_application", "http_scope"]

#: How many bytes may lie unread in one direction before the sender waits: the high-water mark of
#: the transports of asyncio, and so of most servers.
BUFFER_SIZE = 65536


class AppCall:
    """One request to an application, and its response.

    The client puts the body of the request in with :meth:`feed` and :meth:`end_request`. What it
    waits for else, it looks for after each :meth:`wait_for_change`.

    :param app: the ASGI application.
    :param scope: the ASGI scope, of the type ``http``.
    :param is_full: says whether ``send`` has to wait for the client to read. After a change of
        its answer, call :meth:`notify`.
    :param on_body: is given the body of each message, before :attr:`complete` is set. If somebody
        waits for it, call :meth:`notify`. Who is woken all the time for nothing may never be
        cancelled on asyncio.
    """

    def __init__(
        self,
        app: ASGIApp,
        scope: Scope,
        *,
        is_full: Callable[[], bool],
        on_body: Callable[[bytes], None],
    ) -> None:
        self._app: ASGIApp | None = app
        self._scope = scope
        self._is_full = is_full
        self._on_body = on_body
        self._request: deque[bytes] = deque()
        self._request_complete = False  # the client has sent all of it
        self._request_received = False  # and the application has got all of it
        self._task: DetachedTask | None = None
        self._changed = anyio.Event()
        #: The message that has started the response.
        self.start: Message | None = None
        #: How many bytes of the request the application has not received yet.
        self.unreceived: int = 0
        #: Whether the client has gone.
        self.disconnected: bool = False
        #: Whether the response has ended regularly, by ``more_body=False``.
        self.complete: bool = False
        #: Whether the application has returned, or raised.
        self.returned: bool = False

    # -- for the client --------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the application has been called."""
        return self._task is not None

    def run(self) -> None:
        """Call the application, with the context variables of the caller."""
        self._task = DetachedTask(current(), self._run)

    def feed(self, body: bytes) -> None:
        """Send more of the body of the request. Each part becomes a message."""
        if body:
            self._request.append(body)
            self.unreceived += len(body)
            self.notify()

    def end_request(self) -> None:
        """Say that the request is complete."""
        self._request_complete = True
        self.notify()

    async def wait_for_change(self) -> None:
        """Wait until the application has done something, or somebody has called :meth:`notify`."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all who wait for a change."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def disconnect(self) -> None:
        """Tell the application that the client has gone."""
        self.disconnected = True
        self.notify()

    async def wait_until_returned(self) -> None:
        """Wait until the application has returned, or raised."""
        while not self.returned:
            await self._changed.wait()

    async def cancel(self) -> None:
        """Cancel the application, unless it has returned, and wait until it has."""
        if self._task is not None:
            self._task.cancel()
            await self._task.join()

    def take_error(self) -> BaseException | None:
        """Return the exception of the application, once."""
        if self._task is None or self._task.error is None:
            return None
        error, self._task.error = self._task.error, None
        return error

    # -- for the application ---------------------------------------------------------------------

    async def _run(self) -> None:
        app, self._app = self._app, None  # and what it refers to: this may be in a cycle
        assert app is not None
        try:
            await app(self._scope, self._receive, self._send)
        finally:
            self.returned = True
            self.notify()

    async def _receive(self) -> Message:
        while not self._request_received:
            if self._request or self._request_complete:
                body = self._request.popleft() if self._request else b""
                self.unreceived -= len(body)
                self._request_received = self._request_complete and not self._request
                self.notify()
                more = not self._request_received
                return {"type": "http.request", "body": body, "more_body": more}
            if self.disconnected or self.complete:
                break
            await self._changed.wait()
        while not (self.disconnected or self.complete):
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await checkpoint()
        while self._is_full() and not self.disconnected:
            await self._changed.wait()
        if self.disconnected:
            if self._scope["asgi"].get("spec_version", "2.0") >= "2.4":
                raise OSError("the client has disconnected")
            return
        if message["type"] == "http.response.start":
            if self.start is not None:
                raise RuntimeError("the response has started already")
            self.start = message
            self.notify()
        elif message["type"] == "http.response.body":
            if self.start is None:
                raise RuntimeError("the response has not started")
            if self.complete:
                raise RuntimeError("the response is complete")
            self._on_body(message.get("body", b""))
            if not message.get("more_body", False):
                self.complete = True
                self.notify()
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")


def http_scope(
    method: str,
    path: bytes,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    extra: Mapping[str, Any] | None,
) -> Scope:
    """Return the scope of a request.

    :param path: the path as it is sent: percent-encoded.
    :param query: the query string, without the question mark.
    :param headers: the header fields, names in lower case.
    :param extra: keys to add, or to replace.
    """
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "state": {},
        **(extra or {}),
    }


def check_application(app: object, asker: str) -> None:
    """Refuse what is not an ASGI application, above all what :func:`~sse_asgi.sse_app` takes.

    :param asker: the function that needs one, for the message.
    :raises TypeError: it is not.
    """
    if not callable(app):
        name = getattr(app, "__qualname__", type(app).__qualname__)
        raise TypeError(
            f"{asker}() needs an ASGI application, not {app!r:.80}: for a generator function "
            f"{name!r}, pass sse_app({name}), and do not call the function"
            if inspect.isgenerator(app) or inspect.isasyncgen(app) or inspect.iscoroutine(app)
            else f"{asker}() needs an ASGI application, which is callable, not {app!r:.80}"
        )
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind("scope", "receive", "send")
    except TypeError:
        name = getattr(app, "__qualname__", type(app).__qualname__)
        raise TypeError(
            f"{asker}() needs an ASGI application, which takes scope, receive and send, and {name} "
            f"takes {signature}: pass sse_app({name}) if it makes events, or the application that "
            f"it is a route of"
        ) from None
