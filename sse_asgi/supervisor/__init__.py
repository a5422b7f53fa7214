"""The life of one stream, from its first message to its last. ``stream.py`` is where it begins."""

from .stream import Stream

__all__ = ["Stream"]
