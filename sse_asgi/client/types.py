"""The types of what an event source is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from ..types import Headers

__all__ = ["RequestHeaders"]

#: Header fields, or a function that returns them, async or not. It is called for each attempt.
RequestHeaders: TypeAlias = Headers | Callable[[], Headers | Awaitable[Headers]]
