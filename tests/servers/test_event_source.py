"""The client on real servers, on asyncio and trio, through httpx2 and httpx."""

from __future__ import annotations

import importlib
from typing import Any

import anyio
import pytest

from sse_asgi.client import EventSource, State, StateChange

from .clients import DEADLINE
from .harness import Certificate, Server
from .test_clients import DISPATCHED

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["httpx2", "httpx"])
def client(request: pytest.FixtureRequest, server: Server, certificate: Certificate) -> Any:
    library: Any = importlib.import_module(request.param)
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


async def test_it_leaves(server: Server, tag: str, client: Any) -> None:
    with anyio.fail_after(DEADLINE):
        async with client:
            async with EventSource(
                server.address.url(f"/clock?tag={tag}"), client=client
            ) as source:
                async for event in source:
                    if event.data == "5":
                        break
            # Before the client is closed: the source has let go of its connection itself.
            await anyio.to_thread.run_sync(server.wait_for_end, tag)
    assert "closed client_disconnected" in server.wait_for_end(tag)
