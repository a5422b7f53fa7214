"""Make the picture of the demo that the README shows: ``python -m tests.browser.picture``.

The numbers in it are made up, so that it looks the same wherever it is made.
"""

from __future__ import annotations

import math
import random
import shutil
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import uvicorn
from playwright.sync_api import sync_playwright

from sse_asgi.demo import app
from sse_asgi.demo.machine import Sample

from ..servers.harness import steady_port
from .conftest import ARGUMENTS

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "demo.png"
#: The README shows it on every visit.
LARGEST = 200_000

GIB = 2**30


def describe() -> dict[str, Any]:
    return {
        "host": "demo",
        "system": "Linux",
        "cores": 8,
        "memory": 16 * GIB,
        "python": "3.13",
    }


async def samples() -> AsyncGenerator[Sample, None]:
    """A machine with something to do. The last 40 seconds are there at once."""
    noise = random.Random(8)
    start = time.time() - 40
    for number in range(10_000):
        await anyio.sleep(max(0.0, start + number - time.time()))
        busy = 45 + 28 * math.sin(number / 5) + noise.uniform(-8, 8)
        yield Sample(
            number=number,
            time=round(start + number, 3),
            cpu=round(busy, 1),
            cores=[round(min(max(busy + noise.uniform(-35, 35), 2), 100), 1) for _ in range(8)],
            memory_used=int((6.2 + 0.35 * math.sin(number / 8) + noise.uniform(0, 0.05)) * GIB),
            memory_total=16 * GIB,
            received=round(620e3 + 330e3 * math.sin(number / 4) + noise.uniform(0, 150e3)),
            sent=round(280e3 + 120e3 * math.sin(number / 3 + 1) + noise.uniform(0, 60e3)),
        )


@contextmanager
def serving(port: int) -> Iterator[str]:
    """The demo with these numbers, at an address."""
    with patch.object(app, "samples", samples), patch.object(app, "describe", describe):
        demo = app.create_app(stop=lambda: None)
        server = uvicorn.Server(uvicorn.Config(demo, port=port, lifespan="on", log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.should_exit = True
            thread.join()


def main() -> int:
    """Make the picture; return the exit status."""
    with sync_playwright() as playwright, serving(steady_port()) as url:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        page = browser.new_page(viewport={"width": 1280, "height": 728}, color_scheme="light")
        page.goto(url)
        page.get_by_text("connected: the server began").wait_for()
        page.locator("#disconnect").click()
        page.get_by_text("replayed, none is missing").wait_for()
        page.wait_for_timeout(3000)
        # The port was a free one.
        page.evaluate(
            "(here) => { for (const id of ['curl', 'tail'])"
            " { const e = document.getElementById(id);"
            " e.textContent = e.textContent.replace(here, 'http://127.0.0.1:8000/'); } }",
            url,
        )
        page.mouse.move(0, 0)
        PICTURE.parent.mkdir(exist_ok=True)
        page.screenshot(path=PICTURE)
        browser.close()
    size = PICTURE.stat().st_size
    print(f"{PICTURE}: {size} bytes")
    return 0 if size < LARGEST else 1


if __name__ == "__main__":
    sys.exit(main())
