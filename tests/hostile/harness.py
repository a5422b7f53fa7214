"""The servers that are attacked: those of tests/servers, some more ways to run them, and an
application of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from tests.servers.clients import HTTP1Response, wait_for
from tests.servers.harness import KINDS, Kind, Server

_UVICORN = KINDS["uvicorn-h11"].arguments[:-4]  # without a protocol and a loop

_EAGER = "tests.hostile.eager:eager_loop"

MORE: Mapping[str, Kind] = {
    "uvicorn-h11-uvloop": Kind(
        (*_UVICORN, "--http", "h11", "--loop", "uvloop"), ("uvicorn", "uvloop")
    ),
    "uvicorn-httptools-asyncio": Kind(
        (*_UVICORN, "--http", "httptools", "--loop", "asyncio"), ("uvicorn", "httptools")
    ),
    # Not hypercorn: it needs that an application has not run yet when its task is there, and breaks
    # with any ("'HTTPStream' object has no attribute 'app_put'").
    "uvicorn-eager": Kind((*_UVICORN, "--http", "h11", "--loop", _EAGER), ("uvicorn",)),
    "uvicorn-httptools-eager": Kind(
        (*_UVICORN, "--http", "httptools", "--loop", _EAGER), ("uvicorn", "httptools")
    ),
    # Behind a proxy that says where a client is.
    "daphne-proxied": replace(
        KINDS["daphne"], arguments=(*KINDS["daphne"].arguments, "--proxy-headers")
    ),
}

#: The servers that differ in what they tell an application, by HTTP/1.1.
SERVERS = [
    "uvicorn-h11",
    "uvicorn-httptools",
    "uvicorn-httptools-asyncio",
    "hypercorn",
    "hypercorn-trio",
    "granian",
    "daphne",
]
HTTP2 = ["hypercorn-h2", "granian-h2", "daphne-h2"]
EAGER = ["uvicorn-eager", "uvicorn-httptools-eager"]

#: Without the one that differs by its event loop alone, for what takes long.
DISTINCT = [name for name in SERVERS if name != "uvicorn-httptools-asyncio"]

#: A few of them that have little in common.
FEW = ["uvicorn-h11", "hypercorn-trio", "granian", "daphne"]

#: How an application is reached, as the beginning of a path: see apps.py.
FORMS = {
    "sse_app": "",
    "behind": "/behind",
    "starlette": "/starlette",
    "starlette-behind": "/starlette-behind",
}

#: Those without a middleware around them.
BARE = {name: form for name, form in FORMS.items() if "behind" not in name}

every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_bare_form = pytest.mark.parametrize("form", BARE.values(), ids=BARE)

needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio.eager_task_factory came with Python 3.12"
)


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test that takes `server` on some of them."""
    return on_each("server", [(name,) for name in names])


def on_each(arguments: str, values: Sequence[tuple[str, ...]]) -> pytest.MarkDecorator:
    """The same for a test that takes more, which need not be combined with every server. The name
    of the server comes first; a test that takes `name` starts it itself.
    """
    each = [pytest.param(*some, marks=marks(some[0])) for some in values]
    return pytest.mark.parametrize(
        arguments.split(","), each, indirect=[arguments.split(",")[0]] * ("name" not in arguments)
    )


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [needs_eager_tasks] if name in EAGER else []


#: What servers log of requests that are none.
OF_SERVERS = (
    "Invalid HTTP request received.",
    "Unsupported upgrade request.",
    "No supported WebSocket library detected",
)


class Attacked(Server):
    """A server that runs the applications of apps.py."""

    app = "tests.hostile.apps:app"
    kinds: ClassVar[Mapping[str, Kind]] = {**KINDS, **MORE}

    def raw(self, data: bytes, receive_buffer: int | None = None) -> HTTP1Response:
        """Send these bytes, whatever they are, and leave it to the caller to read the response."""
        sock = self.address.connect(receive_buffer)
        return HTTP1Response(sock, "/", "GET", [], instead=data)

    def complaints(self, start: int = 0) -> list[str]:
        lines = super().complaints(start)
        if self.name != "hypercorn":
            return lines
        # It goes on with the requests that it has read, and writes to a transport that is closed.
        return [line for line in lines if "socket.send() raised exception" not in line]

    def forgive_what_it_says_of_requests(self) -> None:
        """Until the end of the test."""
        for words in OF_SERVERS:
            self.forgive(words)

    def tell(self, what: str, tag: str) -> None:
        """Have the streams of a tag told something: `drain` or `release`."""
        self._client.get(f"/{what}?of={tag}").raise_for_status()

    def places(self, tag: str) -> int:
        """How many places the streams of a tag take, of those that `max_connections` counts."""
        places: int = self._client.get(f"/places?of={tag}").raise_for_status().json()
        return places


def forget_traceback(server: Server) -> None:
    """Take for information what servers log of an exception, in many lines."""
    for words in ("Traceback", "Error", "ERROR", "Exception", "exception", " raised "):
        server.forgive(words)
    server.forgive("send_no_error")  # a name in the lines of Starlette that are shown


def wait_until_stalled(server: Server, tag: str, quiet: float = 0.5) -> None:
    """Wait until the source has not been resumed for so many seconds, since nobody reads."""
    last, since = 0, time.monotonic()

    def stalled() -> bool:
        nonlocal last, since
        now = server.status(tag)["yielded"]
        if now != last or not now:
            last, since = now, time.monotonic()
        return time.monotonic() - since > quiet

    wait_for(stalled, lambda: f"{last} events and still no back-pressure")
