"""Publishes through nchan, which has no program of its own to do so: ``PORT RATE BURST``.

A burst is written at once. Flat out, the next is written before all of it has been answered, so
that nginx never waits.
"""

from __future__ import annotations

import socket
import sys
import time

from .texts import SIZE, text_now

HEAD = f"POST /publish HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n"

#: Bursts that may be unanswered, flat out.
AHEAD = 2


def main(port: int, rate: float, burst: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        due, unanswered = time.monotonic(), 0
        while True:
            connection.sendall("".join(HEAD + text_now() for _ in range(burst)).encode())
            unanswered += burst
            while unanswered > burst * (AHEAD if not rate else 0):
                read = connection.recv(2**16)
                if not read:
                    return
                unanswered -= read.count(b"HTTP/1.1 2")
            due += burst / rate if rate else 0
            time.sleep(max(due - time.monotonic(), 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
