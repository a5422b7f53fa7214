"""The runs of a hub in this process."""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING, cast, get_args

import anyio

from ..encoder import encode
from ..errors import HTTPError, HubClosedError, HubError, TopicEndedError, TopicRunningError
from ..runtime import current
from ..runtime.detached import DetachedTask
from ..source import discard, open_source
from .names import check_topic
from .run import CLEANUP, Run, RunReason, close_source
from .run_log import ANY_RUNNER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .affinity import Affinity
    from .log import Log
    from .run import Readable

__all__ = ["Runs"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: How often a lease is renewed while it lasts.
RENEWALS = 5


class Runs:
    """The runs of a hub in this process, by their topics.

    :param end_event: the name of the event that ends the topic of a run.
    """

    def __init__(self, log: Log, affinity: Affinity, end_event: str) -> None:
        self._log = cast("Readable", log)
        self._affinity = affinity
        self._frames: Mapping[RunReason, bytes] = {
            reason: encode({"event": end_event, "data": {"reason": reason}})
            for reason in get_args(RunReason)
        }
        self._running: dict[str, Run] = {}
        self._renewing: DetachedTask | None = None
        affinity.in_use.insert(0, self._in_use)

    def check(self) -> None:
        """Refuse a log whose topics can't have a runner.

        :raises RuntimeError: it is one.
        """
        if not callable(getattr(self._log, "begin_run", None)):
            raise RuntimeError(f"with this log, a hub can't run sources: {self._log!r:.80}")

    async def begin(self, topic: str, source: object) -> Run:
        """Begin a run. The source is closed if that fails."""
        try:
            opened = open_source(source)
        except HTTPError:  # all threads for sync iterables are busy
            await discard(source, CLEANUP)
            raise
        try:
            check_topic(topic)
            self.check()
            self._affinity.use()
            runner = os.urandom(8).hex()
            await self._log.begin_run(topic, runner, self._frames["interrupted"])
            try:
                self._affinity.use()  # it may have been closed meanwhile
            except HubClosedError:
                await self._end(topic, runner)
                raise
        except BaseException:
            await close_source(opened)
            raise
        run = Run(topic, runner, opened, self._log, self._frames, self._end_of)
        self._running[topic] = run
        run.start()
        if self._renewing is None and self._log.lease < math.inf:
            self._renewing = DetachedTask(current(), self._renew)
        return run

    async def _end(self, topic: str, runner: str) -> None:
        """End a topic whose run has not begun. Nobody would renew its lease."""
        body = self._frames["interrupted"]
        with anyio.CancelScope(shield=True), suppress(HubError):
            await self._log.append_of_run(topic, body, runner=runner, final=True)

    async def stop(self, topic: str) -> bool:
        """End the run of a topic, on whatever node, and return whether there was one."""
        self.check()
        self._affinity.use()
        body = self._frames["stopped"]
        try:
            await self._log.append_of_run(topic, body, runner=ANY_RUNNER, final=True)
        except (TopicEndedError, TopicRunningError):
            return False
        if (run := self._running.get(topic)) is not None:
            run.end(None)
        return True

    def count(self) -> int:
        """Return how many there are."""
        return len(self._running)

    def interrupt(self) -> None:
        """End all runs: the hub is closed."""
        for run in tuple(self._running.values()):
            run.end("interrupted")

    async def end(self, within: float) -> None:
        """Wait until all runs have ended. The log is told of it for some seconds only.

        A cancellation does not end the wait: the sources have time for their cleanup.
        """
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(within):
                for run in tuple(self._running.values()):
                    await run.ended()
            for run in tuple(self._running.values()):
                run.give_up()
                await run.ended()
            if (renewing := self._renewing) is not None:
                renewing.cancel()
                await renewing.join()

    def _in_use(self) -> bool:
        """Return whether there are runs. Forget those that were left in a closed event loop."""
        for topic, run in tuple(self._running.items()):
            if run.is_left:
                del self._running[topic]
        if not self._running:
            self._renewing = None
        return bool(self._running)

    def _end_of(self, run: Run) -> None:
        if self._running.get(run.topic) is run:
            del self._running[run.topic]

    async def _renew(self) -> None:
        """Renew the leases of all runs, until there are none."""
        try:
            while self._running:
                await anyio.sleep(self._log.lease / RENEWALS)
                runners = {topic: run.runner for topic, run in self._running.items()}
                try:
                    lost = await self._log.renew_runs(runners)
                except HubError:
                    continue
                except Exception:
                    logger.exception("a log can't renew the leases of runs")
                    continue
                for topic in lost:
                    run = self._running.get(topic)
                    if run is not None and run.runner == runners[topic]:
                        run.end(None)
        finally:
            self._renewing = None
