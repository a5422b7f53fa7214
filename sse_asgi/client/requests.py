"""Requests through httpx2, or through httpx: what differs between them, and what both hide."""

from __future__ import annotations

import importlib
import inspect
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio

from . import http2
from .answer import Meaning, answer_of
from .auth import bounded
from .errors import ContentTypeError, EventSourceError, StatusError
from .handshake import Handshake
from .unwind import unwind

if TYPE_CHECKING:
    from collections.abc import Collection

    from .types import RequestHeaders

__all__ = ["Connection", "Ended", "Later", "Requests", "library_of"]

#: In seconds, how long closing a connection may take.
CLOSING = 2.0

#: How much of a response that is no stream is read, in bytes and in seconds.
DETAIL_SIZE, DETAIL_TIME = 2048, 5.0

#: What httpx2 and httpx call themselves.
LIBRARIES = ("httpx2", "httpx")


class Ended(Exception):
    """The server has told the client never to connect again."""


class Later(Exception):
    """The server has told the client to connect later.

    :param error: the status.
    :param wait: in seconds, how long the server asks to wait.
    """

    def __init__(self, error: StatusError, wait: float) -> None:
        super().__init__(error, wait)
        self.error = error
        self.wait = wait


class Connection:
    """A response that is being read, its content encodings decoded."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._chunks = response.aiter_bytes()
        self._over = False  # nothing more is read
        self._complete = False

    async def read(self) -> bytes | None:
        """Return the next bytes of the body; ``None``: this is its end."""
        try:
            chunk: bytes = await self._chunks.__anext__()
        except StopAsyncIteration:
            self._over = self._complete = True
            return None
        except BaseException:
            self._over = True
            raise
        return chunk

    async def text(self) -> str:
        """Return the beginning of the body, of whatever has come in time."""
        body = b""
        with anyio.move_on_after(DETAIL_TIME):
            try:
                while len(body) < DETAIL_SIZE and (chunk := await self.read()) is not None:
                    body += chunk
            except Exception:  # noqa: S110  the status says enough
                pass
        return body[:DETAIL_SIZE].decode("utf-8", "replace")

    def distrust(self) -> None:
        """Let no other request take this connection."""
        http2.distrust(self._response)

    async def close(self) -> None:
        """Close the response, whoever cancels this task meanwhile."""
        with anyio.move_on_after(CLOSING, shield=True):
            if not self._over:
                await unwind(self._chunks)
            if not self._complete:
                await http2.reset(self._response)
            try:
                await self._response.aclose()
            except Exception:  # noqa: S110  it is broken, and nobody needs it any more
                pass


class Requests:
    """Makes the same request again and again.

    :param client: an ``AsyncClient`` of httpx2 or httpx.
    :param headers: header fields, or a function that returns them, for each request.
    :param body: ``json`` and ``content`` of the request.
    :param retry_on: the statuses after which the client connects again.
    :raises TypeError: the client is something else.
    """

    def __init__(
        self,
        client: Any,
        method: str,
        url: str,
        headers: RequestHeaders | None,
        body: Mapping[str, Any],
        retry_on: Collection[int],
    ) -> None:
        self._client = client
        self._library = library_of(client)
        self._method = method
        self._url = url
        # Pairs that can be read once must last for all attempts.
        self._headers = list(headers) if isinstance(headers, Iterator) else headers
        self._body = body
        self._retry_on = retry_on

    def is_lost(self, error: Exception, *, opened: bool) -> bool:
        """Return whether an error is one of the network, so that it helps to connect again.

        :param opened: whether such a request has succeeded before.
        """
        library = self._library
        if isinstance(error, library.LocalProtocolError):
            # A header field that can't be sent; but on HTTP/2 also a connection that has ended.
            return opened
        if isinstance(error, library.UnsupportedProtocol):  # the scheme of the URL
            return False
        if isinstance(error, (library.TransportError, library.DecodingError)):
            return True
        # What the libraries let through of what they read with: TLS or HTTP/2 that makes no sense.
        return isinstance(error, ssl.SSLError) or type(error).__module__ == "h2.exceptions"

    async def open(self, last_event_id: str) -> Connection:
        """Send the request, follow redirects, and return the event stream.

        :raises Ended: the answer is 204.
        :raises Later: the answer is a status that says to come later.
        :raises StatusError: the answer is another status.
        :raises ContentTypeError: the answer is no event stream.
        :raises Exception: what the library raises: see :meth:`is_lost`.
        """
        settings = self._client.timeout
        request = self._client.build_request(
            self._method,
            self._url,
            headers=await self._header_fields(last_event_id),
            # How long a stream may be silent is the idle timeout's subject.
            timeout=self._library.Timeout(
                connect=settings.connect, read=None, write=settings.write, pool=settings.pool
            ),
            extensions={"trace": (handshake := Handshake())},
            **self._body,
        )
        try:
            response = await self._sent(request)
        except BaseException:
            if handshake.goes_on:
                with anyio.move_on_after(CLOSING, shield=True):
                    await handshake.close()
            raise
        connection = Connection(response)
        try:
            return await self._judged(response, connection)
        except BaseException:
            await connection.close()
            raise

    async def _sent(self, request: Any) -> Any:
        """Send a request, and follow redirects.

        The client could, but it would read the whole body of a redirect, however long that is.
        """
        auth = self._client.auth
        options = {} if auth is None else {"auth": bounded(self._library, auth)}
        response = await self._client.send(request, stream=True, follow_redirects=False, **options)
        for _ in range(self._client.max_redirects):
            if response.next_request is None:
                return response
            connection = Connection(response)
            try:
                await connection.text()  # if that is all of it, the connection is used again
            finally:
                await connection.close()
            # The client's credentials are in it already, unless it goes to another host.
            response = await self._client.send(
                response.next_request, stream=True, follow_redirects=False, auth=None
            )
        if response.next_request is not None:
            await Connection(response).close()
            raise self._library.TooManyRedirects(
                f"more than {self._client.max_redirects} redirects", request=request
            )
        return response

    async def _judged(self, response: Any, connection: Connection) -> Connection:
        status, headers = response.status_code, response.headers
        answer = answer_of(status, headers, self._retry_on, datetime.now(UTC))
        if answer.meaning is Meaning.STREAM:
            return connection
        if answer.meaning is Meaning.END:
            raise Ended
        if answer.meaning is Meaning.WRONG_TYPE:
            raise ContentTypeError(headers.get("content-type"))
        error = StatusError(status, await connection.text(), headers)
        if answer.meaning is Meaning.LATER:
            raise Later(error, answer.retry_after)
        raise error

    async def _header_fields(self, last_event_id: str) -> list[tuple[bytes, bytes]]:
        given: Any = self._headers or ()
        if callable(given) and not isinstance(given, Mapping):
            given = given()
            if inspect.isawaitable(given):
                given = await given
        pairs: Any = given.items() if isinstance(given, Mapping) else given
        fields = [(_latin1(name).lower(), _latin1(value, name)) for name, value in pairs]
        names = {name for name, _ in fields}
        if b"last-event-id" in names:
            raise ValueError("give the id as last_event_id, not as a header field: it changes")
        # As a browser sends them (WHATWG HTML 9.2.3, and the cache mode "no-store" of Fetch).
        for name, value in ((b"accept", b"text/event-stream"), (b"cache-control", b"no-cache")):
            if name not in names:
                fields.append((name, value))
        if last_event_id:
            fields.append((b"last-event-id", _id_value(last_event_id)))
        return fields


def _id_value(last_event_id: str) -> bytes:
    """Return a last event ID as the value of a header field (WHATWG HTML 9.2.4): in UTF-8."""
    try:
        value = last_event_id.encode()
    except UnicodeEncodeError:
        raise EventSourceError(f"an id can't be sent as UTF-8: {last_event_id!r:.80}") from None
    value = value.strip(b" \t")  # no field value begins or ends with them
    if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in value):
        raise EventSourceError(f"an event has an id that no header field can have: {value!r:.80}")
    return value


def library_of(client: object) -> Any:
    """Return the module, httpx2 or httpx, whose ``AsyncClient`` a client is.

    :raises TypeError: it is something else.
    """
    for cls in type(client).__mro__:
        name = cls.__module__.partition(".")[0]
        if name in LIBRARIES and cls.__name__ == "AsyncClient":
            return importlib.import_module(name)
    raise TypeError(
        f"client must be an AsyncClient of httpx2 or httpx, not {client!r:.80}"
        + (": its Client is not asynchronous" if type(client).__name__ == "Client" else "")
    )


def _latin1(text: str | bytes, name: str | bytes | None = None) -> bytes:
    """Return a name of a header field, or the value of the one that has a name, as bytes."""
    what = "the name of a header field" if name is None else f"the header field {name!r:.80}"
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise TypeError(f"{what} must be str or bytes, not {text!r:.80}")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} can have characters of Latin-1 only, not {text!r:.80}: encode it yourself"
        ) from None
