"""The client and servers that mean harm, or are broken in ways that nobody expects."""

from __future__ import annotations

import importlib
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.streams.tls
import h2.config
import h2.connection
import pytest

from sse_asgi.client import EventSource, EventSourceError, State, backoff

from .http_peer import LIBRARIES, STREAM, Peer, collect, frames
from .servers.harness import Certificate, make_certificate
from .test_client_sockets import GONE, HANG, HEAD, Server

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "LEAST", 0.0)


class Endless:
    """Answers bytes that never end."""

    def __init__(self, head: bytes, more: bytes) -> None:
        self.head, self.more = head, more
        self.sent = 0

    async def __call__(self, stream: anyio.abc.SocketStream, had: int) -> None:
        await stream.send(self.head)
        while True:
            await stream.send(self.more)
            self.sent += len(self.more)


async def rest(stream: anyio.abc.SocketStream, had: int) -> None:
    body = frames(had + 1, 3)
    await stream.send(HEAD + b"connection: close\r\n\r\n" + body if body else GONE)


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param((b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000), id="headers"),
        pytest.param((b"HTTP/1.1 200 OK\r\nx: ", b"y" * 10_000), id="a header field"),
        pytest.param((b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100), id="1xx"),
        pytest.param((b"", b"x" * 10_000), id="no HTTP"),
        pytest.param((b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", b"x" * 100_000), id="redirect"),
        pytest.param((b"HTTP/1.1 503 No\r\nretry-after: 0\r\n\r\n", b"x" * 100_000), id="status"),
    ],
)
async def test_what_never_ends_before_a_stream(library: Any, endless: tuple[bytes, bytes]) -> None:
    """It costs little, and the client goes on to the next attempt."""
    endless_way = Endless(*endless)
    server = Server(endless_way, rest)
    async with server.running() as url, library.AsyncClient(trust_env=False) as client:
        async with EventSource(url, client=client, retry=0, idle_timeout=1) as source:
            assert await collect(source) == ["1", "2", "3"]


async def test_a_redirect_with_a_body_that_never_ends(library: Any) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 100_000
            yield b"x" * 100_000
            await anyio.lowlevel.checkpoint()

    peer = Peer(library.__name__)
    peer.answers = [
        lambda r: library.Response(302, headers={"location": "/b"}, content=body()),
        peer.stream(frames(1, 1)),
        peer.gone(),
    ]
    async with peer.client() as client:
        async with EventSource("http://x/a", client=client, retry=0) as source:
            assert await collect(source) == ["1"]
    assert sent < 1_000_000


async def test_redirects_that_never_end(library: Any) -> None:
    peer = Peer(library.__name__)
    peer.answers = [peer.status(302, location="/")] * 100
    async with peer.client(max_redirects=7) as client:
        async with EventSource("http://x/", client=client) as source:
            with pytest.raises(library.TooManyRedirects):
                await anext(source)
    assert len(peer.requests) == 8


@pytest.mark.parametrize("given", ["auth", "headers", "url"])
async def test_another_host_gets_no_credentials(library: Any, given: str) -> None:
    peer = Peer(library.__name__)
    peer.answers = [
        peer.status(307, location="http://x/b"),
        peer.status(307, location="http://y/c"),
        peer.status(307, location="http://x/d"),
        peer.stream(frames(1, 1)),
        peer.gone(),
    ]
    auth = ("user", "secret") if given == "auth" else None
    headers = {"Authorization": "Basic dXNlcjpzZWNyZXQ="} if given == "headers" else {}
    url = "http://user:secret@x/a" if given == "url" else "http://x/a"
    async with peer.client(auth=auth) as client:
        async with EventSource(url, client=client, headers=headers, retry=0) as source:
            assert await collect(source) == ["1"]
    had = ["authorization" in request.headers for request in peer.requests]
    assert had == [True, True, False, False, True]


async def test_a_bomb(library: Any) -> None:
    """A small chunk becomes millions of events: they are decoded as they are asked for."""
    count = 200_000
    bomb = zlib.compressobj(9, wbits=31)
    body = bomb.compress(b"data\n\n" * count) + bomb.flush()
    peer = Peer(library.__name__)
    peer.answers = [peer.stream(body, headers={**STREAM, "content-encoding": "gzip"})]
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, max_reconnects=0) as source:
            tracemalloc.start()
            try:
                await anext(source)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 15_000_000
            with anyio.CancelScope() as scope:  # it lets others run, and can be cancelled
                scope.cancel()
                async for _ in source:
                    pass
            assert scope.cancelled_caught


