"""A client that follows an event stream, and connects again as a browser does."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
import anyio.lowlevel

from ..decoder import DEFAULT_MAX_EVENT_SIZE, DecodedEvent, EventStreamDecoder
from ..errors import EventTooLargeError
from .backoff import Backoff
from .gaps import gap_of
from .link import Link
from .requests import CLOSING, Requests, library_of
from .states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from .states import StateChange
    from .types import RequestHeaders

__all__ = ["EventSource"]

#: How many bytes are decoded at once. A chunk is seldom larger, but one that was compressed may be,
#: a thousand times.
PART = 65536


class EventSource:
    """The events of a stream, whatever happens to its connections (WHATWG HTML 9.2).

    It is an async context manager, and an async iterator of
    :class:`~sse_asgi.decoder.DecodedEvent`. The first step of the iteration connects. When a
    response ends or breaks off, the next step connects again, with ``Last-Event-ID``: an event
    comes once, in order, if the server replays what came after that id. There is no task and no
    queue: an event that you do not ask for stays in the connection.

    The iteration ends when the server answers 204, or when the source is closed, by any task. If
    you cancel a step, the connection is dropped, and the next step makes another.

    :param url: where the stream is. Redirects are followed, and each attempt begins here.
    :param client: an ``AsyncClient`` of httpx2 or httpx, which is not closed. By default one of
        httpx2 is made. Its timeouts hold for connecting and sending; its pool needs a connection
        for each source.
    :param method: the method of the request.
    :param headers: header fields, as a mapping or pairs; or a function that returns them, async or
        not, which is called for each attempt: for tokens that expire.
    :param json: the body of the request, as a value that becomes JSON. It is sent in each attempt.
    :param content: the body of the request as it is, instead of ``json``.
    :param last_event_id: the id after which to begin, from an earlier source.
    :param retry: in milliseconds, the reconnection time until the stream sets one (3 seconds). A
        delay is this time and a random time more, whose bound doubles with each failure in a row,
        up to a minute.
    :param max_reconnects: how many failed attempts in a row there may be. The count begins anew
        with each byte of a stream. 0: it reads one response, and the iteration ends with it.
        ``None``: no limit.
    :param retry_on: further statuses after which it connects again, such as ``{502, 504}``. After
        429 and 503 with ``Retry-After`` it always does.
    :param idle_timeout: in seconds; a connection is taken for dead after this time without a byte
        (60). Comments count, so this should be a multiple of the interval of the server's pings.
        It holds for connecting, too. ``None``: never.
    :param max_event_size: in bytes, how large an event may be (1 MiB).
    :param gap: what becomes of a gap event of :class:`sse_asgi.hub.Hub`: an ``"event"`` like any
        other, or ``"raise"`` for a :class:`GapError`.
    :param gap_event: the name of gap events (``gap``).
    :param on_bytes: is called with the bytes of the stream as they come, content encodings decoded,
        before the events in them: for a log, or to count. If it raises, the iteration raises that.
    :param on_state_change: is called with a :class:`StateChange`. It must not wait. What it raises
        is logged.
    :raises ValueError: for a value out of its range, or both ``json`` and ``content``.
    :raises TypeError: for a ``client`` of another kind, or an id that is no string.

    The iteration raises, and closes the source:

    - :class:`StatusError`: for a status other than 200 and 204;
    - :class:`ContentTypeError`: the response is no event stream;
    - :class:`TooManyReconnectsError`: see ``max_reconnects``;
    - :class:`~sse_asgi.EventTooLargeError`: an event is larger than ``max_event_size``;
    - what httpx raises for a request that can't be sent, and what ``headers`` raises, except errors
      of the network.

    :class:`GapError` leaves it open.
    """

    def __init__(
        self,
        url: str,
        *,
        client: Any = None,
        method: str = "GET",
        headers: RequestHeaders | None = None,
        json: Any = None,
        content: str | bytes | None = None,
        last_event_id: str | None = None,
        retry: int = 3000,
        max_reconnects: int | None = None,
        retry_on: Collection[int] = (),
        idle_timeout: float | None = 60.0,
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
        gap: Literal["event", "raise"] = "event",
        gap_event: str = "gap",
        on_bytes: Callable[[bytes], object] | None = None,
        on_state_change: Callable[[StateChange], object] | None = None,
    ) -> None:
        if json is not None and content is not None:
            raise ValueError("give json or content, not both")
        if retry < 0:
            raise ValueError(f"retry must be 0 or more milliseconds, not {retry}")
        if max_reconnects is not None and max_reconnects < 0:
            raise ValueError(f"max_reconnects must be 0 or more, or None, not {max_reconnects}")
        if idle_timeout is not None and not idle_timeout > 0:
            raise ValueError(f"idle_timeout must be more than 0 seconds, or None: {idle_timeout}")
        if gap not in ("event", "raise"):
            raise ValueError(f"gap must be 'event' or 'raise', not {gap!r}")
        if max_event_size < 1:
            raise ValueError(f"max_event_size must be at least 1 byte, not {max_event_size}")
        if not isinstance(last_event_id, str | None):
            raise TypeError(f"last_event_id must be a string, not {last_event_id!r:.80}")
        if client is not None:
            library_of(client)  # so that it is refused here
        self._url = url
        body = {"json": json} if json is not None else {"content": content}
        self._request = (method, url, headers, body, frozenset(retry_on))
        self._client: Any = client
        self._owns_client = client is None
        self._backoff = Backoff(retry)
        self._link_options: dict[str, Any] = {
            "max_reconnects": max_reconnects,
            "idle_timeout": idle_timeout,
            "tell": on_state_change,
        }
        # Made when the source is entered, as the client may be.
        self._link: Link | None = None
        self._on_bytes = on_bytes
        self._max_event_size = max_event_size
        self._decoder: EventStreamDecoder | None = None
        # What has come, and how much of it was decoded: what is decoded needs far more memory.
        self._chunk, self._decoded = b"", 0
        self._events: deque[DecodedEvent] = deque()
        self._last_event_id = last_event_id or ""
        self._gap_event = gap_event if gap == "raise" else None
        # Whether a task iterates, and what tells that it has stopped to.
        self._busy = False
        self._stopped: anyio.Event | None = None

    @property
    def url(self) -> str:
        """Where the stream is."""
        return self._url

    @property
    def state(self) -> State:
        """The state of the connection (``readyState`` of the standard)."""
        return State.CONNECTING if self._link is None else self._link.state

    @property
    def last_event_id(self) -> str:
        """The id to go on after: that of the latest event, or what the stream has set since.

        Store it when the event is dealt with, and give it to the next source.
        """
        return self._last_event_id

    @property
    def reconnection_time(self) -> int:
        """The reconnection time in milliseconds, which the stream may have set (``retry``)."""
        return self._backoff.retry

    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise RuntimeError("an EventSource is entered once: make another one")
        if self._client is None:
            self._client = _new_client()
        requests = Requests(self._client, *self._request)
        self._link = Link(requests, self._backoff, **self._link_options)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DecodedEvent:
        """Return the next event; wait for it, and for a connection, if necessary.

        :raises anyio.BusyResourceError: another task iterates.
        """
        link = self._entered
        if self._busy:
            raise anyio.BusyResourceError("iterating over")
        self._busy = True
        try:
            while link.state is not State.CLOSED:
                if self._events:
                    return self._dispatch(self._events.popleft())
                await self._advance(link)
        except StopAsyncIteration as exc:  # of headers or on_bytes: it would look like the end
            raise RuntimeError("headers or on_bytes has raised StopAsyncIteration") from exc
        finally:
            self._busy = False
            if self._stopped is not None:
                self._stopped.set()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection, and end the iteration, also one that waits in another task."""
        link = self._link
        if link is None:
            return
        link.close()
        try:
            if self._busy:
                if self._stopped is None:
                    self._stopped = anyio.Event()
                await self._stopped.wait()
        finally:
            await link.drop()
            if self._owns_client:
                with anyio.move_on_after(CLOSING, shield=True):
                    await self._client.aclose()

    @property
    def _entered(self) -> Link:
        if self._link is None:
            raise RuntimeError("enter the source first: async with EventSource(...) as source")
        return self._link

    async def _advance(self, link: Link) -> None:
        """Connect, or read and decode the next bytes."""
        if self._decoder is None:
            if await link.connect(self._last_event_id):
                self._decoder = EventStreamDecoder(
                    max_event_size=self._max_event_size, last_event_id=self._last_event_id
                )
            return
        decoder = self._decoder
        # What the stream has set without an event, or after the latest one.
        self._last_event_id = decoder.last_event_id
        try:
            decoder.feed(b"")  # raises if an event was too large after those of the last bytes
            if self._decoded < len(self._chunk):
                await anyio.lowlevel.checkpoint()
            else:
                self._chunk, self._decoded = await self._read(link), 0
                if self._chunk and self._on_bytes is not None:
                    self._on_bytes(self._chunk)
            part = self._chunk[self._decoded : self._decoded + PART]
            self._decoded += len(part)
            self._events.extend(decoder.feed(part))
        except EventTooLargeError:
            after = f"after the id {self._last_event_id!r:.80}" if self._last_event_id else "here"
            error = EventTooLargeError(
                f"the event {after} is larger than max_event_size ({self._max_event_size} bytes)"
            )
            link.close(error)
            await link.drop()
            raise error from None
        if decoder.reconnection_time is not None:
            self._backoff.retry = decoder.reconnection_time

    async def _read(self, link: Link) -> bytes:
        try:
            return await link.read()
        finally:
            if link.state is not State.OPEN:
                self._decoder = None  # and an unfinished event with it

    def _dispatch(self, event: DecodedEvent) -> DecodedEvent:
        self._last_event_id = event.id
        if event.event == self._gap_event and (gap := gap_of(event)) is not None:
            raise gap
        return event


def _new_client() -> Any:
    """Return a client of httpx2.

    :raises ModuleNotFoundError: it is not installed.
    """
    try:
        import httpx2
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            "EventSource needs httpx2: pip install httpx2, or give it a client of "
            "httpx: EventSource(url, client=httpx.AsyncClient())",
            name=exc.name,
        ) from None
    return httpx2.AsyncClient()
