"""Programs of users, as text, and uvicorn that runs one of them in a process of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypeVar

from tests.servers.clients import DEADLINE, Address, Fields, Response
from tests.servers.harness import Process, free_port, started


class Program(Process):
    """uvicorn with a program, `text`, whose application is called `app`."""

    def __init__(self, text: str, directory: Path, app: str, options: tuple[str, ...]) -> None:
        (directory / "program.py").write_text(text)
        port = free_port()
        self.address = Address(port)
        super().__init__(
            [
                *("-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port)),
                *("--app-dir", str(directory), *options, f"program:{app}"),
            ],
            directory / f"{port}.log",
        )

    def ready(self) -> bool:
        """Wait until it has its port; false where it has exited instead."""
        ends = time.monotonic() + DEADLINE
        while "Uvicorn running on" not in self.log():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < ends, f"does not start: {self.log()}"
            time.sleep(0.02)
        return True

    def open(self, path: str, *, method: str = "GET", headers: Fields = ()) -> Response:
        return self.address.open(path, method=method, headers=headers)


ProgramT = TypeVar("ProgramT", bound=Program)


def serve(
    text: str, directory: Path, *options: str, app: str = "app", kind: type[ProgramT]
) -> ProgramT:
    """Serve a program, and wait until it answers."""
    return started(lambda: kind(text, directory, app, options))
