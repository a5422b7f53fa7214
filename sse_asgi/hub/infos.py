"""The infos of subscriptions as JSON texts: equal infos have the same text. Pure, no I/O."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from ..event import json_text

__all__ = ["info_of", "info_text", "matches"]


def info_text(info: object) -> str | None:
    """Return the JSON text of an info, in ASCII; ``None``: there is no info.

    Equal infos have the same text, whatever the order of their keys. JSON has one kind of number:
    1.0 is the same as 1.

    :raises TypeError: the info can't be JSON.
    :raises ValueError: the info has a number that is not finite, or contains itself.
    """
    if info is None:
        return None
    try:
        return _text(json.loads(json_text(info), parse_float=_number))
    except (TypeError, ValueError, RecursionError) as exc:
        kind = TypeError if isinstance(exc, TypeError) else ValueError
        raise kind(f"with presence=True an info must be JSON, not {info!r:.80}: {exc}") from exc


def info_of(text: str) -> Any:
    """Return the info that has this text."""
    return json.loads(text)


def matches(text: str | None, wanted: str) -> bool:
    """Return whether an info matches another one.

    Two objects match if each field of the wanted one is equal. Other values match if they are
    equal.

    :param text: the text of the info; ``None``: there is no info, so nothing matches.
    :param wanted: the text of the wanted info.
    """
    if text is None:
        return False
    fields, info = _decoded(wanted), _decoded(text)
    if not isinstance(fields, dict) or not isinstance(info, dict):
        return text == wanted
    return all(name in info and _same(info[name], value) for name, value in fields.items())


def _same(one: object, other: object) -> bool:
    # In Python 1 is equal to True. In JSON it is not.
    return one == other and _text(one) == _text(other)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


@lru_cache(maxsize=1024)
def _decoded(text: str) -> Any:
    return json.loads(text)
