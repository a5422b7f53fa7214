"""The load client: thousands of connections read by one loop, which does as little as can be.

Sockets and epoll, no parser: each read goes into one large buffer, and the last byte of an event's
text, which stands nowhere else, is counted in it. What a read costs is a tenth of what the
cheapest server spends on the send; each result says how busy the client was.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from typing import Self

from .peers.texts import MARK, SENT_AT, SIZE

#: Seconds. What comes meanwhile is no more than a socket's buffer takes.
NAP, NAP_OF_ONE = 0.005, 0.0005

#: So many streams may be asked for at once: a server's backlog has room for them.
UNDER_WAY = 1000

LAST_CHUNK = b"0\r\n\r\n"


class Load:
    """Connections to one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._buffer = bytearray(2**20)
        self.ended_well = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()
        self._epoll.close()

    def __len__(self) -> int:
        return len(self._sockets)

    def open(self, path: str, count: int = 1, patience: float = 60.0) -> None:
        """Ask for a stream so many times, and wait until the head of each response is there."""
        request = (
            f"GET {path} HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\n"  # of a page, for CORS
            "Accept: text/event-stream\r\n\r\n"
        ).encode()
        waiting: set[int] = set()
        deadline = time.monotonic() + patience
        for _ in range(count):
            while len(waiting) >= UNDER_WAY:
                self._hear_heads(path, waiting, deadline)
            each = socket.create_connection(("127.0.0.1", self._port), timeout=patience)
            each.sendall(request)
            each.setblocking(False)
            self._sockets[each.fileno()] = each
            self._epoll.register(each, select.EPOLLIN)
            waiting.add(each.fileno())
        while waiting:
            self._hear_heads(path, waiting, deadline)

    def _hear_heads(self, path: str, waiting: set[int], deadline: float) -> None:
        """Read what has come, and forget those of ``waiting`` that the head of a response is of."""
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(waiting)} streams of {path} did not open")
        for fd, _ in self._epoll.poll(1.0):
            read = self._read(fd)
            if fd in waiting and read:
                if not self._buffer.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"{path}: {bytes(self._buffer[:read])[:200]!r}")
                waiting.discard(fd)

    def ask(self, path: str) -> None:
        """Ask for something that is no stream, and wait for the answer."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            head = connection.recv(1000)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {head[:200]!r}")

    def close(self, count: int) -> None:
        """Leave so many of the streams."""
        for fd in list(self._sockets)[:count]:
            self._epoll.unregister(fd)
            self._sockets.pop(fd).close()

    def count(self, seconds: float) -> float:
        """Read for so long.

        :returns: how many events came a second.
        """
        events, took = self._read_for(seconds, MARK)
        return events / took

    def pings(self, seconds: float, ping: bytes) -> int:
        """Read for so long.

        :param ping: what stands once in each.
        :returns: how many pings came.
        """
        return self._read_for(seconds, ping)[0]

    def _read_for(self, seconds: float, mark: bytes) -> tuple[int, float]:
        """How often ``mark`` came, and in how many seconds."""
        events = 0
        buffer, poll, sockets = self._buffer, self._epoll.poll, self._sockets
        began = time.monotonic()
        deadline = began + seconds
        # Streams are left alone for a moment, so that a read finds more than one event: else the
        # client may be what takes longest.
        nap = NAP if len(sockets) > 1 else NAP_OF_ONE
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(nap)
            for fd, _ in poll(left):
                try:
                    read = sockets[fd].recv_into(buffer)
                except BlockingIOError:
                    continue
                if not read:
                    raise ConnectionError("the server has closed a stream")
                events += buffer.count(mark, 0, read)
        return events, time.monotonic() - began

    def latencies(self, seconds: float) -> list[float]:
        """Read for so long.

        :returns: how long each delivery took since the event was made, in ms; sorted.
        """
        reads: list[tuple[int, bytes]] = []
        buffer, poll, sockets, clock = self._buffer, self._epoll.poll, self._sockets, _clock
        gc.collect()
        gc.disable()
        try:
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                for fd, _ in poll(left):
                    size = sockets[fd].recv_into(buffer)
                    reads.append((clock(), bytes(buffer[:size])))
        finally:
            gc.enable()
        took = []
        for now, read in reads:
            end = read.find(MARK)
            while end >= 0:
                if end >= SIZE - 1:  # the whole of it is in this read
                    begin = end - SIZE + 1
                    took.append((now - int(read[begin : begin + SENT_AT])) / 1e6)
                end = read.find(MARK, end + 1)
        return sorted(took)

    def wait_for_ends(self, seconds: float) -> int:
        """Read until all streams are over, or for so long.

        :returns: how many ended as a response should, with the last chunk.
        """
        well = 0
        tails = dict.fromkeys(self._sockets, b"")
        deadline = time.monotonic() + seconds
        while tails and (left := deadline - time.monotonic()) > 0:
            for fd, _ in self._epoll.poll(left):
                read = self._read(fd)
                tails[fd] = (tails[fd] + self._buffer[:read])[-len(LAST_CHUNK) :]
                if tails[fd] == LAST_CHUNK or not read:
                    well += tails[fd] == LAST_CHUNK
                    del tails[fd]
                    self._epoll.unregister(fd)
                    self._sockets.pop(fd).close()
        return well

    def _read(self, fd: int) -> int:
        try:
            return self._sockets[fd].recv_into(self._buffer)
        except BlockingIOError:
            return -1
        except OSError:
            return 0


_clock = time.monotonic_ns
