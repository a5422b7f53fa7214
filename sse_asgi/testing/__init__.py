"""In-process clients for event streams that never end, and tests for logs.

A client that collects the whole response before it returns hangs on an endless stream. This client
runs the application in the background of the test, and returns each event as it comes::

    async with connect(app, "/clock") as stream:
        assert stream.status_code == 200
        event = await stream.receive()
        assert event.event == "tick"

It decodes with :mod:`sse_asgi.decoder`, which shares no code with the encoder. It runs on asyncio
and trio. It has no timeouts: use :func:`anyio.fail_after` where the test could wait for ever.

:func:`transport` does the same for the clients of httpx and httpx2, and so for what is built on
them, such as the SDKs of MCP and OpenAI.

:class:`LogContract` tests whether a log of your own does what a hub needs.
"""

from .client import Connection, connect
from .log_contract import LogContract
from .transports import Transport, transport

__all__ = ["Connection", "LogContract", "Transport", "connect", "transport"]
