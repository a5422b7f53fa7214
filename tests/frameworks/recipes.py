"""The programs of docs/how-to/frameworks.md, and a server that runs one of them."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sse_asgi.decoder import DecodedEvent, EventStreamDecoder
from tests.servers.clients import DEADLINE, Address, Response, wait_for
from tests.servers.harness import Process, free_port, started
from tests.test_docs import blocks

from .observed import PATH

PAGE = "docs/how-to/frameworks.md"

#: By the name in the comment that each begins with.
FILES: Mapping[str, str] = {
    name[1]: block.text
    for block in blocks(PAGE)
    if block.language == "python" and (name := re.match(r"# (\w+\.py)\n", block.text))
}

_serial = itertools.count()


@dataclass(frozen=True)
class Recipe:
    """What a program has to offer, besides a page of its framework at `/`."""

    package: str
    #: The paths of its streams; where there is no {room}, the room is the lobby.
    streams: tuple[str, ...]
    #: Whether it says when it is started and stopped.
    lifespan: bool = True
    #: What it can't find where the server has a root path.
    lost_with_root_path: tuple[str, ...] = ()


RECIPES: Mapping[str, Recipe] = {
    "plain": Recipe("uvicorn", ("/rooms/{room}",), lifespan=False),
    "starlette": Recipe("starlette", ("/rooms/{room}", "/houses/{room}/attic")),
    "fastapi": Recipe("fastapi", ("/rooms/{room}", "/lobby/sofa")),
    "litestar": Recipe("litestar", ("/rooms/{room}", "/lobby", "/lobby/sofa")),
    "quart": Recipe("quart", ("/rooms/{room}",)),
    "blacksheep": Recipe("blacksheep", ("/rooms/{room}",), lost_with_root_path=("/rooms/{room}",)),
    "falcon": Recipe("falcon", ("/rooms/{room}",), lost_with_root_path=("/",)),
    "django": Recipe("django", ("/rooms/{room}",), lifespan=False),
}


class RecipeServer(Process):
    """uvicorn with one of the programs; a warning of any module is an error there."""

    def __init__(self, name: str, directory: Path, options: tuple[str, ...]) -> None:
        self.recipe = RECIPES[name]
        port = free_port()
        self.address = Address(port)
        self._token = f"{os.getpid()}-{next(_serial)}"
        super().__init__(
            [
                *("-W", "error", "-m", "uvicorn", "--http", "h11", "--loop", "asyncio"),
                *("--host", "127.0.0.1", "--port", str(port), "--app-dir", str(directory)),
                *(*options, f"tests.frameworks.observed:{name}_app"),
            ],
            directory / f"{self._token}.log",
            self._token,
        )

    def ready(self) -> bool:
        """Wait until it answers; false where it has exited instead."""
        ends = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < ends, f"does not answer: {self.log()}"
            try:
                if self._observed()["token"] == self._token:
                    return True
            except httpx.TransportError:
                time.sleep(0.02)
        return False

    def _observed(self) -> dict[str, Any]:
        with self.address.client() as client:
            observed: dict[str, Any] = client.get(PATH).raise_for_status().json()
        return observed

    def connections(self) -> int:
        """How many streams are open."""
        connections: int = self._observed()["connections"]
        return connections

    def wait_for_connections(self, count: int) -> None:
        wait_for(
            lambda: self.connections() == count,
            lambda: f"{self.connections()} streams, not {count}; log: {self.log()[-2000:]}",
        )

    def open(
        self, path: str, *, method: str = "GET", headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Response:
        if method == "POST":
            headers = (*headers, (b"content-length", b"0"))
        return self.address.open(path, method=method, headers=headers)


def start(
    name: str, directory: Path, *options: str, files: Mapping[str, str] = FILES
) -> RecipeServer:
    """Serve a program, and wait until it answers."""
    for file, text in files.items():
        (directory / file).write_text(text)
    return started(lambda: RecipeServer(name, directory, options))


def first_event(response: Response) -> DecodedEvent:
    """The first event of a stream that is open; it has to come without a second one behind it."""
    body = response.read_until(lambda body: b"\n\n" in body)
    return EventStreamDecoder().feed(body)[0]
