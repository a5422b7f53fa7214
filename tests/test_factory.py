"""What an application takes from its factory, and what it refuses there."""

from __future__ import annotations

import functools
import inspect
import pydoc
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, Query, Security
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from sse_asgi import SSERequest, sse_app
from sse_asgi.testing import connect

if TYPE_CHECKING:
    from somewhere_else import User  # type: ignore[import-not-found]

pytestmark = pytest.mark.anyio


def check(token: str = "") -> str:
    return token


Checked = Annotated[str, Depends(check)]


async def by_default(request: SSERequest, user: str = Depends(check)) -> AsyncIterator[str]:
    yield user


async def alone(user: str = Security(check)) -> AsyncIterator[str]:
    yield user


async def annotated(request: SSERequest, user: Annotated[str, Depends(check)] = "") -> Any:
    yield user


async def first(user: Annotated[str, Depends(check)]) -> AsyncIterator[str]:
    yield user


async def by_alias(user: Checked) -> AsyncIterator[str]:
    yield user


async def of_a_type_that_is_not_there(user: Annotated[User, Depends(check)]) -> Any:
    yield user


async def of_its_attribute(user: Annotated[User.Of | None, Depends(check)]) -> Any:
    yield user


async def header(request: SSERequest, user: str = Header()) -> AsyncIterator[str]:
    yield user


async def query(request: SSERequest, user: Annotated[str, Query()] = "") -> AsyncIterator[str]:
    yield user


class Callable_:
    async def __call__(self, user: Annotated[str, Depends(check)]) -> AsyncIterator[str]:
        yield user


def local() -> Callable[..., Any]:
    def get() -> str:
        return ""

    Local = Annotated[str, Depends(get)]

    async def source(user: Local) -> AsyncIterator[str]:
        yield str(Local)

    return source


@pytest.mark.parametrize(
    "factory",
    [
        by_default,
        alone,
        annotated,
        first,
        by_alias,
        of_a_type_that_is_not_there,
        of_its_attribute,
        header,
        query,
        Callable_(),
        local(),
        functools.partial(by_default, user=Depends(check)),
        functools.partial(first),
    ],
)
def test_what_fastapi_would_fill_in_is_refused(factory: Any) -> None:
    """Regression 38: nobody would call it, so a check of rights would not happen."""
    with pytest.raises(TypeError, match=r"parameter 'user', which FastAPI.*EventSourceResponse"):
        sse_app(factory)


def test_other_annotations_are_no_dependencies() -> None:
    async def source(
        request: Annotated[SSERequest, "the request"],
        other: Unknown = None,  # type: ignore[name-defined] # noqa: F821
    ) -> AsyncIterator[str]:
        yield ""

    assert sse_app(source).factory is source


async def clock(request: SSERequest) -> AsyncIterator[str]:
    """Tell the time."""
    yield request.path_params.get("hand", "-")


clock.options = "an attribute of the function"  # type: ignore[attr-defined]


class Clock:
    """A clock that is an object."""

    async def __call__(self, request: SSERequest) -> AsyncIterator[str]:
        yield "object"


@pytest.mark.parametrize("decorate", [sse_app, sse_app(ping=5)])
def test_an_application_has_the_name_of_its_factory(decorate: Any) -> None:
    app = decorate(clock)
    assert (app.__name__, app.__qualname__, app.__module__) == ("clock", "clock", __name__)
    assert app.__doc__ == "Tell the time."
    assert app.__wrapped__ is clock
    assert inspect.unwrap(app) is clock
    assert list(inspect.signature(app).parameters) == ["scope", "receive", "send"]
    assert "Tell the time." in pydoc.render_doc(app)
    assert app.options.ping in (5, 15)  # its own
    assert repr(app) == "sse_app(clock)"


@pytest.mark.parametrize(
    ("factory", "name", "module"),
    [
        (functools.partial(clock), "clock", __name__),
        (functools.partial(functools.partial(clock)), "clock", __name__),
        (Clock(), "Clock", __name__),
        (lambda: ["a"], "<lambda>", __name__),
        (list, "list", "builtins"),
        (functools.partial(Clock()), "Clock", __name__),
    ],
)
def test_every_application_has_a_name(factory: Any, name: str, module: str) -> None:
    app = sse_app(factory)
    assert (app.__name__, app.__module__) == (name, module)
    assert app.__wrapped__ is factory
    assert app.__doc__ is None or isinstance(app.__doc__, str)


@pytest.mark.parametrize(
    "factory", [clock, functools.partial(clock), Clock()], ids=["function", "partial", "object"]
)
async def test_frameworks_take_it_for_an_application(factory: Any) -> None:
    """And not for a function that returns a response."""
    app = sse_app(factory)
    by_route = Starlette(routes=[Route("/clock/{hand}", app), Mount("/mounted", app)])
    by_add_route = Starlette()
    by_add_route.add_route("/clock/{hand}", app)  # type: ignore[arg-type]
    fastapi = FastAPI()
    fastapi.mount("/mounted", app)
    fastapi.add_route("/clock/{hand}", app)  # type: ignore[arg-type]
    name = app.__name__
    assert by_route.url_path_for(name, hand="2") == "/clock/2"
    assert by_add_route.url_path_for(name, hand="3") == "/clock/3"
    assert fastapi.url_path_for(name, hand="4") == "/clock/4"
    for outer, path in (
        (by_route, "/clock/x"),
        (by_route, "/mounted/"),
        (by_add_route, "/clock/x"),
        (fastapi, "/clock/x"),
        (fastapi, "/mounted/"),
    ):
        async with connect(outer, path) as stream:
            assert stream.status_code == 200
            assert (await stream.receive()).data in ("x", "-", "object")


async def test_an_application_is_no_factory() -> None:
    with pytest.raises(TypeError, match=r"sse_app\(clock\) is an application already"):
        sse_app(sse_app(clock))  # type: ignore[arg-type]


async def test_names_for_limits() -> None:
    """The middleware of slowapi finds the endpoint of a request, and asks for these two."""
    app = sse_app(clock)
    route = Route("/", app)
    endpoint: Any = route.endpoint
    assert f"{endpoint.__module__}.{endpoint.__name__}" == f"{__name__}.clock"
    assert route.name == "clock"
    assert not isinstance(endpoint, Response)


def test_a_factory_may_refer_to_its_application() -> None:
    """Which has no value yet when the annotations are read."""

    async def source(request: SSERequest) -> AsyncIterator[str]:
        yield str(app.connections)

    app = sse_app(source)
    assert app.connections == 0
