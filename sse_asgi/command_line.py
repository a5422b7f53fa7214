"""What the commands of ``python -m sse_asgi`` share."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

__all__ = ["PROG", "Parser", "seconds"]

PROG = "python -m sse_asgi"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line, without the usage."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def seconds(text: str) -> float:
    """Return an argument that is a number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more, not {text!r}")
    return number
