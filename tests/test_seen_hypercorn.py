"""hypercorn's own objects, without a server: sends that are interrupted while it has them."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from sse_asgi import Shutdown, sse_app

from .streams import Recorder

pytest.importorskip("hypercorn")

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection:
    """A connection of hypercorn's that has TCP in its hands: the first thing to be sent waits."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.waits = anyio.Event()
        self.ends, other = socket.socketpair()
        self.other = other
        # By one of these our connection is found: that of trio, and that of asyncio.
        self.stream = SimpleNamespace(socket=self.ends)

    async def protocol_send(self, event: Any) -> None:
        if data := getattr(event, "data", b""):
            self.sent.append(data)
            self.waits.set()
            await anyio.sleep_forever()


@pytest.fixture
def _forget_hypercorn() -> Iterator[None]:
    """Other tests are not to be taken for its applications."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "hypercorn"]:
        del sys.modules[name]


@asynccontextmanager
async def served(app: Any, backend: str) -> AsyncIterator[Connection]:
    """Run an application for one request, as hypercorn does."""
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.config import Config
    from hypercorn.events import RawData
    from hypercorn.protocol.h11 import H11Protocol
    from hypercorn.typing import ConnectionState

    groups: Any = importlib.import_module(f"hypercorn.{backend}.task_group")
    contexts: Any = importlib.import_module(f"hypercorn.{backend}.worker_context")
    given = (asyncio.get_running_loop(),) if backend == "asyncio" else ()
    connection = Connection()
    config = Config()
    config.errorlog = None
    async with groups.TaskGroup(*given) as group:
        protocol = H11Protocol(
            ASGIWrapper(app), config, contexts.WorkerContext(None), group, ConnectionState({}),
            False, None, None, connection.protocol_send,
        )  # fmt: skip
        await protocol.handle(RawData(REQUEST))
        yield connection
    connection.ends.close()
    connection.other.close()


@pytest.mark.parametrize("ends", ["by a drain", "by a cancellation", "at its max_lifetime"])
@pytest.mark.usefixtures("_forget_hypercorn")
async def test_the_start_of_the_response_is_interrupted(ends: str, anyio_backend: str) -> None:
    """Hypercorn takes it for not sent, and would send 500: h11 raises, and on trio all ends."""
    recorder, shutdown, around = Recorder(), Shutdown(), anyio.CancelScope()
    inner = sse_app(
        lambda: recorder.source("a"),
        shutdown=shutdown,
        cleanup_timeout=0.05,
        send_timeout=None,
        max_lifetime=0.3 if "lifetime" in ends else None,
    )

    async def app(*args: Any) -> None:
        with around:
            await inner(*args)

    with anyio.fail_after(10):
        async with served(app, anyio_backend) as connection:
            await connection.waits.wait()
            if ends == "by a drain":
                shutdown.drain(0)
            elif ends == "by a cancellation":
                around.cancel()
    assert [data.split(b"\r\n")[0] for data in connection.sent] == [b"HTTP/1.1 200 "]
