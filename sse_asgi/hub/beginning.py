"""Where a subscription begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .positions import Position

__all__ = ["Start"]


class Start(NamedTuple):
    """Where a subscription begins in a topic."""

    #: Where the log ended when it was made; ``None``: where it ends when it is first read.
    position: Position | None = None
    #: So many events earlier, or as many as there are.
    history: int = 0
    #: Where the id says that the client has given.
    given: bool = False
    #: With the first event that there has been.
    oldest: bool = False
