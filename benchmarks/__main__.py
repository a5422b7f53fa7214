"""Run benchmarks by name, or all of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from . import encode, fanout, idle, pump, redis, scale

BENCHMARKS: dict[str, Callable[[], object]] = {
    "encode": encode.main,
    "pump": pump.main,
    "fanout": fanout.main,
    "idle": idle.main,
    "redis": redis.main,
    "scale": scale.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
