"""The demo as an ASGI application: a page, and the event streams that it shows."""

from __future__ import annotations

import os
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from sse_asgi import HTTPError, ServerSentEvent, Shutdown, SSERequest, Tally, sse_app
from sse_asgi.hub import Hub

from .log_file import follow
from .machine import describe, samples
from .web import Rate, action, answer_to_own_names, file, not_found

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection
    from contextlib import AbstractAsyncContextManager

    from sse_asgi.types import ASGIApp, Receive, Scope, Send

__all__ = ["AWAY", "Lasting", "create_app"]

FILES = ("app.py", "charts.js", "log.js", "page.js", "stream.js", "style.css", "wall.js")

#: Events of each topic that are kept, and how many of them a new client gets. There is one sample
#: a second, so a new tab begins with the last 30 seconds.
KEPT, HISTORY = 200, 30
#: The longest message on the wall, name and key, in characters.
LONGEST, LONGEST_NAME, LONGEST_KEY = 500, 40, 64
#: For how many seconds the server is away when somebody stops it.
AWAY = 5
#: A second after it has lost us, a browser tries again. In milliseconds.
RETRY = 1000


@dataclass
class Lasting:
    """What goes on when another server takes the place of one that was stopped."""

    tally: Tally = field(default_factory=Tally)
    stops: Rate = field(default_factory=lambda: Rate(1, 3 * AWAY))


def create_app(
    log_file: str | None = None,
    *,
    ping: float = 15.0,
    names: Collection[str] = (),
    stop: Callable[[], object] | None = None,
    lasting: Lasting | None = None,
) -> ASGIApp:
    """Make the demo: a page, and what it shows. It needs a server that runs its lifespan.

    The page is at ``/``, and reads ``/events``: the machine, and the wall, where everybody sees
    what anybody posts to ``/say``. The log file is at ``/log``. What is posted to ``/disconnect``
    and ``/stop`` ends a stream, or all of them.

    :param log_file: the file whose lines ``/log`` streams; without one there is no ``/log``.
    :param ping: seconds of silence after which a stream sends a comment; 0: never.
    :param names: the names in ``Host`` that it answers to, beside ``localhost`` and IP addresses.
    :param stop: a function that stops the server, and starts it again after some seconds; without
        one it can't be stopped from the page.
    :param lasting: what goes on after such a stop.
    """
    demo = Demo(log_file, stop, Lasting() if lasting is None else lasting)
    options: dict[str, Any] = {
        "ping": ping,
        "retry": RETRY,
        "shutdown": demo.shutdown,
        "observer": demo.tally,
    }
    # The grace period is for the farewell, which comes at once.
    events = sse_app(demo.events, lifespan=demo.lifespan, shutdown_grace_period=1.0, **options)
    routes: dict[str, ASGIApp] = {
        "/": file("index.html"),
        **{f"/{name}": file(name) for name in FILES},
        "/events": events,
        "/say": action(demo.say),
        "/disconnect": action(demo.disconnect),
        "/stop": action(demo.stop),
    }
    if log_file is not None:
        routes["/log"] = sse_app(demo.log, **options)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await routes.get(scope["path"], not_found)(scope, receive, send)
        else:  # lifespan; and websockets, which it refuses
            await events(scope, receive, send)

    return answer_to_own_names(app, names)


