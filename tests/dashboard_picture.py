"""Make the picture of the dashboard for Grafana: ``python -m tests.dashboard_picture``.

An application (pictured/shop.py) runs under uvicorn, with clients that come and go. Prometheus
scrapes it and evaluates the queries of the panels. The picture is drawn here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx

from .redis.servers import RedisServer
from .servers.clients import wait_for
from .servers.harness import steady_port

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "docs" / "dashboards" / "sse_asgi.json"
PICTURE = ROOT / "docs" / "how-to" / "images" / "dashboard.svg"
LARGEST = 200_000

#: How long clients come and go, and what of it the picture shows, in seconds.
SECONDS, SHOWN = 98, 90
#: When the streams of prices are told to end.
CLOSING = 78
#: What Grafana would replace.
VARIABLES = {"$job": ".*", "$__rate_interval": "15s"}


class Line(NamedTuple):
    """A line of a panel: its legend, and its value at each second of the picture that has one."""

    legend: str
    values: dict[int, float]
    #: What its area begins at, if that is not 0.
    base: Mapping[int, float] = {}


# The clients.


async def visit(
    port: int, path: str, *, seconds: float = math.inf, last_event_id: str = ""
) -> None:
    """Read a stream, until it ends or the client leaves."""
    with anyio.move_on_after(seconds):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(
                f"GET {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n"
                f"last-event-id: {last_event_id}\r\n\r\n".encode()
            )
            try:
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass


async def come_and_go(
    port: int, path: str, every: float, stays: float, *, seed: int, until: float = SECONDS
) -> None:
    """Visit a path again and again: more and more often, and then less."""
    chosen, start = random.Random(seed), time.monotonic()
    async with anyio.create_task_group() as visits:
        while (passed := time.monotonic() - start) < until:
            crowd = 0.4 + math.sin(passed / SECONDS * math.pi)
            await anyio.sleep(chosen.expovariate(crowd / every))
            seconds = chosen.uniform(0.3, 1.7) * stays
            visits.start_soon(lambda s: visit(port, path, seconds=s), seconds)


async def stop_reading(port: int, path: str, at: float, resume_after: float) -> None:
    """Read a stream, stop for a while, and read on."""
    await anyio.sleep(at)
    sock = socket.socket()
    # Small, so that the kernels keep little of what nobody reads.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    with sock:
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        sock.send(f"GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n".encode())
        await anyio.sleep(resume_after)
        try:
            while True:
                await anyio.wait_readable(sock)
                if not sock.recv(65536):
                    return
        except ConnectionError:  # the server has given it up
            pass


async def come_back_late(port: int, at: float) -> None:
    """Read some orders, and come back when the log no longer has what came after them."""
    await anyio.sleep(5)
    last = ""
    with anyio.move_on_after(3):
        async with httpx.AsyncClient() as client:
            async with client.stream("GET", f"http://127.0.0.1:{port}/orders") as response:
                async for line in response.aiter_lines():
                    if line.startswith("id:"):
                        last = line.removeprefix("id:").strip()
    await anyio.sleep(at - 8)
    await visit(port, "/orders", seconds=20, last_event_id=last)


async def hang(redis: RedisServer, at: float) -> None:
    """Let Redis hang for a while."""
    await anyio.sleep(at)
    redis.pause()
    await anyio.sleep(3)
    redis.resume()


async def close_market(port: int, at: float) -> None:
    await anyio.sleep(at)
    async with httpx.AsyncClient() as client:
        (await client.post(f"http://127.0.0.1:{port}/close-market")).raise_for_status()


async def live(port: int, redis: RedisServer) -> None:
    """All that happens while the picture is made."""
    with anyio.move_on_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            for path, every, stays, until in (
                ("/prices", 1.2, 15, CLOSING),
                ("/orders", 4, 25, SECONDS),
                ("/alerts", 4, 20, SECONDS),
                ("/chat", 2.5, 30, SECONDS),
            ):
                clients = partial(come_and_go, seed=len(path) + 10, until=until)
                tasks.start_soon(clients, port, path, every, stays)
            tasks.start_soon(stop_reading, port, "/orders", 12, math.inf)
            tasks.start_soon(stop_reading, port, "/orders", 24, math.inf)
            tasks.start_soon(stop_reading, port, "/orders", 30, 12)
            tasks.start_soon(come_back_late, port, 50)
            tasks.start_soon(hang, redis, 48)
            tasks.start_soon(hang, redis, 60)
            tasks.start_soon(close_market, port, CLOSING)


# The servers.


@contextmanager
def process(*command: str, log_file: Path, **environment: str) -> Iterator[None]:
    """A process that ends with the block."""
    with log_file.open("w") as log:
        running = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def run(folder: Path) -> dict[int, list[Line]]:
    """Let the application run; return the lines of each panel, by its id."""
    if (program := shutil.which("prometheus")) is None:
        raise SystemExit("there is no prometheus on the PATH: Debian has a package of that name")
    shop, prometheus = steady_port(), steady_port()
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "shop",
                "metrics_path": "/metrics/",
                "static_configs": [
                    {"targets": [f"127.0.0.1:{shop}"], "labels": {"instance": "shop-1"}}
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(appendonly="yes"))
        stack.enter_context(
            process(
                *(sys.executable, "-m", "uvicorn", "shop:app", "--app-dir", "tests/pictured"),
                *("--port", str(shop), "--log-level", "warning"),
                log_file=folder / "shop.log",
                REDIS_URL=redis.url,
            )
        )
        wait_for(
            lambda: answers(f"http://127.0.0.1:{shop}/metrics/"), (folder / "shop.log").read_text
        )
        stack.enter_context(
            process(
                *(program, f"--config.file={folder / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"),
                f"--web.listen-address=127.0.0.1:{prometheus}",
                log_file=folder / "prometheus.log",
            )
        )
        wait_for(
            lambda: answers(f"http://127.0.0.1:{prometheus}/-/ready"),
            (folder / "prometheus.log").read_text,
        )
        anyio.run(live, shop, redis)
        end = int(time.time()) - 1
        return {
            panel["id"]: [
                line for target in panel["targets"] for line in lines(prometheus, target, end)
            ]
            for panel in json.loads(DASHBOARD.read_text())["panels"]
        }


def lines(port: int, target: Mapping[str, Any], end: int) -> list[Line]:
    """What Prometheus answers to a query of the dashboard."""
    query: str = target["expr"]
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    response = httpx.get(
        f"http://127.0.0.1:{port}/api/v1/query_range",
        params={"query": query, "start": end - SHOWN, "end": end, "step": 1},
    )
    answer = response.json()
    assert answer["status"] == "success", (query, answer)
    return [
        Line(
            legend(target["legendFormat"], series["metric"]),
            {
                int(at) - end + SHOWN: float(value)
                for at, value in series["values"]
                if math.isfinite(float(value))
            },
        )
        for series in answer["data"]["result"]
    ]


def legend(form: str, labels: Mapping[str, str]) -> str:
    """Fill labels into a ``legendFormat``."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), form).strip()


