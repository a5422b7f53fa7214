from __future__ import annotations

import gc
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from .entry_points import ENTRY_POINTS

#: Of streams that are compressed these are enough: their bytes take other ways when they wait. One
#: Python is enough, too.
COMPRESSED = ("test_deaf", "test_drained", "test_outlast", "test_supervisor")
COMPRESSES = sys.version_info >= (3, 13)

#: What depends on the tasks, scopes and clocks of the event loop, on threads and on modules: it may
#: differ between Pythons, and between event loops.
BRIEFLY = {
    "test_app", "test_cancelled", "test_client", "test_eager", "test_encoder", "test_event",
    "test_hub", "test_idle_cost", "test_messages", "test_native_scope", "test_pings",
    "test_runtime", "test_shields", "test_shutdown", "test_supervisor", "test_threads",
}  # fmt: skip


#: What is to be tested briefly: Pythons, and "backends".
WHERE_BRIEFLY = os.environ.get("SSE_ASGI_TEST_BRIEFLY", "").split(",")


def briefly() -> bool:
    """Whether this is a Python on which those tests run that may differ there."""
    return "{}.{}".format(*sys.version_info) in WHERE_BRIEFLY


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every async test on both event loops."""
    backend: str = request.param
    return backend


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry_point" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker
        names = ["sse_app"] if marker("sse_app_only") else list(ENTRY_POINTS)
        if briefly():
            names = [name for name in names if name in {"sse_app", "in a scope"}]
        if "compressed" in names and (
            not COMPRESSES
            or marker("not_compressed")
            or not metafunc.module.__name__.endswith(COMPRESSED)
        ):
            names.remove("compressed")
        metafunc.parametrize("entry_point", names)


@pytest.fixture
def through_every_entry_point(
    entry_point: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run every test of a module with each of the entry points as its ``sse_app``."""
    monkeypatch.setattr(request.module, "sse_app", ENTRY_POINTS[entry_point])


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what differs little between Pythons."""
    if not briefly():
        return None
    within = collection_path.parent == Path(__file__).parent
    is_test = collection_path.name.startswith("test_")
    return True if within and is_test and collection_path.stem not in BRIEFLY else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not has_a_scope_too_many(item)]
    if "backends" in WHERE_BRIEFLY:
        items[:] = on_one_backend(items)
    for item in items:
        if params(item).get("anyio_backend") == "trio" and not item.get_closest_marker("timeout"):
            # The runner of anyio waits for a test on trio for ever, unless its process ends.
            item.add_marker(pytest.mark.timeout(method="thread"))
    # Those that share a server come one after another, so that few of the processes that run tests
    # start one.
    folders = list(dict.fromkeys(item.path.parent for item in items))
    place = {folder: number for number, folder in enumerate(folders)}
    items.sort(key=lambda item: (place[item.path.parent], str(params(item).get("server", ""))))


def has_a_scope_too_many(item: pytest.Item) -> bool:
    """On trio there is a scope around everything: no need for one more."""
    given = params(item)
    return given.get("entry_point") == "in a scope" and given.get("anyio_backend") != "asyncio"


def on_one_backend(items: list[pytest.Item]) -> list[pytest.Item]:
    """Leave of two tests that differ in their event loop only one, but for those of :data:`BRIEFLY`
    through ``sse_app``. Which one, depends on the name: half of them are on asyncio.
    """
    pairs: dict[str, list[pytest.Item]] = {}
    for item in items:
        name, given = item.nodeid, params(item)
        on_both = item.path.stem in BRIEFLY and given.get("entry_point", "sse_app") == "sse_app"
        if "anyio_backend" in given and not on_both:
            name = name.replace("asyncio", "*").replace("trio", "*")
        pairs.setdefault(name, []).append(item)
    chosen = {id(pair[zlib.crc32(name.encode()) % len(pair)]) for name, pair in pairs.items()}
    return [item for item in items if id(item) in chosen]


def params(item: pytest.Item) -> dict[str, Any]:
    """Return the parameters that a test is run with."""
    return getattr(getattr(item, "callspec", None), "params", {})


def pytest_collection_finish() -> None:
    """Keep the thousands of tests from being looked at in each garbage collection."""
    if "hypothesis" in sys.modules:  # it asks, when it is imported, who refers to an object
        gc.collect()
        gc.freeze()
