"""An event loop whose tasks begin to run where they are made, as Python 3.12 and later can."""

from __future__ import annotations

import asyncio
import sys


def eager_loop() -> asyncio.AbstractEventLoop:
    """Make such a loop: for uvicorn's `--loop`."""
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop
