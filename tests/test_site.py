"""The site that Sphinx builds: its pages are found, and its landing page says what is measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .peers import missing

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

#: What people ask for, and the page that answers. It is among the first `FOUND` of the results.
QUESTIONS = {
    "first stream": "tutorial",
    "install": "tutorial",
    "compression": "how-to/compression",
    "gzip": "how-to/compression",
    "prometheus": "how-to/observability",
    "grafana": "how-to/observability",
    "logging": "how-to/observability",
    "Last-Event-ID": "tutorial",
    "fastapi": "how-to/fastapi",
    "openapi": "how-to/fastapi",
    "django": "how-to/frameworks",
    "litestar": "how-to/frameworks",
    "sse-starlette": "how-to/from-sse-starlette",
    "fastapi.sse": "how-to/from-fastapi-sse",
    "StreamingResponse": "how-to/from-streaming-response",
    "nginx buffering": "how-to/proxies",
    "caddy": "how-to/proxies",
    "shutdown": "how-to/shutdown",
    "ctrl-c hangs": "how-to/shutdown",
    "send_timeout": "how-to/slow-clients",
    "slow client": "how-to/slow-clients",
    "ping keep-alive": "how-to/slow-clients",
    "POST body": "how-to/post",
    "openai": "how-to/relay",
    "llm answer reload": "how-to/answers",
    "stop button": "how-to/llm",
    "openai sdk": "how-to/llm",
    "close for good": "how-to/ending",
    "end a stream": "how-to/ending",
    "fetch": "how-to/browser-post",
    "six connections": "how-to/one-stream-for-all-tabs",
    "SharedWorker": "how-to/one-stream-for-all-tabs",
    "cors": "how-to/cors",
    "withCredentials": "how-to/cors",
    "bearer token": "how-to/authentication",
    "cookie": "how-to/authentication",
    "kubernetes": "how-to/deploying",
    "cloudflare": "how-to/deploying",
    "gunicorn": "how-to/deploying",
    "troubleshooting": "how-to/troubleshooting",
    "opentelemetry": "how-to/troubleshooting",
    "htmx": "how-to/htmx",
    "datastar": "how-to/datastar",
    "patch elements": "how-to/datastar",
    "ag-ui": "how-to/ag-ui",
    "agent events": "how-to/ag-ui",
    "pytest": "how-to/testing",
    "test a stream": "how-to/testing",
    "publish": "how-to/hub",
    "broadcast to many clients": "how-to/hub",
    "redis": "how-to/redis",
    "presence": "how-to/presence",
    "who is online": "how-to/presence",
    "token expires": "how-to/rights",
    "max connections per user": "how-to/rights",
    "blocking generator": "how-to/sync-generators",
    "thread": "how-to/sync-generators",
    "python client reconnect": "how-to/client",
    "tail command line": "how-to/client",
    "benchmark": "explanation/performance",
    "memory per connection": "explanation/capacity",
    "denial of service": "explanation/security",
    "daphne sigterm": "explanation/stopping",
    "eventsource standard": "explanation/conformance",
    "disconnect": "explanation/life-of-a-stream",
    "epoch offset": "explanation/redis",
    "changelog": "changelog",
}
FOUND = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("SSE_ASGI_TEST_SITE"):
        return Path(built)
    if not all(map(find_spec, ("sphinx", "furo", "myst_parser"))):
        missing("docs", "Sphinx is not installed: pip install --group docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(DOCS), str(folder)]
    subprocess.run(command, check=True)
    return folder


def test_what_people_ask_for_is_found(site: Path) -> None:
    node = shutil.which("node")
    if node is None:
        missing("node", "there is no node on the PATH")
    answer = subprocess.run(
        [node, ROOT / "tests/node/search.mjs", site],
        input=json.dumps(list(QUESTIONS)),
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(zip(QUESTIONS, json.loads(answer.stdout), strict=True))
    lost = {q: found[q][:FOUND] for q, page in QUESTIONS.items() if page not in found[q][:FOUND]}
    assert lost == {}


def test_every_page_says_its_subject_to_programs(site: Path) -> None:
    """``llms.txt`` has a link to the text of each page, with its first sentence."""
    text = (site / "llms.txt").read_text()
    head, *sections = text.split("\n## ")
    assert re.fullmatch(r"# sse_asgi\n\n> \S.+\n", head)
    links = [
        re.fullmatch(r"- \[(.+)\]\((\S+)\): (.+)", line)
        for section in sections
        for line in section.splitlines()[2:]
    ]
    pages = {link[2] for link in links if link is not None}
    assert None not in links
    assert pages == {
        f"_sources/{page.relative_to(DOCS)}.txt"
        for page in DOCS.glob("**/*.md")
        if page.name != "index.md"
    }
    assert all((site / page).is_file() for page in pages)


def test_no_two_pages_have_one_title(site: Path) -> None:
    titles = re.findall(r"^- \[(.+?)\]\(", (site / "llms.txt").read_text(), re.MULTILINE)
    assert len(titles) > 20
    assert sorted(titles) == sorted(set(titles))


def test_code_can_be_copied(site: Path) -> None:
    page = (site / "tutorial.html").read_text()
    assert '<script src="_static/copy.js' in page
    assert '<div class="highlight-python' in page


# The landing page.

#: The figures of the landing page, in the order of its table, and the rows that they are from.
FIGURES = [
    "fan-out to 500 clients, flat out, ten at a time, deliveries/s",
    "idle connection, of 2,000, KiB",
    "SIGTERM with 500 endless streams, uvicorn: streams that end as they should",
]


def rows(table: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its heads."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_landing_page_has_the_figures_that_were_measured() -> None:
    """If this fails after a measurement, write the figures into docs/index.md."""
    _, _, medians = (DOCS / "explanation/performance.md").read_text().partition("| median |")
    head, _, *measured = rows("| median |" + medians.partition("\n\n")[0])
    _, _, landing = (DOCS / "index.md").read_text().partition("## Three figures\n")
    shown_head, _, *shown = rows(landing.partition("\n## ")[0])
    columns = [head.index(name.replace("-", "_")) for name in shown_head[1:]]
    by_title = {row[0].rstrip(" ↑↓"): row for row in measured}
    figures = [[by_title[title][column].rstrip(" ±") for column in columns] for title in FIGURES]
    assert [row[1:] for row in shown] == figures
    assert all("](explanation/performance.md#how-it-is-measured)" in row[0] for row in shown)
