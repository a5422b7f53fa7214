"""Responses that are not event streams. They are watched as streams are: nobody may read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import HTTPError
from .options import merge_headers
from .request import UNREAD
from .runtime import of_task
from .servers import has_unwritten, recognise, sends_at_once
from .servers.base import send_at_once
from .shutdown import server_shutdown
from .supervisor import Stream

if TYPE_CHECKING:
    from .options import StreamOptions
    from .types import Exchange, FrameReceiver, Message

__all__ = ["respond", "send_response"]


async def respond(exchange: Exchange, answer: HTTPError, options: StreamOptions) -> None:
    """Answer a request with the status, the detail and the header fields of an error.

    Give back first what the request has taken, such as a place among the streams.
    """
    body = b"" if answer.status_code in (204, 304) else answer.detail.encode()
    defaults = {b"content-type": b"text/plain; charset=utf-8"} if body else {}
    headers = merge_headers(defaults, answer.headers)
    if answer.status_code not in (204, 304):
        headers.append((b"content-length", str(len(body)).encode()))
    if str(exchange[0].get("method")).upper() == "HEAD":
        body = b""
    await send_response(exchange, answer.status_code, headers, body, options)


async def send_response(
    exchange: Exchange,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    options: StreamOptions,
) -> None:
    """Send a complete response, as a stream that has nothing but its end.

    It is no error if the client leaves. A client that takes nothing is cut off after the
    ``send_timeout``, or ``cleanup_timeout`` after the server was told to stop.
    """
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    end: Message = {"type": "http.response.body", "body": body, "more_body": False}
    started = False
    if sends_at_once(exchange[2]):  # a stream costs ten times as much
        started = _try_to_send(exchange, start)
        if started and _try_to_send(exchange, end):
            if has_unwritten(exchange[2]):
                _bound_unread(exchange, options)
            return
    stream = Stream(
        _Nothing(), exchange, options.of_answers, start=(status, headers), body=body,
        reader=UNREAD, started=started,
    )  # fmt: skip
    await stream.run()


def _bound_unread(exchange: Exchange, options: StreamOptions) -> None:
    """Do what a stream does in its end, for a client that does not read."""
    scope, _, send = exchange
    runtime = of_task()
    stopping = options.shutdown or server_shutdown(runtime)
    recognise(scope, send, runtime, stopping).bound_unread(options.timing.cleanup_timeout)


def _try_to_send(exchange: Exchange, message: Message) -> bool:
    """Send a message without waiting. Return whether it was sent, or can't be any more."""
    try:
        return send_at_once(exchange[2], message)
    except OSError:
        return True


class _Nothing:
    """A source without events."""

    __slots__ = ()

    iterator: object = None

    async def step(self) -> bytes:
        raise StopAsyncIteration

    def give_to(self, receiver: FrameReceiver) -> None:
        pass

    async def aclose(self) -> None:
        pass
