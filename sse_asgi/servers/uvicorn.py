"""uvicorn: its ``send`` writes to the connection and returns, so no task is needed to send."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from .base import Server

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["Uvicorn", "is_uvicorns"]

#: Where a ``send`` comes from that waits, if at all, before it writes anything, and for nothing
#: except its client: it need not be called by its own task, and once it waits it may be dropped.
_SEND_AT_ONCE = ("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl")

#: Wrappers around ``send`` that note something and call it.
_PASS_ON = ("starlette._exception_handler", "starlette.middleware.errors")


class Uvicorn(Server):
    """See :class:`~sse_asgi.servers.base.Server`."""

    __slots__ = ()

    sends_at_once: ClassVar[bool] = True


def is_uvicorns(send: Any) -> bool:
    """Return whether a ``send`` is uvicorn's, with nothing around it that does more than look."""
    while isinstance(send, FunctionType) and send.__module__ in _PASS_ON:
        closure = dict(zip(send.__code__.co_freevars, send.__closure__ or (), strict=True))
        if "send" not in closure:
            return False
        send = closure["send"].cell_contents
    server = getattr(send, "__self__", None)
    return getattr(send, "__name__", "") == "send" and type(server).__module__ in _SEND_AT_ONCE
