"""uvicorn: its ``send`` writes to the connection and returns, so no task is needed to send."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from .base import Server

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["Uvicorn", "is_uvicorns"]

#: The modules whose ``send`` waits, if at all, before it writes, and only for its client.
_SEND_AT_ONCE = ("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl")

#: The modules with wrappers around ``send`` that only record something.
_PASS_ON = ("starlette._exception_handler", "starlette.middleware.errors")


class Uvicorn(Server):
    """See :class:`~sse_asgi.servers.base.Server`."""

    __slots__ = ()

    sends_at_once: ClassVar[bool] = True


def is_uvicorns(send: Any) -> bool:
    """Return whether a ``send`` is uvicorn's, with no wrapper that changes what it does."""
    while isinstance(send, FunctionType) and send.__module__ in _PASS_ON:
        closure = dict(zip(send.__code__.co_freevars, send.__closure__ or (), strict=True))
        if "send" not in closure:
            return False
        send = closure["send"].cell_contents
    server = getattr(send, "__self__", None)
    return getattr(send, "__name__", "") == "send" and type(server).__module__ in _SEND_AT_ONCE
