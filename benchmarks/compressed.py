"""What compression saves and costs: ratio, processor and memory, beside starlette-compress.

In process: each way has a process of its own, and streams JSON without a server. An event is sent
on its own, as it is where the source waits between events.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from sse_asgi import sse_app
from sse_asgi.compression import Compression

from .machine import rss
from .pump import SCOPE

EVENTS, STREAMS, OF_EACH = 1000, 100, 100

#: The processor time is the least of so many runs.
RUNS = 5

IMAGE = Path(__file__).parent.parent / "docs" / "how-to" / "images" / "compression.svg"

CODINGS = ("gzip", "zstd", "br")
WINDOWS = (10, 12, 14, 15, 17)


class Figures(NamedTuple):
    """What was measured of one way: ratios by the kind of stream, microseconds of processor for an
    event, KiB for a stream.
    """

    ratios: list[float]
    microseconds: float
    kib: float


def orders() -> list[dict[str, Any]]:
    """Events of a shop, 200 to 400 bytes."""
    chosen = random.Random(1)
    names = ["Ada Lovelace", "Grace Hopper", "Linus Torvalds", "Guido van Rossum"]
    return [
        {
            "id": number,
            "event": "order",
            "data": {
                "id": number,
                "type": chosen.choice(["order.created", "order.shipped", "order.paid"]),
                "at": f"2026-11-27T12:{number // 60:02}:{number % 60:02}Z",
                "customer": {"id": chosen.randrange(10**6), "name": chosen.choice(names)},
                "amount": chosen.randrange(100, 99999) / 100,
                "items": [
                    {"sku": f"SKU-{chosen.randrange(500):04}", "quantity": chosen.randrange(1, 5)}
                    for _ in range(chosen.randrange(1, 4))
                ],
            },
        }
        for number in range(EVENTS)
    ]


def tokens() -> list[dict[str, Any]]:
    """An answer of a language model, as many of their APIs stream it: 300 bytes a token."""
    chosen = random.Random(2)
    words = ["the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with"]
    return [
        {
            "data": {
                "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
                "object": "chat.completion.chunk",
                "created": 1741569952,
                "model": "some-model-2026-08-06",
                "system_fingerprint": "fp_44709d6fcb",
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": f" {chosen.choice(words)}"},
                        "logprobs": None,
                        "finish_reason": None,
                    }
                ],
            }
        }
        for _ in range(EVENTS)
    ]


def figures() -> list[dict[str, Any]]:
    """What a dashboard shows: numbers that are nearly random."""
    chosen = random.Random(3)
    return [
        {
            "id": number,
            "event": "stats",
            "data": {
                "host": f"web-{chosen.randrange(20):02}",
                "cpu": {"user": chosen.randrange(1000) / 10, "system": chosen.randrange(200) / 10},
                "memory": {"used": chosen.randrange(4 * 10**9), "free": chosen.randrange(10**9)},
                "load": [chosen.randrange(400) / 100 for _ in range(3)],
                "network": {"in": chosen.randrange(10**6), "out": chosen.randrange(10**6)},
            },
        }
        for number in range(EVENTS)
    ]


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "orders": orders,
    "tokens": tokens,
    "figures": figures,
}


def scope_of(coding: str) -> dict[str, Any]:
    return {**SCOPE, "headers": [(b"accept-encoding", coding.encode())]}


async def stream(make: Callable[[Any], Any], events: list[Any], coding: str) -> tuple[int, float]:
    """The bytes of a stream, and the processor time that it took."""

    async def source() -> AsyncIterator[Any]:
        for event in events:
            yield event
            await asyncio.sleep(0)  # so that it is sent on its own

    size = 0

    async def send(message: Any) -> None:
        nonlocal size
        size += len(message.get("body", b""))

    app = make(source)
    least = math.inf
    for _ in range(RUNS):
        size, began = 0, time.process_time()
        await app(scope_of(coding), asyncio.Event().wait, send)
        least = min(least, time.process_time() - began)
    return size, least


async def memory(make: Callable[[Any], Any], events: list[Any], coding: str) -> float:
    """The KiB of RSS of a stream that has sent events and is idle."""
    done = 0

    async def source() -> AsyncIterator[Any]:
        nonlocal done
        for event in events[:OF_EACH]:
            yield event
            await asyncio.sleep(0)
        done += 1
        await asyncio.sleep(1000)

    async def send(message: Any) -> None:
        pass

    app = make(source)
    gc.collect()
    before = rss(os.getpid())
    tasks = [
        asyncio.ensure_future(app(scope_of(coding), asyncio.Event().wait, send))
        for _ in range(STREAMS)
    ]
    while done < STREAMS:
        await asyncio.sleep(0.01)
    taken = (rss(os.getpid()) - before) / STREAMS / 1024
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return taken


def measured(make: Callable[[Any], Any], coding: str) -> Figures:
    """Measure one way, each part in a process of its own."""
    plain = [apart(stream, sse_app, events(), "identity") for events in KINDS.values()]
    compressed = [apart(stream, make, events(), coding) for events in KINDS.values()]
    kib = apart(memory, make, orders(), coding) - apart(memory, sse_app, orders(), "identity")
    seconds = sum(after[1] - before[1] for before, after in zip(plain, compressed, strict=True))
    return Figures(
        [before[0] / after[0] for before, after in zip(plain, compressed, strict=True)],
        seconds / EVENTS / len(KINDS) * 1e6,
        kib,
    )


def apart(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
    """Call a coroutine function in a process of its own, and return what it returns."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writer, json.dumps(asyncio.run(function(*arguments))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        result = json.load(answer)
    os.waitpid(child, 0)
    return result


