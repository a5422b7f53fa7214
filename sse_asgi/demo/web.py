"""What the demo answers that is no stream: its files, requests to do something, and refusals."""

from __future__ import annotations

import json
import time
from collections import deque
from importlib.resources import files
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from sse_asgi import HTTPError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from sse_asgi.types import ASGIApp, Receive, Scope, Send

    #: It is given the JSON of a request, and returns a status and a text.
    Action = Callable[[Any], Awaitable[tuple[int, str]]]

__all__ = ["Rate", "action", "answer_to_own_names", "file", "not_found"]

#: The longest body of a request, in bytes.
LARGEST = 8192

TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "py": "text/plain"}

#: The page needs nothing but what the demo serves. No page of another site may show it in a frame:
#: its buttons do something.
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Rate:
    """So many times within so many seconds, and no more.

    :param clock: returns the time in seconds.
    """

    def __init__(
        self, times: int, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._times = times
        self._seconds = seconds
        self._clock = clock
        self._used: deque[float] = deque(maxlen=times)

    def use(self) -> None:
        """Count one more.

        :raises HTTPError: 429, it would be too many.
        """
        now = self._clock()
        if len(self._used) == self._times and (wait := self._used[0] + self._seconds - now) > 0:
            seconds = int(wait) + 1
            often = "once" if self._times == 1 else f"{self._times} times"
            raise HTTPError(
                429,
                f"this may be done {often} in {self._seconds:g} s: try again in {seconds} s",
                {"retry-after": str(seconds)},
            )
        self._used.append(now)


def file(name: str) -> ASGIApp:
    """Return an application that serves a file of the demo."""
    body = files(__package__ or "").joinpath(name).read_bytes()
    headers = {
        "content-type": f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8",
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in {"GET", "HEAD"}:
            await _refuse(scope, send, HTTPError(405, None, {"allow": "GET, HEAD"}))
        else:
            await _respond(scope, send, 200, headers, body)

    return app


def action(act: Action) -> ASGIApp:
    """Return an application that does something for a POST with JSON, from this page or a program.

    A page of another site can do nothing: a browser names the site in ``Origin``, and asks
    before it sends this type elsewhere.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":
                raise HTTPError(405, None, {"allow": "POST"})
            _check_origin(scope)
            status, text = await act(await _read_json(scope, receive))
        except HTTPError as refusal:
            await _refuse(scope, send, refusal)
        else:
            await _respond(scope, send, status, TEXT, f"{text}\n".encode())

    return app


def answer_to_own_names(app: ASGIApp, names: Collection[str]) -> ASGIApp:
    """Return an application that refuses what was not meant for it.

    A page of another site may let its own name point to our address, and then read what is served
    there (DNS rebinding). The name is still in ``Host``. An IP address there is a page of ours.

    :param names: what it answers to, in lower case, beside ``localhost`` and IP addresses.
    """
    names = sorted({"localhost", *names})

    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = _header(scope, b"host")
            if host is None or not _is_one_of(names, host):
                text = (
                    f"Host {host!r} is no name of this demo. It answers to IP addresses, and to "
                    f"{', '.join(names)}. Start it with --allow-host NAME for another one."
                )
                await _refuse(scope, send, HTTPError(421, text))
                return
        await app(scope, receive, send)

    return wrapper


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 404."""
    await _refuse(scope, send, HTTPError(404))


TEXT: Mapping[str, str] = {"content-type": "text/plain; charset=utf-8"}


def _is_one_of(names: Collection[str], host: str) -> bool:
    """Return whether the value of ``Host`` is one of the names, or an IP address."""
    name, colon, port = host.rpartition(":")
    # Without a port the last colon is within an IPv6 address, or there is none.
    if not colon or host.endswith("]"):
        name, port = host, ""
    if port and not (port.isascii() and port.isdigit()):
        return False
    try:
        if name.startswith("[") and name.endswith("]"):
            IPv6Address(name[1:-1])
        else:
            IPv4Address(name)
    except ValueError:
        return name.lower() in names
    return True


def _check_origin(scope: Scope) -> None:
    """Refuse what a browser sends for a page that is not ours. A program sends no ``Origin``."""
    origin = _header(scope, b"origin")
    if origin is None:
        return
    # The scheme may differ: a proxy in front of us may speak TLS.
    scheme, separator, site = origin.partition("://")
    host = _header(scope, b"host") or ""
    if not separator or scheme not in {"http", "https"} or site.lower() != host.lower():
        raise HTTPError(403, f"this is for the page of this server, not for one of {origin!r}")


async def _read_json(scope: Scope, receive: Receive) -> Any:
    """Read the body of a request.

    :raises HTTPError: it is no JSON, or too long.
    """
    media_type = (_header(scope, b"content-type") or "").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise HTTPError(415, "this takes application/json")
    body, more = b"", True
    while more and len(body) <= LARGEST:
        part = await receive()
        # One who has left gets no answer, whatever it is.
        body += part.get("body", b"")
        more = part.get("more_body", False)
    if len(body) > LARGEST:
        raise HTTPError(413, f"this takes at most {LARGEST} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPError(400, "this takes JSON") from None


def _header(scope: Scope, name: bytes) -> str | None:
    """Return a header field, or ``None``. One that is there twice is no value that we accept."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(values) if values else None


async def _refuse(scope: Scope, send: Send, refusal: HTTPError) -> None:
    headers = {**TEXT, **(refusal.headers or {})}
    await _respond(scope, send, refusal.status_code, headers, f"{refusal.detail}\n".encode())


async def _respond(
    scope: Scope, send: Send, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    fields = {**headers, "content-length": str(len(body))}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
