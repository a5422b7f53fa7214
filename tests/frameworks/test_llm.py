"""docs/how-to/llm.md: its programs, and what it says of OpenAI's SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sse_asgi import SSEApp, SSERequest, sse_app
from sse_asgi.testing import transport
from tests.test_docs import ROOT, serving, write_files

from .test_in_process import HANG, package

PAGE = "docs/how-to/llm.md"


def run(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_programs_of_the_page(tmp_path: Path) -> None:
    package("openai")
    write_files(PAGE, tmp_path)
    assert "2 passed" in run(tmp_path, "-m", "pytest", "test_llm.py", "-p", "no:cacheprovider")
    with serving("uvicorn llm:app", tmp_path) as url:
        program = tmp_path / "ask.py"
        program.write_text(program.read_text().replace("http://127.0.0.1:8000/", url))
        assert run(tmp_path, "ask.py") == "You said: Hi there "


def chunk(content: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return {"data": {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}}


def app_of(*events: Any, fails: bool = False, **options: Any) -> SSEApp:
    async def source(request: SSERequest) -> Any:
        for event in events:
            yield event
            await anyio.sleep(0.05)
        if fails:
            raise RuntimeError("out of paper")

    return sse_app(source, methods=["POST"], **options)


A = chunk("a")
DONE = "[DONE]"

#: What the page says, row by row: a stream, and what the SDK raises.
ROWS: dict[str, tuple[Callable[[], SSEApp], str | None]] = {
    "a ping after an id": (lambda: app_of(A | {"id": 1}, A, DONE, ping=0.01), "JSONDecodeError"),
    "a ping without an id": (lambda: app_of(A, A, DONE, ping=0.01), None),
    "a comment line after an id": (
        lambda: app_of(A | {"id": 1}, A, DONE, ping=0.01, ping_message_factory=lambda: b":\n"),
        None,
    ),
    "retry": (lambda: app_of(A, A, DONE, retry=3000), "JSONDecodeError"),
    "an event as a ping": (
        lambda: app_of(A, {"event": "ping", "data": ""}, A, DONE),
        "JSONDecodeError",
    ),
    "an event of one's own": (
        lambda: app_of(A, {"event": "usage", "data": {"tokens": 1}}, A, DONE),
        "TypeError",  # there are no choices
    ),
    "an error": (
        lambda: app_of(A, fails=True, on_error=lambda exc: {"data": {"error": {"message": "?"}}}),
        "APIError",
    ),
    "no [DONE]": (lambda: app_of(A, A), None),
    "more after [DONE]": (lambda: app_of(A, A, DONE, A), None),
}


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("row", ROWS)
async def test_what_the_sdk_stumbles_over(row: str) -> None:
    openai = package("openai")
    make, error = ROWS[row]
    http = package("httpx2").AsyncClient(transport=transport(make()))
    words: list[str] = []
    raised = None
    with anyio.fail_after(HANG):
        async with openai.AsyncOpenAI(
            api_key="-", base_url="http://test/v1", http_client=http, max_retries=0
        ) as client:
            try:
                question: Any = [{"role": "user", "content": "?"}]
                answer = await client.chat.completions.create(
                    model="any", messages=question, stream=True
                )
                words = [part.choices[0].delta.content async for part in answer]
            except Exception as exc:
                raised = type(exc).__name__
    assert raised == error
    if error is None:
        assert words == ["a", "a"]
