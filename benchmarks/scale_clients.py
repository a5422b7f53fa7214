"""The clients of `scale`: as many as wanted in a process of its own, which does little but count.

``python -m benchmarks.scale_clients FILE PORT COUNT``, where FILE is the number of an open file
that has room for what they have heard.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import select
import socket
import sys
import time

REQUEST = b"GET /events HTTP/1.1\r\nHost: benchmark\r\n\r\n"

#: What a ping is on the wire.
PING_CHUNK = b"3\r\n:\n\n\r\n"

#: What the last event that is published ends with, and no other has.
LAST = b"!"

#: So many of them look when events were published.
WATCHES = 200

#: So many connections may be under way, so that the server's backlog has room.
UNDER_WAY = 500

#: Ports of one address do not suffice for all.
ADDRESSES = 4

_TIME = re.compile(rb"\ndata: (\d{20})")


class Heard(ctypes.Structure):
    """What clients have heard, in memory that processes share."""

    _fields_ = (
        ("opened", ctypes.c_longlong),
        ("pieces", ctypes.c_longlong),
        ("bytes", ctypes.c_longlong),
        ("had_all", ctypes.c_longlong),
        ("ended", ctypes.c_longlong),
        ("last_chunks", ctypes.c_longlong),
        ("last_end", ctypes.c_longlong),  # in ns
        ("watched", ctypes.c_longlong),
        ("delays", ctypes.c_double * 50_000),  # in ms
    )

    def piece(self, data: bytes | memoryview, *, watch: bool) -> None:
        """Hear a piece of a response."""
        self.pieces += 1
        self.bytes += len(data)
        if data[:12] == b"HTTP/1.1 200":
            self.opened += 1
        elif watch:
            now = time.monotonic_ns()
            for published in _TIME.findall(data[:4096]):  # most of a large one is data
                self.delays[self.watched % len(self.delays)] = (now - int(published)) / 1e6
                self.watched += 1
        end = bytes(data[-5:])
        if LAST in end:  # in one piece, wherever they were cut
            self.had_all += 1
        elif end == b"0\r\n\r\n":
            self.last_chunks += 1

    def end(self) -> None:
        """Hear the end of a connection."""
        self.ended += 1
        self.last_end = time.monotonic_ns()


def shared(file: int) -> Heard:
    return Heard.from_buffer(mmap.mmap(file, ctypes.sizeof(Heard)))


def watches(number: int, count: int) -> bool:
    """Whether one of so many connections is among those that look at what they get."""
    return number % max(count // WATCHES, 1) == 0


class Clients:
    def __init__(self, heard: Heard, port: int, count: int) -> None:
        self.heard, self.port, self.count = heard, port, count
        self.epoll = select.epoll()
        self.sockets: dict[int, tuple[socket.socket, bool]] = {}
        self.buffer = memoryview(bytearray(1 << 20))

    def run(self) -> None:
        for number in range(self.count):
            self.open(number)
            while number - self.heard.opened > UNDER_WAY:
                self.read()
        while self.sockets:
            self.read()

    def open(self, number: int) -> None:
        source = (f"127.0.{1 + number % ADDRESSES}.1", 0)
        client = socket.create_connection(("127.0.0.1", self.port), source_address=source)
        client.sendall(REQUEST)
        client.setblocking(False)
        self.sockets[client.fileno()] = client, watches(number, self.count)
        self.epoll.register(client, select.EPOLLIN)

    def read(self) -> None:
        for number, _ in self.epoll.poll():
            client, watch = self.sockets[number]
            try:
                size = client.recv_into(self.buffer)
            except BlockingIOError:
                continue
            except OSError:
                size = 0
            if size:
                self.heard.piece(self.buffer[:size], watch=watch)
            else:
                self.heard.end()
                del self.sockets[number]
                client.close()


if __name__ == "__main__":
    file, port, count = map(int, sys.argv[1:])
    Clients(shared(file), port, count).run()
