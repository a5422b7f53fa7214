"""How many instructions events and streams take, beside what one writes by hand for just these."""

from __future__ import annotations

import shutil
import sys

import pytest

from . import instructions
from .peers import missing

#: How many times as many as by hand, on CPython 3.13. With each version they differ.
TIMES = {
    "encode a str": 1.23,
    "encode a dict of 1": 2.33,
    "encode a dict of 2": 2.82,
    "encode a dict of 3": 3.02,
    "encode a dict of 4": 3.4,
    "encode a dict of 5": 3.7,
    "encode a ServerSentEvent of 1": 4.4,
    "encode a ServerSentEvent of 3": 5.8,
    "an event that was waited for": 1.19,
    "the same by EventSourceResponse": 1.28,
    "an event that was there": 1.2,
    "a stream": 8.2,
    "an event to 20 subscribers": 1.0,  # the clock says when a round lets other tasks run
    # Beside the same without an observer: metrics are to take less than a tenth.
    "an observed event": 1.03,
    "an observed stream": 1.13,
    "an observed event to 20 subscribers": 1.08,
}


@pytest.mark.timeout(600)  # cachegrind is slow
def test_nothing_takes_a_tenth_more_instructions_than_it_did() -> None:
    if sys.version_info[:2] != (3, 13):
        pytest.skip("counted for CPython 3.13")
    if shutil.which("valgrind") is None:
        missing("valgrind", "there is no valgrind on the PATH")
    pytest.importorskip("starlette")
    found = instructions.count()
    times = {what: ours / by_hand for what, (ours, by_hand) in found.items()}
    assert times.keys() == TIMES.keys()
    worse = {what: times[what] for what, recorded in TIMES.items() if times[what] > 1.1 * recorded}
    assert not worse
