"""Responses that are not event streams. They are watched as streams are: nobody may read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import HTTPError
from .options import merge_headers
from .supervisor import Stream

if TYPE_CHECKING:
    from .options import StreamOptions
    from .types import Exchange, FrameReceiver

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
    stream = Stream(_Nothing(), exchange, options.of_answers, start=(status, headers), body=body)
    await stream.run()


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
