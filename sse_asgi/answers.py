"""Responses that are not event streams."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from .options import merge_headers

if TYPE_CHECKING:
    from .errors import HTTPError
    from .types import Send

__all__ = ["respond", "send_response"]


async def respond(send: Send, answer: HTTPError) -> None:
    """Answer a request with the status, the detail and the header fields of an error."""
    body = b"" if answer.status_code in (204, 304) else answer.detail.encode()
    defaults = {b"content-type": b"text/plain; charset=utf-8"} if body else {}
    headers = merge_headers(defaults, answer.headers)
    if answer.status_code not in (204, 304):
        headers.append((b"content-length", str(len(body)).encode()))
    await send_response(send, answer.status_code, headers, body)


async def send_response(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send a complete response. It is no error if the client has left."""
    with suppress(OSError):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
