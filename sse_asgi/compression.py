"""Compression of event streams: content codings (RFC 9110, 8.4) that are flushed at every frame."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from .errors import HTTPError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .types import Scope

__all__ = ["Codec", "Compression"]

#: RFC 9110, 12.4.2.
_QVALUE = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")

#: The memory of zlib beside its window, as its ``memLevel``: 2 ** (this + 9) bytes.
_GZIP_MEMORY = 6

_BROTLI = "brotli"
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

#: How zstd searches unless there is a level: as well as level 9 does, which takes 10 MiB for it.
_ZSTD_SEARCH = {"strategy": 4, "hash_log": 13, "chain_log": 13, "search_log": 6, "min_match": 3}


class Codec(Protocol):
    """A compressor of one response."""

    def compress(self, data: bytes) -> bytes:
        """Return a part, compressed. The other end can read all that came so far.

        :param data: what comes next; it may be empty.
        """
        ...

    def finish(self, data: bytes) -> bytes:
        """Return the last part, compressed, and the end of the compressed data.

        :param data: what comes last; it may be empty.
        """
        ...


class _Gzip:
    __slots__ = ("_compressor",)

    def __init__(self, level: int | None, window: int) -> None:
        level = 6 if level is None else level
        # 16 and more: with a gzip header (RFC 1952).
        self._compressor = zlib.compressobj(
            level, zlib.DEFLATED, 16 + min(window, 15), _GZIP_MEMORY
        )

    def compress(self, data: bytes) -> bytes:
        compressor = self._compressor
        return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)

    def finish(self, data: bytes) -> bytes:
        compressor = self._compressor
        return compressor.compress(data) + compressor.flush()


class _Brotli:
    __slots__ = ("_compressor",)

    def __init__(self, level: int | None, window: int) -> None:
        brotli: Any = import_module(_BROTLI)
        level = 6 if level is None else level
        self._compressor = brotli.Compressor(mode=brotli.MODE_TEXT, quality=level, lgwin=window)

    def compress(self, data: bytes) -> bytes:
        compressed: bytes = self._compressor.process(data) + self._compressor.flush()
        return compressed

    def finish(self, data: bytes) -> bytes:
        compressed: bytes = self._compressor.process(data) + self._compressor.finish()
        return compressed


class _Zstd:
    __slots__ = ("_compressor",)

    def __init__(self, level: int | None, window: int) -> None:
        zstd: Any = import_module(_ZSTD)
        parameter = zstd.CompressionParameter
        options = {parameter.window_log: window}
        if level is None:
            options |= {getattr(parameter, name): value for name, value in _ZSTD_SEARCH.items()}
        else:
            options[parameter.compression_level] = level
        self._compressor = zstd.ZstdCompressor(options=options)

    def compress(self, data: bytes) -> bytes:
        compressor = self._compressor
        compressed: bytes = compressor.compress(data, compressor.FLUSH_BLOCK)
        return compressed

    def finish(self, data: bytes) -> bytes:
        compressor = self._compressor
        compressed: bytes = compressor.compress(data, compressor.FLUSH_FRAME)
        return compressed


@dataclass(frozen=True)
class _Coding:
    """What there is to know about a content coding."""

    make: Callable[[int | None, int], Codec]
    levels: range
    #: The module that it needs.
    module: str

    def is_installed(self) -> bool:
        return _can_import(self.module)


@cache  # Python looks for a module that is not there each time
def _can_import(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


_CODINGS: Mapping[str, _Coding] = {
    "gzip": _Coding(_Gzip, range(1, 10), "zlib"),
    "zstd": _Coding(_Zstd, range(1, 23), _ZSTD),
    "br": _Coding(_Brotli, range(12), _BROTLI),
}

_WINDOWS = range(10, 24)


@dataclass(frozen=True, init=False)
class Compression:
    """How event streams are compressed, if the client can decompress them.

    The value of the option ``compression`` of every entry point. ``True`` is ``Compression()``; a
    name or several are ``Compression(names)``.

    :param codings: content codings: ``"gzip"``, ``"zstd"`` (RFC 8878), ``"br"`` (RFC 7932). A
        client gets the one that it prefers (``Accept-Encoding``; RFC 9110, 12.5.3), and of those
        that it likes equally the first one here. By default those that are installed, in this
        order: gzip takes the least memory.
    :param level: how much effort to spend: 1 to 9 for gzip, 1 to 22 for zstd, 0 to 11 for br; or a
        mapping with a level for each coding. By default 6 for gzip and br; and for zstd a search
        that finds as much as level 9, in a fiftieth of its memory.
    :param window: the binary logarithm of how many bytes a compressor looks back: 10 (1 KiB) to 23
        (8 MiB); gzip has at most 15. More finds more, and takes more memory for each stream. By
        default 14 (16 KiB).
    :raises TypeError: for a value of the wrong type.
    :raises ValueError: for a coding that is not known, or a value that is out of range.
    :raises ImportError: for a coding that is not installed.
    """

    codings: tuple[str, ...]
    level: int | Mapping[str, int] | None = field(hash=False)
    window: int

    def __init__(
        self,
        codings: str | Iterable[str] | None = None,
        *,
        level: int | Mapping[str, int] | None = None,
        window: int = 14,
    ) -> None:
        names = _names(codings)
        for name, value in _levels(level, names).items():
            _check_int(f"the level of {name}", value, _CODINGS[name].levels)
        _check_int("window", window, _WINDOWS)
        object.__setattr__(self, "codings", names)
        own = MappingProxyType(dict(level)) if isinstance(level, Mapping) else level
        object.__setattr__(self, "level", own)
        object.__setattr__(self, "window", window)

    @classmethod
    def of(cls, value: object) -> Compression:
        """Return what a value of the option ``compression`` means.

        :raises TypeError: for a value of the wrong type.
        """
        if isinstance(value, Compression):
            return value
        if value is True:
            return cls()
        if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
            raise TypeError(
                "compression must be True, the name of a content coding or several names, a "
                f"Compression, or None, not {value!r:.80}"
            )
        return cls(value)

    def negotiate(
        self, scope: Scope, headers: list[tuple[bytes, bytes]]
    ) -> tuple[list[tuple[bytes, bytes]], Codec | None]:
        """Return the header fields of a response to a request, and what compresses the response.

        :param scope: the ASGI scope of the request.
        :param headers: the header fields without compression. If they have ``content-encoding``
            the response is compressed already, and is left as it is.
        :raises HTTPError: 406, if the client refuses all there is, ``identity`` included.
        """
        if any(name.lower() == b"content-encoding" for name, _ in headers):
            return headers, None
        headers = _with_vary(headers)
        if _forbids_transforming(scope):
            return headers, None
        coding = preferred(_field(scope["headers"], b"accept-encoding"), self.codings)
        if coding is None:
            offered = ", ".join([*self.codings, "identity"])
            vary = _field(headers, b"vary") or ""
            raise HTTPError(406, f"acceptable content codings: {offered}", {"vary": vary})
        if coding == "identity":
            return headers, None
        return [*headers, (b"content-encoding", coding.encode())], self.codec(coding)

    def codec(self, coding: str) -> Codec:
        """Return a new compressor.

        :param coding: one of ``codings``.
        """
        level = _levels(self.level, self.codings).get(coding)
        return _CODINGS[coding].make(level, self.window)


def preferred(accept_encoding: str | None, codings: Sequence[str]) -> str | None:
    """Return the content coding that a client prefers (RFC 9110, 12.5.3).

    :param accept_encoding: the header field of the request; ``None``: it has none.
    :param codings: what there is, the best first.
    :returns: one of them, or ``identity``, or ``None`` if nothing is acceptable.
    """
    if accept_encoding is None:  # anything is acceptable; but such a client rarely decompresses
        return "identity"
    given: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        pairs = (part.partition("=") for part in parameters)
        weight = next((value for key, _, value in pairs if key == "q"), "1")
        if name and _QVALUE.fullmatch(weight):
            given.setdefault(name.removeprefix("x-"), float(weight))
    others = given.get("*", 0)
    weights = {coding: given.get(coding, others) for coding in codings}
    # identity is acceptable unless it is excluded, but is no match for what was asked for.
    identity = given.get("identity", 0 if given.get("*") == 0 else None)
    best = max(weights.values(), default=0)
    if best > 0 and (identity is None or best >= identity):
        return next(coding for coding in codings if weights[coding] == best)
    return None if identity == 0 else "identity"


def _field(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    """Return the value of a header field, its lines joined (RFC 9110, 5.3)."""
    values = [value.decode("latin-1") for name, value in headers if name.lower() == wanted]
    return ", ".join(values) if values else None


def _forbids_transforming(scope: Scope) -> bool:
    """Return whether the request has ``no-transform`` (RFC 9111, 5.2.1.6)."""
    directives = (_field(scope["headers"], b"cache-control") or "").lower().split(",")
    return "no-transform" in (directive.strip() for directive in directives)


def _with_vary(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return header fields that say that the response depends on ``Accept-Encoding``."""
    vary = _field(headers, b"vary") or ""
    names = [name.strip().lower() for name in vary.split(",")]
    if "*" in names or "accept-encoding" in names:
        return headers
    others = [pair for pair in headers if pair[0].lower() != b"vary"]
    return [*others, (b"vary", f"{vary}, accept-encoding".lstrip(", ").encode("latin-1"))]


