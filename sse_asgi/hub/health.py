"""An ASGI application for probes: whether this process answers, and the logs of its hubs."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import HubError

if TYPE_CHECKING:
    from ..types import ASGIApp, Receive, Scope, Send
    from .hub import Hub

__all__ = ["health_app"]


def health_app(*hubs: Hub, timeout: float = 2.0) -> ASGIApp:
    """Make an ASGI application that says whether hubs can be used. It never opens a stream.

    ::

        Route("/live", health_app())
        Route("/ready", health_app(hub))

    It answers GET and HEAD, at whatever path, with the status 200 if all hubs are open and their
    logs have answered, and else with 503. The body is JSON: ``{"status": "pass", "hubs": [{"log":
    "RedisLog", "status": "pass"}]}``, or ``"fail"``. It does not say why: anybody may read it, and
    the reason is in the log. Without a hub it answers 200 as long as the event loop does.

    :param hubs: the hubs, which belong to the event loop of the application.
    :param timeout: how long the logs have to answer, in seconds, all at the same time. A probe
        should wait longer.
    :raises TypeError: for what is no hub, or a timeout that is no number.
    :raises ValueError: for a timeout that is not > 0, or not finite.
    """
    for hub in hubs:
        if not callable(getattr(hub, "ping", None)):
            raise TypeError(f"health_app() takes hubs, not {hub!r:.80}")
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r:.80}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a finite number of seconds > 0, not {timeout!r}")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"health_app() answers HTTP requests, not the scope {scope['type']!r}")
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        if scope["method"] in ("GET", "HEAD"):
            passed = await _ask(hubs, timeout)
            status, answer = 200 if all(passed) else 503, _answer(hubs, passed)
        else:
            headers.append((b"allow", b"GET, HEAD"))
            status, answer = 405, {"status": "fail"}
        body = json.dumps(answer).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        with anyio.move_on_after(timeout):  # a client that does not read
            await send({"type": "http.response.start", "status": status, "headers": headers})
            is_head = scope["method"] == "HEAD"
            await send({"type": "http.response.body", "body": b"" if is_head else body})

    return app


def _answer(hubs: tuple[Hub, ...], passed: list[bool]) -> dict[str, Any]:
    words = {True: "pass", False: "fail"}
    found = [
        {"log": hub.log_name, "status": words[well]} for hub, well in zip(hubs, passed, strict=True)
    ]
    return {"status": words[all(passed)], **({"hubs": found} if hubs else {})}


async def _ask(hubs: tuple[Hub, ...], timeout: float) -> list[bool]:
    """Return which of some hubs can be used, after so many seconds at most."""
    passed = [False] * len(hubs)

    async def ask(number: int) -> None:
        try:
            await hubs[number].ping()
        except (HubError, RuntimeError):  # the hub is closed, or in use in another event loop
            return
        passed[number] = True

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as tasks:
            for number in range(len(hubs)):
                tasks.start_soon(ask, number)
    return passed
