"""The pages of the documentation that are about browsers: their programs, in one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.peers import NODE_DIR, missing
from tests.test_docs import make_certificate, serving, write_files

from .conftest import NewContext
from .how_to import Running, commands, running

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

ANSWERS = "docs/how-to/answers.md"
AUTHENTICATION = "docs/how-to/authentication.md"
CORS = "docs/how-to/cors.md"
DATASTAR = "docs/how-to/datastar.md"
HTMX = "docs/how-to/htmx.md"
ENDING = "docs/how-to/ending.md"
POST = "docs/how-to/browser-post.md"
PRESENCE = "docs/how-to/presence.md"
TABS = "docs/how-to/one-stream-for-all-tabs.md"


def wait_for_text(page: Page, selector: str, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).textContent.includes(text)",
        arg=[selector, text],
    )


def wait_for_tick(page: Page, least: int) -> None:
    """Wait until a page shows this tick, or a later one: docs/how-to/one-stream-for-all-tabs.md."""
    page.wait_for_function(
        "(least) => parseInt(document.querySelector('#tick').textContent) >= least", arg=least
    )


# docs/how-to/ending.md


@pytest.mark.parametrize(
    ("command", "data"),
    [("uvicorn report:app", "report.pdf"), ("uvicorn reports:app", '{"reason":"finished"}')],
)
def test_a_page_closes_at_done(page: Page, tmp_path: Path, command: str, data: str) -> None:
    with running(ENDING, command, tmp_path) as server:
        page.goto(server.url)
        wait_for_text(page, "#state", f"done: {data}")
        assert page.evaluate("document.getElementById('bar').value") == 100
        assert page.evaluate("source.readyState === EventSource.CLOSED")
        page.wait_for_timeout(1500)  # as long as an EventSource would wait, and some more
        assert server.requests("/report") == [("GET", 200)]


@pytest.mark.parametrize("command", ["uvicorn report:app", "uvicorn reports:app"])
def test_a_page_that_does_not_close_gets_204(page: Page, tmp_path: Path, command: str) -> None:
    with running(ENDING, command, tmp_path) as server:
        html = tmp_path / "report.html"
        assert html.read_text().count("  source.close();\n") == 1
        html.write_text(html.read_text().replace("  source.close();\n", ""))
        page.goto(server.url)
        wait_for_text(page, "#state", "refused")
        assert server.requests("/report") == [("GET", 200), ("GET", 204)]


def test_two_tabs_show_one_run(page: Page, tmp_path: Path) -> None:
    with running(ENDING, "uvicorn reports:app", tmp_path) as server:
        page.goto(server.url)
        other = page.context.new_page()
        other.goto(server.url)
        wait_for_text(page, "#state", "done:")
        wait_for_text(other, "#state", "done:")
        other.reload()
        wait_for_text(other, "#state", "done:")
        assert other.evaluate("document.getElementById('bar').value") == 100


# docs/how-to/answers.md


def test_an_answer_survives_a_reload_and_is_stopped(page: Page, tmp_path: Path) -> None:
    with running(ANSWERS, "uvicorn api:app", tmp_path) as server:
        page.goto(server.url)
        page.click("text=Ask")
        wait_for_text(page, "#answer", "You have")
        page.reload()
        wait_for_text(page, "#answer", "You have asked: why is the sky blue")
        page.fill("#question", "why " * 1000)
        page.click("text=Ask")
        wait_for_text(page, "#answer", "why")
        page.click("text=Stop")
        page.wait_for_function("source.readyState === EventSource.CLOSED")


# docs/how-to/presence.md


def test_a_page_shows_who_else_is_there(page: Page, tmp_path: Path) -> None:
    with running(PRESENCE, "uvicorn room:app", tmp_path) as server:
        page.goto(f"{server.url}?user=ada")
        wait_for_text(page, "#people", "ada")
        other = page.context.new_page()
        other.goto(f"{server.url}?user=ben")
        for each in (page, other):
            wait_for_text(each, "#people", "ada, ben")


# docs/how-to/browser-post.md


def test_a_post_is_read_and_stopped(page: Page, tmp_path: Path) -> None:
    with running(POST, "uvicorn chat:app", tmp_path) as server:
        page.goto(server.url)
        page.click("text=Ask")
        wait_for_text(page, "#answer", "all\n")
        assert "stage" not in (page.text_content("#answer") or "")
        wait_for_text(page, "#state", "complete")
        assert page.text_content("#answer") == "all\nthe\nworld\nis\na\nstage\n"
        page.click("text=Ask")
        wait_for_text(page, "#answer", "all\n")
        page.click("text=Stop")
        wait_for_text(page, "#state", "stopped")
        assert "stage" not in (page.text_content("#answer") or "")


def test_a_refused_post_is_an_error(page: Page, tmp_path: Path) -> None:
    with running(POST, "uvicorn chat:app", tmp_path) as server:
        page.goto(server.url)
        message = page.evaluate(
            """async () => {
              const { read } = await import("/events.mjs");
              const response = await fetch("/complete", { method: "POST", body: "{}" });
              return read(response).next().catch((error) => error.message);
            }"""
        )
        assert message == "no event stream: 422 the body needs a prompt"


def test_a_stream_is_followed_by_fetch(page: Page, tmp_path: Path) -> None:
    with running(POST, "uvicorn chat:app", tmp_path) as server:
        page.goto(server.url)
        numbers = page.evaluate(
            """async () => {
              const { follow } = await import("/events.mjs");
              const numbers = [];
              for await (const { data } of follow("/count")) {
                if (numbers.push(Number(data)) === 30) return numbers;
              }
            }"""
        )
        assert numbers == [*range(1, 31)]
        assert len(server.requests("/count")) > 1


# docs/how-to/one-stream-for-all-tabs.md


def test_six_connections(page: Page, tmp_path: Path) -> None:
    with running(TABS, "uvicorn tabs:app", tmp_path) as server:
        page.goto(server.url)
        wait_for_text(page, "#open", "6")
        page.wait_for_timeout(1000)
        assert page.text_content("#open") == "6"
        assert len(server.requests("/ticks")) == 6
        page.click("#close")
        page.wait_for_function("sources.filter((source) => source.readyState === 2).length === 1")
        while len(server.requests("/ticks")) == 6:
            page.wait_for_timeout(20)
        assert len(server.requests("/ticks")) == 7


def test_eight_by_http_2(new_context: NewContext, tmp_path: Path) -> None:
    for command in commands(TABS):
        if command.startswith("openssl"):
            make_certificate(command, tmp_path)
    command = "hypercorn --certfile cert.pem --keyfile key.pem tabs:app"
    with running(TABS, command, tmp_path) as server:
        page = new_context(ignore_https_errors=True).new_page()
        page.goto(server.url)
        wait_for_text(page, "#open", "8")


def test_one_stream_in_a_worker(page: Page, tmp_path: Path) -> None:
    with running(TABS, "uvicorn tabs:app", tmp_path) as server:
        tabs = [page, *(page.context.new_page() for _ in range(7))]
        for tab in tabs:
            tab.goto(f"{server.url}shared.html")
        for number in (5, 7):
            for tab in tabs:
                wait_for_tick(tab, number)
        assert len(server.requests("/ticks")) == 1
        for tab in tabs:
            tab.close()


def test_one_tab_leads(page: Page, tmp_path: Path) -> None:
    with running(TABS, "uvicorn tabs:app", tmp_path) as server:
        page.goto(f"{server.url}leader.html")
        wait_for_text(page, "#role", "leads")
        other = page.context.new_page()
        other.goto(f"{server.url}leader.html")
        wait_for_text(other, "#tick", " at ")
        assert other.text_content("#role") == "follows"
        assert len(server.requests("/ticks")) == 1
        last = int((other.text_content("#tick") or "").split()[0])
        page.close()
        wait_for_text(other, "#role", "leads")
        wait_for_tick(other, last + 3)
        assert len(server.requests("/ticks")) == 2


# docs/how-to/cors.md


@contextmanager
def two_origins(tmp_path: Path) -> Iterator[tuple[Running, Running]]:
    """The page's server and the API's, each with the other's address in its files."""
    for name in ("shop", "api"):
        (tmp_path / name).mkdir()
    with running(CORS, "uvicorn shop:app", tmp_path / "shop") as shop:
        write_files(CORS, tmp_path / "api")
        replace(tmp_path / "api/api.py", "http://127.0.0.1:8000", shop.url.rstrip("/"))
        with serving("uvicorn --port 8001 api:app", tmp_path / "api") as url:
            replace(tmp_path / "shop/shop.html", "http://127.0.0.1:8001", url.rstrip("/"))
            yield shop, Running(url, tmp_path / "api")