def ways() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """What is compared: each makes an application of a source."""
    found: dict[str, tuple[Callable[[Any], Any], str]] = {}
    for coding in CODINGS:
        for window in WINDOWS if coding != "gzip" else [w for w in WINDOWS if w <= 15]:
            compression = Compression(coding, window=window)
            found[f"{coding}, window={window}"] = (
                lambda source, c=compression: sse_app(source, compression=c),  # type: ignore[misc]
                coding,
            )
    try:
        from starlette_compress import CompressMiddleware
    except ImportError:
        print("(starlette-compress is not installed: no comparison with it)")
    else:
        for coding in CODINGS:
            found[f"{coding}, starlette-compress"] = (
                lambda source: CompressMiddleware(sse_app(source)),
                coding,
            )
    return found


def main() -> None:
    results = {name: measured(make, coding) for name, (make, coding) in ways().items()}
    kinds = " | ".join(f"{kind}, ratio" for kind in KINDS)
    print(f"| way | {kinds} | processor, µs an event | memory, KiB a stream |")
    print("|---" + "|--:" * (len(KINDS) + 2) + "|")
    for name, result in results.items():
        ratios = " | ".join(f"{ratio:.1f}" for ratio in result.ratios)
        print(f"| {name} | {ratios} | {result.microseconds:.0f} | {result.kib:.0f} |")
    IMAGE.parent.mkdir(exist_ok=True)
    IMAGE.write_text(curve(results))
    print(f"the curve is in {IMAGE.name}")


WIDTH, HEIGHT, MARGIN = 640, 360, 56
COLOURS = {"gzip": "#1f77b4", "zstd": "#d9730d", "br": "#2a9d5c"}
LEAST, MOST = 16, 4096  # KiB


def curve(results: dict[str, Figures]) -> str:
    """A picture of the ratio of orders against memory, which has a logarithmic axis."""
    best = max(result.ratios[0] for result in results.values()) + 0.5

    def x(kib: float) -> float:
        share = math.log2(max(kib, LEAST) / LEAST) / math.log2(MOST / LEAST)
        return MARGIN + share * (WIDTH - 2 * MARGIN)

    def y(ratio: float) -> float:
        return HEIGHT - MARGIN - (ratio - 1) / (best - 1) * (HEIGHT - 2 * MARGIN)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<style>text { font: 12px sans-serif }</style>",
        "<title>Ratio of compression against memory for each stream</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    kib = LEAST
    while kib <= MOST:
        lines.append(
            f'<line x1="{x(kib):.0f}" x2="{x(kib):.0f}" y1="{MARGIN}" y2="{HEIGHT - MARGIN}" '
            f'stroke="#ddd"/><text x="{x(kib):.0f}" y="{HEIGHT - MARGIN + 18}" '
            f'text-anchor="middle">{kib}</text>'
        )
        kib *= 2
    lines += [
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(ratio):.0f}" y2="{y(ratio):.0f}" '
        f'stroke="#ddd"/><text x="{MARGIN - 8}" y="{y(ratio) + 4:.0f}" '
        f'text-anchor="end">{ratio}</text>'
        for ratio in range(1, int(best) + 1)
    ]
    for number, coding in enumerate(CODINGS):
        colour = COLOURS[coding]
        own = [r for n, r in results.items() if n.startswith(f"{coding}, window")]
        points = " ".join(f"{x(r.kib):.1f},{y(r.ratios[0]):.1f}" for r in own)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        lines += [
            f'<circle cx="{x(r.kib):.1f}" cy="{y(r.ratios[0]):.1f}" r="4" fill="{colour}"/>'
            for r in own
        ]
        if other := results.get(f"{coding}, starlette-compress"):
            lines.append(
                f'<rect x="{x(other.kib) - 5:.1f}" y="{y(other.ratios[0]) - 5:.1f}" width="10" '
                f'height="10" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        lines.append(
            f'<text x="{MARGIN + 12}" y="{MARGIN - 34 + 16 * number}" fill="{colour}">'
            f"● {coding}: windows of 1 to {128 if coding != 'gzip' else 32} KiB; "
            f"□ starlette-compress</text>"
        )
    lines.append(
        f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">KiB for each stream '
        "(less is better)</text>"
        f'<text x="16" y="{HEIGHT / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {HEIGHT / 2:.0f})">ratio (more is better)</text>'
    )
    return "\n".join([*lines, "</svg>"]) + "\n"
