"""Clients of SDKs that are built on httpx or httpx2, in one process with the application."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import sse_asgi.starlette
from sse_asgi import SSERequest, sse_app
from sse_asgi.testing import transport
from tests.peers import missing

HANG = 60
PAGE = Path(__file__).parents[2] / "docs/how-to/testing.md"

pytestmark = [
    pytest.mark.anyio,
    # The clients' own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def package(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        missing("frameworks", f"{name} is not installed")
    return importlib.import_module(name)


# MCP. Its server answers with our EventSourceResponse.


@pytest.fixture(params=["sse_asgi", "sse_starlette"])
def response_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    package("mcp")
    for module in ("mcp.server.sse", "mcp.server.streamable_http"):
        if request.param == "sse_asgi":
            monkeypatch.setattr(
                importlib.import_module(module),
                "EventSourceResponse",
                sse_asgi.starlette.EventSourceResponse,
            )


def make_server(waiting: list[str]) -> Any:
    server = package("mcp.server.mcpserver").MCPServer("tools")

    async def add(a: int, b: int) -> int:
        return a + b

    async def wait() -> str:
        waiting.append("started")
        try:
            await anyio.sleep_forever()
        finally:
            waiting.append("over")
        return "never"

    server.add_tool(add)
    server.add_tool(wait)
    return server


@pytest.mark.usefixtures("response_class")
@pytest.mark.parametrize("kind", ["streamable HTTP", "SSE"])
async def test_mcp(kind: str) -> None:
    waiting: list[str] = []
    server = make_server(waiting)
    app = server.streamable_http_app() if kind == "streamable HTTP" else server.sse_app()
    httpx2: Any = package("httpx2")

    def make_client(**options: Any) -> Any:
        return httpx2.AsyncClient(transport=transport(app), **options)

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(anyio.fail_after(HANG))
        await stack.enter_async_context(app.router.lifespan_context(app))
        if kind == "SSE":
            connection = package("mcp.client.sse").sse_client(
                "http://127.0.0.1:8000/sse",
                httpx_client_factory=lambda headers=None, timeout=None, auth=None: make_client(
                    headers=headers, timeout=timeout, auth=auth
                ),
            )
        else:
            http = await stack.enter_async_context(make_client(timeout=HANG))
            connection = package("mcp.client.streamable_http").streamable_http_client(
                "http://127.0.0.1:8000/mcp", http_client=http
            )
        client = await stack.enter_async_context(package("mcp").Client(connection, mode="legacy"))
        assert {tool.name for tool in (await client.list_tools()).tools} == {"add", "wait"}
        for number in range(5):
            result = await client.call_tool("add", {"a": number, "b": 1000})
            assert result.content[0].text == str(number + 1000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "wait", {})
            while not waiting:
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        while waiting != ["started", "over"]:
            await anyio.sleep(0.001)
        result = await client.call_tool("add", {"a": 1, "b": 2})
        assert result.content[0].text == "3"


# OpenAI.


class Completions:
    """What answers a request for a completion that is streamed: the words of the question."""

    def __init__(self) -> None:
        self.closed = 0

    async def __call__(self, request: SSERequest) -> AsyncIterator[dict[str, str]]:
        question = await request.json()
        assert request.headers["authorization"] == "Bearer key"
        try:
            for word in question["messages"][0]["content"].split() * 50:
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                chunk = {
                    "id": "1",
                    "object": "chat.completion.chunk",
                    "created": 0,
                    "model": question["model"],
                    "choices": [choice],
                }
                yield {"data": json.dumps(chunk)}
                await anyio.lowlevel.checkpoint()
            yield {"data": "[DONE]"}
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            self.closed += 1


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
async def test_openai(library: str) -> None:
    openai = package("openai")
    completions = Completions()
    app = sse_app(completions, methods=["POST"])
    # The SDK does not enter the client that it is given. It closes it.
    http = package(library).AsyncClient(transport=transport(app))
    with anyio.fail_after(HANG):
        async with openai.AsyncOpenAI(
            api_key="key", base_url="http://test/v1", http_client=http
        ) as client:
            question: dict[str, Any] = {
                "model": "parrot",
                "messages": [{"role": "user", "content": "one two"}],
                "stream": True,
            }
            async with await client.chat.completions.create(**question) as stream:
                words = [chunk.choices[0].delta.content async for chunk in stream]
            assert words == ["one", "two"] * 50
            assert completions.closed == 1
            async with await client.chat.completions.create(**question) as stream:
                first = await anext(aiter(stream))
                assert first.choices[0].delta.content == "one"
                assert completions.closed == 1
            assert completions.closed == 2


@pytest.mark.parametrize("name", ["openai", "mcp"])
async def test_the_program_of_the_page(name: str) -> None:
    """Blocks that tests/test_docs.py does not run, since their packages are only here."""
    package(name)
    (program,) = re.findall(
        rf"^```py\n(# test_with_{name}\.py\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(program, PAGE, "exec"), namespace)
    tests = [value for key, value in namespace.items() if key.startswith("test_")]
    assert [inspect.iscoroutinefunction(test) for test in tests] == [True]
    with anyio.fail_after(HANG):
        await tests[0]()
