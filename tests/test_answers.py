"""The programs of docs/how-to/answers.md: an answer that outlives its connection."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import anyio
import httpx
import pytest

from sse_asgi.hub import Hub
from sse_asgi.testing import connect

from .hub_runs import DEADLINE
from .test_docs import PAGES, blocks

pytestmark = pytest.mark.anyio

PAGE = "docs/how-to/answers.md"

#: How each of the two programs is asked for an answer.
PROGRAMS = ["app", "api"]


def program(hub: Hub) -> dict[str, Any]:
    """The applications of the page, by the names in PROGRAMS, with another hub."""
    answers, api = ModuleType("answers"), ModuleType("api")
    for module in (answers, api):
        (block,) = (
            block
            for block in blocks(PAGE)
            if block.language == "python" and block.text.startswith(f"# {module.__name__}.py\n")
        )
        source = "\n" * block.line + block.text
        with patch.dict(sys.modules, answers=answers):  # which api.py imports
            exec(compile(source, PAGES[PAGE], "exec"), vars(module))
        vars(module)["hub"] = hub
    return {"app": answers.app, "api": api.app}


class User:
    """Asks, follows and stops, at any of the nodes."""

    def __init__(self, name: str, number: str = "") -> None:
        self.name = name
        self.number = number

    def path(self) -> str:
        return f"/?answer={self.number}" if self.name == "app" else f"/answers/{self.number}"

    async def ask(self, node: dict[str, Any], question: str) -> None:
        body = json.dumps({"question": question}).encode()
        if self.name == "app":
            self.number = "17"
            async with connect(node["app"], self.path(), method="POST", body=body) as stream:
                assert (await stream.receive()).data == "You"
            return
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(node["api"]), base_url="http://test"
        ) as client:
            response = await client.post("/answers", json={"question": question})
            self.number = response.json()

    def follows(self, node: dict[str, Any], last_event_id: str | None = None) -> Any:
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        return connect(node[self.name], self.path(), headers=headers)

    async def stop(self, node: dict[str, Any]) -> None:
        if self.name == "app":
            async with connect(node["app"], self.path(), method="DELETE") as stream:
                assert stream.status_code == 204
            return
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(node["api"]), base_url="http://test"
        ) as client:
            assert (await client.delete(self.path())).json() is True


async def rest_of(stream: Any) -> list[tuple[str, str]]:
    with anyio.fail_after(DEADLINE):
        return [(event.event, event.data) async for event in stream]


class Answers:
    """The tests. `hub` and `other` are two nodes of one hub, or the same."""

    @pytest.mark.parametrize("name", PROGRAMS)
    async def test_a_reload_and_two_tabs(self, hub: Hub, other: Hub, name: str) -> None:
        here, there = program(hub), program(other)
        user = User(name)
        await user.ask(here, "why is it so")
        async with user.follows(here) as stream:
            assert (await stream.receive()).data == "You"
            seen = stream.last_event_id
        async with user.follows(there, seen) as stream, user.follows(there) as second:
            words = ["have", "asked:", "why", "is", "it", "so"]
            end = ("end", '{"reason":"finished"}')
            assert await rest_of(stream) == [*(("message", word) for word in words), end]
            assert len(await rest_of(second)) == len(words) + 2
            seen = stream.last_event_id
        async with user.follows(here, seen) as stream:
            assert stream.status_code == 204

    @pytest.mark.parametrize("name", PROGRAMS)
    async def test_the_stop_button(self, hub: Hub, other: Hub, name: str) -> None:
        here, there = program(hub), program(other)
        user = User(name)
        await user.ask(here, "why " * 1000)
        async with user.follows(here) as stream, user.follows(there) as second:
            await stream.receive()
            await second.receive()
            await user.stop(there)
            for each in (stream, second):
                rest = await rest_of(each)
                assert rest[-1] == ("end", '{"reason":"stopped"}')
                assert len(rest) < 900


class TestInMemory(Answers):
    @pytest.fixture
    async def hub(self) -> AsyncIterator[Hub]:
        async with Hub() as hub:
            yield hub

    @pytest.fixture
    def other(self, hub: Hub) -> Hub:
        return hub


async def test_a_request_without_a_number() -> None:
    async with Hub() as hub, connect(program(hub)["app"]) as stream:
        assert stream.status_code == 400
