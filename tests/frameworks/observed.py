"""A program of the page as a server under test runs it: `tests.frameworks.observed:starlette_app`.

One path more than it has tells how many of its streams are open.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sse_asgi.types import Receive, Scope, Send

PATH = "/observed"


class Observed:
    def __init__(self, module: str) -> None:
        self.app = import_module(module).app
        self.stream = import_module("rooms").messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == scope["root_path"] + PATH:
            await self.respond(send)
        else:
            await self.app(scope, receive, send)

    async def respond(self, send: Send) -> None:
        said = {
            "token": os.environ["SSE_ASGI_TEST_TOKEN"],
            "connections": self.stream.connections,
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def __getattr__(name: str) -> Any:
    if not name.endswith("_app"):
        raise AttributeError(name)
    return Observed(name)
