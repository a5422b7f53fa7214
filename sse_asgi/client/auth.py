"""Bound what the client's authentication reads of a response (such as ``DigestAuth``).

httpx2 and httpx read the whole body of each response that an authentication answers with another
request, such as 401. A server could send one without an end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from .unwind import unwind

__all__ = ["bounded"]

#: How many bytes of a response are read, before a content encoding is decoded.
LIMIT = 65536


def bounded(library: Any, auth: Any) -> Any:
    """Return an ``Auth`` of a library that does what another does, and reads no more than that."""

    class Beginning(library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = LIMIT
            chunks = aiter(self.stream)
            async for chunk in chunks:
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    await unwind(chunks)
                    return

        async def aclose(self) -> None:
            await self.stream.aclose()

    class Bounded(library.Auth):  # type: ignore[misc]
        async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            flow = auth.async_auth_flow(request)
            try:
                request = await anext(flow)
                while True:
                    response = yield request
                    whole = response.stream
                    response.stream = Beginning(whole)
                    try:
                        request = await flow.asend(response)
                    except StopAsyncIteration:  # this is the answer
                        response.stream = whole
                        return
            finally:
                await flow.aclose()

    return Bounded()
