"""Clients that take nothing any more: their connections are aborted, and no other ones.

The servers are made of objects that look like those of hypercorn and granian, with real sockets.
The real ones are in tests/servers.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from sse_asgi import CloseReason, Shutdown, servers, sse_app
from sse_asgi.runtime import of_task
from sse_asgi.servers.base import Server
from sse_asgi.types import Message, Scope, Send

from .streams import Recorder, Stopping, http_scope, on_mock_clock

pytestmark = pytest.mark.anyio

_DISCONNECT = {"type": "http.disconnect"}


@contextmanager
def not_waiting(end: socket.socket) -> Iterator[None]:
    timeout = end.gettimeout()
    end.setblocking(False)
    try:
        yield
    finally:
        end.settimeout(timeout)


class HTTPStream:
    """What hypercorn has for a request: it leads to the socket, as with trio."""

    def __init__(self, connection: Connection, send: Send, http2: bool) -> None:
        self.tcp = connection
        self.wrapped = send
        self.stream_id = 1
        self.closed = False
        self.resets: list[int] = []
        if http2:
            self.stream_buffers: dict[int, Any] = {}

    async def app_send(self, message: Message) -> None:
        await self.wrapped(message)

    # It is also the protocol, and the server of the connection, which hypercorn has apart.

    async def send(self, event: object) -> None: ...

    @property
    def stream(self) -> Any:
        return SimpleNamespace(socket=self.tcp.server)

    @property
    def connection(self) -> Any:
        return SimpleNamespace(reset_stream=lambda number, code: self.resets.append(number))

    @property
    def task_group(self) -> Any:
        return SimpleNamespace(spawn=lambda function: None)


HTTPStream.__module__ = "hypercorn.protocol.http_stream"


class Connection:
    """A connection of TCP, both ends of it, and a server that only knows of it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listener:
            self.client = socket.create_connection(listener.getsockname()[:2])
            self.server, _ = listener.accept()
        for end in (self.client, self.server):
            end.settimeout(10)
        self.sent: list[Message] = []

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def scope(self, **changes: Any) -> Scope:
        ends = {"client": self.server.getpeername(), "server": self.server.getsockname()}
        return http_scope(**(ends | changes))

    def works(self) -> bool:
        """Whether what is written on one side comes out on the other."""
        try:
            self.server.sendall(b"x")
            return self.client.recv(1) == b"x"
        except OSError:
            return False

    def fill(self) -> None:
        """Write all that the buffers of both sides take."""
        with not_waiting(self.server), suppress(BlockingIOError):
            while True:
                self.server.send(bytes(65536))

    def read_some(self) -> None:
        with not_waiting(self.client), suppress(BlockingIOError):
            self.client.recv(50_000)

    def given_up(self) -> bool:
        """Whether the server's side is shut down, or closed."""
        if self.server.fileno() < 0:
            return True
        with not_waiting(self.server), suppress(BlockingIOError):
            return self.server.recv(1) == b""
        return False

    async def lost(self) -> None:
        """Wait until the server can see that the connection is gone."""
        while self.server.fileno() >= 0 and not select.select([self.server], [], [], 0)[0]:
            await anyio.sleep(0.001)

    async def receive(self) -> Message:
        await self.lost()
        return _DISCONNECT

    async def send(self, message: Message) -> None:
        """Take the start of a response, and nothing after the first event."""
        self.sent.append(message)
        if any(message.get("body") for message in self.sent):
            self.fill()
            await self.lost()

    async def shielded_send(self, message: Message) -> None:
        with anyio.CancelScope(shield=True):
            await self.send(message)

    def by_hypercorn(self, send: Send, version: str = "1.1") -> Send:
        """Return what hypercorn gives an application for this connection to send by."""
        stream = HTTPStream(self, send, version == "2")
        self.resets = stream.resets
        return stream.app_send