async def test_an_id_with_a_delete_character(library: Any) -> None:
    async def strange(stream: anyio.abc.SocketStream, had: int) -> None:
        await stream.send(HEAD + b"connection: close\r\n\r\nid: 1\x7f\ndata: 1\n\n")

    async with Server(strange).running() as url, library.AsyncClient(trust_env=False) as client:
        async with EventSource(url, client=client, retry=0) as source:
            assert (await anext(source)).id == "1\x7f"
            with pytest.raises(EventSourceError, match="no header field"):
                await anext(source)


async def test_header_fields_that_can_be_read_once(library: Any) -> None:
    peer = Peer(library.__name__)
    peer.answers = [peer.stream(frames(1, 1)), peer.gone()]
    fields: Iterator[tuple[str, str]] = iter([("authorization", "secret")])
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, headers=fields, retry=0) as source:
            assert await collect(source) == ["1"]
    assert [r.headers.get("authorization") for r in peer.requests] == ["secret", "secret"]


async def test_garbage_within_tls(library: Any, certificate: Certificate) -> None:
    """As if somebody on the way had changed a record."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    served = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal served
        served += 1
        async with stream:
            tls = await anyio.streams.tls.TLSStream.wrap(
                stream, server_side=True, ssl_context=context, standard_compatible=False
            )
            request = b""
            while b"\r\n\r\n" not in request:
                request += await tls.receive()
            had = int(request.partition(b"last-event-id: ")[2].partition(b"\r\n")[0] or 0)
            await tls.send(HEAD + b"connection: close\r\n\r\n" + frames(had + 1, had + 1))
            if served < 3:
                await anyio.sleep(0.1)
                await stream.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)

    with anyio.fail_after(HANG):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
            library.AsyncClient(trust_env=False, verify=certificate.client) as client,
        ):
            tasks.start_soon(listener.serve, serve)
            url = f"https://localhost:{listener.extra(anyio.abc.SocketAttribute.local_port)}/"
            async with EventSource(url, client=client, retry=0) as source:
                assert [(await anext(source)).data for _ in range(3)] == ["1", "2", "3"]
            tasks.cancel_scope.cancel()


async def test_garbage_within_http2(library: Any) -> None:
    served = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal served
        served += 1
        number = served
        async with stream:
            config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
            connection = h2.connection.H2Connection(config)
            connection.initiate_connection()
            await stream.send(connection.data_to_send())
            while True:
                event: Any
                for event in connection.receive_data(await stream.receive()):
                    if type(event).__name__ == "RequestReceived":
                        head = [(":status", "200"), ("content-type", "text/event-stream")]
                        connection.send_headers(event.stream_id, head)
                        connection.send_data(event.stream_id, frames(number, number))
                await stream.send(connection.data_to_send())
                if number < 3 and connection.open_inbound_streams:
                    await anyio.sleep(0.1)
                    await stream.send(b"\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" * 3)
                    with anyio.move_on_after(1):
                        await stream.receive()
                    return

    async def quietly(stream: anyio.abc.SocketStream) -> None:
        try:
            await serve(stream)
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            pass

    with anyio.fail_after(HANG):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
            library.AsyncClient(trust_env=False, http1=False, http2=True) as client,
        ):
            tasks.start_soon(listener.serve, quietly)
            url = f"http://localhost:{listener.extra(anyio.abc.SocketAttribute.local_port)}/"
            async with EventSource(url, client=client, retry=0) as source:
                assert [(await anext(source)).data for _ in range(3)] == ["1", "2", "3"]
            tasks.cancel_scope.cancel()


async def test_it_is_closed_when_it_is_time_to_connect(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is made then: whoever closes it would wait for the answer."""
    peer = Peer(library.__name__)
    peer.answers = [peer.error("ConnectError"), peer.stream(1e9)]
    sleep = anyio.sleep

    async def sleep_and_close(seconds: float) -> None:
        await sleep(seconds)
        assert source._link is not None
        source._link.close()  # by another task, before this one has gone on

    monkeypatch.setattr(anyio, "sleep", sleep_and_close)
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, retry=1) as source:
            assert await collect(source) == []
            assert source.state is State.CLOSED
    assert len(peer.requests) == 1


@pytest.mark.parametrize("how", ["a timeout", "a cancellation"])
async def test_a_handshake_that_never_ends(library: Any, how: str) -> None:
    """Who gives it up leaves no connection: the server sees its end."""
    seen = 0

    async def silent(stream: anyio.abc.SocketStream) -> None:
        nonlocal seen
        async with stream:
            async for _ in stream:
                pass
            seen += 1

    with anyio.fail_after(HANG):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
            library.AsyncClient(trust_env=False, timeout=HANG) as client,
        ):
            tasks.start_soon(listener.serve, silent)
            url = f"https://localhost:{listener.extra(anyio.abc.SocketAttribute.local_port)}/"
            timeout = 0.2 if how == "a timeout" else None
            async with EventSource(url, client=client, retry=0, idle_timeout=timeout) as source:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(_cancel_later, scope)
                    await anext(source)
                while seen < 1:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()


