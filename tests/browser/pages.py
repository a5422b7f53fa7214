"""An EventSource in a page, seen from the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from playwright.sync_api import Page

CONNECTING, OPEN, CLOSED = 0, 1, 2


class Happened(NamedTuple):
    """What a listener got. Events that come from no stream have neither data nor an id."""

    type: str
    data: str | None = None
    id: str | None = None
    state: int = OPEN


OPENED = Happened("open")
LOST = Happened("error", state=CONNECTING)
REFUSED = Happened("error", state=CLOSED)


class Source:
    """An EventSource that notes all that it does; see `listen` in the page."""

    def __init__(self, page: Page, url: str, names: Sequence[str] = (), **init: Any) -> None:
        self._page = page
        self._handle = page.evaluate_handle(
            "([url, names, init]) => listen(url, names, init)", [url, names, init]
        )

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript; `source` is this one."""
        return self._page.evaluate(f"(source) => ({expression})", self._handle)

    def wait_for(self, condition: str) -> None:
        """Wait until such an expression is true. Once it is closed, nothing more will happen."""
        closed = "source.readyState === EventSource.CLOSED"
        try:
            self._page.wait_for_function(
                f"(source) => {{ if ({condition}) return true; if ({closed}) throw 'closed'; }}",
                arg=self._handle,
            )
        except Exception as exc:
            raise AssertionError(f"never {condition}: {self.log()[-10:]}") from exc

    def wait_for_events(self, count: int, name: str = "message") -> None:
        self.wait_for(f"source.of({name!r}).length >= {count}")

    def log(self) -> list[Happened]:
        return [
            Happened(event["type"], event["data"], event["id"], event["state"])
            for event in self.evaluate("source.log")
        ]

    def messages(self) -> list[str]:
        data: list[str] = self.evaluate("source.of('message').map((event) => event.data)")
        return data

    @property
    def ready_state(self) -> int:
        state: int = self.evaluate("source.readyState")
        return state

    def close(self) -> None:
        self.evaluate("source.close()")
