"""Run benchmarks by name, or all that need nothing but this machine's peers."""

from __future__ import annotations

import argparse
import datetime
import importlib
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .peer import Before

#: Compared with the peers. Each module has a ``run`` that takes the session.
BESIDE_PEERS = {
    "encode": "encode",
    "stream": "stream",
    "places": "in_places",
    "fanout": "fanout",
    "idle": "idle",
    "ping": "ping",
    "connects": "connects",
    "hub-on-redis": "on_redis",
    "shutdown": "shutdown",
    "import": "imports",
}
#: In process, for those who work on the library; not compared on a server.
IN_PROCESS = {"pump": "pump", "hub": "hub", "memory": "memory", "compression": "compressed"}
#: What one process and one Redis carry; they take long.
CAPACITY = {
    "redis": "redis", "publishers": "publishers", "scale": "scale", "presence": "presence",
    "recheck": "recheck",
}  # fmt: skip

MODULES = {**BESIDE_PEERS, **IN_PROCESS, **CAPACITY}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="'python -m benchmarks report FILE...' makes the documentation from what --json "
        "has written.",
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join((*MODULES, "report")))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to a file")
    parser.add_argument("--quick", action="store_true", help="one round of each, and shorter")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="so many rounds of each: more, and less noise"
    )
    parser.add_argument("--peers", metavar="a,b", help="only these")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="measure another checkout of the library too, as the peer 'before'",
    )
    options = parser.parse_args()
    if options.names[:1] == ["report"]:
        from .report import main as report

        report([Path(name) for name in options.names[1:]])
        return

    from .peer import ALL, Before, NotThereError

    default = [*BESIDE_PEERS] if options.against else [*BESIDE_PEERS, *IN_PROCESS]
    names = options.names or default
    for name in names:
        if name not in MODULES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(MODULES)}")
        if options.against and name not in BESIDE_PEERS:
            parser.error(f"--against is for {', '.join(BESIDE_PEERS)}; {name!r} has no peers")
    peers = options.peers.split(",") if options.peers else [*ALL]
    for peer in peers:
        if peer not in ALL:
            parser.error(f"no peer {peer!r}; there are {', '.join(ALL)}")
    if options.against and "sse_asgi" not in peers:
        parser.error("--against compares with sse_asgi, which is not among the peers")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds is a number from 1, not {options.rounds}")

    with tempfile.TemporaryDirectory() as folder:
        before = None
        if options.against:
            try:
                before = Before.copied(options.against, Path(folder))
            except NotThereError as exc:
                parser.error(f"--against {options.against}: {exc}")
        run(names, peers, before, options)


def run(
    names: list[str], peers: list[str], before: Before | None, options: argparse.Namespace
) -> None:
    """Run benchmarks, and print what they measure."""
    from .machine import facts
    from .results import Session, as_json

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    machine = {**facts(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    session = Session(
        quick=options.quick,
        names=peers if {*names} & {*BESIDE_PEERS} else (),
        before=before,
        count=options.rounds,
    )
    for name in names:
        module = importlib.import_module(f".{MODULES[name]}", __package__)
        began = time.monotonic()
        module.run(session) if name in BESIDE_PEERS else module.main()
        print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
        if options.json:  # after each, so that nothing is lost with the last
            options.json.write_text(as_json(session, machine))


if __name__ == "__main__":
    main()