@pytest.fixture(autouse=True)
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are looked for only if a server is loaded."""
    for name in ("hypercorn.asyncio.run", "hypercorn.trio.run", "granian._futures"):
        monkeypatch.setitem(sys.modules, name, sys)


@pytest.fixture(params=[False, True], ids=["cancellable", "shielded"])
def shielded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether `send` is shielded: hypercorn's worker for trio does that."""
    if request.param:
        monkeypatch.setitem(sys.modules, "hypercorn.trio", sys)
    else:
        monkeypatch.delitem(sys.modules, "hypercorn.trio", raising=False)
    return bool(request.param)


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()


@pytest.fixture
def other() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    assert connection.works()
    connection.close()


async def test_a_client_that_takes_no_event_loses_its_connection(
    connection: Connection, other: Connection, shielded: bool
) -> None:
    """Regression 6: not only the source goes, but also what the server holds for it; and a server
    whose `send` can't be cancelled lets go of it.
    """
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), send_timeout=0.05, on_close=recorder.on_close)
    send = connection.by_hypercorn(connection.shielded_send if shielded else connection.send)
    await app(connection.scope(), connection.receive, send)
    assert recorder.closed
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert not connection.works()


async def test_other_streams_of_the_connection_stay(connection: Connection) -> None:
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), send_timeout=0.05, on_close=recorder.on_close)
    send = connection.by_hypercorn(connection.send, "2")
    with anyio.move_on_after(1.5):  # the stand-in does not tell that the stream was reset
        await app(connection.scope(http_version="2"), connection.receive, send)
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert connection.resets == [1]
    assert not connection.given_up()


async def test_who_does_not_take_the_end_of_a_stream_loses_the_connection(
    connection: Connection, shielded: bool
) -> None:
    """Regression 1: a server waits for such a client for ever."""
    shutdown = Shutdown()
    recorder = Recorder()
    app = sse_app(
        lambda: recorder.source("a"),
        send_timeout=None,
        cleanup_timeout=0.05,
        shutdown=shutdown,
        on_close=recorder.on_close,
    )
    send = connection.by_hypercorn(connection.shielded_send if shielded else connection.send)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, connection.scope(), connection.receive, send)
        while not any(message.get("body") for message in connection.sent):
            await anyio.sleep(0.001)
        shutdown.drain()
    assert recorder.report.reason is CloseReason.SHUTDOWN
    assert not connection.works()


async def test_who_does_not_take_the_start_of_a_drained_stream_loses_the_connection(
    connection: Connection, other: Connection, shielded: bool
) -> None:
    """Otherwise uvicorn answers 500 in the place of the application, and logs an error."""
    connection.fill()
    shutdown = Shutdown()
    shutdown.drain()

    async def send(message: Message) -> None:
        await connection.lost()

    async def shielded_send(message: Message) -> None:
        with anyio.CancelScope(shield=True):
            await connection.lost()

    app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown, cleanup_timeout=0.05)
    with anyio.fail_after(10):
        await app(
            connection.scope(),
            connection.receive,
            connection.by_hypercorn(shielded_send if shielded else send),
        )
    assert connection.given_up()


async def test_who_does_not_take_a_ping_loses_the_connection_when_the_server_stops(
    connection: Connection, shielded: bool
) -> None:
    """The watchdog, too, may be in a `send` that can't be cancelled."""
    shutdown = Shutdown()
    recorder = Recorder()
    given_up = False
    app = sse_app(
        lambda: recorder.source(),
        ping=0.05,
        send_timeout=None,
        cleanup_timeout=0.05,
        shutdown=shutdown,
        on_close=recorder.on_close,
    )
    send = connection.by_hypercorn(connection.shielded_send if shielded else connection.send)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, connection.scope(), connection.receive, send)
        while not any(message.get("body") for message in connection.sent):
            await anyio.sleep(0.001)
        shutdown.drain()
        with anyio.move_on_after(10):
            await connection.lost()
            given_up = True
        connection.client.close()  # or the test would not fail but hang
    assert given_up
    assert recorder.report.reason is CloseReason.SHUTDOWN


