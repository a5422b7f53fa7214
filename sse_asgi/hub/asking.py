"""Asking a log that may be out of reach for some time."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

import anyio

from ..errors import HubClosedError, HubError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["answer_of"]

T = TypeVar("T")

#: How long to wait, in seconds, before a log that could not be reached is asked again: a random
#: time in this range. The log itself has tried for some time.
PAUSE = (0.5, 1.0)


async def answer_of(ask: Callable[[], Awaitable[T]], is_over: Callable[[], bool]) -> T | None:
    """Ask a log until it answers.

    :param is_over: whether the answer is not wanted any more.
    :returns: the answer; ``None``: it is over.
    :raises HubClosedError: the hub is closed, and it is not over.
    """
    while not is_over():
        try:
            answer = await ask()
        except HubClosedError:
            if not is_over():
                raise
        except HubError:
            await anyio.sleep(random.uniform(*PAUSE))
        else:
            return None if is_over() else answer
    return None
