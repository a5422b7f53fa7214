"""The programs of a page of the documentation, as a reader has them: in a folder, and running."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.test_docs import blocks, serving, write_files


@dataclass(frozen=True)
class Running:
    """A server that a command of the page has started, and the folder that it runs in."""

    url: str
    directory: Path

    def requests(self, path: str) -> list[tuple[str, int]]:
        """The requests for a path that the server has logged: methods and statuses."""
        log = (self.directory / "log").read_text()
        found = re.findall(rf'"(\w+) {re.escape(path)}(?:\?\S*)? HTTP/1.1" (\d+)', log)
        return [(method, int(status)) for method, status in found]


@contextmanager
def running(page: str, command: str, directory: Path) -> Iterator[Running]:
    """Write the files of a page, and run a command that it has, on another port."""
    write_files(page, directory)
    assert command in commands(page)
    with serving(command, directory) as url:
        yield Running(url, directory)


def commands(page: str) -> list[str]:
    return [
        line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()
    ]