async def _cancel_later(scope: anyio.CancelScope) -> None:
    await anyio.sleep(0.5)
    scope.cancel()


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"x": "\N{SNOWMAN}"}, ValueError, "the header field 'x' can have characters of Latin-1"),
        ({"\N{SNOWMAN}": "x"}, ValueError, "the name of a header field can have"),
        ({"x": 1}, TypeError, "the header field 'x' must be str or bytes, not 1"),
        ({"x": None}, TypeError, "the header field 'x' must be str or bytes, not None"),
        ({1: "x"}, TypeError, "the name of a header field must be str or bytes, not 1"),
    ],
)
async def test_header_fields_that_are_none(
    library: Any, fields: Any, error: type[Exception], said: str
) -> None:
    async with Peer(library.__name__).client() as client:
        async with EventSource("http://x/", client=client, headers=lambda: fields) as source:
            with pytest.raises(error, match=said):
                await anext(source)
            assert source.state is State.CLOSED


@pytest.mark.parametrize("who", ["headers", "on_bytes"])
async def test_a_function_that_says_stop_does_not_end_the_stream(library: Any, who: str) -> None:
    """Whoever takes tokens from an iterator would take its end for that of the stream."""
    peer = Peer(library.__name__)
    peer.answers = [peer.stream(frames(1, 1))]

    async def headers() -> dict[str, str]:
        raise StopAsyncIteration

    def on_bytes(chunk: bytes) -> None:
        raise StopAsyncIteration

    options: Any = {"headers": headers} if who == "headers" else {"on_bytes": on_bytes}
    async with peer.client() as client:
        async with EventSource("http://x/", client=client, **options) as source:
            with pytest.raises(RuntimeError, match="StopAsyncIteration"):
                await collect(source)


async def test_ids_that_are_none(library: Any) -> None:
    async with Peer(library.__name__).client() as client:
        for wrong in (5, b"5"):
            with pytest.raises(TypeError, match="last_event_id must be a string"):
                EventSource("http://x/", client=client, last_event_id=wrong)  # type: ignore[arg-type]
        async with EventSource("http://x/", client=client, last_event_id="\ud800") as source:
            with pytest.raises(EventSourceError, match="as UTF-8"):
                await anext(source)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_the_client_is_closed_by_somebody_else(library: Any, when: str) -> None:
    async def one(stream: anyio.abc.SocketStream, had: int) -> None:
        await stream.send(HEAD + b"\r\n" + frames(1, 1))
        await stream.receive()

    async with Server(one).running() as url, library.AsyncClient(trust_env=False) as client:
        async with EventSource(url, client=client, retry=0) as source:
            await anext(source)
            async with anyio.create_task_group() as tasks:
                if when == "before":
                    await client.aclose()
                else:
                    tasks.start_soon(client.aclose)
                with pytest.raises(RuntimeError, match="client has been closed"):
                    await collect(source)
            assert source.state is State.CLOSED


@pytest.mark.parametrize("length", [5, 500])
async def test_a_length_that_is_wrong(library: Any, length: int) -> None:
    async def wrong(stream: anyio.abc.SocketStream, had: int) -> None:
        await stream.send(HEAD + b"content-length: %d\r\n\r\n" % length + frames(1, 1))

    server = Server(wrong, rest)
    async with server.running() as url, library.AsyncClient(trust_env=False) as client:
        async with EventSource(url, client=client, retry=0) as source:
            assert await collect(source) == ["1", "2", "3"]
    assert server.had == ([0, 0, 3] if length == 5 else [0, 1, 3])


async def test_a_challenge_that_never_ends(library: Any) -> None:
    """Both libraries would read the whole body before they answer the challenge."""
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 100_000
            yield b"x" * 100_000
            await anyio.lowlevel.checkpoint()

    challenge = {"www-authenticate": 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'}
    peer = Peer(library.__name__)
    peer.answers = [
        lambda r: library.Response(401, headers=challenge, content=body()),
        peer.stream(frames(1, 40_000)),
        peer.gone(),
    ]
    async with peer.client(auth=library.DigestAuth("user", "secret")) as client:
        async with EventSource("http://x/", client=client, retry=0) as source:
            assert len(await collect(source)) == 40_000  # of the stream, all is read
    assert sent < 1_000_000
    assert len(peer.requests) == 3
    assert peer.requests[-1].headers["authorization"].startswith("Digest ")