@on_mock_clock
async def test_a_middleware_that_answers_every_receive_at_once() -> None:
    """Waiting for the disconnect must not stop everybody else."""
    calls = 0

    async def receive() -> Message:
        nonlocal calls
        calls += 1
        # Not for ever, or the test would not fail but hang.
        return {"type": "http.request"} if calls < 10_000 else _DISCONNECT

    with closing(Connection()) as connection:
        recorder = Recorder()
        app = sse_app(lambda: recorder.source("a"), send_timeout=0.05, on_close=recorder.on_close)
        await app(connection.scope(), receive, connection.by_hypercorn(connection.send))
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert calls < 10_000


class _Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, _Stop])
async def test_a_receive_that_raises_when_the_connection_was_given_up(
    connection: Connection, error: type[BaseException]
) -> None:
    """The stream has its report all the same; and it is no error of the stream's."""

    async def receive() -> Message:
        await connection.lost()
        raise error

    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), send_timeout=0.05, on_close=recorder.on_close)
    with pytest.raises(_Stop) if error is _Stop else nullcontext():
        await app(connection.scope(), receive, connection.by_hypercorn(connection.send))
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT


async def test_a_client_that_takes_its_time_and_a_source_too(
    connection: Connection, shielded: bool
) -> None:
    """Only both together take longer than `cleanup_timeout`: the connection is not aborted."""
    shutdown = Shutdown()
    recorder = Recorder()

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.4)

    async def send(message: Message) -> None:
        connection.sent.append(message)
        if message.get("body"):
            with anyio.CancelScope(shield=shielded):
                await anyio.sleep(0.2)

    app = sse_app(source, cleanup_timeout=0.5, shutdown=shutdown, on_close=recorder.on_close)
    async with anyio.create_task_group() as tasks:
        by_hypercorn = connection.by_hypercorn(send)
        tasks.start_soon(app, connection.scope(), connection.receive, by_hypercorn)
        while len(connection.sent) < 2:
            await anyio.sleep(0.001)
        shutdown.drain()
    assert recorder.report.reason is CloseReason.SHUTDOWN
    assert connection.sent[-1].get("more_body") is False
    assert connection.works()


@pytest.mark.parametrize(
    ("version", "blocks", "client", "stops", "given_up"),
    [
        *((version, False, "reads nothing", True, True) for version in ("1.1", "2")),
        *((version, False, "reads slowly", True, False) for version in ("1.1", "2")),
        *((version, False, "has read all", True, False) for version in ("1.1", "2")),
        *((version, False, "reads nothing", False, False) for version in ("1.1", "2")),
        ("2", True, "reads nothing", True, True),
        ("2", True, "reads nothing", False, False),
    ],
)
async def test_what_a_stopping_server_has_taken_and_the_client_has_not(
    connection: Connection, version: str, blocks: bool, client: str, stops: bool, given_up: bool
) -> None:
    """The last chunk may lie in a buffer of the server for ever: then it would not stop. Where it
    goes on, the connection may be used for other requests; and with HTTP/2 other streams may be
    read that have not ended yet.
    """
    if client != "has read all":
        connection.fill()

    async def send(message: Message) -> None:
        connection.sent.append(message)
        if blocks and message.get("more_body") is False:
            await anyio.sleep_forever()

    async def read_slowly() -> None:
        while True:
            connection.read_some()
            await anyio.sleep(0.05)

    found = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        shutdown = Shutdown()
        app = sse_app(lambda: Recorder().source("a"), shutdown=shutdown, cleanup_timeout=0.05)
        scope = connection.scope(http_version=version)
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as streams:
                by_hypercorn = connection.by_hypercorn(send, version)
                streams.start_soon(app, scope, connection.receive, by_hypercorn)
                while len(connection.sent) < 2:
                    await anyio.sleep(0.001)
                signal.raise_signal(signal.SIGTERM) if stops else shutdown.drain()
            assert connection.sent[-1]["more_body"] is False
            # With HTTP/2 one that does not take the end is waited for, for a moment.
            assert blocks or not connection.given_up()
            if client == "reads slowly":
                tasks.start_soon(read_slowly)
            if given_up:
                with anyio.fail_after(10):
                    await connection.lost()
            else:
                await anyio.sleep(1.5)
            assert connection.given_up() is given_up
            tasks.cancel_scope.cancel()
    finally:
        signal.signal(signal.SIGTERM, found)


