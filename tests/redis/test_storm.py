"""Runs, endings and kicks, while nodes and Redis are killed: see storm.py.

`SSE_ASGI_TEST_STORM` is for how many seconds (12).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from .storm import storm

SECONDS = float(os.environ.get("SSE_ASGI_TEST_STORM", "12"))

pytestmark = pytest.mark.timeout(300 + 2 * SECONDS)


def test_a_storm(record_property: Callable[[str, object], None]) -> None:
    """Nothing is lost, nothing comes twice, each run ends or goes on, and presence is right."""
    world = storm(random.randrange(2**32), seconds=SECONDS)
    record_property("summary", world.summary())
    print(world.summary())
    assert (dict(world.faults), world.details) == ({}, [])
    assert world.done["deliveries"] > world.done["events"] > 0
    assert world.done["runs"] > world.done["runs that were finished"] > 0
    assert world.done["connections that the client lost"] > 0
    assert world.done["status 204 of a stream"] > 0