def _names(codings: object) -> tuple[str, ...]:
    if codings is None:
        return tuple(name for name, coding in _CODINGS.items() if coding.is_installed())
    if isinstance(codings, str):
        codings = (codings,)
    if isinstance(codings, (bytes, Mapping)) or not isinstance(codings, Iterable):
        raise TypeError(f"compression: content codings must be names, not {codings!r:.80}")
    given = tuple(codings)
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"compression: content codings must be names, not {name!r:.80}")
        if name not in _CODINGS:
            raise ValueError(
                f"compression: {name!r:.80} is no content coding for streams: gzip, zstd or br"
            )
    names = tuple(dict.fromkeys(given))
    if not names:
        raise ValueError(f"compression needs a content coding (gzip, zstd or br), not {codings!r}")
    for name in names:
        if not _CODINGS[name].is_installed():
            module = _CODINGS[name].module
            raise ImportError(f"the content coding {name} needs {module}: pip install {module}")
    return names


def _levels(level: object, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the level of each coding that has one."""
    if level is None:
        return {}
    if not isinstance(level, Mapping):
        return dict.fromkeys(names, level)
    if unknown := [name for name in level if name not in names]:
        raise ValueError(f"level has {unknown[0]!r:.80}, which is none of {', '.join(names)}")
    return dict(level)


def _check_int(name: str, value: object, allowed: range) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r:.80}")
    if value not in allowed:
        raise ValueError(f"{name} must be {allowed[0]} to {allowed[-1]}, not {value}")
