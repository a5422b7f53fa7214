"""The middleware that servers in Python have around their streams, if it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def placed(app: Any, place: str) -> Any:
    """Return the application in a middleware, or itself where the place is none."""
    return _MIDDLEWARE[place](app) if place in _MIDDLEWARE else app


def _cors(app: Any) -> Any:
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(app, allow_origins=["*"])


def _session(app: Any) -> Any:
    from starlette.middleware.sessions import SessionMiddleware

    return SessionMiddleware(app, secret_key="secret")


def _base_http(app: Any) -> Any:
    from starlette.middleware.base import BaseHTTPMiddleware

    async def dispatch(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["X-Measured"] = "yes"
        return response

    return BaseHTTPMiddleware(app, dispatch)


def _open_telemetry(app: Any) -> Any:
    """With spans that are recorded and exported nowhere."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider

    return OpenTelemetryMiddleware(app, tracer_provider=TracerProvider())


def _compress(app: Any) -> Any:
    from starlette_compress import CompressMiddleware

    return CompressMiddleware(app)


_MIDDLEWARE: dict[str, Callable[[Any], Any]] = {
    "CORSMiddleware": _cors,
    "SessionMiddleware": _session,
    "BaseHTTPMiddleware": _base_http,
    "OpenTelemetryMiddleware": _open_telemetry,
    "CompressMiddleware": _compress,
}
