"""The encoder beside an f-string and beside sse-starlette."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sse_asgi import ServerSentEvent
from sse_asgi.encoder import encode

from .measure import side_by_side, table

DATA = {"small": "hello", "1 KiB": "x" * 1024, "10 lines": "\n".join(["a line of text"] * 10)}


def repeat(function: Callable[[Any], bytes], value: Any) -> Callable[[int], None]:
    def run(operations: int) -> None:
        for _ in range(operations):
            function(value)

    return run


def by_f_string(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def main() -> None:
    for name, data in DATA.items():
        candidates = {
            "f-string": repeat(by_f_string, data),
            "str": repeat(encode, data),
            "dict": repeat(encode, {"event": "tick", "data": data}),
            "ServerSentEvent, built before": repeat(encode, ServerSentEvent(data)),
        }
        try:
            from sse_starlette.event import ensure_bytes
        except ImportError:
            print("(sse-starlette is not installed: no comparison with it)")
        else:
            candidates["sse-starlette, str"] = repeat(lambda data: ensure_bytes(data, "\n"), data)
            candidates["sse-starlette, dict"] = repeat(
                lambda fields: ensure_bytes(fields, "\n"), {"event": "tick", "data": data}
            )
        print(table(f"encode, {name}", side_by_side(candidates, 20_000), base="f-string"))
