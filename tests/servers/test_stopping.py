"""The published table of what servers do when they are told to stop."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from .conftest import UsualExitCode
from .harness import KINDS, Certificate
from .stopping import SERVERS, SITUATIONS, observe, published


def words(cell: str) -> str:
    """What a cell says, but for the seconds."""
    return re.sub(r", [0-9.]+ s$", "", cell)


def test_the_table_is_about_all_servers_and_signals() -> None:
    assert set(published()) == {
        (name, number.name) for name in SERVERS for number in KINDS[name].signals
    }


@pytest.mark.parametrize(
    ("name", "situation"),
    [
        (name, situation)
        for name in SERVERS
        for situation in SITUATIONS
        # Idle and busy streams, and the other signal: test_shutdown.py.
        if situation != "streams" and SITUATIONS[situation].fits(name)
    ],
)
def test_the_table_is_true(
    tmp_path: Path,
    certificate: Certificate,
    usual_exit_code: UsualExitCode,
    name: str,
    situation: str,
) -> None:
    """Regressions 1 and 5: clients that are stuck, sources that are slow to end, and those who
    ask twice (sse-starlette#132, #167).
    """
    number = signal.SIGTERM
    code = usual_exit_code(name, number)
    outcome = observe(name, SITUATIONS[situation], number, tmp_path, certificate, code)
    assert outcome.words == words(published()[name, number.name][situation]), outcome
