"""The dashboard for Grafana: the metrics and labels of its queries are there after a real run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import anyio
import pytest

from sse_asgi import Shutdown, sse_app
from sse_asgi.hub import Hub
from sse_asgi.testing import connect

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sse_asgi.prometheus import PrometheusObserver

DOCS = Path(__file__).parents[1] / "docs"
DASHBOARD = json.loads((DOCS / "dashboards/sse_asgi.json").read_text("utf-8"))
PICTURE = (DOCS / "how-to/images/dashboard.svg").read_text("utf-8")

#: What Prometheus adds to what it scrapes, and what a histogram has.
ADDED = {"job", "instance", "le"}
FUNCTIONS = {"sum", "max", "by", "rate", "histogram_quantile"}


class Query:
    """A query of PromQL, taken apart: enough for those of the dashboard."""

    def __init__(self, text: str) -> None:
        self.text = text
        without = re.sub(r'"[^"]*"|\[[^]]*\]', "", text)
        grouped = re.findall(r"by \(([^)]*)\)", without)
        selected = re.findall(r"\{([^}]*)\}", without)
        self.labels = {label.strip() for group in grouped for label in group.split(",")}
        self.labels |= set(re.findall(r"(\w+)\s*(?:=|!)", ",".join(selected)))
        rest = re.sub(r"by \([^)]*\)|\{[^}]*\}", "", without)
        self.metrics = set(re.findall(r"[a-zA-Z_]\w*", rest)) - FUNCTIONS


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def samples() -> dict[str, set[str]]:
    """The labels of each sample, after streams that do all that there is to see."""
    registry, shutdown = CollectorRegistry(), Shutdown()
    observer = PrometheusObserver(registry)

    async def run() -> None:
        async with Hub(observer=observer) as hub:
            app = sse_app(lambda: hub.subscribe("t"), observer=observer, shutdown=shutdown)
            async with connect(app) as stream:
                await anyio.wait_all_tasks_blocked()
                await hub.publish("t", {"data": 1})
                await stream.receive()
                shutdown.drain()
                await stream.read()
        # As a log on Redis does: tests/redis/test_health.py.
        observer.hub_round_trip(observer.hubs[0], 0.001, OSError())

    anyio.run(run)
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    return samples()


@pytest.mark.parametrize(("title", "text"), list(queries()))
def test_a_query_names_what_is_there(title: str, text: str, found: dict[str, set[str]]) -> None:
    query = Query(text)
    assert query.metrics, f"{title}: no metric in {text}"
    for metric in query.metrics:
        assert metric in found, f"{title}: there is no {metric}"
        assert query.labels <= found[metric] | ADDED, f"{title}: {metric} has {found[metric]}"


def test_every_metric_is_on_the_dashboard(found: dict[str, set[str]]) -> None:
    shown = set().union(*(Query(text).metrics for _, text in queries()))

    def of(name: str) -> str:
        return re.sub(r"_(bucket|sum|count|created|total)$", "", name)

    assert {of(name) for name in found} == {of(name) for name in shown}


def test_legends_name_labels_of_their_query() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= Query(target["expr"]).labels


def test_the_panels_have_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_picture_shows_these_panels() -> None:
    """If this fails, run python -m tests.dashboard_picture."""
    drawn = [unescape(title) for title in re.findall(r'class="t">([^<]*)<', PICTURE)]
    assert drawn == [panel["title"] for panel in DASHBOARD["panels"]]


def parse(texts: Iterable[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Let Prometheus parse queries, as rules: it reads these without a server."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool on the PATH: Debian's package prometheus has it")
    rules = [
        {"record": f"query:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, text in enumerate(texts)
    ]
    file = folder / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # also YAML
    return subprocess.run([program, "check", "rules", file], capture_output=True, text=True)


def test_prometheus_parses_the_queries(tmp_path: Path) -> None:
    texts = [text for _, text in queries()]
    checked = parse(texts, tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert f"SUCCESS: {len(texts)} rules found" in checked.stdout


@pytest.mark.parametrize("text", ["sum by (le (a)", "rate(a)", "sum(rate(a[$job]))"])
def test_prometheus_sees_a_query_that_is_wrong(tmp_path: Path, text: str) -> None:
    checked = parse([text], tmp_path)
    assert checked.returncode != 0
    assert "could not parse expression" in checked.stderr + checked.stdout


def test_the_test_sees_a_query_that_is_wrong(found: dict[str, Any]) -> None:
    query = Query('sum by (topic) (rate(sse_server_nothing_total{job=~"$job"}[1m]))')
    assert query.metrics == {"sse_server_nothing_total"}
    assert query.labels == {"topic", "job"}
    assert not query.metrics & found.keys()
