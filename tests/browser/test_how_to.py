"""The pages of the documentation that are about browsers: their programs, in one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .how_to import running

if TYPE_CHECKING:
    from playwright.sync_api import Page

ENDING = "docs/how-to/ending.md"


def wait_for_text(page: Page, selector: str, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).textContent.includes(text)",
        arg=[selector, text],
    )


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
