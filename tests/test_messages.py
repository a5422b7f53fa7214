"""Mistakes that people have made, and messages that say what to do instead."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from sse_asgi import ServerSentEvent, Shutdown, SSERequest, StreamOptions, sse_app
from sse_asgi.compat import encode as encode_as_the_adapter
from sse_asgi.encoder import encode
from sse_asgi.hub import Hub
from sse_asgi.starlette import EventSourceResponse

from .imported import imported_by_the_package
from .streams import http_scope

pytestmark = pytest.mark.anyio


async def clock(request: SSERequest) -> AsyncIterator[str]:
    yield "tick"


def sync_clock() -> Any:
    yield "tick"


async def fetch() -> str:
    return "data"


def options(**given: Any) -> Any:
    return lambda: sse_app(clock, **given)


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "a list of topics": (
        lambda: Hub().subscribe(["a", "b"]),  # type: ignore[arg-type]
        TypeError,
        "a topic must be a str, not ['a', 'b']; unpack them: *topics",
    ),
    "a set of topics": (
        lambda: Hub().subscribe("a", {"b"}),  # type: ignore[arg-type]
        TypeError,
        "a topic must be a str, not {'b'}; unpack them: *topics",
    ),
    "no topic": (lambda: Hub().subscribe(), TypeError, "hub.subscribe('news')"),
    "a URL for a log": (
        lambda: Hub("redis://localhost"),  # type: ignore[arg-type]
        TypeError,
        "not 'redis://localhost'; try Hub(RedisLog('redis://localhost'))",
    ),
    "a number for a log": (
        lambda: Hub(3),  # type: ignore[arg-type]
        TypeError,
        "log must be a log, such as RedisLog, not 3; try Hub(max_events=...)",
    ),
    "a list for a log": (
        lambda: Hub([]),  # type: ignore[arg-type]
        TypeError,
        "log must be a log, such as RedisLog, not []",
    ),
    "lifespan called": (
        lambda: Hub().lifespan(),
        TypeError,
        "the application calls it: lifespan=hub.lifespan, without brackets",
    ),
    "lifespan called with something": (
        options(lifespan=Hub().lifespan("app")),
        TypeError,
        "a function that returns a context manager, such as hub.lifespan, which is not called",
    ),
    "a hub as the lifespan": (options(lifespan=Hub()), TypeError, "such as hub.lifespan"),
    "an event that is a number": (
        lambda: Hub().publish_from_thread("a", 3),  # type: ignore[arg-type]
        TypeError,
        "dict, str or bytes, not int: 3; to send it as data, give ServerSentEvent(data=...)",
    ),
    "a grace that is text": (
        lambda: Shutdown().drain("a"),  # type: ignore[arg-type]
        TypeError,
        "grace must be a number of seconds or None, not 'a'",
    ),
    "a grace that is true": (lambda: Shutdown().drain(True), TypeError, "not True"),
    "defer_start": (
        options(defer_start="x"),
        TypeError,
        "defer_start must be True, False, a number of seconds or None, not 'x'",
    ),
    "an option": (
        options(pings=3, conections=3, x=3),
        TypeError,
        "'conections' (did you mean 'max_connections'?) and no 'x'",
    ),
    "the value of a header": (
        options(headers={"x-a": "fine", "x-b": 5}),
        TypeError,
        "headers: the value of 'x-b' must be a str or bytes, not 5",
    ),
    "the name of a header": (
        options(headers={5: "x"}),
        TypeError,
        "headers: a name must be a str or bytes, not 5",
    ),
    "a header that is not Latin-1": (
        options(headers={"x-price": "3 €"}),
        ValueError,
        "headers: the value of 'x-price' is not Latin-1 (RFC 9110, 5.5): '3 €'",
    ),
    "coroutine as data": (
        lambda: encode({"data": closed(fetch())}),
        TypeError,
        "data can't be a coroutine: await it first: <coroutine object fetch",
    ),
    "coroutine as data of an event": (
        lambda: ServerSentEvent(closed(fetch())),
        TypeError,
        "data can't be a coroutine: await it first",
    ),
    "coroutine as data of the adapter": (
        lambda: encode_as_the_adapter({"data": closed(fetch())}, "\n"),
        TypeError,
        "data can't be a coroutine: await it first",
    ),
    "coroutine within data": (
        lambda: encode({"data": {"a": closed(fetch())}}),
        TypeError,
        "data can't be a coroutine: await it first",
    ),
    "coroutine as an event": (
        lambda: encode(closed(fetch())),
        TypeError,
        "an event can't be a coroutine: await it first: <coroutine object fetch",
    ),
    "a function as the content": (
        lambda: EventSourceResponse(clock),  # type: ignore[arg-type]
        TypeError,
        "not function: <function clock",
    ),
    "a function as the content, called": (
        lambda: EventSourceResponse(clock),  # type: ignore[arg-type]
        TypeError,
        "; call it first",
    ),
    "a coroutine as the content": (
        lambda: EventSourceResponse(closed(fetch())),
        TypeError,
        "; await it first",
    ),
    "what a factory returns": (
        lambda: sse_app(clock(SSERequest({}))),  # type: ignore[call-overload]
        TypeError,
        "pass clock itself, not the async_generator that clock() returns",
    ),
    "what a sync factory returns": (
        lambda: sse_app(sync_clock()),
        TypeError,
        "pass sync_clock itself, not the generator that sync_clock() returns",
    ),
    "what a coroutine function returns": (
        lambda: sse_app(closed(fetch())),
        TypeError,
        "pass fetch itself, not the coroutine that fetch() returns",
    ),
}


def closed(coroutine: Any) -> Any:
    coroutine.close()
    return coroutine


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told(mistake: str) -> None:
    make, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=re.escape(message)):
        make()


def test_a_hub_without_an_event_loop() -> None:
    """As happens where a module is loaded."""
    with pytest.raises(anyio.NoEventLoopError, match=r"in a coroutine or a factory, not while"):
        Hub().subscribe("news")


async def test_a_hub_of_a_lifespan_is_open() -> None:
    hub = Hub()
    async with hub.lifespan(object()):
        assert (await hub.publish("news", "x")).endswith("-1")
    with pytest.raises(Exception, match="closed"):
        await hub.publish("news", "y")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("url", "use request.path, .query_params and .headers"),
        ("is_disconnected", "the source is closed when the client leaves"),
        ("session", "use request.scope['session']"),
        ("nonsense", None),
    ],
)
def test_what_only_the_request_of_starlette_has(name: str, instead: str | None) -> None:
    request: Any = SSERequest(http_scope())
    said = f"'SSERequest' object has no attribute {name!r}"
    with pytest.raises(AttributeError) as error:
        getattr(request, name)
    assert str(error.value).startswith(f"{said}: {instead}" if instead else said)
    assert (error.value.name, error.value.obj) == (name, request)
    assert not hasattr(request, name)
    assert getattr(request, name, 5) == 5
    assert request.path == "/"


#: The module, what is missing, and what to install.
NEEDED = [
    ("sse_asgi.starlette", "starlette", "starlette"),
    ("sse_asgi.fastapi", "pydantic", "fastapi"),
    ("sse_asgi.fastapi", "pydantic_core", "fastapi"),
    ("sse_asgi.hub.redis", "coredis", "coredis"),
]


@pytest.mark.parametrize(("module", "missing", "package"), NEEDED)
def test_a_missing_package_is_named(module: str, missing: str, package: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert last.endswith(f": pip install {package}")


def test_nothing_is_imported_for_it() -> None:
    """A suggestion needs difflib, which takes long to import."""
    assert "difflib" not in imported_by_the_package("import sse_asgi")


def test_options_are_suggested_from_those_that_there_are() -> None:
    for name in StreamOptions.__dataclass_fields__:
        if name == "response_headers":  # not given, but made
            with pytest.raises(TypeError, match=f"no option '{name}'"):
                sse_app(clock, **{name: []})  # type: ignore[call-overload]
        else:
            wrong: Any = {f"{name}_": None}
            with pytest.raises(TypeError, match=rf"did you mean '{name}'\?"):
                sse_app(clock, **wrong)


def test_an_attribute_of_a_response_is_checked() -> None:
    response = EventSourceResponse([])
    with pytest.raises(TypeError, match="send_timeout must be a number of seconds or None"):
        response.send_timeout = "5"  # type: ignore[assignment]
    assert response.send_timeout is None