# The picture.

COLUMNS, WIDTH, HEIGHT, GAP = 3, 340, 270, 10
LEFT, RIGHT, TOP, FOOT, LEGEND = 68, 14, 36, 28, 17
COLOURS = ("#2f7d32", "#1f77b4", "#d9730d", "#7b4fa3", "#c2312b", "#0f9a8a", "#5f6b76")
CHARACTER = 6.8  # a wide one of the legend


def si(value: float) -> str:
    """Return a number as Grafana's unit "short" shows it."""
    for size, letter in ((1e6, " M"), (1e3, " K")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def seconds(value: float) -> str:
    return f"{value * 1000:g} ms" if 0 < value < 1 else f"{value:g} s"


UNITS: dict[str, Callable[[float], str]] = {
    "short": si,
    "s": seconds,
    "ops": lambda value: f"{si(value)}/s",
    "Bps": lambda value: f"{si(value)}B/s" if value >= 1000 else f"{value:g} B/s",
}


def step(most: float) -> float:
    """Return the distance of the lines of the axis, of which there are five at most."""
    size: float = 10.0 ** math.floor(math.log10(most / 4))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if most / (size * factor) <= 5)


def stacked(found: list[Line]) -> list[Line]:
    """Put each line on top of those before it."""
    sums: dict[int, float] = {}
    result = []
    for line in found:
        base = dict(sums)
        for at, value in line.values.items():
            sums[at] = sums.get(at, 0) + value
        result.append(Line(line.legend, {at: sums[at] for at in line.values}, base))
    return result


