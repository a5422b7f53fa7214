"""A hub that is observed: counts what goes through its log. Other hubs pay nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import ref

from ..observer import HubStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..observer import Observer
    from .log import Created, Deliver, NewRecord, Record, Renewed
    from .positions import Position
    from .registry import Registry
    from .runs import Runs

__all__ = ["ObservedLog"]

logger: logging.Logger = logging.getLogger("sse_asgi")


class ObservedLog:
    """A log in all respects, that counts.

    :param log: the log that does the work.
    """

    def __init__(self, log: Any, observer: Observer) -> None:
        self._log = log
        self._observer = observer
        self._registry: Registry[Any] | None = None
        self._runs: Runs | None = None
        #: The figures of the hub.
        self.stats: HubStats = HubStats(type(log).__name__, lambda: (0, 0, 0), int)
        # As the hub looks whether a log has them.
        for name in ("append_many", "append_of_run"):
            if callable(getattr(log, name, None)):
                setattr(self, name, getattr(self, f"_{name}"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def __repr__(self) -> str:
        return repr(self._log)

    def begin(self, registry: Registry[Any], runs: Runs) -> None:
        """Tell the observer of the hub, and give it the figures."""
        self._registry = registry
        # The figures do not keep the hub.
        reference, of_runs = ref(registry), ref(runs)

        def counts() -> tuple[int, int, int]:
            registry, runs = reference(), of_runs()
            if registry is None or runs is None:
                return 0, 0, 0
            return registry.subscribers(None), len(registry.channels), runs.count()

        def lag() -> int:
            registry = reference()
            return 0 if registry is None else registry.lag()

        def gone() -> bool:
            return reference() is None

        self.stats.read_from(counts, lag, gone)
        registry.on_gap = self._gap
        if callable(observe := getattr(self._log, "observe", None)):
            observe(self._round_trip)
        self._tell("hub_created")

    def attach(self, deliver: Deliver, created: Created, renewed: Renewed) -> None:
        """See :meth:`Log.attach`."""

        def counting(topic: str, records: Sequence[Record]) -> None:
            if self._registry is not None:
                subscribers = self._registry.subscribers(topic)
                self.stats.delivered += len(records) * subscribers
            deliver(topic, records)

        self._log.attach(counting, created, renewed)

    async def append(self, *arguments: Any, **options: Any) -> Position:
        """See :meth:`Log.append`."""
        position: Position = await self._log.append(*arguments, **options)
        self.stats.published += 1
        return position

    async def _append_many(self, topic: str, records: Sequence[NewRecord]) -> list[Position]:
        positions: list[Position] = await self._log.append_many(topic, records)
        self.stats.published += len(records)
        return positions

    async def _append_of_run(self, *arguments: Any, **options: Any) -> Position:
        position: Position = await self._log.append_of_run(*arguments, **options)
        self.stats.published += 1
        return position

    def _gap(self, missed: int | None) -> None:
        self.stats.gaps += 1
        self.stats.missed += missed or 0

    def _round_trip(self, seconds: float, error: BaseException | None) -> None:
        stats = self.stats
        stats.round_trips += 1
        stats.failures += error is not None
        stats.waited += seconds
        self._tell("hub_round_trip", seconds, error)

    def _tell(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self._observer, what)(self.stats, *arguments)
        except Exception:
            logger.exception("%s of the observer raised", what)
