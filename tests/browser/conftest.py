from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.peers import require_browser
from tests.servers.clients import DEADLINE
from tests.servers.harness import Server, steady_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_tags = itertools.count()

#: Nothing that speaks to anybody but the servers of the tests.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, one for the module: Playwright's event loop lives as long, and no other can run."""
    path = require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=ARGUMENTS, timeout=2 * DEADLINE * 1000
        )
        yield browser
        browser.close()


class NewContext(Protocol):
    def __call__(self, **options: Any) -> BrowserContext: ...


@pytest.fixture
def new_context(browser: Browser) -> Iterator[NewContext]:
    """A function that makes a browser without a history. No page may have an error."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def new(**options: Any) -> BrowserContext:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(DEADLINE * 1000)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        return context

    yield new
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def context(new_context: NewContext) -> BrowserContext:
    return new_context()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def tag() -> str:
    """A name that only this test uses for its streams."""
    return f"b{next(_tags)}"


class BrowserServer(Server):
    """uvicorn with the applications of this package."""

    app = "tests.browser.apps:app"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address.port}"


StartServer = Callable[[int], BrowserServer]


def start(directory: Path, port: int) -> BrowserServer:
    server = BrowserServer("uvicorn-h11", directory, None, port)
    try:
        assert server.ready(), server.log()
    except BaseException:
        server.kill()
        raise
    return server


@pytest.fixture(scope="module")
def _shared_server(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserServer]:
    server = start(tmp_path_factory.mktemp("log"), steady_port())
    yield server
    server.kill()


@pytest.fixture
def server(_shared_server: BrowserServer, context: BrowserContext) -> Iterator[BrowserServer]:
    """A server that tests share: all streams end with the pages, and its log stays silent."""
    yield _shared_server
    for page in context.pages:
        page.close()
    _shared_server.wait_for_status("", lambda status: status["connections"] == 0)
    assert _shared_server.new_complaints() == []


@pytest.fixture
def start_server(browser: Browser, tmp_path: Path) -> Iterator[StartServer]:
    """A function that starts a server for this test alone, on a port."""
    servers: list[BrowserServer] = []

    def start_one(port: int) -> BrowserServer:
        servers.append(start(tmp_path, port))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()
