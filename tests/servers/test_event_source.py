"""The client on real servers, on asyncio and trio, through httpx2 and httpx.

Each server meets both event loops and both libraries, one library on one loop.
"""

from __future__ import annotations

import importlib
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from sse_asgi.client import EventSource, IdleTimeoutError, State, StateChange

from .clients import DEADLINE
from .harness import KINDS, Certificate, Server
from .test_clients import DISPATCHED

pytestmark = pytest.mark.anyio


@pytest.fixture
def client(anyio_backend: str, server: Server, certificate: Certificate) -> Any:
    turn = [*KINDS].index(server.name) + (anyio_backend == "trio")
    library: Any = importlib.import_module(("httpx2", "httpx")[turn % 2])
    kind = server.kind
    return library.AsyncClient(
        http1=not kind.http2, http2=kind.http2, verify=certificate.client, trust_env=False
    )


async def test_events(server: Server, tag: str, client: Any) -> None:
    with anyio.fail_after(DEADLINE):
        async with (
            client,
            EventSource(
                server.address.url(f"/events?tag={tag}"), client=client, max_reconnects=0
            ) as source,
        ):
            events = [(event.event, event.data, event.id) async for event in source]
            assert source.reconnection_time == 1500
    assert events == DISPATCHED
    server.wait_for_end(tag)


async def test_it_reconnects_until_it_is_told_not_to(server: Server, tag: str, client: Any) -> None:
    """It comes back with the last id, after the time that the server gave, until it gets 204."""
    changes: list[StateChange] = []
    with anyio.fail_after(DEADLINE):
        async with client, EventSource(
            server.address.url(f"/countdown?tag={tag}"), client=client,
            on_state_change=changes.append,
        ) as source:  # fmt: skip
            events = [(event.event, event.data, event.id) async for event in source]
    assert events == [
        each
        for n in (1, 3, 5)
        for each in (("number", f"number\n{n} ☃", f"{n}"), ("message", f"{n + 1}", f"{n + 1}"))
    ]
    assert [change.state for change in changes] == [State.OPEN, State.CONNECTING] * 3 + [
        State.CLOSED
    ]
    history = server.wait_for_end(tag, 4)
    assert [what for what in history if what.startswith("last_event_id")] == [
        f"last_event_id {id!r}" for id in (None, "2", "4", "6")
    ]


@pytest.mark.parametrize("way", ["break", "cancel"])
async def test_it_leaves(server: Server, tag: str, client: Any, way: str) -> None:
    with anyio.fail_after(DEADLINE):
        async with client:
            async with EventSource(
                server.address.url(f"/clock?tag={tag}"), client=client
            ) as source:
                with anyio.CancelScope() as scope:
                    async for event in source:
                        if event.data == "5" and way == "break":
                            break
                        if event.data == "5":
                            scope.cancel()
            # Before the client is closed: the source has let go of its connection itself.
            await anyio.to_thread.run_sync(server.wait_for_end, tag)
    assert "closed client_disconnected" in server.wait_for_end(tag)


async def test_an_id_that_is_not_ascii(server: Server, tag: str, client: Any) -> None:
    url = server.address.url(f"/unicode-id?tag={tag}")
    with anyio.fail_after(DEADLINE):
        async with client, EventSource(url, client=client) as source:
            assert [event.id async for event in source] == ["é-ü-ÿ"]
    history = server.wait_for_end(tag, 2)
    assert "last_event_id 'é-ü-ÿ'" in history


class Forwarder:
    """A network between a client and a server, which may swallow all that comes."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.stranded: set[anyio.abc.SocketStream] = set()
        self.streams: list[anyio.abc.SocketStream] = []

    async def run(self, *, task_status: Any) -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
            task_status.started()
            await listener.serve(self._serve)

    def strand(self) -> None:
        """Let the connections that there are be half open."""
        self.stranded.update(self.streams)

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        self.streams.append(client)
        async with client, await anyio.connect_tcp("127.0.0.1", self.target) as server:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._forward, client, client, server)
                await self._forward(client, server, client)
                tasks.cancel_scope.cancel()

    async def _forward(self, client: anyio.abc.SocketStream, source: Any, target: Any) -> None:
        try:
            async for data in source:
                if client not in self.stranded:
                    await target.send(data)
            await target.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            pass


async def test_a_connection_that_is_dead_is_not_used_again(
    server: Server, tag: str, client: Any
) -> None:
    """Not even on HTTP/2, where another request would go the same way."""
    forwarder = Forwarder(server.address.port)
    changes: list[StateChange] = []
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            await tasks.start(forwarder.run)
            url = server.address.url(f"/clock?tag={tag}").replace(
                f":{server.address.port}/", f":{forwarder.port}/"
            )
            async with (
                client,
                EventSource(
                    url, client=client, retry=1, idle_timeout=1, on_state_change=changes.append
                ) as source,
            ):
                assert (await anext(source)).data == "0"
                forwarder.strand()
                async for event in source:
                    if event.data == "0":
                        break
            tasks.cancel_scope.cancel()
    lost = [change.error for change in changes if change.state is State.CONNECTING]
    assert lost
    assert all(isinstance(error, IdleTimeoutError) for error in lost)
    server.wait_for_end(tag, 2)
