"""The published table of what servers do when they are told to stop."""

from __future__ import annotations

import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import UsualExitCode
from .harness import KINDS, Certificate
from .stopping import SERVERS, SITUATIONS, Outcome, observe, published


def words(cell: str) -> str:
    """What a cell says, but for the seconds."""
    return re.sub(r", [0-9.]+ s$", "", cell)


def test_the_table_is_about_all_servers_and_signals() -> None:
    assert set(published()) == {
        (name, number.name) for name in SERVERS for number in KINDS[name].signals
    }


@pytest.mark.parametrize("name", SERVERS)
def test_the_table_is_true(
    tmp_path: Path, certificate: Certificate, usual_exit_code: UsualExitCode, name: str
) -> None:
    """Regressions 1 and 5: clients that are stuck, sources that are slow to end, and those who
    ask twice (sse-starlette#132, #167).
    """
    number = signal.SIGTERM
    code = usual_exit_code(name, number)
    # Idle and busy streams, and the other signal: test_shutdown.py. How long a source takes is the
    # same with every version of HTTP.
    left_out = {"streams", "stubborn", "grace"} if KINDS[name].http2 else {"streams"}
    names = [key for key, there in SITUATIONS.items() if key not in left_out and there.fits(name)]

    def outcome(situation: str) -> Outcome:
        return observe(name, SITUATIONS[situation], number, tmp_path, certificate, code)

    # All at once: they mostly wait.
    with ThreadPoolExecutor(len(names)) as threads:
        outcomes = dict(zip(names, threads.map(outcome, names), strict=True))
    row = {key: words(cell) for key, cell in published()[name, number.name].items()}
    # On a busy machine the second signal may come when the server has exited.
    if outcomes["again"].code == code:
        row["again"] = row["again"].split(", exit code")[0]
    assert {key: outcomes[key].words for key in names} == {key: row[key] for key in names}


def test_granian_does_not_wait_for_its_own_log(tmp_path: Path) -> None:
    """A connection that is cut while a send is under way makes granian log, and it may be that it
    waits for that for ever. It was one of ten on a busy machine, so this starts some at once.
    """
    at_once = 8

    def stop(_: int) -> Outcome:
        return observe("granian", SITUATIONS["stuck"], signal.SIGTERM, tmp_path, None, 0)

    with ThreadPoolExecutor(at_once) as threads:
        assert [outcome.words for outcome in threads.map(stop, range(at_once))] == (
            ["complete"] * at_once
        )
