"""The commands of docs/how-to/deploying.md: a server that is stopped ends its streams."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.test_docs import PORT_OPTIONS, blocks, serving, write_files

PAGE = "docs/how-to/deploying.md"
COMMANDS = [
    line
    for block in blocks(PAGE)
    if block.language == "sh"
    for line in block.text.splitlines()
    if line.split()[0] in PORT_OPTIONS
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stream_has_its_end_when_the_server_stops(command: str, tmp_path: Path) -> None:
    write_files(PAGE, tmp_path)
    with httpx.Client(trust_env=False, timeout=60) as client:
        with serving(command, tmp_path) as url:
            assert client.get(f"{url}ready").text == "ready"
            response = client.send(client.build_request("GET", f"{url}ticks"), stream=True)
            lines = response.iter_lines()
            assert next(lines) == "retry: 2000"
        rest = list(lines)  # the server has exited, and the response was not broken off
        assert any(line.startswith("data: ") for line in rest)
        assert [line for line in rest if line.startswith("retry: ")] != []  # the farewell


def test_there_are_commands() -> None:
    assert {command.split()[0] for command in COMMANDS} == {*PORT_OPTIONS} - {"daphne"}
