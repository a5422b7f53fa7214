"""docs/how-to/datastar.md and docs/how-to/ag-ui.md: events as these SDKs make and read them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from ag_ui.core import (
    CustomEvent,
    RunErrorEvent,
    RunFinishedEvent,
    StateSnapshotEvent,
    TextMessageContentEvent,
    ToolCallStartEvent,
)
from ag_ui.encoder import EventEncoder
from datastar_py import ServerSentEventGenerator as Patch
from datastar_py.consts import ElementPatchMode

from sse_asgi import SSERequest, sse_app
from sse_asgi.decoder import EventStreamDecoder
from sse_asgi.encoder import encode
from sse_asgi.hub import Hub
from sse_asgi.testing import connect
from tests.peers import NODE_DIR, missing, require_node
from tests.test_docs import serving, write_files

from .test_in_process import HANG

AG_UI = "docs/how-to/ag-ui.md"

#: The line of its agent that an answer ends with.
END = '    yield {"data": TextMessageEndEvent'

#: What Datastar's SDK makes, and the same without it.
PATCHES = [
    (
        Patch.patch_elements(
            "<li>1\n</li>", selector="#a", mode=ElementPatchMode.APPEND, event_id="7"
        ),
        {
            "event": "datastar-patch-elements",
            "id": 7,
            "data": "mode append\nselector #a\nelements <li>1\nelements </li>",
        },
    ),
    (
        Patch.patch_signals({"count": 1, "name": "Zoë\n"}, only_if_missing=True),
        {
            "event": "datastar-patch-signals",
            "data": 'onlyIfMissing true\nsignals {"count":1,"name":"Zo\\u00eb\\n"}',
        },
    ),
    (
        Patch.remove_elements("#b", retry_duration=500),
        {"event": "datastar-patch-elements", "retry": 500, "data": "mode remove\nselector #b"},
    ),
]

#: Events of AG-UI, with names that are other ones in JSON, and text of all kinds.
EVENTS = [
    RunFinishedEvent(thread_id="t", run_id="r", result={"a": [1, None]}),
    RunErrorEvent(message="no", code="1"),
    TextMessageContentEvent(message_id="m", delta='line\n\nand "snow ☃ 🎉"\u2028'),
    ToolCallStartEvent(tool_call_id="c", tool_call_name="look", parent_message_id="m"),
    StateSnapshotEvent(snapshot={"nested": [1, None, "é"]}),
    CustomEvent(name="n", value=None),
]


@pytest.mark.anyio
async def test_frames_of_datastar_are_sent_as_they_are() -> None:
    async def source(request: SSERequest) -> Any:
        for frame, _ in PATCHES:
            yield frame.encode()

    with anyio.fail_after(HANG):
        async with connect(sse_app(source)) as stream:
            sent = [event async for event in stream]
    assert sent == [*EventStreamDecoder().feed("".join(frame for frame, _ in PATCHES).encode())]
    assert len(sent) == len(PATCHES)


@pytest.mark.parametrize(("frame", "event"), PATCHES)
def test_an_event_of_datastar_is_a_plain_one(frame: str, event: dict[str, Any]) -> None:
    (theirs,), (ours,) = (
        EventStreamDecoder().feed(each) for each in (frame.encode(), encode(event))
    )
    assert ours == theirs


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type.value)
def test_an_event_of_ag_ui_is_data(event: Any) -> None:
    (theirs,) = EventStreamDecoder().feed(EventEncoder().encode(event).encode())
    (ours,) = EventStreamDecoder().feed(encode({"data": event}))
    assert json.loads(ours.data) == json.loads(theirs.data)  # U+2028 is written in another way
    assert type(event).model_validate_json(ours.data) == event
    assert (ours.event, ours.id) == (theirs.event, theirs.id)


@pytest.mark.anyio
async def test_a_hub_takes_each_form() -> None:
    """And gives each event an id, by which a client comes back."""
    hub = Hub()
    forms: list[Any] = [
        Patch.patch_signals({"count": 1}).encode(),
        {"event": "datastar-patch-signals", "data": 'signals {"count":2}'},
        {"data": EVENTS[1]},
        EventEncoder().encode(EVENTS[1]).encode(),
    ]
    ids = [await hub.publish("t", form) for form in forms]
    app = sse_app(lambda request: hub.subscribe("t", last_event_id=request.last_event_id))
    with anyio.fail_after(HANG):
        async with connect(app, headers={"last-event-id": ids[0]}) as stream:
            sent = [await stream.receive() for _ in forms[1:]]
    assert [event.id for event in sent] == ids[1:]
    assert [event.data for event in sent] == ['signals {"count":2}', sent[1].data, sent[1].data]
    assert RunErrorEvent.model_validate_json(sent[1].data) == EVENTS[1]


#: What happens in the agent at the end of its answer, by what it is asked.
ENDS = """
    if "fail" in asked.messages[-1].content:
        raise RuntimeError("out of paper")
    if "stop" in asked.messages[-1].content:
        return
"""


def test_the_client_of_ag_ui(tmp_path: Path) -> None:
    """It reads an answer with pings in it, and learns that a run has failed, or ended early."""
    node = require_node()
    packages = NODE_DIR / "node_modules"
    if not (packages / "@ag-ui/client").is_dir():
        missing("node", "@ag-ui/client is not installed: run npm install in tests/node")
    (tmp_path / "node_modules").symlink_to(packages)
    write_files(AG_UI, tmp_path)
    replace(tmp_path / "agent.py", "on_error=failure", "on_error=failure, ping=0.01, retry=1000")
    replace(tmp_path / "agent.py", END, ENDS + END)
    with serving("uvicorn agent:app", tmp_path) as url:
        replace(tmp_path / "ask.mjs", "http://127.0.0.1:8000/", url)
        asked = "Is anyone there?"
        for question, printed in [
            ("Is anyone there?", "You said: Is anyone there? "),
            ("Please fail", "the run has not finished"),
            ("Please stop", "the run has not finished"),
        ]:
            replace(tmp_path / "ask.mjs", asked, question)
            asked = question
            done = subprocess.run(
                [node, "ask.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG
            )
            words = [f"{word} " for word in f"You said: {question}".split()]
            assert done.stdout.splitlines() == [*words, printed], done.stderr

        message = {"id": "1", "role": "user", "content": "fail"}
        run = {"threadId": "1", "runId": "1", "messages": [message]}
        with httpx.Client(base_url=url, trust_env=False, timeout=HANG) as http:
            *_, last = EventStreamDecoder().feed(http.post("/", json=run).content)
            assert http.post("/", json={**run, "messages": []}).status_code == 422
            assert http.post("/", json={}).status_code == 422
    assert RunErrorEvent.model_validate_json(last.data) == RunErrorEvent(
        message="the agent has failed", code="server_error"
    )


def replace(file: Path, old: str, new: str) -> None:
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new))
