"""What a factory is: checked when an application is built."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, get_origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .types import Factory

__all__ = ["function_of", "name_of", "takes_request"]


def takes_request(factory: Factory) -> bool:
    """Return whether ``factory`` is called with the request, instead of with nothing.

    The first parameter is the request if it has no default, or if it is named ``request``. Other
    parameters with defaults serve another purpose.

    :raises TypeError: for what is not a function, a factory that needs other arguments, or one with
        dependencies of FastAPI.
    """
    if not callable(factory):
        raise TypeError(_not_a_factory(factory))
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some builtins have no signature
        return True
    for name in _dependencies(factory, signature):
        raise TypeError(
            f"{name_of(factory)}() has the parameter {name!r}, which FastAPI would fill in, but "
            "sse_app() does not: make it a path operation that returns an EventSourceResponse "
            "(from sse_asgi.fastapi), or take the request and check it there"
        )
    first = next(iter(signature.parameters.values()), None)
    takes = first is not None and (first.default is first.empty or first.name == "request")
    try:
        signature.bind(*[None] * takes)
    except TypeError:
        raise TypeError(
            f"the factory must take the request, or nothing: {factory!r:.80} takes {signature}"
        ) from None
    return takes


def function_of(factory: Any) -> Any:
    """Return the function within a partial; other factories unchanged."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def name_of(factory: Any) -> str:
    """Return the name of a function, also within a partial, or else that of the type."""
    factory = function_of(factory)
    name = getattr(factory, "__name__", None)
    return name if isinstance(name, str) else type(factory).__name__


def _not_a_factory(given: Any) -> str:
    name = getattr(given, "__name__", None)  # of the function that has made it
    if isinstance(name, str) and (
        hasattr(given, "__await__") or hasattr(given, "__next__") or hasattr(given, "__anext__")
    ):
        return (
            f"the factory is called for each request: pass {name} itself, not the "
            f"{type(given).__name__} that {name}() returns"
        )
    return (
        f"the factory must be a generator function, or a function that returns an "
        f"iterable of events, not {type(given).__name__}: {given!r:.80}"
    )


def _dependencies(factory: Any, signature: inspect.Signature) -> Iterator[str]:
    """Return the parameters that only FastAPI can fill in, such as one with ``Depends(...)``."""
    if "fastapi.params" not in sys.modules:
        return
    for parameter in signature.parameters.values():
        annotation = _evaluated(factory, parameter.annotation)
        metadata = getattr(annotation, "__metadata__", ()) if _is_annotated(annotation) else ()
        if any(map(_is_fastapis, (parameter.default, *metadata))):
            yield parameter.name


def _is_annotated(annotation: object) -> bool:
    return get_origin(annotation) is Annotated


def _is_fastapis(value: object) -> bool:
    return any(cls.__module__ == "fastapi.params" for cls in type(value).__mro__)


def _evaluated(factory: Any, annotation: object) -> object:
    """Return the value of an annotation that is a string."""
    if not isinstance(annotation, str):
        return annotation
    function = function_of(factory)
    if not inspect.isroutine(function):
        function = type(function).__call__
    names = _Names(inspect.unwrap(function))
    try:
        return eval(annotation, {}, names)  # noqa: S307 - as typing.get_type_hints() does
    except Exception:  # it is no annotation that FastAPI could read
        return annotation


class _Names(dict[str, Any]):
    """The names that a function sees, and something for those that only type checkers know."""

    def __init__(self, function: Any) -> None:
        super().__init__(vars(builtins))
        self.update(getattr(function, "__globals__", {}))
        # Not a Python function; or a variable around it has no value yet, such as the application.
        with suppress(TypeError, ValueError):
            self.update(inspect.getclosurevars(function).nonlocals)

    def __missing__(self, name: str) -> Any:
        return _Unknown()


class _Unknown:
    """A type that is not known when the program runs."""

    def __getattr__(self, name: str) -> _Unknown:
        if name[:2] == "__":  # it has nothing that Python or typing look for
            raise AttributeError(name)
        return self

    def __getitem__(self, item: object) -> _Unknown:
        return self

    def __or__(self, other: object) -> _Unknown:
        return self

    __ror__ = __or__

    def __call__(self, *args: object, **kwargs: object) -> _Unknown:
        return self
