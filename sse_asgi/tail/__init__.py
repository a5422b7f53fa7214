"""``python -m sse_asgi tail URL``: follow an event stream from a terminal, or in a script."""
