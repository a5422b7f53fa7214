"""What all servers send: the text of an event, 100 bytes that begin with when it was made."""

from __future__ import annotations

import time

SIZE = 100

#: How many digits the time has: ``CLOCK_MONOTONIC`` in nanoseconds, one for all processes.
SENT_AT = 20

#: The last byte, which stands nowhere else.
MARK = b"$"

_REST = " " + "x" * (SIZE - SENT_AT - 2) + MARK.decode()

TEXT = "0" * SENT_AT + _REST


def text_now() -> str:
    return f"{time.monotonic_ns():020d}{_REST}"
