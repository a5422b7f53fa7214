"""Each client follows all cases at once, and what it did comes back, by number."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from sse_asgi.client import EventSource, EventSourceError, State, StateChange
from tests.peers import NODE_DIR, missing, require_node

from .model import CLOSED, LATE, LOST, OPEN, Case, Entry, Observed
from .server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: In seconds, how long a client has for all.
PATIENCE = 20

Logs: TypeAlias = list[list[Entry]]


def url_of(server: Server, number: int, case: Case) -> str:
    return f"{server.url}/{number:03}{case.suffix}"


def observed(server: Server, logs: Logs) -> list[Observed]:
    return [Observed(log, server.received[number]) for number, log in enumerate(logs)]


async def ours(cases: Sequence[Case], library: str) -> list[Observed]:
    """This library's client, with a client of httpx2 or httpx."""
    logs: Logs = [[] for _ in cases]
    client = unlimited(library)
    with Server(cases) as server:
        async with client, anyio.create_task_group() as tasks:
            for number, case in enumerate(cases):
                tasks.start_soon(_follow, case, url_of(server, number, case), client, logs[number])
    return observed(server, logs)


async def _follow(case: Case, url: str, client: Any, log: list[Entry]) -> None:
    closing = False
    async with anyio.create_task_group() as tasks:

        def note(entry: Entry) -> None:
            nonlocal closing
            log.append(entry)
            if len(log) == case.close_after:
                closing = True
                tasks.start_soon(source.aclose)

        def tell(change: StateChange) -> None:
            if change.state is State.OPEN:
                note(OPEN)
            elif change.state is State.CONNECTING:
                note(LOST)
            elif not closing:
                note(CLOSED)

        source = EventSource(url, client=client, retry=100, on_state_change=tell)
        with anyio.move_on_after(PATIENCE) as patience:
            async with source:
                try:
                    async for event in source:
                        note(("event", event.event, event.data, event.id))
                        if closing:
                            await source.aclose()
                except EventSourceError:
                    pass  # it was told
        if patience.cancelled_caught:
            log.append(LATE)


async def httpx2_reader(cases: Sequence[Case]) -> list[Observed]:
    """`AsyncClient.sse` of httpx2, which reads one response."""
    logs: Logs = [[] for _ in cases]
    client = unlimited("httpx2")
    with Server(cases) as server:
        async with client, anyio.create_task_group() as tasks:
            for number, case in enumerate(cases):
                tasks.start_soon(_read, case, url_of(server, number, case), client, logs[number])
    return observed(server, logs)


async def _read(case: Case, url: str, client: Any, log: list[Entry]) -> None:
    library: Any = importlib.import_module("httpx2")
    with anyio.move_on_after(PATIENCE) as patience:
        try:
            async with client.sse(url, follow_redirects=True) as source:
                if case.close_after != 1:
                    async for event in source:
                        log.append(("event", event.event, event.data, event.id))
                        if len(log) + 1 == case.close_after:
                            break
                log.insert(0, OPEN)
        except library.TransportError:
            log.insert(0, CLOSED)
    if patience.cancelled_caught:
        log.append(LATE)


def unlimited(library: str) -> Any:
    module: Any = importlib.import_module(library)
    return module.AsyncClient(
        trust_env=False, timeout=PATIENCE, limits=module.Limits(max_connections=None)
    )


def _calls(server: Server, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What follow.mjs is called with."""
    return [
        {
            "url": url_of(server, number, case),
            "types": case.types,
            "closeAfter": case.close_after,
        }
        for number, case in enumerate(cases)
    ]


def _logs(result: list[list[list[str]]]) -> Logs:
    return [[tuple(entry) for entry in log] for log in result]


def node(cases: Sequence[Case]) -> list[Observed]:
    """The package eventsource, in Node."""
    with Server(cases) as server:
        asked = {"cases": _calls(server, cases), "patience": PATIENCE * 1000}
        done = subprocess.run(
            [require_node(), "conformance.mjs"],
            cwd=NODE_DIR,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
        )
    if done.returncode != 0:  # a node too old for the package, for one
        missing("node", done.stderr)
    return observed(server, _logs(json.loads(done.stdout)))


def browser(cases: Sequence[Case], browser: Browser) -> list[Observed]:
    """The EventSource of a browser, all in one page."""
    with Server(cases) as server:
        page = browser.new_page()
        try:
            page.goto(server.url)
            page.wait_for_function("window.follow !== undefined")
            result = page.evaluate(
                "([cases, patience]) => follow(EventSource, cases, patience)",
                [_calls(server, cases), PATIENCE * 1000],
            )
        finally:
            page.close()
    return observed(server, _logs(result))
