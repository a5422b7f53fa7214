"""A proxy in front of a Redis server, for what goes wrong with connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any, Literal, Self, TypeVar

from ..servers.clients import DEADLINE
from ..servers.harness import Certificate, steady_port

T = TypeVar("T")

Moment = Literal["before", "within", "after"]

#: Closing a socket with this sends a reset, at once.
_RESET = struct.pack("ii", 1, 0)


async def read_command(reader: asyncio.StreamReader) -> bytes:
    """One command as a client sends it: an array of strings."""
    line = await reader.readuntil(b"\r\n")
    parts = [line]
    if line.startswith(b"*"):
        for _ in range(int(line[1:])):
            size = await reader.readuntil(b"\r\n")
            parts += size, await reader.readexactly(int(size[1:]) + 2)
    return b"".join(parts)


class _Link:
    """A client's connection, and the one to the server that goes with it."""

    def __init__(
        self, proxy: FaultyProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.proxy = proxy
        self.reader = reader
        self.writer = writer
        self.writers = [writer]
        self.cutting = False  # there are no more replies
        self.stranded = False  # nothing is forwarded any more

    async def run(self) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await self.proxy.flowing.wait()
            server = await asyncio.open_connection("127.0.0.1", self.proxy.target)
            self.writers.append(server[1])
            replies = asyncio.create_task(self.replies(server[0]))
            tasks = [replies, asyncio.create_task(self.commands(server[1], replies))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self.cutting:
                self.cut()
        except OSError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self.writers:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def commands(self, server: asyncio.StreamWriter, replies: asyncio.Task[None]) -> None:
        while True:
            command = await read_command(self.reader)
            await self.pass_on()
            moment = self.proxy.moment_to_cut(command)
            self.cutting = moment is not None
            if moment == "before":
                return
            server.write(command[: len(command) // 2] if moment == "within" else command)
            await server.drain()
            self.proxy.bytes_sent += len(command)
            if moment is not None:
                # The server carries out what it has before it looks whether there is more.
                server.write_eof()
                await asyncio.wait([replies])
                return

    async def pass_on(self) -> None:
        """Wait until data may go on."""
        await self.proxy.pass_on()
        if self.stranded:
            await asyncio.Event().wait()

    async def replies(self, server: asyncio.StreamReader) -> None:
        while data := await server.read(65536):
            await self.pass_on()
            if not self.cutting:
                self.writer.write(data)
                await self.writer.drain()
                self.proxy.bytes_received += len(data)

    def cut(self) -> None:
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class FaultyProxy:
    """Forwards connections to a port of this machine, and fails as it is told, from any thread.

    With a certificate its clients speak TLS. It runs in a thread of its own.
    """

    def __init__(self, target: int, certificate: Certificate | None = None) -> None:
        self.target = target
        self.port = steady_port()
        #: When there was one.
        self.connected: list[float] = []
        #: From clients, and to them.
        self.bytes_sent = 0
        self.bytes_received = 0
        #: Those that `cut_at` has cut.
        self.cuts = 0
        self._delay = 0.0
        self._to_cut: tuple[bytes, Moment] | None = None
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self._tls: SSLContext | None = None
        if certificate is not None:
            self._tls = SSLContext(PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate.chain, certificate.key)

    @property
    def url(self) -> str:
        if self._tls is None:
            return f"redis://127.0.0.1:{self.port}"
        return f"rediss://localhost:{self.port}"  # the certificate is for the name

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self.connected)

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)))
        self._thread.start()
        assert started.wait(DEADLINE)
        self.resume()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _run(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self.flowing = asyncio.Event()
        started.set()
        await self._ended.wait()
        await self._close()
        await self._cut()
        for task in (tasks := list(self._links.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What goes wrong.

    def cut(self) -> None:
        """Reset all connections."""
        self._do(self._cut())

    def cut_at(self, word: str, moment: Moment) -> None:
        """Reset the connection of the next command that contains a word, such as its name: before
        the server gets it, when it has got half of it, or when it has carried it out. Others that
        were sent before it are carried out, too, but their replies may be lost.
        """
        self._to_cut = word.upper().encode(), moment

    def refuse(self) -> None:
        """Take no new connections."""
        self._do(self._close())

    def delay(self, seconds: float) -> None:
        """Let each command and each piece of a reply wait for so long."""
        self._delay = seconds

    def silence(self) -> None:
        """Accept connections, and forward nothing: they are half open."""
        self._do(self._silence())

    def strand(self) -> None:
        """Forward nothing any more on the connections that there are; new ones are well."""
        for link in list(self._links):
            link.stranded = True

    def resume(self) -> None:
        """Let all be well again, for new connections and those that there are."""
        self._delay = 0.0
        self._to_cut = None
        self._do(self._resume())

    # In the thread.

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE)

    async def _cut(self) -> None:
        for link in self._links:
            link.cut()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _silence(self) -> None:
        self.flowing.clear()

    async def _resume(self) -> None:
        self.flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, ssl=self._tls
            )

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.append(time.monotonic())
        link = _Link(self, reader, writer)
        task = self._links[link] = asyncio.create_task(link.run())
        task.add_done_callback(lambda _: self._links.pop(link))

    async def pass_on(self) -> None:
        """Wait until anything may go on."""
        if self._delay:
            await asyncio.sleep(self._delay)
        await self.flowing.wait()

    def moment_to_cut(self, command: bytes) -> Moment | None:
        if self._to_cut is None or self._to_cut[0] not in command.upper():
            return None
        moment = self._to_cut[1]
        self._to_cut = None
        self.cuts += 1
        return moment
