"""A client of HTTP/3, by aioquic."""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
import time

from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StreamReset

from .clients import DEADLINE, Fields, Response


class HTTP3Response(Response):
    """A response by HTTP/3, on a connection of its own.

    Of what comes by TCP the kernel takes delivery until somebody reads it; here a thread does.
    """

    def __init__(self, sock: socket.socket, path: str, method: str, headers: Fields) -> None:
        super().__init__(sock)
        # No test is about the certificate.
        configuration = QuicConfiguration(
            alpn_protocols=H3_ALPN, server_name="localhost", verify_mode=ssl.CERT_NONE
        )
        self._quic = QuicConnection(configuration=configuration)
        self._connection = H3Connection(self._quic)
        self._address = sock.getpeername()
        #: What has come; ``None`` where no more will.
        self._events: queue.SimpleQueue[H3Event | None] = queue.SimpleQueue()
        self._leave, self._left = socket.socketpair()
        self._quic.connect(self._address, now=time.monotonic())
        self._stream = self._quic.get_next_available_stream_id()
        pseudo = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path.encode()),
        ]
        self._connection.send_headers(self._stream, [*pseudo, *headers], end_stream=True)
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def close(self) -> None:
        self._leave.close()  # wakes the thread, which tells the server
        self._thread.join()
        self._left.close()
        super().close()

    def reset(self) -> None:
        raise NotImplementedError

    def read_some(self) -> None:
        event = self._events.get(timeout=DEADLINE)
        if event is None:
            self.ending = "broken"
        elif isinstance(event, HeadersReceived):
            self._status = int(dict(event.headers)[b":status"])
            self._headers = [(n, v) for n, v in event.headers if not n.startswith(b":")]
        elif isinstance(event, DataReceived):
            self.body += event.data
            if event.stream_ended:
                self.ending = "complete"

    def _take(self) -> None:
        try:
            while self._take_some():
                pass
        except ConnectionRefusedError:  # the server is gone, and said nothing
            pass
        self._events.put(None)

    def _take_some(self) -> bool:
        """Do what is due, and wait for more; whether more may come."""
        self._send()
        timer = self._quic.get_timer()
        assert timer is not None
        rest = max(timer - time.monotonic(), 0)
        ready, _, _ = select.select([self.sock, self._left], [], [], rest)
        if self._left in ready:
            self._quic.close()
            self._send()
            return False
        if self.sock in ready:
            datagram = self.sock.recv(65536)
            self._quic.receive_datagram(datagram, self._address, time.monotonic())
        else:
            self._quic.handle_timer(time.monotonic())
        while (event := self._quic.next_event()) is not None:
            if isinstance(event, (ConnectionTerminated, StreamReset)):
                return False
            for h3_event in self._connection.handle_event(event):
                self._events.put(h3_event)
        return True

    def _send(self) -> None:
        for datagram, _ in self._quic.datagrams_to_send(time.monotonic()):
            self.sock.send(datagram)