class ASGIHTTPProtocol:
    """What granian has for a request. It leads nowhere."""

    async def send(self, message: Message) -> None: ...


ASGIHTTPProtocol.__module__ = "granian._granian"


def by_granian(scope: Scope, *, signalled: bool = False) -> Server:
    """Return what is known of the server of a request by granian.

    :param signalled: whether it was told to stop.
    """
    send = ASGIHTTPProtocol().send
    return servers.recognise(scope, send, of_task(), Stopping(signalled))


def granians(connection: Connection, **changes: Any) -> Scope:
    """Return the scope of a request by granian, and fill its connection."""
    connection.fill()
    host, port = connection.server.getpeername()[:2]
    own, listened = connection.server.getsockname()[:2]
    ends = {"client": (host, str(port)), "server": (own, str(listened)), "query_string": b"a=1"}
    return connection.scope(**({**ends, "raw_path": b"/"} | changes))


def aborts(scope: Scope) -> bool:
    server = by_granian(scope)
    server.abort()
    return server.aborted


async def test_a_connection_that_only_the_system_knows(
    connection: Connection, other: Connection
) -> None:
    assert aborts(granians(connection))
    assert connection.given_up()


async def test_when_the_process_has_no_file_left(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that stall have them all, perhaps."""

    def listdir(path: str) -> list[str]:
        raise OSError(errno.EMFILE, "too many open files")

    scope = granians(connection)
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", listdir)
        server = by_granian(scope)
        server.abort()
        assert not server.aborted
        assert not server.is_gone()
    with anyio.fail_after(10):
        while not server.aborted:
            await anyio.sleep(0.05)
            server.abort()
    assert connection.given_up()


@pytest.mark.parametrize(
    "ends",
    [
        {"client": None},
        {"server": None},
        {"client": ("testclient", "50000")},
        {"client": ("127.0.0.1", "0")},
        {"client": ("127.0.0.1", "no port")},
        {"server": ("/run/app.sock", None)},
    ],
)
async def test_a_scope_that_names_no_connection(connection: Connection, ends: Any) -> None:
    assert not aborts(granians(connection, **ends))
    assert not connection.given_up()


@pytest.mark.parametrize("where", ["headers", "query_string", "raw_path", "client"])
async def test_an_address_that_a_request_may_have_brought(
    connection: Connection, where: str
) -> None:
    """Regression 32: a middleware may have put it where granian's was."""
    host, port = connection.server.getpeername()
    said = f"{host}:{port}".encode()
    changes: dict[str, Any] = {
        "headers": {"headers": [(b"forwarded", b"for=" + said)]},
        "query_string": {"query_string": b"client=" + said},
        "raw_path": {"raw_path": b"/" + said},
        "client": {"client": (host, port)},  # an int: not granian's
    }
    server = by_granian(granians(connection, **changes[where]), signalled=True)
    server.abort()
    server.bound_unread(0)
    await anyio.sleep(0.7)
    assert not server.aborted
    assert server.progress() is None
    assert not connection.given_up()
    connection.close()
    assert not server.is_gone()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_progress(connection: Connection, kind: str) -> None:
    """Regression 26: it is seen when the client takes something, and at no other time."""
    if kind == "unix":
        connection.close()
        connection.client, connection.server = socket.socketpair()
    send = connection.by_hypercorn(connection.send)
    server = servers.recognise(http_scope(), send, of_task(), Stopping())
    before = server.progress()
    assert before is not None
    connection.server.sendall(b"x")
    assert connection.client.recv(1) == b"x"
    connection.fill()
    await anyio.sleep(0.5)  # what is on its way arrives
    before = server.progress()
    await anyio.sleep(1.5)  # TCP asks several times whether the window has opened
    assert server.progress() == before
    for _ in range(100):
        connection.read_some()
    await anyio.sleep(0.1)
    assert server.progress() != before


async def test_a_server_that_nobody_knows(connection: Connection) -> None:
    """Nothing is cut by addresses."""
    scope = granians(connection)
    server = servers.recognise(scope, connection.send, of_task(), Stopping(signalled=True))
    called: list[str] = []
    server.attach(lambda: None, lambda: called.append("lost"))
    server.abort()
    server.bound_unread(0)
    await anyio.sleep(0.7)
    assert (server.aborted, server.progress(), server.is_gone()) == (False, None, False)
    assert not connection.given_up()
    server.detach()
    assert not called


@pytest.mark.parametrize("any_host", ["0.0.0.0", "::"])
async def test_a_scope_with_what_the_server_listens_on(
    connection: Connection, other: Connection, any_host: str
) -> None:
    """As granian has it."""
    port = connection.server.getsockname()[1]
    assert aborts(granians(connection, server=(any_host, port)))
    assert connection.given_up()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
async def test_two_connections_that_only_differ_by_the_address_of_the_server() -> None:
    """Rather neither than the wrong one."""

    def connect(listener: socket.socket, host: str, port: int) -> tuple[socket.socket, ...]:
        client = stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((host, port))
        client.connect(listener.getsockname())
        client.settimeout(10)
        return client, stack.enter_context(listener.accept()[0])

    with ExitStack() as stack:
        one = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = one.getsockname()[1]
        two = stack.enter_context(socket.create_server(("127.0.0.2", port)))
        client, server = connect(one, "127.0.0.1", 0)
        other_client, other_server = connect(two, *client.getsockname())
        host, number = client.getsockname()
        ends = {"client": (host, str(number)), "server": ("0.0.0.0", port)}
        scope = http_scope(**ends, query_string=b"", raw_path=b"/")
        assert not aborts(scope)
        for end, other_end in ((client, server), (other_client, other_server)):
            other_end.sendall(b"x")
            assert end.recv(1) == b"x"


async def test_a_connection_of_ipv6(other: Connection) -> None:
    try:
        connection = Connection("::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    with closing(connection):
        assert aborts(granians(connection))
        assert connection.given_up()


async def test_a_file_that_has_become_another_one(connection: Connection) -> None:
    """The number of a file is given away again when it is closed."""
    gone = Connection()
    server = by_granian(granians(gone))
    assert not server.is_gone()  # all are known now
    number = gone.server.fileno()
    gone.close()
    os.dup2(connection.server.fileno(), number)
    try:
        server.abort()
        assert not server.aborted
        assert connection.works()
    finally:
        os.close(number)


async def test_a_file_that_is_no_connection_any_more() -> None:
    """It is left alone, and no duplicate of it is left behind."""
    gone = Connection()
    server = by_granian(granians(gone))
    assert not server.is_gone()  # all are known now
    reader, writer = os.pipe()
    number = gone.server.fileno()
    gone.close()
    os.dup2(reader, number)
    os.close(reader)
    try:
        server.abort()
        assert not server.aborted
        os.write(writer, b"x")
        assert os.read(number, 1) == b"x"
        os.close(number)
        with pytest.raises(BrokenPipeError):  # nobody has it open
            os.write(writer, b"x")
    finally:
        os.close(writer)


async def test_many_that_stall_together(
    connection: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open files are not listed for each of them. One that was missed is found later."""
    looked = []
    listdir = os.listdir

    def look(path: str) -> list[str]:
        looked.append(path)
        time.sleep(0.05)  # there are many
        return listdir(path)

    monkeypatch.setattr(os, "listdir", look)
    together = [Connection() for _ in range(5)]
    try:
        for lost in together:
            assert aborts(granians(lost))
            assert lost.given_up()
        late = Connection()
        together.append(late)
        server = by_granian(granians(late))
        server.abort()
        assert not server.aborted
        assert len(looked) == 1
        with anyio.fail_after(10):
            while not server.aborted:
                await anyio.sleep(0.05)
                server.abort()
        assert late.given_up()
        assert len(looked) == 2
    finally:
        for lost in together:
            lost.close()
