"""What makes a program use `sse_asgi.starlette` where it, or an SDK, imports sse-starlette."""

from __future__ import annotations

#: The first lines of such a program.
REDIRECT = """
import sys

import sse_asgi.starlette

sys.modules["sse_starlette"] = sse_asgi.starlette
sys.modules["sse_starlette.sse"] = sse_asgi.starlette
sys.modules["sse_starlette.event"] = sse_asgi.starlette
"""