def replace(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_a_page_of_another_origin(page: Page, tmp_path: Path) -> None:
    with two_origins(tmp_path) as (shop, api):
        page.goto(shop.url)
        wait_for_text(page, "#fetched", "data: 41 for ada")
        wait_for_text(page, "#source", "10 for ada")  # it has come back
        requests = api.requests("/news")
        assert len(requests) > 3
        assert requests.count(("OPTIONS", 200)) == 1  # of the fetch
        assert {*requests} == {("OPTIONS", 200), ("GET", 200)}


def test_an_origin_that_is_not_allowed(page: Page, tmp_path: Path) -> None:
    with two_origins(tmp_path) as (shop, api):
        page.goto(shop.url.replace("127.0.0.1", "localhost"))
        wait_for_text(page, "#source", "refused")
        wait_for_text(page, "#fetched", "not allowed")
        assert ("GET", 403) in api.requests("/news")
        assert ("GET", 200) not in api.requests("/news")


# docs/how-to/authentication.md


@pytest.mark.parametrize(
    ("way", "text"),
    [("cookie", "by a cookie"), ("bearer", "by a bearer token"), ("ticket", "by a ticket")],
)
def test_each_way_to_say_who_one_is(page: Page, tmp_path: Path, way: str, text: str) -> None:
    with running(AUTHENTICATION, "uvicorn auth:app", tmp_path) as server:
        page.goto(server.url)
        page.click(f"#{way}")
        wait_for_text(page, "#news", f"15 for ada, {text}")  # it has come back
        requests = server.requests("/news")
        assert requests.count(("GET", 200)) > 1
        # It is the page that comes back with a new ticket, unless the browser was quicker.
        assert {*requests} <= {("GET", 200), ("GET", 401)}


def test_an_event_source_without_credentials_is_refused(page: Page, tmp_path: Path) -> None:
    with running(AUTHENTICATION, "uvicorn auth:app", tmp_path) as server:
        page.goto(f"{server.url}nothing")
        page.evaluate("source = new EventSource('/news')")
        page.wait_for_function("source.readyState === EventSource.CLOSED")
        assert server.requests("/news") == [("GET", 401)]


# docs/how-to/htmx.md


def serve_npm(page: Page) -> None:
    """Have the packages of tests/node in the place of a network for their copies."""

    def answer(route: Route) -> None:
        package, _, path = route.request.url.partition("/npm/")[2].partition("@")
        file = NODE_DIR / "node_modules" / package / path.partition("/")[2]
        assert file.is_file(), route.request.url
        route.fulfill(path=file, content_type="text/javascript")

    if not (NODE_DIR / "node_modules/htmx-ext-sse").is_dir():
        missing("node", "htmx is not installed: run npm install in tests/node")
    page.route("https://cdn.jsdelivr.net/npm/**", answer)


def test_htmx(page: Page, tmp_path: Path) -> None:
    serve_npm(page)
    with running(HTMX, "uvicorn feed:app", tmp_path) as server:
        page.goto(server.url)
        wait_for_text(page, "ul", "everything")
        assert page.locator("li").all_text_contents() == [
            "Ada: 2 teapots",
            "Ben & Co: 1 kettle",
            "Cleo: <b>everything</b>",
        ]
        assert page.text_content("p") == "3 orders"
        page.wait_for_timeout(2000)
        assert server.requests("/feed") == [("GET", 200)]


def test_htmx_comes_back_after_a_204(page: Page, tmp_path: Path) -> None:
    """As the page says, so that somebody learns when it is no longer so."""
    serve_npm(page)
    with running(HTMX, "uvicorn feed:app", tmp_path) as server:
        replace(tmp_path / "feed.html", ' sse-close="done"', "")
        answers = iter([204, 404])

        def refuse(route: Route) -> None:
            asked.append(route.request.headers.get("last-event-id"))
            route.fulfill(status=status) if (status := next(answers, 0)) else route.continue_()

        asked: list[str | None] = []
        page.route("**/feed", refuse)
        page.goto(server.url)
        wait_for_text(page, "ul", "everything")
        assert asked[:3] == [None, None, None]
        assert server.requests("/feed")[0] == ("GET", 200)


# docs/how-to/datastar.md


def serve_datastar(page: Page) -> None:
    """Have the script as starhtml ships it, which has changed nothing about streams in it."""
    spec = find_spec("starhtml")
    if spec is None or spec.origin is None:
        missing("browser", "starhtml is not installed: pip install --no-deps starhtml==0.7.0")
    script = Path(spec.origin).with_name("static") / "js/datastar-core.js"
    (version,) = re.findall(r"^// Datastar v(\S+)", script.read_text())
    page.route(
        f"https://cdn.jsdelivr.net/gh/starfederation/datastar@{version}/bundles/datastar.js",
        lambda route: route.fulfill(path=script, content_type="text/javascript"),
    )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="starhtml needs Python 3.12")
def test_datastar(page: Page, tmp_path: Path) -> None:
    """The connection breaks once, it comes back, and the end of the stream is the end."""
    serve_datastar(page)
    page.add_init_script(
        "fetches = [];"
        "document.addEventListener('datastar-fetch', (event) => fetches.push(event.detail.type));"
    )
    write_files(DATASTAR, tmp_path)
    wait = "await anyio.sleep(0.3)\n"
    replace(tmp_path / "feed.py", wait, f"{wait}        assert request.last_event_id\n")
    with serving("uvicorn feed:app", tmp_path) as url:
        page.goto(url)
        page.wait_for_function("fetches.includes('finished')")
        assert page.locator("li").all_text_contents() == [
            "Ada: 2 teapots",
            "Ben & Co: 1 kettle",
            "Cleo: <b>everything</b>",
        ]
        assert page.text_content("p") == "3 orders"
        assert "retrying" in page.evaluate("fetches")
        assert Running(url, tmp_path).requests("/feed") == [("GET", 200)] * 2
