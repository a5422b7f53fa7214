"""The page that ``python -m sse_asgi`` serves, and what it streams."""
