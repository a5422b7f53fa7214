"""The states of an event source (WHATWG HTML 9.2.2), and what is told of a change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["State", "StateChange"]


class State(IntEnum):
    """The state of an :class:`EventSource`, with the names and numbers of the standard."""

    CONNECTING = 0
    """There is no connection yet, or it was lost and will be made again."""

    OPEN = 1
    """The server has answered with an event stream."""

    CLOSED = 2
    """There is no connection, and there will be none."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """What ``on_state_change`` is called with: after each change, and each attempt that failed."""

    state: State
    """The state from now on."""

    error: Exception | None = None
    """Why; ``None``: the source was opened or closed, the response has come to its end, or a step
    of the iteration was cancelled."""

    delay: float | None = None
    """In how many seconds the next attempt begins; ``None``: there is no next attempt."""
