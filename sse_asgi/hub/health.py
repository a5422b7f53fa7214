"""An ASGI application for probes: whether this process answers, and the logs of its hubs."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from ..types import ASGIApp, Receive, Scope, Send
    from .hub import Hub

__all__ = ["health_app"]

logger: logging.Logger = logging.getLogger("sse_asgi")


def health_app(*hubs: Hub, timeout: float = 2.0) -> ASGIApp:
    """Make an ASGI application that says whether hubs can be used. It never opens a stream.

    ::

        Route("/live", health_app())
        Route("/ready", health_app(hub))

    It answers GET and HEAD, at whatever path, with the status 200 if all hubs are open and their
    logs have answered, and else with 503. The body is JSON: ``{"status": "pass", "hubs": [{"log":
    "RedisLog", "status": "pass"}]}``, or ``"fail"``. It does not say why: anybody may read it. The
    logger ``sse_asgi`` gets the reason, once, when a hub can't be used any more, and a line when it
    can be used again. Without a hub the application answers 200 as long as the event loop does.

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

    return Health(hubs, timeout)


class Health:
    """The application that :func:`health_app` makes.

    It is no function: the ``Route`` of Starlette takes a function for an endpoint of its own.
    """

    def __init__(self, hubs: tuple[Hub, ...], timeout: float) -> None:
        self._hubs = hubs
        self._timeout = timeout
        #: What each hub answered the last time: ``""``, or why it can't be used.
        self._before = [""] * len(hubs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            raise ValueError(f"health_app() answers HTTP requests, not the scope {scope['type']!r}")
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        if scope["method"] in ("GET", "HEAD"):
            passed = await self._ask()
            status, answer = 200 if all(passed) else 503, self._answer(passed)
        else:
            headers.append((b"allow", b"GET, HEAD"))
            status, answer = 405, {"status": "fail"}
        body = json.dumps(answer).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        with anyio.move_on_after(self._timeout):  # a client that does not read
            await send({"type": "http.response.start", "status": status, "headers": headers})
            is_head = scope["method"] == "HEAD"
            await send({"type": "http.response.body", "body": b"" if is_head else body})

    def _answer(self, passed: list[bool]) -> dict[str, Any]:
        words = {True: "pass", False: "fail"}
        found = [
            {"log": hub.log_name, "status": words[well]}
            for hub, well in zip(self._hubs, passed, strict=True)
        ]
        return {"status": words[all(passed)], **({"hubs": found} if found else {})}

    async def _ask(self) -> list[bool]:
        """Return which of the hubs can be used, after so many seconds at most."""
        reasons = [f"its log has not answered within {self._timeout} s"] * len(self._hubs)

        async def ask(number: int) -> None:
            try:
                await self._hubs[number].ping()
            except Exception as exc:  # a log of somebody else may raise anything
                reasons[number] = f"{type(exc).__qualname__}: {str(exc)!a:.200}"
            else:
                reasons[number] = ""

        with anyio.move_on_after(self._timeout):
            async with anyio.create_task_group() as tasks:
                for number in range(len(self._hubs)):
                    tasks.start_soon(ask, number)
        for hub, before, reason in zip(self._hubs, self._before, reasons, strict=True):
            if reason and not before:
                logger.warning("not ready: a hub with %s: %s", hub.log_name, reason)
            elif before and not reason:
                logger.info("ready again: a hub with %s", hub.log_name)
        self._before = reasons
        return [not reason for reason in reasons]
