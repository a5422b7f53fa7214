"""Make values of JSON text: plain ones, or those of a model's class."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parse_json"]


def parse_json(text: str, model: Any = None) -> Any:
    """Return the value of JSON text.

    :param model: what the value becomes: a Pydantic model, a msgspec struct, or any other type that
        Pydantic knows, such as a dataclass or ``list[int]``. ``None``: a plain value.
    :raises ValueError: the text is not JSON, or not what the model takes.
    :raises TypeError: the type needs Pydantic, which is not installed.
    """
    if model is None:
        return json.loads(text)
    if (validate := getattr(model, "model_validate_json", None)) is not None:
        return validate(text)
    if hasattr(model, "__struct_fields__"):
        import msgspec  # installed, since the model is one of its structs

        return msgspec.json.decode(text, type=model)
    try:
        from pydantic import TypeAdapter
    except ModuleNotFoundError:
        raise TypeError(
            f"a value of type {model!r} needs Pydantic: pip install pydantic, or give no type"
        ) from None
    return TypeAdapter(model).validate_json(text)
