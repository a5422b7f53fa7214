"""What each server does when it is told to stop: `python -m tests.servers.stopping` prints the
table of docs/explanation/stopping.md, and with `--write` puts it there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .clients import DEADLINE, Response
from .harness import KINDS, ROOT, Certificate, Server, exit_code, make_certificate, start

PAGE = ROOT / "docs" / "explanation" / "stopping.md"
BEGIN, END = "<!-- what tests/servers/stopping.py prints -->", "<!-- the end of it -->"

#: Those that only differ in what the tests want to know of them are left out.
SERVERS = [name for name, kind in KINDS.items() if kind.entry_point == "sse_app"]


@dataclass(frozen=True)
class Situation:
    """What is going on when a server is told to stop."""

    heading: str
    paths: tuple[str, ...]
    #: Of one more client, which reads nothing.
    stuck: str | None = None
    signals: int = 1

    def fits(self, name: str) -> bool:
        """Whether there can be such clients. Those of HTTP/3 take all there is, in user space."""
        return self.stuck is None or not KINDS[name].http3


SITUATIONS: Mapping[str, Situation] = {
    "streams": Situation("idle and busy streams", ("/idle", "/clock", "/retry") * 3),
    "stuck": Situation("a client that does not read", ("/idle", "/clock"), "/big-patient"),
    "stubborn": Situation("a source that takes 0.5 s", ("/idle", "/stubborn")),
    "grace": Situation("a grace period of 1 s", ("/grace",) * 2),
    "again": Situation("the signal twice in it", ("/grace",) * 2, signals=2),
}


@dataclass(frozen=True)
class Outcome:
    """What the clients saw of it, and whoever started the server."""

    endings: frozenset[str]
    farewell: bool
    seconds: float
    code: int
    usual_code: int
    complaints: tuple[str, ...]

    @property
    def words(self) -> str:
        """All of it that is the same each time."""
        words = [" and ".join(sorted(self.endings))]
        if not self.farewell:
            words.append("no farewell")
        if self.code != self.usual_code:
            words.append(f"exit code {self.code}")
        if self.complaints:
            words.append("errors in the log")
        return ", ".join(words)

    def __str__(self) -> str:
        return f"{self.words}, {self.seconds:.1f} s"


def observe(
    name: str,
    situation: Situation,
    number: signal.Signals,
    directory: Path,
    certificate: Certificate | None,
    usual_code: int,
) -> Outcome:
    """Start a server, have it stop, and see."""
    server = start(name, directory, certificate, Server)
    try:
        with ExitStack() as stack:
            responses = [stack.enter_context(server.open(path)) for path in situation.paths]
            if situation.stuck:
                stuck = stack.enter_context(server.open(situation.stuck, receive_buffer=4096))
                assert stuck.status == 200
            for path, response in zip(situation.paths, responses, strict=True):
                assert response.status == 200
                if path != "/idle":
                    wait_for_first(path, response)
            if situation.stuck:
                time.sleep(0.5)  # until all buffers are full
            begin = time.monotonic()
            server.signal(number)
            for _ in range(situation.signals - 1):
                time.sleep(0.1)
                server.signal(number)
            endings = frozenset(response.read_to_end() for response in responses)
            for response in responses:
                response.close()  # as clients do, and with TLS servers wait for it
            code = server.process.wait(DEADLINE)
            seconds = time.monotonic() - begin
        return Outcome(
            endings,
            all(
                response.body.count(b"retry: ") == 2
                for path, response in zip(situation.paths, responses, strict=True)
                if path == "/retry"
            ),
            seconds,
            code,
            usual_code,
            tuple(server.complaints()),
        )
    finally:
        server.kill()


def wait_for_first(path: str, response: Response) -> None:
    if path in ("/clock", "/retry"):
        response.read_until(lambda body: b"\n\n" in body)


def rows(names: Iterable[str], directory: Path, certificate: Certificate) -> Iterable[list[str]]:
    yield [
        "server",
        "signal",
        *(situation.heading for situation in SITUATIONS.values()),
        "exit code",
    ]
    for name in names:
        for number in KINDS[name].signals:
            code = exit_code(name, number, directory, certificate)
            cells = []
            for situation in SITUATIONS.values():
                if not situation.fits(name):
                    cells.append("-")
                    continue
                outcome = observe(name, situation, number, directory, certificate, code)
                cells.append(str(outcome))
                for complaint in outcome.complaints:
                    print(f"{name}: {complaint}", file=sys.stderr)
            yield [name, number.name, *cells, str(code)]


def published() -> dict[tuple[str, str], dict[str, str]]:
    """The cells of the table in the documentation, by server and signal, and by situation."""
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line.strip("| ").split(" | ") for line in table.strip().splitlines()]
    return {
        (name, number): dict(zip(SITUATIONS, cells, strict=False))
        for name, number, *cells in lines[2:]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write it to {PAGE.name}")
    parser.add_argument("servers", nargs="*", default=SERVERS)
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        certificate = make_certificate(directory)
        for row in rows(arguments.servers, directory, certificate):
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
            if len(lines) == 1:
                lines.append("|---" * len(row) + "|")
                print(lines[-1], flush=True)
    if arguments.write:
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text("\n".join([before + BEGIN, *lines, END + after]))


if __name__ == "__main__":
    main()
