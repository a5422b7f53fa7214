"""Clients that see every byte, and that misbehave on purpose: HTTP/1.1 by h11, HTTP/2 by h2."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import h2.config
import h2.connection
import h2.events
import h2.settings
import h11
import httpx

if TYPE_CHECKING:
    from types import TracebackType

#: Generous: nothing here takes so long but on a machine that is very busy.
DEADLINE = 30.0

#: What a client of HTTP/2 takes before it has to say that it wants more. Large, as that of a
#: browser: the window of TCP is what ends first where a client does not read.
WINDOW = 2**24

#: The type of such a frame (RFC 9113, 6.8).
GOAWAY = 0x07

#: How a response has ended: as it should, or broken off so that the client can tell.
Ending = Literal["complete", "broken"]

Fields = Sequence[tuple[bytes, bytes]]


def wait_for(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Poll until `condition` holds; else fail, and say `what` there was instead."""
    ends = time.monotonic() + DEADLINE
    pause = 0.002
    while not condition():
        assert time.monotonic() < ends, what()
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)


@dataclass(frozen=True)
class Address:
    """Where a server is, and how it wants to be spoken to."""

    port: int
    tls: ssl.SSLContext | None = None
    http2: bool = False
    http3: bool = False
    host: str = "127.0.0.1"

    def url(self, path: str) -> str:
        # The certificate is for the name.
        return f"http{'s' if self.tls else ''}://localhost:{self.port}{path}"

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(DEADLINE)
        try:
            if receive_buffer is not None:
                # Before connecting: it limits the window that the client offers.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect((self.host, self.port))
            if self.tls is not None:
                wrapped = self.tls.wrap_socket(sock, server_hostname="localhost")
                assert wrapped.selected_alpn_protocol() == ("h2" if self.http2 else "http/1.1")
                return wrapped
        except BaseException:
            sock.close()
            raise
        return sock

    def answers(self) -> bool:
        """Whether somebody listens there."""
        try:
            self.connect().close()
        except OSError:
            return False
        return True

    def open(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Fields = (),
        receive_buffer: int | None = None,
    ) -> Response:
        """Send a request, and leave it to the caller to read the response."""
        kind: Callable[[socket.socket, str, str, Fields], Response]
        if self.http3:
            from .http3 import HTTP3Response as kind

            assert receive_buffer is None
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.connect((self.host, self.port))
        else:
            kind = HTTP2Response if self.http2 else HTTP1Response
            sock = self.connect(receive_buffer)
        try:
            return kind(sock, path, method, headers)
        except BaseException:
            sock.close()
            raise

    def client(self) -> httpx.Client:
        """A well-behaved client, which keeps its connection."""
        return httpx.Client(
            base_url=self.url(""),
            verify=self.tls or False,
            http1=not self.http2,
            http2=self.http2,
            timeout=DEADLINE,
            trust_env=False,
        )


class Response(ABC):
    """A response as it comes in: only reading it takes anything from the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._status: int | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.tail = b""
        #: The most that is taken from the socket at once, and what was taken in all.
        self.most = 65536
        self.taken = 0
        self.ending: Ending | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def status(self) -> int:
        while self._status is None:
            assert self.ending is None, "there was no response"
            self.read_some()
        return self._status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        assert self.status
        return self._headers

    def header(self, name: bytes) -> list[bytes]:
        return [v for n, v in self.headers if n == name]

    def read_until(self, condition: Callable[[bytes], bool]) -> bytes:
        """Read until the body, as far as it is there, fulfils `condition`."""
        ends = time.monotonic() + DEADLINE
        while not condition(bytes(self.body)):
            assert self.ending is None, f"ended ({self.ending}) after {bytes(self.body[-200:])!r}"
            assert time.monotonic() < ends, f"not there: {bytes(self.body[-200:])!r}"
            self.read_some()
        return bytes(self.body)

    def read_to_end(self) -> Ending:
        ends = time.monotonic() + DEADLINE
        while self.ending is None:
            assert time.monotonic() < ends, f"does not end: {bytes(self.body[-200:])!r}"
            self.read_some()
        return self.ending

    def close(self) -> None:
        """Close the connection, as a client does that goes away."""
        self.sock.close()

    def reset(self) -> None:
        """Break the connection off (TCP RST), as a client does that has crashed."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _receive(self) -> bytes:
        try:
            data = self.sock.recv(self.most)
        except (ConnectionError, ssl.SSLEOFError):
            return b""
        self.taken += len(data)
        self.tail = (self.tail + data)[-16:]
        return data

    @abstractmethod
    def read_some(self) -> None: ...


