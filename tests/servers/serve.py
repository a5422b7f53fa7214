"""Run hypercorn's `serve` in a program that handles signals itself.

Arguments: `asyncio` or `trio`, where to listen, and the application.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from importlib import import_module
from typing import Any

import hypercorn.asyncio
import hypercorn.trio
import trio
from hypercorn.config import Config

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def on_asyncio(app: Any, config: Config) -> None:
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait)


async def on_trio(app: Any, config: Config) -> None:
    stop = trio.Event()

    async def listen() -> None:
        with trio.open_signal_receiver(*SIGNALS) as received:
            async for _ in received:
                stop.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await hypercorn.trio.serve(app, config, shutdown_trigger=stop.wait)
        nursery.cancel_scope.cancel()


def main() -> None:
    loop, bind, app_path = sys.argv[1:]
    module, name = app_path.split(":")
    app = getattr(import_module(module), name)
    config = Config.from_mapping(bind=bind)
    if loop == "trio":
        trio.run(on_trio, app, config)
    else:
        asyncio.run(on_asyncio(app, config))


if __name__ == "__main__":
    main()
