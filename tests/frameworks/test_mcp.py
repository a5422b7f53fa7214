"""The MCP Python SDK with `sse_starlette` redirected: its server, driven by its own client.

Streams of servers that clients since the 2026 version of the protocol speak to are written by the
SDK itself, so the clients here are those of before (`mode="legacy"`), which are most.
"""

from __future__ import annotations

import importlib
import importlib.util
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.peers import missing
from tests.servers.clients import wait_for

from .programs import Program, serve
from .redirect import REDIRECT

HANG = 60

#: Counts the streams by the method that opened them.
COUNT = """
from collections import Counter

opened, ended = Counter(), Counter()
stream = sse_asgi.starlette.EventSourceResponse.__call__


async def counted(response, scope, receive, send):
    opened[scope["method"]] += 1
    try:
        await stream(response, scope, receive, send)
    finally:
        ended[scope["method"]] += 1


sse_asgi.starlette.EventSourceResponse.__call__ = counted
"""

TOOLS = """
import warnings

import anyio
import mcp.server.sse
import mcp.server.streamable_http
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.shared.exceptions import MCPDeprecationWarning
from starlette.responses import JSONResponse

warnings.simplefilter("ignore", MCPDeprecationWarning)  # logging

server = MCPServer("tools")
waiting = Counter()
release = anyio.Event()


@server.tool()
def add(a: int, b: int) -> int:
    return a + b


@server.tool()
async def count(to: int, ctx: Context) -> str:
    for number in range(1, to + 1):
        await ctx.report_progress(number, to)
        await ctx.info(f"{number}\\u2028\\r\\n\\U0001f40d")
    return "counted"


@server.tool()
async def announce(uri: str, ctx: Context) -> str:
    await ctx.session.send_resource_updated(uri)
    return "announced"


@server.tool()
async def wait(ctx: Context) -> str:
    waiting["started"] += 1
    try:
        await release.wait()
    finally:
        waiting["over"] += 1
    return "released"


@server.tool()
async def hang_up(ctx: Context) -> str:
    await ctx.info("before")
    await ctx.close_sse_stream()
    await ctx.info("after")
    return "all the same"


@server.custom_route("/status", methods=["GET"])
async def status(request):
    modules = mcp.server.sse, mcp.server.streamable_http
    if request.query_params:
        release.set()
    return JSONResponse(
        {
            "opened": opened,
            "ended": ended,
            "waiting": waiting,
            "responses": [module.EventSourceResponse.__module__ for module in modules],
        }
    )


class Store(EventStore):
    def __init__(self):
        self.events = []

    async def store_event(self, stream_id, message):
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id, send):
        after = int(last_event_id)
        wanted = self.events[after - 1][0]
        for number, (stream_id, message) in enumerate(self.events[after:], after + 1):
            if stream_id == wanted and message is not None:
                await send(EventMessage(message, str(number)))
        return wanted


http = server.streamable_http_app()
resumable = server.streamable_http_app(event_store=Store(), retry_interval=1)
sse = server.sse_app()
"""

#: The application of the program for each transport, and its path.
TRANSPORTS = {"http": "/mcp", "resumable": "/mcp", "sse": "/sse"}

every_transport = pytest.mark.parametrize("program", TRANSPORTS, indirect=True)
streamable_http = pytest.mark.parametrize("program", ["http", "resumable"], indirect=True)

# The client's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def require_mcp() -> None:
    for package in ("mcp", "mcp.server.mcpserver"):  # which came with version 2
        if importlib.util.find_spec(package) is None:
            missing("frameworks", f"{package} is not installed")


class Tools(Program):
    """An MCP server, started for one test."""

    transport = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address.port}{TRANSPORTS[self.transport]}"

    def status(self, **query: str) -> dict[str, Any]:
        with self.address.client() as client:
            response = client.get("/status", params=query)
            status: dict[str, Any] = response.raise_for_status().json()
            return status

    def wait_for_status(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        wait_for(
            lambda: condition(self.status()), lambda: f"{self.status()}; log: {self.log()[-3000:]}"
        )

    def wait_for_end(self) -> None:
        """Wait until no stream is open, and the SDK has nothing to say about how they ended."""
        self.wait_for_status(lambda status: bool(status["opened"] == status["ended"]))
        assert self.complaints() == []

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Any]:
        """The SDK's own client, initialized."""
        client: Any = importlib.import_module("mcp").Client
        target: Any = self.url
        if self.transport == "sse":
            target = importlib.import_module("mcp.client.sse").sse_client(self.url)
        async with client(target, mode="legacy", **options) as session:
            yield session


@pytest.fixture
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tools]:
    require_mcp()
    program = serve(REDIRECT + COUNT + TOOLS, tmp_path, app=request.param, kind=Tools)
    program.transport = request.param
    yield program
    program.kill()


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(HANG):
            await main()

    anyio.run(limited)


def text_of(result: Any) -> str:
    assert not result.is_error, result
    (content,) = result.content
    text: str = content.text
    return text


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.01)


async def in_thread(function: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)


@every_transport
def test_redirected(program: Tools) -> None:
    assert program.status()["responses"] == ["sse_asgi.starlette"] * 2


