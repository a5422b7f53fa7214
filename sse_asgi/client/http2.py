"""Leave a stream of HTTP/2, which httpcore2 and httpcore do not do by themselves.

When a response is closed before its end they forget its stream, and send no RST_STREAM (RFC 9113,
5.4.2). So the server would send on, for as long as the connection lives. There is no public way to
what is needed, and what is looked for here may go: then nothing is done, as they do.
"""

from __future__ import annotations

from typing import Any

__all__ = ["distrust", "reset"]

#: The stream is not needed any more (RFC 9113, 7).
CANCEL = 0x8


def _stream_of(response: Any) -> Any:
    """Return the stream of HTTP/2 that a response of httpx2 or httpx comes from, or ``None``."""
    if "stream_id" not in response.extensions:
        return None
    stream: Any = response.stream
    for name in ("_stream", "_httpcore_stream", "_stream"):
        stream = getattr(stream, name, None)
    return stream if hasattr(getattr(stream, "_connection", None), "_h2_state") else None


async def reset(response: Any) -> None:
    """Tell the server that nobody reads the response any more."""
    if (stream := _stream_of(response)) is None:
        return
    connection = stream._connection
    try:
        connection._h2_state.reset_stream(response.extensions["stream_id"], CANCEL)
        await connection._write_outgoing_data(stream._request)
    except Exception:  # noqa: S110  the stream or the connection has ended, or is not as it was
        pass


def distrust(response: Any) -> None:
    """Let no other request take the connection of a response: it may be dead.

    On HTTP/1.1 nothing needs to be done, since a response that is not read to its end takes its
    connection with it.
    """
    stream = _stream_of(response)
    if hasattr(getattr(stream, "_connection", None), "_connection_error"):
        stream._connection._connection_error = True
