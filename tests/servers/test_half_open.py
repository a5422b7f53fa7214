"""Clients whose machine vanishes without a word. Only TCP can notice, and only where it is told
to: by the program of docs/how-to/slow-clients.md, run as the page says.
"""

from __future__ import annotations

import ctypes
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.peers import missing
from tests.test_docs import blocks

from .clients import Response
from .harness import Server, free_port, on_servers, started
from .test_disconnect import GONE

PAGE = "docs/how-to/slow-clients.md"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's options")

#: The number that Linux has for a socket option, and Python no name.
SO_ATTACH_FILTER = 26

#: A packet filter of one instruction, by which nothing passes.
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)

#: What stands there for the same thing in a test, so that it takes two seconds.
FASTER = {"TCP_USER_TIMEOUT, 40_000": "TCP_USER_TIMEOUT, 2_000", ", 20)": ", 1)", ", 10)": ", 1)"}

#: How the page's command lines are made to run these servers.
OPTIONS: Mapping[str, str] = {
    "uvicorn-h11": "--http h11 --loop asyncio",
    "uvicorn-httptools": "--http httptools --loop uvloop",
    "hypercorn": "",
    "hypercorn-trio": "-k trio",
    "daphne": "",
}


def block(language: str, pattern: str) -> str:
    (found,) = (
        block.text
        for block in blocks(PAGE)
        if block.language == language and re.match(pattern, block.text)
    )
    return found


class Attentive(Server):
    """A server that was given its socket by `listen.py`."""

    def __init__(self, name: str, directory: Path) -> None:
        text = block("python", "# listen.py\n")
        for old, new in FASTER.items():
            assert old in text, f"{PAGE} does not have {old!r}"
            text = text.replace(old, new)
        self.program = directory / "listen.py"
        self.program.write_text(text)
        super().__init__(name, directory, None, free_port())

    def arguments(self, values: Mapping[str, object]) -> list[str]:
        program = self.name.partition("-")[0]
        (line,) = re.findall(
            rf"^python listen.py 0.0.0.0 8000 {program} (.*) prices:app$",
            block("sh", "python listen.py "),
            re.MULTILINE,
        )
        command = [sys.executable, "-m", program, *line.split(), *OPTIONS[self.name].split()]
        return [str(self.program), "127.0.0.1", str(values["port"]), *command]


def vanish(sock: socket.socket) -> None:
    """Hear nothing from now on, and say nothing, as a machine that has lost its power.

    The kernel drops what arrives before TCP sees it. So nothing is acknowledged, nor refused, until
    the socket is closed.
    """
    program = ctypes.create_string_buffer(DROP_ALL)
    filter_ = struct.pack("HP", 1, ctypes.addressof(program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)
    except PermissionError:
        missing("vanish", "a packet filter for a socket of TCP needs CAP_NET_ADMIN here")


@pytest.fixture
def attentive(server: Server, tmp_path: Path) -> Iterator[Server]:
    """The same as `server`, attentive."""
    with socket.socket() as sock:
        vanish(sock)  # or skip
    attentive = started(lambda: Attentive(server.name, tmp_path))
    yield attentive
    attentive.kill()


@on_servers([*OPTIONS])
def test_client_vanishes(server: Server, attentive: Server, tag: str) -> None:
    """Those who are attentive notice it, the others do not; and a client that is there may be as
    silent as it likes.
    """
    paths = ["/idle", "/ping", "/big-patient"]
    with ExitStack() as stack:

        def open_stream(server: Server, path: str, tag: str) -> Response:
            response = server.open(f"{path}?tag={tag}", receive_buffer=4096)
            stack.callback(response.reset)
            assert response.status == 200
            return response

        silent = f"{tag}-silent"
        open_stream(attentive, "/idle", silent)
        tags = [f"{tag}{path.replace('/', '-')}" for path in paths]
        streams = [
            open_stream(each, path, tag)
            for each in (server, attentive)
            for path, tag in zip(paths, tags, strict=True)
        ]
        for response in streams:
            vanish(response.sock)
        assert [attentive.wait_for_end(tag) for tag in tags] == [GONE] * len(tags)
        still_open = [server.status(tag) for tag in tags] + [attentive.status(silent)]
        assert [status["history"] for status in still_open] == [GONE[:1]] * len(still_open)
    assert [server.wait_for_end(tag) for tag in tags] == [GONE] * len(tags)
    assert attentive.wait_for_end(silent) == GONE
    if server.name != "hypercorn":  # it logs a traceback: hypercorn#361
        assert attentive.new_complaints() == []


def test_connections_send_without_delay(tmp_path: Path) -> None:
    """Of itself uvicorn sees to that only where it has made the socket."""
    (tmp_path / "listen.py").write_text(block("python", "# listen.py\n"))
    says = (
        "import socket; listener = socket.socket(fileno={fd});"
        "client = socket.create_connection(listener.getsockname());"
        "print(listener.accept()[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))"
    )
    command = [sys.executable, "listen.py", "127.0.0.1", "0", sys.executable, "-c", says]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() != "0"
