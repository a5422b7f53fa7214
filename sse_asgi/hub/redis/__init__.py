"""The hub's log on Redis Streams, for many processes and machines."""

from __future__ import annotations

try:
    from .log import RedisLog
except ModuleNotFoundError as _error:
    if _error.name != "coredis":
        raise
    raise ModuleNotFoundError(
        f"{__name__} needs coredis: pip install coredis", name=_error.name
    ) from _error

__all__ = ["RedisLog"]