class Demo:
    """What the demo streams, and what can be done to it: see :func:`create_app`."""

    def __init__(
        self, log_file: str | None, stop: Callable[[], object] | None, lasting: Lasting
    ) -> None:
        self.tally: Tally = lasting.tally
        self.shutdown: Shutdown = Shutdown()
        self._hub = Hub(max_events=KEPT, observer=self.tally)
        self._log_file = log_file
        self._stop = stop
        self._stops = lasting.stops
        self._disconnects = Rate(10, 10)
        self._away: int | None = None  # for how long we are going, if that is known

    def lifespan(self, app: object) -> AbstractAsyncContextManager[None]:
        """Measure the machine while the server runs, whether anybody looks or not."""
        return self._while_running()

    @asynccontextmanager
    async def _while_running(self) -> AsyncGenerator[None, None]:
        async with self._hub, anyio.create_task_group() as tasks:
            tasks.start_soon(self._measure)
            tasks.start_soon(self._say_goodbye)
            yield
            tasks.cancel_scope.cancel()

    async def _measure(self) -> None:
        async with aclosing(samples()) as measured:
            async for sample in measured:
                figures = self.tally.figures()
                server = {name: figures[name] for name in ("open", "events", "bytes", "closed")}
                data = {**asdict(sample), "server": server}
                await self._hub.publish("machine", {"event": "sample", "data": data})

    async def _say_goodbye(self) -> None:
        """Send a last event when streams are told to end. That ends their sources, too."""
        await self.shutdown.wait()
        self._hub.kick(lambda _: True, last=_goodbye("stopping", self._away))

    # One stream for all: a browser has six connections to a server, and its tabs share them.
    async def events(self, request: SSERequest) -> AsyncGenerator[ServerSentEvent | bytes, None]:
        """Stream the machine and the wall, in the order in which things happen."""
        client = request.query_params.get("client", "")
        subscription = self._hub.subscribe(
            "machine", "wall", last_event_id=request.last_event_id, history=HISTORY, info=client
        )
        machine = await anyio.to_thread.run_sync(describe)
        about = {
            **machine,
            # A file's name need not be text.
            "log": self._log_file and os.fsencode(self._log_file).decode("utf-8", "replace"),
            "away": AWAY if self._stop is not None else None,
            # What is older than that is a replay.
            "time": round(time.time(), 3),
            "last_event_id": request.last_event_id,
        }
        yield ServerSentEvent(about, event="machine")
        async with aclosing(subscription):
            async for frame in subscription:
                yield frame

    def log(self, request: SSERequest) -> AsyncGenerator[ServerSentEvent, None]:
        """Stream the log file."""
        assert self._log_file is not None
        return follow(self._log_file, request.last_event_id)

    async def say(self, value: Any) -> tuple[int, str]:
        """Put a message on the wall; return its id."""
        try:
            name, text, key = _message(value)
            said = {"name": name, "text": text, "time": round(time.time(), 3)}
            # The key is the client's: who does not know whether it was heard says the same again.
            return 201, await self._hub.publish("wall", {"event": "said", "data": said}, key=key)
        except (TypeError, ValueError):
            wanted = (
                f'{{"text": 1 to {LONGEST} characters, "name": at most {LONGEST_NAME}, or none, '
                f'"key": at most {LONGEST_KEY}, or none}}'
            )
            raise HTTPError(400, f"this takes {wanted}") from None

    async def disconnect(self, value: Any) -> tuple[int, str]:
        """End the streams of one client, which has chosen its own name: ``/events?client=NAME``."""
        client = value.get("client") if isinstance(value, dict) else None
        if not isinstance(client, str) or not client:
            raise HTTPError(400, 'this takes {"client": the one of /events?client=...}')
        self._disconnects.use()
        last = _goodbye("disconnected", None)
        if not self._hub.kick(lambda subscription: subscription.info == client, last=last):
            raise HTTPError(404, f"no stream is open whose client is {client[:80]!r}")
        return 200, "disconnected"

    async def stop(self, value: Any) -> tuple[int, str]:
        """Stop the server for some seconds."""
        if self._stop is None:
            raise HTTPError(403, "start the demo with --allow-stop to let its visitors stop it")
        self._stops.use()
        self._away = AWAY
        self._stop()
        self.shutdown.drain()
        return 202, f"the server stops, and comes back in {AWAY} s"


def _goodbye(reason: str, seconds: int | None) -> ServerSentEvent:
    return ServerSentEvent({"reason": reason, "seconds": seconds}, event="goodbye")


def _message(value: Any) -> tuple[str, str, str | None]:
    """Return the name, the text and the key of a message.

    :raises ValueError: it is not one.
    """
    value = value if isinstance(value, dict) else {}
    name, text, key = value.get("name", ""), value.get("text"), value.get("key")
    if not isinstance(text, str) or not 0 < len(text := text.strip()) <= LONGEST:
        raise ValueError("text")
    if not isinstance(name, str) or len(name := name.strip()) > LONGEST_NAME:
        raise ValueError("name")
    if key is not None and not (isinstance(key, str) and len(key) <= LONGEST_KEY):
        raise ValueError("key")
    return name or "somebody", text, key
