"""What people search for: words that a page does not say itself, and the page to see first.

A search finds a page by its words, and puts those first whose titles have them.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

#: Entries of the index. They come before all else that a search finds.
ENTRIES = {
    "tutorial": ["first stream", "Last-Event-ID"],
    "how-to/answers": ["LLM"],
    "how-to/compression": ["compression", "gzip", "brotli", "zstd"],
    "how-to/fastapi": ["FastAPI"],
    "how-to/from-fastapi-sse": ["fastapi.sse"],
    "how-to/from-sse-starlette": ["sse-starlette"],
    "how-to/frameworks": ["Starlette", "Django"],
    "how-to/relay": ["OpenAI"],
    "how-to/observability": ["metrics", "Prometheus", "logging", "OpenTelemetry", "Grafana"],
    "how-to/redis": ["Redis"],
    "how-to/shutdown": ["shutdown"],
    "how-to/slow-clients": ["send_timeout", "ping_interval"],
    "how-to/sync-generators": ["threads"],
    "how-to/testing": ["testing", "test a stream", "pytest"],
    "explanation/life-of-a-stream": ["disconnect"],
}

#: Words that are found as if the page had them in its text.
KEYWORDS = {
    "tutorial": "beginner, getting, started, quickstart, introduction",
    "how-to/ag-ui": "agui, agent, agents, copilotkit, ag_ui",
    "how-to/answers": "llm, llms, chatgpt, tokens, resume, refresh, openai",
    "how-to/client": "cli, command, line, python, consumer, httpx, reconnect",
    "how-to/datastar": "hypermedia, html, morph, without, javascript",
    "how-to/frameworks": "starlette, flask, aiohttp, mount",
    "how-to/hub": "broadcast, fanout, pubsub, chat, many, clients, notifications",
    "how-to/post": "fetch, prompt, llm, chat, completion",
    "how-to/presence": "online, who, users, kick",
    "how-to/proxies": "load, balancer, buffering, reverse",
    "how-to/redis": "cluster, scale, workers, processes, nodes, horizontal",
    "how-to/relay": "openai, anthropic, llm, proxy",
    "how-to/rights": "authorization, permission, maximum, max, connections, user, per, expiry",
    "how-to/shutdown": "ctrl-c, ctrl, hangs, sigterm, restart, reload, deploy, graceful",
    "how-to/slow-clients": "backpressure, keepalive, keep, alive, heartbeat",
    "how-to/sync-generators": "blocking, thread, threads, def",
    "how-to/testing": "pytest, tests, testclient, unittest, mock",
    "explanation/capacity": "memory, per, connections, connection, scale, c10k, limits",
    "explanation/life-of-a-stream": "disconnect, cancel, cleanup, finally",
    "explanation/performance": "benchmark, benchmarks, speed, throughput, latency",
    "explanation/security": "denial, service, dos, attack, injection",
    "explanation/stopping": "sigterm, sigint, signal, kubernetes",
}


class Subjects(SphinxTransform):
    """Write both into a page, before its index entries are gathered."""

    default_priority = 800

    def apply(self, **_: Any) -> None:
        page = self.env.docname
        if words := KEYWORDS.get(page):
            self.document += nodes.meta("", name="keywords", content=words)
        if entries := ENTRIES.get(page):
            target = next(self.document.findall(nodes.section))["ids"][0]
            entries = [("single", entry, target, "main", None) for entry in entries]
            self.document.insert(0, addnodes.index(entries=entries))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(Subjects)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
