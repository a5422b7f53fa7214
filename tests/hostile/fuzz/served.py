"""The application that a server under the fuzz serves: a case for each request.

`/case?id=...&case=<JSON, in hex>` is a stream; `/result?id=...` is what it has gone through;
`/drain?id=...&grace=...` drains it; `/left` is what is left in the process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import threading
import time
import weakref
from typing import Any
from urllib.parse import parse_qs

import anyio
import trio

from sse_asgi import current_thread_limiter
from sse_asgi.supervisor import Stream

from .cases import Case
from .servers import EAGER
from .stage import Stage

_handler = logging.StreamHandler()
_handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
for _name in ("sse_asgi", "asyncio"):
    logging.getLogger(_name).addHandler(_handler)

#: So many events, or bytes, are enough for a source that does not wait.
ENOUGH = 20_000, 20_000_000

stages: dict[str, ServedStage] = {}
sources: weakref.WeakSet[Any] = weakref.WeakSet()


def _task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:
        try:
            return trio.lowlevel.current_task()
        except RuntimeError:
            return None  # a thread


class ServedStage(Stage):
    """A case on a real server: that plays its part itself."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, time.monotonic, _task, lambda seconds: None)

    def _yields(self, size: int) -> None:
        self._yielded += 1
        self._yielded_bytes += size
        enough = self._yielded > ENOUGH[0] or self._yielded_bytes > ENOUGH[1]
        if enough and not self.shutdown.draining:
            self.outcome.happened.append((self.clock(), "drain", 0))
            self.shutdown.drain(0)

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the case."""
        outcome = self.outcome
        outcome.host = _task()
        app = self._application()
        scope = {**scope, "query_string": b""}
        try:
            if self.case.mode == "group":  # as a middleware may have it
                with anyio.CancelScope():
                    await app(scope, receive, send)
            else:
                await app(scope, receive, send)
        except BaseException as exc:
            outcome.raised = f"{type(exc).__name__}: {exc}"
            outcome.raised_own = any(exc is error for error in self.log.raised)
            outcome.raised_cancelled = isinstance(exc, self.log.cancelled)
            raise
        finally:
            outcome.host = None
            outcome.returned = self.clock()

    def result(self) -> dict[str, Any]:
        """Return what the oracle wants to know."""
        log, outcome = self.log, self.outcome
        for error in log.raised:
            error.__traceback__ = error.__context__ = error.__cause__ = None
        return {
            "returned": outcome.returned is not None,
            "raised": outcome.raised,
            "raised_own": outcome.raised_own,
            "raised_cancelled": outcome.raised_cancelled,
            "reports": [(r.reason.value, r.events, r.bytes) for r in outcome.reports],
            "on_close_ended": outcome.on_close_ended,
            "drained": [e[1] for e in outcome.happened],
            "fed": outcome.fed,
            "log": {
                "started": log.started,
                "closed": log.closed,
                "ended": log.ended,
                "resumed_after": log.resumed_after,
                "swallowed": log.swallowed,
                "broken_shields": log.broken_shields,
            },
            "sizes": [len(frame) for frame in log.frames],
            "raises": [type(error).__name__ for error in log.raised],
            "cleanups": {n: kind and kind.__name__ for n, (_, kind) in log.cleanups.items()},
            "cleaned": list(log.cleaned),
            "left": {"places": self.connections(),
                     "listeners": int(repr(self.shutdown).rpartition("=")[2][:-1])},
        }  # fmt: skip


def left() -> dict[str, int]:
    """Return what streams may leave behind."""
    gc.collect()
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        tasks = trio.lowlevel.current_statistics().tasks_living
    kinds = [type(thing) for thing in gc.get_objects()]
    return {
        "tasks": tasks,
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "streams": kinds.count(Stream),
        "sources": sum(reference() is not None for s in stages.values() for reference in s.sources),
        "thread tokens": int(current_thread_limiter().borrowed_tokens),
        "close threads": sum("sse_asgi" in thread.name for thread in threading.enumerate()),
    }


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
    answer: Any
    if scope["path"] == "/case":
        stage = stages[query["id"]] = ServedStage(Case.parse(bytes.fromhex(query["case"]).decode()))
        await stage.serve(scope, receive, send)
        return
    if scope["path"] == "/status":
        if EAGER in os.environ:
            # By its name: Python 3.11 does not have it.
            factory = getattr(asyncio, "eager_task_factory")  # noqa: B009
            asyncio.get_running_loop().set_task_factory(factory)
        answer = {"token": os.environ.get("SSE_ASGI_TEST_TOKEN"), "pid": os.getpid()}
    elif scope["path"] == "/left":
        await anyio.sleep(0.01)
        answer = left()
    elif scope["path"] == "/drain":
        grace = query.get("grace")
        if query["id"] in stages:
            stage = stages[query["id"]]
            stage.outcome.happened.append((0, "drain", None))
            stage.shutdown.drain(None if grace is None else float(grace))
        answer = None
    elif scope["path"] == "/forget":
        stages.clear()
        answer = None
    else:
        answer = stages[query["id"]].result() if query["id"] in stages else None
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
