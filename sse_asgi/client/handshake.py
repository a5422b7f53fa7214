"""Close a connection whose TLS handshake is cancelled, which httpcore2 and httpcore leave open.

They close it if the handshake fails. But asyncio's event loop keeps a socket that it reads from, so
one that was left stays for as long as the server does. They tell what they do to the extension
``trace`` of a request.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Handshake"]


class Handshake:
    """What a request is told to trace with."""

    def __init__(self) -> None:
        self._stream: Any = None
        #: Whether it has begun, and has not come to its end.
        self.goes_on: bool = False

    async def __call__(self, name: str, info: dict[str, Any]) -> None:
        """Look for the connection, and when its handshake begins and ends."""
        match name.split(".")[-2:]:
            case ["connect_tcp" | "connect_unix_socket", "complete"]:
                self._stream = info["return_value"]
            case ["start_tls", event]:
                self.goes_on = event != "complete"

    async def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            try:
                await self._stream.aclose()
            except Exception:  # noqa: S110  it is broken, and nobody needs it any more
                pass
