"""Since which version each public name is there, by the modules that users import."""

from __future__ import annotations

SINCE: dict[str, dict[str, str]] = {
    "0.1.0": {
        "sse_asgi": """
            ClientDisconnectedError CloseReason CloseReport EventTooLargeError HTTPError
            HubClosedError HubError HubStats JSONServerSentEvent Limit Observer SSEApp SSEError
            SSERequest ServerSentEvent Shutdown StreamOptions StreamStats Tally TopicEndedError
            TopicRunningError current_thread_limiter relay sse_app
        """,
        "sse_asgi.hub": """
            Absence BatchLog EventTooLargeError Hub HubClosedError HubError Log MemoryLog
            NewRecord Page PlaceLog Position PresenceEvents PresenceLog Record Run RunLog
            RemoteLog Subscription TopicEndedError TopicRunningError health_app
        """,
        "sse_asgi.hub.redis": """
            RedisLog
        """,
        "sse_asgi.compression": """
            Codec Compression
        """,
        "sse_asgi.starlette": """
            EventSourceResponse JSONServerSentEvent SendTimeoutError ServerSentEvent
            ensure_bytes
        """,
        "sse_asgi.fastapi": """
            EventSourceResponse JSONServerSentEvent LastEventId SendTimeoutError ServerSentEvent
            sse_responses
        """,
        "sse_asgi.prometheus": """
            PrometheusObserver
        """,
        "sse_asgi.opentelemetry": """
            OpenTelemetryObserver
        """,
        "sse_asgi.client": """
            ContentTypeError DecodedEvent EventSource EventSourceError GapError IdleTimeoutError
            RequestHeaders State StateChange StatusError TooManyReconnectsError gap_of
        """,
        "sse_asgi.testing": """
            Connection LogContract Transport connect transport
        """,
        "sse_asgi.decoder": """
            DEFAULT_MAX_EVENT_SIZE DecodedEvent EventStreamDecoder MAX_RECONNECTION_TIME
        """,
        "sse_asgi.encoder": """
            SEPARATORS check_separator encode encode_fields encode_ping
        """,
        "sse_asgi.types": """
            ASGIApp EventDict EventLike Factory FrameReceiver HasEventFields Headers Message
            Receive Scope Send Source
        """,
    },
}
