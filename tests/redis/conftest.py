from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator

import pytest

from .servers import any_server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server that tests break nothing of."""
    with any_server() as url:
        yield url


@pytest.fixture(scope="session")
def new_prefix() -> Callable[[], str]:
    """Makes prefixes that nobody else has."""
    run = f"test:{os.getpid()}:{secrets.token_hex(4)}"
    numbers = itertools.count()
    return lambda: f"{run}:{next(numbers)}"
