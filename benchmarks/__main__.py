"""Run benchmarks by name, or all that need nothing but this machine's peers."""

from __future__ import annotations

import argparse
import datetime
import importlib
import resource
import time
from pathlib import Path

#: Beside the peers: each has a ``run`` that takes the session.
BESIDE_PEERS = {
    "encode": "encode",
    "stream": "stream",
    "fanout": "fanout",
    "idle": "idle",
    "ping": "ping",
    "shutdown": "shutdown",
    "import": "imports",
}
#: In process, for those who work on the library; not compared on a server.
IN_PROCESS = {"pump": "pump", "hub": "hub", "memory": "memory"}
#: What one process and one Redis carry; they take long.
CAPACITY = {"redis": "redis", "scale": "scale"}

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
    parser.add_argument("--peers", metavar="a,b", help="only these")
    options = parser.parse_args()
    if options.names[:1] == ["report"]:
        from .report import main as report

        report([Path(name) for name in options.names[1:]])
        return

    from .machine import facts
    from .results import Session, as_json
    from .servers import ALL

    for name in options.names:
        if name not in MODULES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(MODULES)}")
    peers = options.peers.split(",") if options.peers else [*ALL]
    for peer in peers:
        if peer not in ALL:
            parser.error(f"no peer {peer!r}; there are {', '.join(ALL)}")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    machine = {**facts(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    names = options.names or [*BESIDE_PEERS, *IN_PROCESS]
    session = Session(quick=options.quick, names=peers if {*names} & {*BESIDE_PEERS} else ())
    for name in names:
        module = importlib.import_module(f".{MODULES[name]}", __package__)
        began = time.monotonic()
        module.run(session) if name in BESIDE_PEERS else module.main()
        print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
        if options.json:  # after each, so that nothing is lost with the last
            options.json.write_text(as_json(session, machine))


if __name__ == "__main__":
    main()