def panel_of(panel: Mapping[str, Any], found: list[Line]) -> Iterator[str]:
    """Draw a panel at 0,0."""
    defaults = panel["fieldConfig"]["defaults"]
    unit = UNITS[defaults["unit"]]
    drawn = stacked(found) if defaults["custom"]["stacking"]["mode"] == "normal" else found
    rows = legend_rows([line.legend for line in found])
    bottom = HEIGHT - FOOT - LEGEND * len(rows) - 6
    most = max((value for line in drawn for value in line.values.values()), default=0) or 1
    distance = step(most)
    most = math.ceil(most / distance - 1e-9) * distance

    def x(at: float) -> float:
        return LEFT + at / SHOWN * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return bottom - value / most * (bottom - TOP)

    yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="3" fill="#fff" stroke="#d0d4d8"/>'
    yield f'<text x="12" y="21" class="t">{escape(panel["title"])}</text>'
    for number in range(round(most / distance) + 1):
        height = y(number * distance)
        yield f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="#e4e7ea"/>'
        label = unit(float(f"{number * distance:.6g}"))
        yield f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>'
    for at in range(0, SHOWN + 1, 30):
        anchor = "end" if at == SHOWN else "middle"
        yield f'<text x="{x(at):.0f}" y="{bottom + 17}" text-anchor="{anchor}">{at} s</text>'
    for line, colour in reversed([*zip(drawn, itertools.cycle(COLOURS), strict=False)]):
        for part in parts(line.values):
            points = " ".join(f"{x(at):.0f},{y(value):.1f}" for at, value in part)
            base = " ".join(
                f"{x(at):.0f},{y(line.base.get(at, 0)):.1f}"
                for at, _ in (reversed(part) if line.base else (part[-1], part[0]))
            )
            yield f'<polygon points="{points} {base}" fill="{colour}" fill-opacity=".1"/>'
            yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
    colours = itertools.cycle(COLOURS)
    for number, row in enumerate(rows):
        left, height = 14.0, HEIGHT - LEGEND * (len(rows) - number) + 4
        for text in row:
            yield f'<path d="M{left:.0f} {height - 4}h12" stroke="{next(colours)}" class="l"/>'
            yield f'<text x="{left + 17:.0f}" y="{height}">{escape(text)}</text>'
            left += legend_width(text)


def parts(values: Mapping[int, float]) -> list[list[tuple[int, float]]]:
    """Cut a line where there is no value. A part of one value is a second long."""
    result: list[list[tuple[int, float]]] = []
    for at, value in sorted(values.items()):
        if not result or at - result[-1][-1][0] > 1:
            result.append([])
        result[-1].append((at, value))
    return [part if len(part) > 1 else [part[0], (part[0][0] + 1, part[0][1])] for part in result]


def legend_width(text: str) -> float:
    return 17 + CHARACTER * len(text) + 14


def legend_rows(legends: list[str]) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for text in legends:
        if rows[-1] and sum(map(legend_width, [*rows[-1], text])) > WIDTH:
            rows.append([])
        rows[-1].append(text)
    return rows


def picture(found: Mapping[int, list[Line]]) -> str:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = math.ceil(len(panels) / COLUMNS)
    width, height = COLUMNS * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<style>",
        "text { font: 13px sans-serif; fill: #3c4248 }",
        ".t { font-size: 16px; font-weight: bold; fill: #1b1f23 }",
        ".l { stroke-width: 3 }",
        "</style>",
        "<title>The panels of the dashboard</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        place = f"{GAP + column * (WIDTH + GAP)} {GAP + row * (HEIGHT + GAP)}"
        drawn.append(f'<g transform="translate({place})">')
        drawn += panel_of(panel, found[panel["id"]])
        drawn.append("</g>")
    return "\n".join([*drawn, "</svg>"]) + "\n"


def main() -> int:
    """Make the picture; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder))
    empty = [number for number, lines in found.items() if not any(line.values for line in lines)]
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(found))
    size = PICTURE.stat().st_size
    print(f"{PICTURE.relative_to(ROOT)}: {size} bytes; panels without data: {empty or 'none'}")
    return 0 if size < LARGEST and not empty else 1


if __name__ == "__main__":
    sys.exit(main())
