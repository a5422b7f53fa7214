"""The hub's log on Redis Streams, for many processes and machines."""

from __future__ import annotations

from .log import RedisLog

__all__ = ["RedisLog"]
