"""What sse_asgi and others cost, measured in one run: ``python -m benchmarks``."""