@every_transport
def test_tools(program: Tools) -> None:
    """What belongs to a call comes before its result, complete and in order."""
    progress: list[tuple[float, float]] = []
    logged: list[str] = []

    async def on_progress(at: float, total: float, message: str | None) -> None:
        progress.append((at, total))

    async def on_log(message: Any) -> None:
        logged.append(message.data)

    async def main() -> None:
        async with program.client(logging_callback=on_log) as client:
            await until(lambda: bool(program.status()["opened"].get("GET")))
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert {"add", "count"} <= names
            assert text_of(await client.call_tool("add", {"a": 1, "b": 2})) == "3"
            counted = await client.call_tool("count", {"to": 50}, progress_callback=on_progress)
            assert text_of(counted) == "counted"
            await until(lambda: len(progress) == len(logged) == 50)

    run(main)
    assert progress == [(number, 50) for number in range(1, 51)]
    assert logged == [f"{number}\u2028\r\n\U0001f40d" for number in range(1, 51)]
    program.wait_for_end()
    # Initialization, tools, two calls; and what the server says of itself, or all of it.
    opened = {"GET": 1} if program.transport == "sse" else {"POST": 4, "GET": 1}
    assert program.status()["opened"] == opened


@every_transport
def test_many_calls_at_once(program: Tools) -> None:
    async def main() -> None:
        async with program.client() as client:

            async def add(number: int) -> None:
                result = await client.call_tool("add", {"a": number, "b": 1000})
                assert text_of(result) == str(number + 1000)

            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    tasks.start_soon(add, number)

    run(main)
    program.wait_for_end()


@every_transport
def test_notification_of_the_server(program: Tools) -> None:
    """One that belongs to no request comes by the stream of the GET, and only there."""
    updated: list[str] = []

    async def on_message(message: Any) -> None:
        if hasattr(message, "params") and hasattr(message.params, "uri"):
            updated.append(str(message.params.uri))

    async def main() -> None:
        async with program.client(message_handler=on_message) as client:
            # What is announced before the stream is open, nobody hears of.
            while not updated:
                await client.call_tool("announce", {"uri": "test://one"})
                await anyio.sleep(0.05)
            updated.clear()
            for number in range(10):
                await client.call_tool("announce", {"uri": f"test://{number}"})
            await until(lambda: updated[-1:] == ["test://9"])
            assert program.status()["opened"]["GET"] == 1
            assert not program.status()["ended"].get("GET")

    run(main)
    assert [uri for uri in updated if uri != "test://one"] == [
        f"test://{number}" for number in range(10)
    ]
    program.wait_for_end()


@every_transport
def test_call_is_cancelled(program: Tools) -> None:
    """The client gives one call up, and goes on."""

    async def main() -> None:
        async with program.client() as client:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.call_tool, "wait", {})
                    await until(lambda: bool(program.status()["waiting"].get("started")))
                    scope.cancel()
            await until(lambda: bool(program.status()["waiting"].get("over")))
            assert text_of(await client.call_tool("add", {"a": 1, "b": 2})) == "3"

    run(main)
    program.wait_for_end()


@streamable_http
def test_client_leaves_in_mid_call(program: Tools) -> None:
    """Without a word: the streams end, the call goes on, as MCP has it, and nobody stumbles."""
    mcp_http: Any = importlib.import_module("mcp.client.streamable_http")
    client_class: Any = importlib.import_module("mcp").Client

    async def main() -> None:
        with anyio.CancelScope() as scope:
            connection = mcp_http.streamable_http_client(program.url, terminate_on_close=False)
            async with client_class(connection, mode="legacy") as client:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.call_tool, "wait", {})
                    await until(lambda: bool(program.status()["waiting"].get("started")))
                    await until(lambda: bool(program.status()["opened"].get("GET")))
                    scope.cancel()
        assert scope.cancelled_caught
        await in_thread(program.wait_for_end)
        await in_thread(lambda: program.status(release="yes"))
        await until(lambda: bool(program.status()["waiting"].get("over")))
        async with program.client() as client:
            assert text_of(await client.call_tool("add", {"a": 1, "b": 2})) == "3"

    run(main)
    program.wait_for_end()


@pytest.mark.parametrize("program", ["resumable"], indirect=True)
def test_stream_is_resumed(program: Tools) -> None:
    """The server hangs up in mid-call; the client comes back with Last-Event-ID for the rest."""
    logged: list[str] = []

    async def on_log(message: Any) -> None:
        logged.append(message.data)

    async def main() -> None:
        async with program.client(logging_callback=on_log) as client:
            await until(lambda: bool(program.status()["opened"].get("GET")))
            result = await client.call_tool("hang_up", {})
            assert text_of(result) == "all the same"
            await until(lambda: len(logged) == 2)
            assert program.status()["opened"]["GET"] == 2

    run(main)
    assert logged == ["before", "after"]
    program.wait_for_end()


@every_transport
@pytest.mark.parametrize("in_call", [False, True], ids=["idle", "in call"])
def test_server_is_stopped(
    program: Tools, in_call: bool, record_property: Callable[[str, object], None]
) -> None:
    """With a stream open that would never end by itself."""

    async def main() -> None:
        async with program.client() as client:
            await until(lambda: bool(program.status()["opened"].get("GET")))
            async with anyio.create_task_group() as tasks:

                async def call() -> None:
                    with suppress(Exception):  # what the SDK makes of it
                        await client.call_tool("wait", {})

                if in_call:
                    tasks.start_soon(call)
                    await until(lambda: bool(program.status()["waiting"].get("started")))
                begin = time.monotonic()
                program.signal(signal.SIGTERM)
                code = await in_thread(program.wait)
                record_property("seconds until exit", time.monotonic() - begin)
                tasks.cancel_scope.cancel()
        # uvicorn raises the signal once more when all is done.
        assert code in (0, -signal.SIGTERM)

    run(main)
    log = program.log()
    assert "Finished server process" in log
    # What the SDK says of calls that it gives up is its own; so is that, with its older transport,
    # it answers once more what has been answered by the stream, and the server refuses that.
    assert "sse_asgi" not in log
    assert program.transport == "sse" or "Traceback" not in log
