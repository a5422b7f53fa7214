"""Decompression of responses, as a browser does it: what has come so far can be read."""

from __future__ import annotations

import sys
import zlib
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["decompressor"]


def decompressor(coding: str) -> Callable[[bytes], bytes]:
    """Return a function that decompresses one part of a response after the other.

    :param coding: the ``content-encoding`` (RFC 9110, 8.4.1): ``gzip``, ``br``, ``zstd``, or an
        empty one.
    :raises ValueError: for any other.
    """
    if coding in ("", "identity"):
        return bytes
    if coding == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
    if coding == "br":
        brotli: Any = import_module("brotli")
        process: Callable[[bytes], bytes] = brotli.Decompressor().process
        return process
    if coding == "zstd":
        zstd: Any = import_module(
            "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        )
        decompress: Callable[[bytes], bytes] = zstd.ZstdDecompressor().decompress
        return decompress
    raise ValueError(f"the response has the content-encoding {coding!r}, which is not known here")
