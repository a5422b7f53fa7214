"""The A2A Python SDK with `sse_starlette` redirected: its server, driven by its own client.

It looks for `shutdown_grace_period` in the signature of the response, and replaces its
`body_iterator`.
"""

from __future__ import annotations

import importlib
import importlib.util
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.peers import missing

from .programs import Program, serve
from .redirect import REDIRECT

HANG = 60

AGENT = """
import anyio
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import (
    common, create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
)
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import (
    AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Part, Task, TaskState, TaskStatus
)
from starlette.applications import Starlette

assert common.EventSourceResponse is sse_asgi.starlette.EventSourceResponse


class Counting(AgentExecutor):
    async def execute(self, context, queue):
        submitted = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        ids = {"id": context.task_id, "context_id": context.context_id}
        await queue.enqueue_event(Task(**ids, status=submitted))
        task = TaskUpdater(queue, context.task_id, context.context_id)
        for number in range(3):
            await task.add_artifact(
                [Part(text=f"part {number}")],
                artifact_id="count",
                append=number > 0,
                last_chunk=number == 2,
            )
        if "wait" in context.get_user_input():
            await anyio.sleep_forever()
        await task.complete()

    async def cancel(self, context, queue):
        pass


url = f"http://127.0.0.1:{sys.argv[sys.argv.index('--port') + 1]}"
card = AgentCard(
    name="counting",
    description="It counts.",
    version="1",
    supported_interfaces=[
        AgentInterface(url=f"{url}/", protocol_binding="JSONRPC", protocol_version="1.0"),
        AgentInterface(url=f"{url}/rest", protocol_binding="HTTP+JSON", protocol_version="1.0"),
    ],
    capabilities=AgentCapabilities(streaming=True),
    default_input_modes=["text"],
    default_output_modes=["text"],
    skills=[AgentSkill(id="count", name="count", description="It counts.", tags=["count"])],
)
handler = DefaultRequestHandler(
    agent_executor=Counting(), task_store=InMemoryTaskStore(), agent_card=card
)
app = Starlette(
    routes=[
        *create_agent_card_routes(card),
        *create_jsonrpc_routes(handler, "/", shutdown_grace_period=0.2),
        *create_rest_routes(handler, path_prefix="/rest", shutdown_grace_period=0.2),
    ]
)
"""

# The client's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

every_binding = pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Program]:
    if importlib.util.find_spec("a2a") is None:
        missing("frameworks", "a2a-sdk is not installed")
    agent = serve(REDIRECT + AGENT, tmp_path, kind=Program)
    yield agent
    agent.kill()


def send(agent: Program, binding: str, text: str, on_event: Callable[[Any], None]) -> None:
    """Send a message with the SDK's own client; hear what comes until the stream ends."""
    a2a: Any = importlib.import_module("a2a.client")
    types: Any = importlib.import_module("a2a.types")
    part = types.Part(text=text)
    message = types.Message(message_id="m", role=types.Role.ROLE_USER, parts=[part])

    async def main() -> None:
        with anyio.fail_after(HANG):
            async with httpx.AsyncClient(trust_env=False, timeout=HANG) as client:
                url = f"http://127.0.0.1:{agent.address.port}"
                card = await a2a.A2ACardResolver(client, url).get_agent_card()
                config = a2a.ClientConfig(
                    streaming=True, httpx_client=client, supported_protocol_bindings=[binding]
                )
                session = a2a.ClientFactory(config).create(card)
                async for event in session.send_message(types.SendMessageRequest(message=message)):
                    on_event(event)

    anyio.run(main)


def parts(events: list[Any]) -> list[str]:
    artifacts = [e.artifact_update.artifact for e in events if e.HasField("artifact_update")]
    return [artifact.parts[0].text for artifact in artifacts]


@every_binding
def test_events_of_a_task(agent: Program, binding: str) -> None:
    events: list[Any] = []
    send(agent, binding, "count", events.append)
    assert parts(events) == ["part 0", "part 1", "part 2"]
    assert events[0].HasField("task")
    assert events[-1].HasField("status_update")
    assert agent.complaints() == []


@every_binding
def test_server_is_stopped(agent: Program, binding: str) -> None:
    """The stream of a task that goes on is ended, so that its client can tell it from a crash."""
    events: list[Any] = []

    def on_event(event: Any) -> None:
        events.append(event)
        if event.HasField("artifact_update") and event.artifact_update.last_chunk:
            agent.signal(signal.SIGTERM)

    send(agent, binding, "wait", on_event)
    assert parts(events) == ["part 0", "part 1", "part 2"]
    # uvicorn raises the signal once more when all is done.
    assert agent.wait() in (0, -signal.SIGTERM)
    assert "Finished server process" in agent.log()
    assert "Traceback" not in agent.log()