class HTTP1Response(Response):
    """A response by HTTP/1.1."""

    def __init__(
        self,
        sock: socket.socket,
        path: str,
        method: str,
        headers: Fields,
        instead: bytes | None = None,
    ) -> None:
        """Send the request, or bytes `instead` that need not even be one."""
        super().__init__(sock)
        self._connection = h11.Connection(h11.CLIENT)
        request = h11.Request(method=method, target=path, headers=[(b"host", b"test"), *headers])
        data = self._connection.send(request)
        end = self._connection.send(h11.EndOfMessage())
        assert data is not None
        assert end is not None
        sock.sendall(data + end if instead is None else instead)

    def read_some(self) -> None:
        try:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(self._receive())
                return
        except h11.RemoteProtocolError:
            self.ending = "broken"
            return
        if isinstance(event, h11.Response):
            self._status = event.status_code
            self._headers = list(event.headers)
        elif isinstance(event, h11.Data):
            self.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            self.ending = "complete"
        elif isinstance(event, h11.ConnectionClosed):
            self.ending = "broken"


class HTTP2Response(Response):
    """A response by HTTP/2, on a connection of its own."""

    def __init__(self, sock: socket.socket, path: str, method: str, headers: Fields) -> None:
        super().__init__(sock)
        # What h2 checks of a response includes that no header belongs to the connection.
        self._connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )
        self._connection.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW}
        )
        self._incomplete = b""
        self._connection.initiate_connection()
        self._connection.increment_flow_control_window(WINDOW - 65535)
        self._stream = self._connection.get_next_available_stream_id()
        pseudo = [
            (b":method", method.encode()),
            (b":scheme", b"https" if isinstance(sock, ssl.SSLSocket) else b"http"),
            (b":authority", b"localhost"),
            (b":path", path.encode()),
        ]
        self._connection.send_headers(self._stream, [*pseudo, *headers], end_stream=True)
        self._flush()

    def reset_stream(self) -> None:
        """Give the one stream up (RST_STREAM, CANCEL) and keep the connection."""
        self._connection.reset_stream(self._stream, error_code=8)
        self._flush()

    def _without_goaway(self, data: bytes) -> bytes:
        """All that is complete, but GOAWAY without an error: streams that are open may go on after
        it (RFC 9113, 6.8), and h2 takes it for the end of everything.
        """
        self._incomplete += data
        frames = b""
        while len(self._incomplete) >= 9:
            size = 9 + int.from_bytes(self._incomplete[:3], "big")
            if len(self._incomplete) < size:
                break
            frame, self._incomplete = self._incomplete[:size], self._incomplete[size:]
            if frame[3] == GOAWAY:
                assert frame[13:17] == bytes(4), f"the server says {frame!r}"
            else:
                frames += frame
        return frames

    def _flush(self) -> None:
        self.sock.sendall(self._connection.data_to_send())

    def read_some(self) -> None:
        data = self._receive()
        if not data:
            self.ending = self.ending or "broken"
            return
        for event in self._connection.receive_data(self._without_goaway(data)):
            if isinstance(event, h2.events.ResponseReceived):
                fields: Any = event.headers
                self._status = int(dict(fields)[b":status"])
                self._headers = [(n, v) for n, v in fields if not n.startswith(b":")]
            elif isinstance(event, h2.events.DataReceived):
                assert event.data is not None
                self.body += event.data
                if event.flow_controlled_length:
                    self._connection.acknowledge_received_data(
                        event.flow_controlled_length, self._stream
                    )
            elif isinstance(event, h2.events.StreamEnded):
                self.ending = "complete"
            elif isinstance(event, h2.events.StreamReset):
                self.ending = self.ending or "broken"
        try:
            self._flush()
        except OSError:  # the server has closed in the meantime; what it said is still to be read
            pass
