"""What mypy and pyright say to those who use the package."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..peers import missing

HERE = Path(__file__).parent


def mypy(path: Path) -> set[int]:
    command = ["mypy", "--strict", "--no-error-summary", "--hide-error-context", str(path)]
    return {int(line) for line in re.findall(rf"{path.name}:(\d+): error:", run(command))}


def pyright(path: Path) -> set[int]:
    report = json.loads(run(["pyright", "--outputjson", "--pythonpath", sys.executable, str(path)]))
    assert report["summary"]["filesAnalyzed"] == 1
    return {
        message["range"]["start"]["line"] + 1
        for message in report["generalDiagnostics"]
        if message["severity"] == "error"
    }


def run(command: list[str]) -> str:
    if importlib.util.find_spec(command[0]) is None:
        missing("types", f"{command[0]} is not installed")
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert result.returncode in (0, 1), result.stderr
    return result.stdout


@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.parametrize("name", ["right", "wrong"])
@pytest.mark.timeout(600)
def test_what_is_found_and_what_is_not(checker: object, name: str) -> None:
    assert callable(checker)
    path = HERE / f"{name}.py"
    lines = path.read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if "# wrong" in line}
    assert bool(expected) == (name == "wrong")
    assert checker(path) == expected
