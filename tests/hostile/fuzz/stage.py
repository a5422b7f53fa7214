"""One case in this process: a server and a client that are played, and what can be seen of them."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.middleware.base import BaseHTTPMiddleware

from sse_asgi import CloseReport, Shutdown, sse_app
from sse_asgi.hub import Hub
from sse_asgi.starlette import EventSourceResponse, SendTimeoutError
from tests.streams import http_scope

from .cases import Case, walk
from .sources import Boom, Log, source_of

__all__ = ["FAREWELL", "LAST", "Message", "Outcome", "Stage"]

#: What `on_error` returns.
LAST = "the last event"
FAREWELL = "retry: "


@dataclass
class Message:
    """What the application has sent, when, and when `send` has returned (None: never)."""

    began: float
    ended: float | None
    type: str
    body: bytes
    more: bool
    status: int = 0


@dataclass
class Outcome:
    """All that was seen."""

    messages: list[Message] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # seen while it ran
    reports: list[CloseReport] = field(default_factory=list)
    on_close_ended: int = 0
    happened: list[tuple[float, str, Any]] = field(default_factory=list)
    began: float = 0.0
    returned: float | None = None
    raised: str = ""
    raised_own: bool = False
    raised_cancelled: bool = False
    errors_told: int = 0
    records: list[tuple[float, str, str]] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    still_cancelled: bool = False
    fed: int = 0  # events that a feed or a publisher has handed over
    host: object = None
    unread: int = 0

    @property
    def body(self) -> bytes:
        return b"".join(m.body for m in self.messages if m.type == "http.response.body")

    @property
    def status(self) -> int:
        return next((m.status for m in self.messages if m.status), 0)

    @property
    def clean(self) -> bool:
        return bool(self.messages) and not self.messages[-1].more and not self.messages[-1].status


class Stage:
    """A server, its client, and an application."""

    def __init__(
        self,
        case: Case,
        clock: Callable[[], float],
        task: Callable[[], object],
        pass_time: Callable[[float], object],
    ) -> None:
        self.case = case
        self.pass_time = pass_time
        self.clock = clock
        self.outcome = Outcome()
        self.streams_before = 0
        self._same_time = (0.0, 0)  # when receive() was called, and how often
        self._spins = any(step[0] == "for ever" and "wait" not in repr(step) for step in
                          walk(case.steps))  # fmt: skip
        self._yielded = self._yielded_bytes = 0
        self.log = Log(clock, case.options.get("sep", self._sep()), self._in_host, self._yields)
        self.shutdown = Shutdown()
        self.sources: list[weakref.ref[Any]] = []
        self.hub: Any = None
        self.scope: anyio.CancelScope | None = None
        self.connections: Callable[[], int] = int
        self._task = task
        self._buffered = 0
        self._reading = True
        self._rate = 0
        self.gone = False
        self.broken = False
        self._complete = False
        self._sending = 0
        self._receives = 0
        self._changed = anyio.Event()
        self._arrived = 0
        self._at_byte = sorted(case.happens_at_byte, key=lambda event: int(event[0]))

    def _sep(self) -> str:
        return "\r\n" if self.case.entry == "starlette" else "\n"

    def _in_host(self) -> bool:
        return self._task() is self.outcome.host or self.case.middleware == "base"

    def _yields(self, size: int) -> None:
        """Have the client leave when there was enough, and let time pass if nobody waits."""
        self._yielded += 1
        self._yielded_bytes += size
        if self.case.kind == "sync":
            self.pass_time(0.02)  # in which the thread has worked
        else:
            if self._spins:
                self.pass_time(0.001)
            if self._yielded > 2000 or self._yielded_bytes > 8_000_000:
                self.happen("leave", None)

    # -- the server ------------------------------------------------------------------------------

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def receive(self) -> Any:
        self._receives += 1
        await self._see_busy_loop()
        if self._receives == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        while not (self.gone or self._complete):
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _see_busy_loop(self) -> None:
        now = self.clock()
        when, count = self._same_time
        self._same_time = now, count + 1 if now == when else 0
        if count > 1000:
            self.broken = True
            self.outcome.faults.append("receive() is called again and again: a busy loop")
            self.gone = True
            await anyio.sleep_forever()

    async def replaying(self) -> Any:
        """A middleware that has read the body answers so."""
        if self.gone or self._complete:
            return {"type": "http.disconnect"}
        await self._see_busy_loop()
        more = self.case.middleware == "replay more"
        return {"type": "http.request", "body": b"", "more_body": more}

    async def send(self, message: Any) -> None:
        case, outcome = self.case, self.outcome
        if outcome.returned is not None:
            outcome.faults.append("something is sent after the application has returned")
        if self._complete:
            outcome.faults.append(f"something is sent after the end: {message!r:.100}")
        if self._sending:
            outcome.faults.append("two sends at once")
        if self.gone:
            if case.send_raises:
                raise BrokenPipeError
            return
        self._sending += 1
        try:
            if case.server != "write first":
                await self._writable()
                if self.gone and not case.send_raises:
                    return
            note = self._take(message)
            if case.server == "write first":
                await self._writable()
            note.ended = self.clock()
        finally:
            self._sending -= 1

    def _take(self, message: Any) -> Message:
        body = message.get("body", b"")
        note = Message(self.clock(), None, message["type"], body,
                       message.get("more_body", False), message.get("status", 0))  # fmt: skip
        self.outcome.messages.append(note)
        self._buffered += len(body)
        if message["type"] == "http.response.body" and not note.more:
            self._complete = True
            self._change()
        self._read()
        return note

    async def _writable(self) -> None:
        while self._buffered > self.case.buffer and (not self.gone or self.case.send_hangs):
            await self._changed.wait()
        if self.gone and self.case.send_raises:
            raise BrokenPipeError

    # -- the client, and all that happens --------------------------------------------------------

    def _read(self, most: int | None = None) -> None:
        if self.gone or (not self._reading and most is None):
            return
        count = self._buffered if most is None else min(most, self._buffered)
        self._buffered -= count
        self._arrived += count
        while self._at_byte and self._arrived >= self._at_byte[0][0]:
            _, what, argument = self._at_byte.pop(0)
            self.happen(what, argument)
        if count:
            self._change()

    def happen(self, what: str, argument: Any) -> None:
        if self.outcome.returned is not None:
            return
        if self.gone and what in ("leave", "pause", "slow", "read"):
            return
        self.outcome.happened.append((self.clock(), what, argument))
        if what == "leave":
            self.outcome.unread = self._buffered
            self.gone = True
            self._change()
        elif what in ("pause", "slow"):
            self._reading, self._rate = False, argument or 0
            self._change()
        elif what == "read":
            self._reading, self._rate = True, 0
            self._read()
        elif what == "drain":
            self.shutdown.drain(argument)
        elif what == "cancel" and self.case.mode in ("bare", "eager"):
            host: Any = self.outcome.host
            host.cancel()
        elif self.scope is not None:
            self.scope.cancel()
        else:
            self.outcome.happened.pop()

    async def direct(self) -> None:
        """Have everything happen at its time."""
        case, began = self.case, self.clock()
        for when, what, argument in [*case.happens, [case.last_call, "leave", None]]:
            await anyio.sleep(max(0, began + when - self.clock()))
            self.happen(what, argument)

    async def read_slowly(self) -> None:
        while True:
            while not self._rate:
                await self._changed.wait()
            await anyio.sleep(0.05)
            if self._rate:
                self._read(max(1, self._rate // 20))

    # -- the application -------------------------------------------------------------------------

    async def call(self) -> None:
        """Call the application as a server does."""
        case, outcome = self.case, self.outcome
        outcome.host, outcome.began = self._task(), self.clock()
        app = self._application()
        receive = self.replaying if case.middleware.startswith("replay") else self.receive
        try:
            if case.around is None and case.mode in ("bare", "eager"):
                await app(http_scope(), receive, self.send)
            else:
                with anyio.CancelScope() as self.scope:
                    if case.around is not None and case.around >= 0:
                        self.scope.deadline = self.clock() + case.around
                    elif case.around is not None:
                        self.scope.cancel()
                    await app(http_scope(), receive, self.send)
        except SendTimeoutError:
            pass
        except BaseException as exc:
            outcome.raised = f"{type(exc).__name__}: {exc}"
            outcome.raised_own = any(exc is error for error in self.log.raised)
            outcome.raised_cancelled = isinstance(exc, self.log.cancelled)
            if case.mode == "trio" and outcome.raised_cancelled:
                raise
        finally:
            outcome.returned = self.clock()
            self.log.over = True

    def _application(self) -> Any:
        case = self.case
        options = {"shutdown": self.shutdown, **case.options}
        if case.on_close:
            options["on_close"] = self._on_close
        if case.on_error:
            options["on_error"] = self._on_error
        if case.entry == "starlette":
            app: Any = self._response_app(options)
        else:
            app = sse_app(self._factory(), max_connections=5, **options)
            self.connections = lambda: app.connections
        if case.middleware == "base":
            return BaseHTTPMiddleware(app, _pass_on)
        return app

    def _factory(self) -> Any:
        case = self.case
        if case.factory_waits is None and not case.factory_raises:
            return self._source

        async def factory() -> Any:
            if case.factory_waits is not None:
                await anyio.sleep(case.factory_waits)
            if case.factory_raises:
                raise self.log.error(case.factory_raises)
            return self._source()

        return factory

    def _response_app(self, options: dict[str, Any]) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            feed = None
            if self.case.kind == "feed":
                sender, source = anyio.create_memory_object_stream[Any](3)

                async def feed() -> None:
                    async with sender:
                        await self._feed(sender.send)

                self.sources.append(weakref.ref(source))
            else:
                source = self._source()
            response = EventSourceResponse(source, data_sender_callable=feed, **options)
            del source
            await response(scope, receive, send)

        return app

    def _source(self) -> Any:
        case, log = self.case, self.log
        source: Any
        if case.kind == "hub":
            self.hub = Hub()
            source = self.hub.subscribe("topic")
        elif case.kind == "list":
            source = (
                [log.event(case.steps[0][2]) for _ in range(case.steps[0][1])]
                if case.steps and case.steps[0][0] == "burst"
                else []
            )
            log.ended = True
            return source
        else:
            source = source_of(case.steps, sync=case.kind == "sync")(log)
            if case.kind == "iterator":
                source = Closable(source)
            elif case.kind == "bare iterator":
                source = Iterating(source)
        self.sources.append(weakref.ref(source))
        return source

    async def publish(self) -> None:
        """Publish what the case has for a hub."""
        while self.hub is None:
            await anyio.sleep(0.001)

        async def publish(event: str) -> None:
            await self.hub.publish("topic", event)

        try:
            await self._feed(publish)
        except BaseException as exc:
            if exc not in self.log.raised:
                raise
        if self.case.kind == "hub":
            self.log.raised.clear()

    async def _feed(self, send: Callable[[str], Awaitable[None]]) -> None:
        for name, *arguments in self.case.feed:
            if name == "wait":
                await anyio.sleep(arguments[0])
            elif name == "raise":
                raise self.log.error(arguments[0])
            else:
                count, size = arguments if name == "burst" else (1, arguments[0])
                for _ in range(count):
                    await send(self.log.event(size))
                    self.outcome.fed += 1

    async def _on_close_waits(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self.outcome.on_close_ended += 1

    def _on_close(self, report: CloseReport) -> Any:
        self.outcome.reports.append(CloseReport(report.reason, report.events, report.bytes,
                                                report.duration))  # fmt: skip
        if self.case.on_close.startswith("wait"):
            return self._on_close_waits(float(self.case.on_close.split()[1]))
        if self.case.on_close == "raise":
            raise Boom("on_close")
        self.outcome.on_close_ended += 1
        return None

    def _on_error(self, error: Exception) -> Any:
        self.outcome.errors_told += 1
        if self.case.on_error == "raise":
            raise self.log.error("Boom")
        if self.case.on_error.startswith("wait"):

            async def wait() -> str:
                await anyio.sleep(float(self.case.on_error.split()[1]))
                return LAST

            return wait()
        return LAST if self.case.on_error == "event" else None


async def _pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


class Iterating:
    """An async iterator that is not a generator, and has nothing to close."""

    def __init__(self, generator: AsyncIterator[Any]) -> None:
        self._generator = generator

    def __aiter__(self) -> Iterating:
        return self

    async def __anext__(self) -> Any:
        return await self._generator.__anext__()


class Closable(Iterating):
    """An async iterator with a cleanup."""

    async def aclose(self) -> None:
        generator: Any = self._generator
        await generator.aclose()
