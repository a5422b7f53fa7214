"""More than one server, and more than one event loop, in one process."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import trio

from sse_asgi import Shutdown, SSEApp, SSERequest, sse_app

from .apps import EVENTS
from .clients import DEADLINE, Address, wait_for
from .harness import Process, free_port, require_package


@pytest.mark.parametrize("how", ["same-loop", "new-loop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: str(n.name))
def test_servers_one_after_another(tmp_path: Path, how: str, number: signal.Signals) -> None:
    """Regression 2: what the first has been told is not what the next one is told
    (modelcontextprotocol/python-sdk#3494).
    """
    require_package("uvicorn")
    addresses = [Address(free_port()) for _ in range(3)]
    ports = [str(address.port) for address in addresses]
    process = Process(["-m", "tests.servers.again", how, *ports], tmp_path / "log")
    try:
        for address in addresses:
            wait_for(address.answers, process.log)
            with ExitStack() as stack:
                endless = [
                    stack.enter_context(address.open(path)) for path in ("/idle", "/clock", "/ping")
                ]
                for response in endless:
                    assert response.status == 200
                for response in endless[1:]:
                    response.read_until(lambda body: body.count(b"\n\n") >= 3)
                with address.open("/events") as response:
                    assert response.read_to_end() == "complete"
                    assert response.body == EVENTS
                assert [response.ending for response in endless] == [None] * 3
                process.signal(number)
                for response in endless:
                    assert response.read_to_end() == "complete"
        assert process.wait() == 0
        assert process.log().count("stopped") == len(addresses)
        assert process.complaints() == []
    finally:
        process.kill()


@contextmanager
def uvicorn_thread(app: SSEApp) -> Iterator[Address]:
    """A server in a thread, which gets no signal."""
    require_package("uvicorn")
    import uvicorn

    address = Address(free_port())
    server = uvicorn.Server(uvicorn.Config(app, port=address.port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(address.answers, lambda: "the server does not start")
        yield address
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()


@contextmanager
def hypercorn_thread(app: SSEApp) -> Iterator[Address]:
    """A server on trio in a thread."""
    require_package("hypercorn")
    import hypercorn.config
    import hypercorn.trio

    config = hypercorn.config.Config()
    address = Address(free_port())
    config.bind = [f"127.0.0.1:{address.port}"]
    started = threading.Event()
    stops: list[Callable[[], object]] = []

    async def serve() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        stops.append(lambda: token.run_sync_soon(stop.set))
        started.set()
        await hypercorn.trio.serve(cast("Any", app), config, shutdown_trigger=stop.wait)

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert started.wait(DEADLINE)
        wait_for(address.answers, lambda: "the server does not start")
        yield address
    finally:
        stops[0]()
        thread.join(DEADLINE)
        assert not thread.is_alive()


async def numbers(request: SSERequest) -> AsyncIterator[Any]:
    number = 0
    while True:
        yield {"data": number}
        number += 1
        await anyio.sleep(0.01)


def numbers_in_thread(request: SSERequest) -> Iterator[Any]:
    number = 0
    while True:
        yield {"data": number}
        number += 1
        time.sleep(0.01)


@pytest.mark.parametrize("source", [numbers, numbers_in_thread])
def test_servers_in_threads_one_after_another(
    source: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression 2, where there is no signal: an application says it (python-sdk#3494)."""
    for _ in range(2):
        shutdown = Shutdown()
        with uvicorn_thread(sse_app(source, shutdown=shutdown)) as address:
            with ExitStack() as stack:
                responses = [stack.enter_context(address.open("/")) for _ in range(5)]
                for response in responses:
                    response.read_until(lambda body: body.count(b"\n\n") >= 3)
                shutdown.drain()
                for response in responses:
                    assert response.read_to_end() == "complete"
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("server", [uvicorn_thread, hypercorn_thread])
def test_a_server_in_a_thread_is_seen_to_stop(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody says it to the application, and there is no signal. Others go on."""
    app = sse_app(numbers)
    with uvicorn_thread(app) as other, other.open("/") as stays, ExitStack() as stack:
        stays.read_until(lambda body: body.count(b"\n\n") >= 3)
        for _ in range(2):
            with server(app) as address:
                responses = [stack.enter_context(address.open("/")) for _ in range(5)]
                for response in responses:
                    response.read_until(lambda body: body.count(b"\n\n") >= 3)
            for response in responses:
                assert response.read_to_end() == "complete"
        seen = stays.body.count(b"\n\n")
        stays.read_until(lambda body: body.count(b"\n\n") > seen + 3)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_server_that_has_served_its_number_of_requests(tmp_path: Path) -> None:
    require_package("uvicorn")
    address = Address(free_port())
    process = Process(
        [
            *("-m", "uvicorn", "--port", str(address.port), "--limit-max-requests", "3"),
            "tests.servers.apps:app",
        ],
        tmp_path / "log",
    )
    try:
        wait_for(address.answers, process.log)
        with address.open("/idle") as idle, address.open("/clock") as clock:
            clock.read_until(lambda body: body.count(b"\n\n") >= 3)
            for _ in range(3):
                with address.open("/events", method="HEAD") as response:
                    assert response.status == 200
            for response in (idle, clock):
                assert response.read_to_end() == "complete"
        assert process.wait() == 0
        assert process.complaints() == []
    finally:
        process.kill()


@pytest.mark.parametrize("source", [numbers, numbers_in_thread])
def test_several_loops_at_once(source: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Regression 4: one application on four event loops, three of asyncio and one of trio
    (sse-starlette#135, #59).
    """
    shutdown = Shutdown()
    app = sse_app(source, shutdown=shutdown, ping=0.01)
    with ExitStack() as servers:
        addresses = [servers.enter_context(uvicorn_thread(app)) for _ in range(3)]
        addresses.append(servers.enter_context(hypercorn_thread(app)))
        with ExitStack() as stack:
            responses = [
                stack.enter_context(address.open("/")) for _ in range(5) for address in addresses
            ]
            for response in responses:
                response.read_until(lambda body: body.count(b"data: ") >= 5)
            assert app.connections == len(responses)
            for response in responses[: len(addresses)]:
                response.close()
            wait_for(lambda: app.connections == 4 * len(addresses), lambda: app.connections)
            shutdown.drain()
            for response in responses[len(addresses) :]:
                assert response.read_to_end() == "complete"
        wait_for(lambda: app.connections == 0, lambda: app.connections)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
