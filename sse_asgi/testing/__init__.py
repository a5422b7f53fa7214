"""An in-process ASGI client for event streams that never end.

Clients that collect a response before they return it hang on an endless stream; this one runs the
application beside the test and gives it the events as they come::

    async with connect(app, "/clock") as stream:
        assert stream.status_code == 200
        event = await stream.receive()
        assert event.event == "tick"

It decodes with :mod:`sse_asgi.decoder`, which shares nothing with the encoder, and runs on asyncio
and trio. It has no timeouts of its own: put :func:`anyio.fail_after` around what should not take
for ever.

:class:`LogContract` tests that a log of your own does what a hub needs.
"""

from .client import Connection, connect
from .log_contract import LogContract

__all__ = ["Connection", "LogContract", "connect"]
