from __future__ import annotations

import gc
import itertools
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog

from .servers import Cluster, RedisServer, any_server


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


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that nobody else asks anything."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def new_hub(redis_url: str, new_prefix: Callable[[], str]) -> Callable[..., Hub]:
    """Makes hubs that share their topics."""
    prefix = new_prefix()
    return lambda **options: Hub(RedisLog(redis_url, prefix=prefix, **options))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What coredis leaves unclosed where a connection could not be made is not ours."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
            )


@pytest.fixture(scope="module", autouse=True)
def _collect() -> Iterator[None]:
    """So that they are not found in the tests of another module."""
    yield
    gc.collect()


def pytest_sessionfinish() -> None:
    """And those of the last test, which its event loop may have held until now."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unclosed <MemoryObject", ResourceWarning)
        for _ in range(5):
            gc.collect()
