"""Streams through each proxy, as docs/how-to/proxies.md configures it."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.servers.apps import EVENTS
from tests.servers.clients import DEADLINE, Address, HTTP2Response, Response, wait_for
from tests.servers.conftest import StartServer
from tests.servers.harness import Server
from tests.test_compression import Decompressor
from tests.test_docs import PAGES

from .conftest import StartNode, StartProxy
from .harness import KINDS, PAGE, Proxy

GONE = [
    "source started",
    "source cleaned up on the loop",
    "closed client_disconnected",
    "app returned",
]

#: Seconds that a proxy waits for a stream in these tests, and for a server that is away.
TIMEOUT = 1
SHORT = {
    "nginx": {"60s": f"{TIMEOUT}s"},
    "haproxy": {"60s": f"{TIMEOUT}s"},
    "caddy": {"60s": f"{TIMEOUT}s"},
}
#: Back soon: how long a proxy avoids a server, or lets a client wait for one.
BACK = {
    "nginx": {"fail_timeout=5s": "fail_timeout=1s"},
    "haproxy": {" check": " check inter 100ms"},
    "caddy": {"lb_try_duration 5s": "lb_try_duration 1s", "fail_duration 5s": "fail_duration 1s"},
}


def first_event(response: Response) -> None:
    assert response.status == 200
    assert response.read_until(lambda body: body.endswith(b"\n\n")) == b"data: first\n\n"


def test_events_and_headers(address: Address, node: Server, tag: str) -> None:
    with address.open(f"/events?tag={tag}") as response:
        assert response.status == 200
        assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
        assert response.header(b"cache-control") == [b"no-cache, no-transform"]
        assert response.header(b"content-length") == []
        assert response.read_to_end() == "complete"
        assert response.body == EVENTS
    node.wait_for_end(tag)


def test_the_first_event_arrives_before_there_is_a_second(
    address: Address, node: Server, tag: str
) -> None:
    with address.open(f"/first?tag={tag}") as response:
        first_event(response)
        assert node.status(tag)["history"] == ["source started"]
    node.wait_for_end(tag)


def test_events_arrive_while_the_stream_goes_on(address: Address, node: Server, tag: str) -> None:
    with address.open(f"/clock?tag={tag}") as response:
        response.read_until(lambda body: body.count(b"\n\n") >= 20)
    node.wait_for_end(tag)


def test_a_stream_that_says_nothing_opens(address: Address, node: Server, tag: str) -> None:
    """With `retry` that is so everywhere; see the page for where it is not without."""
    with address.open(f"/retry?tag={tag}") as response:
        assert response.status == 200
        assert response.read_until(lambda body: b"\n\n" in body) == b"retry: 1500\n\n"
        assert node.status(tag)["history"] == ["source started"]
    node.wait_for_end(tag)


def test_many_streams_on_one_connection(proxy: Proxy, node: Server, tag: str) -> None:
    """By HTTP/1.1 a browser has six connections to a server, for all its tabs."""
    with ExitStack() as stack:
        client = stack.enter_context(proxy.addresses["http2"].client())
        ports = set()
        for _ in range(20):
            response = stack.enter_context(client.stream("GET", f"/first?tag={tag}"))
            assert response.http_version == "HTTP/2"
            ports.add(response.extensions["network_stream"].get_extra_info("client_addr")[1])
            assert next(response.iter_raw()) == b"data: first\n\n"
        assert len(ports) == 1
        assert node.status(tag)["running"] == 20
    node.wait_for_end(tag, 20)


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (b"42", '"42"'),
        ("grüße-☃".encode(), '"grüße-☃"'),  # a browser: UTF-8
        ("grüße".encode("latin-1"), '"grüße"'),  # fetch of node: Latin-1
        (b"x" * 4096, f'"{"x" * 4096}"'),
    ],
    ids=["ascii", "utf-8", "latin-1", "4096-bytes"],
)
def test_last_event_id(address: Address, node: Server, tag: str, sent: bytes, seen: str) -> None:
    with address.open(f"/echo?tag={tag}", headers=[(b"last-event-id", sent)]) as response:
        assert response.read_to_end() == "complete"
        assert response.body.decode() == f"data: {seen}\n\n"
    with address.open(f"/echo?tag={tag}&last_event_id=caf%C3%A9") as response:
        assert response.read_to_end() == "complete"
        assert response.body.decode() == 'data: "café"\n\n'
    node.wait_for_end(tag, 2)


def test_head(address: Address, node: Server, tag: str) -> None:
    with address.open(f"/idle?tag={tag}", method="HEAD") as response:
        assert response.status == 200
        assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
        assert response.read_to_end() == "complete"
        assert response.body == b""
    assert node.wait_for_end(tag) == ["app returned"]


@pytest.mark.parametrize(("path", "status"), [("/forbidden", 403), ("/gone", 204)])
def test_refusals(address: Address, node: Server, tag: str, path: str, status: int) -> None:
    """What the application refuses is no failure of the server."""
    with address.open(f"{path}?tag={tag}") as response:
        assert response.status == status
        assert response.read_to_end() == "complete"
    node.wait_for_end(tag)


def test_a_stream_that_is_asked_for_by_post(address: Address, node: Server, tag: str) -> None:
    headers = [(b"content-length", b"0")]
    with address.open(f"/post?tag={tag}", method="POST", headers=headers) as response:
        assert response.read_to_end() == "complete"
        assert response.body == b"data: POST\n\n"
    node.wait_for_end(tag)


def test_the_original_request_is_known(address: Address, node: Server, tag: str) -> None:
    """Scheme and client are those of the proxy's client, who can't claim to be someone else."""
    headers = [(b"x-forwarded-for", b"192.0.2.1"), (b"x-forwarded-proto", b"http")]
    with address.open(f"/where?tag={tag}", headers=headers) as response:
        assert response.read_to_end() == "complete"
    assert json.loads(response.body.removeprefix(b"data: ")) == {
        "path": "/where",
        "root_path": "",
        "scheme": "https",
        "client": "127.0.0.1",
    }
    node.wait_for_end(tag)


def test_below_a_path(
    start_server: StartServer,
    start_proxy: StartProxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    protocol: str,
) -> None:
    text = PAGES[PAGE].read_text()
    for line in "\n".join(KINDS[name].below.values()).splitlines():
        assert line.strip().removesuffix(" {") in text
    monkeypatch.setenv("UVICORN_ROOT_PATH", "/live")
    server = start_server("uvicorn-h11")
    proxy = start_proxy(server.address.port, changes=KINDS[name].below)
    with proxy.addresses[protocol].open("/live/where") as response:
        assert response.read_to_end() == "complete"
    where = json.loads(response.body.removeprefix(b"data: "))
    assert (where["path"], where["root_path"]) == ("/live/where", "/live")


@pytest.mark.parametrize("how", [Response.close, Response.reset])
@pytest.mark.parametrize("path", ["/first", "/clock"])
def test_a_client_that_leaves(
    address: Address, node: Server, tag: str, path: str, how: Callable[[Response], None]
) -> None:
    """It is noticed also where nothing is sent any more."""
    with address.open(f"{path}?tag={tag}") as response:
        response.read_until(lambda body: b"\n\n" in body)
        how(response)
        assert node.wait_for_end(tag) == GONE


@pytest.mark.parametrize("path", ["/first", "/clock"])
def test_a_client_that_gives_up_one_stream(proxy: Proxy, node: Server, tag: str, path: str) -> None:
    with proxy.addresses["http2"].open(f"{path}?tag={tag}") as response:
        response.read_until(lambda body: b"\n\n" in body)
        assert isinstance(response, HTTP2Response)
        response.reset_stream()
        assert node.wait_for_end(tag) == GONE


def test_a_client_that_stops_reading(address: Address, node: Server, tag: str) -> None:
    """The proxy does not read what it can't pass on, so that the server can't send."""
    node.forgive("ASGI callable returned without completing response.")
    with address.open(f"/big?tag={tag}") as response:
        assert response.status == 200
        assert "closed send_timeout" in node.wait_for_end(tag)


def test_error_in_mid_stream(
    address: Address, node: Server, tag: str, name: str, protocol: str
) -> None:
    with address.open(f"/broken?tag={tag}") as response:
        ending = response.read_to_end()
        assert response.body == b"data: before\n\ndata: the end\n\n"
    if protocol in KINDS[name].shows_errors:
        assert ending == "broken"
    node.wait_for_complaint("RuntimeError: meant to happen")
    node.wait_for_end(tag)


def test_pings_keep_a_stream_alive(
    node: Server, start_proxy: StartProxy, tag: str, name: str, protocol: str
) -> None:
    address = start_proxy(node.address.port, changes=SHORT[name]).addresses[protocol]
    with address.open(f"/ping?tag={tag}") as response:
        assert response.status == 200
        ends = time.monotonic() + 3 * TIMEOUT
        while time.monotonic() < ends:
            count = len(response.body)
            response.read_until(lambda body: len(body) > count)
        assert set(bytes(response.body).split(b"\n\n")) == {b":", b""}
    assert node.wait_for_end(tag) == GONE


def test_without_pings_the_proxy_ends_a_stream(
    node: Server, start_proxy: StartProxy, tag: str, name: str, protocol: str
) -> None:
    address = start_proxy(node.address.port, changes=SHORT[name]).addresses[protocol]
    with address.open(f"/first?tag={tag}") as response:
        first_event(response)
        ending = response.read_to_end()
    if protocol in KINDS[name].shows_errors:
        assert ending == "broken"
    assert node.wait_for_end(tag) == GONE


def test_compression_delays_nothing(
    node: Server, start_proxy: StartProxy, tag: str, name: str, protocol: str
) -> None:
    proxy = start_proxy(node.address.port, changes=KINDS[name].compressing)
    headers = [(b"accept-encoding", b"gzip, deflate, br, zstd")]
    with proxy.addresses[protocol].open(f"/clock?tag={tag}", headers=headers) as response:
        assert response.status == 200
        for number in range(20):
            event = f"data: {number}\n\n".encode()
            response.read_until(lambda body: event in plain(response, body))
    node.wait_for_end(tag)
    with proxy.addresses[protocol].open(f"/first?tag={tag}", headers=headers) as response:
        assert response.status == 200
        response.read_until(lambda body: plain(response, body) == b"data: first\n\n")
    node.wait_for_end(tag, 2)


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br"])
def test_a_proxy_does_not_compress_a_second_time(
    node: Server, start_proxy: StartProxy, tag: str, name: str, protocol: str, coding: str
) -> None:
    """Nor does it decompress what it forwards, or keep it back."""
    proxy = start_proxy(node.address.port, changes=KINDS[name].compressing)
    headers = [(b"accept-encoding", coding.encode())]
    path = f"/clock-compressed?tag={tag}"
    with proxy.addresses[protocol].open(path, headers=headers) as response:
        assert response.status == 200
        assert response.header(b"content-encoding") == [coding.encode()]
        for number in range(20):
            event = f"data: {number}\n\n".encode()
            response.read_until(lambda body: event in plain(response, body))
    node.wait_for_end(tag)


def plain(response: Response, body: bytes) -> bytes:
    """The body as far as it is there, whatever its encoding."""
    codings = response.header(b"content-encoding")
    return Decompressor(codings[0].decode()).feed(body) if codings else body


def test_server_stops(start_server: StartServer, start_proxy: StartProxy) -> None:
    """Clients get a regular end."""
    server = start_server("uvicorn-h11")
    proxy = start_proxy(server.address.port)
    with ExitStack() as stack:
        responses = [
            stack.enter_context(address.open(path))
            for address in proxy.addresses.values()
            for path in ("/first", "/clock")
        ]
        for response in responses:
            response.read_until(lambda body: b"\n\n" in body)
        server.signal(signal.SIGTERM)
        for response in responses:
            assert response.read_to_end() == "complete"
        server.wait()
    assert server.complaints() == []
    assert server.summary()["closed shutdown"] == len(responses)


def test_clients_come_back_to_another_server(
    start_again: StartNode, start_proxy: StartProxy, ports: tuple[int, int], protocol: str
) -> None:
    servers = [start_again(port) for port in ports]
    address = start_proxy(*ports).addresses[protocol]
    with ExitStack() as stack:
        responses = [stack.enter_context(address.open("/first?tag=t")) for _ in range(6)]
        for response in responses:
            first_event(response)
        assert [server.status("t")["running"] for server in servers] == [3, 3]
        servers[0].signal(signal.SIGTERM)
        servers[0].wait()
        # The server that is away has the fewest streams now.
        for _ in range(3):
            responses.append(stack.enter_context(address.open("/first?tag=t")))
            first_event(responses[-1])
        assert servers[1].status("t")["running"] == 6
        with address.open("/echo", headers=[(b"last-event-id", b"7")]) as response:
            assert response.read_to_end() == "complete"
            assert response.body == b'data: "7"\n\n'


def test_while_no_server_is_there_nobody_answers(
    start_again: StartNode,
    start_proxy: StartProxy,
    ports: tuple[int, int],
    name: str,
    protocol: str,
) -> None:
    """From 502 or 503 an EventSource does not come back (WHATWG HTML 9.2.3); from a connection
    that fails it does.
    """
    server = start_again(ports[0])
    address = start_proxy(ports[0], changes=BACK[name]).addresses[protocol]
    with address.open("/first") as response:
        first_event(response)
        server.signal(signal.SIGTERM)
        assert response.read_to_end() == "complete"
    server.wait()
    for _ in range(2):
        with address.open("/first") as response:
            assert answer(response) is None
    start_again(ports[0])

    def back() -> bool:
        with address.open("/first") as response:
            return answer(response) == 200

    wait_for(back, lambda: "does not find the server again")


def answer(response: Response) -> int | None:
    """The status; none where the connection, or the one stream of it, was closed without any."""
    try:
        return response.status
    except AssertionError:
        assert response.ending == "broken"
        return None


def test_a_post_is_sent_once(start_proxy: StartProxy, protocol: str) -> None:
    """Also if the server has closed the connection without an answer."""
    with failing_server() as (port, requests), failing_server() as (other, more_requests):
        proxy = start_proxy(port, other)
        headers = [(b"content-length", b"0")]
        with proxy.addresses[protocol].open("/", method="POST", headers=headers) as response:
            assert answer(response) is None
        assert [request.split()[0] for request in (*requests, *more_requests)] == [b"POST"]


@contextmanager
def failing_server() -> Iterator[tuple[int, list[bytes]]]:
    """A server that reads a request and hangs up; its port, and what it has read."""
    requests: list[bytes] = []

    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(DEADLINE)
                try:
                    request = sock.recv(65536)
                except ConnectionError:
                    continue
                if request:  # and not only a check whether anybody listens
                    requests.append(request)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port, requests
        finally:
            stopping.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join(DEADLINE)
