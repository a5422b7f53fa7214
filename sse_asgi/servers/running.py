"""Find out whether a server is stopping, from its objects. Nothing of the server is changed.

uvicorn may be stopped by ``should_exit`` or by its limit of requests, and the workers of hypercorn
get no signal. Both note that they are stopping in an object that belongs to the coroutine which
runs the server. That coroutine is looked for among the tasks of the event loop.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from ..runtime import current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["stopping_servers"]


def stopping_servers() -> Callable[[], bool] | None:
    """Look for servers in this event loop.

    :returns: a function that returns whether all of them are stopping; ``None`` if there is no
        server that it could know of.
    """
    if "uvicorn.server" not in sys.modules and "hypercorn" not in sys.modules:
        return None
    servers = [stopping for frame in _frames() if (stopping := _stopping(frame)) is not None]
    if not servers:
        return None
    return lambda: all(stopping() for stopping in servers)


def _stopping(frame: FrameType) -> Callable[[], bool] | None:
    """Return a function that tells whether the server of a frame is stopping, or ``None``."""
    # If a later version has these elsewhere, it is not seen to stop, and nothing else happens.
    name, module = frame.f_code.co_name, frame.f_globals.get("__name__")
    if name == "_serve" and module == "uvicorn.server":
        return partial(_uvicorn_is_stopping, frame.f_locals.get("self"))
    if name == "worker_serve" and module in ("hypercorn.asyncio.run", "hypercorn.trio.run"):
        terminated = getattr(frame.f_locals.get("context"), "terminated", None)
        return getattr(terminated, "is_set", None)
    return None


def _uvicorn_is_stopping(server: Any) -> bool:
    if getattr(server, "should_exit", False):
        return True
    # If its limit of requests has stopped it, it only closes its sockets.
    sockets = getattr(server, "servers", ())
    return bool(sockets) and not any(socket.is_serving() for socket in sockets)


def _frames() -> Iterator[FrameType]:
    """Return the frames of all coroutines that the tasks of this event loop wait in."""
    for coroutine in current().coroutines():
        waits_in: Any = coroutine
        while (frame := getattr(waits_in, "cr_frame", None)) is not None:
            yield frame
            waits_in = waits_in.cr_await
