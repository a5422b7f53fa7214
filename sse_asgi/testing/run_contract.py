"""The tests of the contract of runs, for the logs whose topics can have a runner."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import EventTooLargeError, TopicEndedError, TopicRunningError
from .follower import read_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable
    from contextlib import AbstractAsyncContextManager

    from ..hub import Position
    from .follower import Follower

__all__ = ["RunContract"]

#: Who runs a topic, and the event that is to end it if nobody renews that.
ADA, BEN, LAST = "ada", "ben", b"data: last\n\n"

ANY = "*"


async def _refused(call: Awaitable[object], error: type[Exception]) -> None:
    """It raises that error."""
    try:
        await call
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


class RunContract:
    """The part of :class:`LogContract` about runs. A log that knows nothing of them passes."""

    patience: float

    def _open(
        self, max_events: int = 1000, max_bytes: int = 2**20
    ) -> AbstractAsyncContextManager[list[Follower]]:
        raise NotImplementedError

    async def _delivered(self, node: Follower, position: Position) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def _logs_with_runs(self, **limits: int) -> AsyncGenerator[list[Any], None]:
        """The first log, and the last one, which may be the same."""
        async with self._open(**limits) as nodes:
            logs = [node.log for node in nodes]
            yield [logs[0], logs[-1]] if hasattr(logs[0], "begin_run") else []

    async def test_a_topic_has_one_runner(self) -> None:
        """Whichever log is asked. To ask again for the same one changes nothing."""
        async with self._logs_with_runs() as logs:
            for log in logs:
                await log.begin_run("t", ADA, LAST)
                await log.begin_run("t", ADA, LAST)
                for other in logs:
                    await _refused(other.begin_run("t", BEN, LAST), TopicRunningError)
                await log.begin_run(f"of {BEN}", BEN, LAST)
                await log.append_of_run(f"of {BEN}", b"1", runner=BEN, final=True)
                break

    async def test_of_many_that_ask_one_runs(self) -> None:
        """They ask at the same time."""
        async with self._logs_with_runs() as logs:
            begun: list[int] = []

            async def begin(number: int) -> None:
                try:
                    await logs[number % 2].begin_run("t", f"runner {number}", LAST)
                except TopicRunningError:
                    return
                begun.append(number)

            async with anyio.create_task_group() as tasks:
                for number in range(20 if logs else 0):
                    tasks.start_soon(begin, number)
            assert len(begun) == (1 if logs else 0)

    async def test_appending_as_a_runner(self) -> None:
        """Only the runner can, as long as the topic has not ended. Others append as before."""
        async with self._logs_with_runs() as logs:
            if not logs:
                return
            log, other = logs
            for runner in (ADA, ANY):
                await _refused(log.append_of_run("t", b"0", runner=runner), TopicRunningError)
            await log.begin_run("t", ADA, LAST)
            await log.append_of_run("t", b"1", runner=ADA, key="1")
            await other.append("t", b"2")
            again = await log.append_of_run("t", b"1", runner=ADA, key="1")
            assert again.offset == 1
            for each in logs:
                await _refused(each.append_of_run("t", b"0", runner=BEN), TopicRunningError)
            await log.append_of_run("t", b"3", runner=ADA)
            end = await other.append_of_run("t", b"4", runner=ANY, final=True)
            assert end.offset == 4
            for runner in (ADA, BEN, ANY):
                await _refused(other.append_of_run("t", b"5", runner=runner), TopicEndedError)
            await _refused(other.begin_run("t", BEN, LAST), TopicEndedError)
            await _refused(other.append("t", b"5"), TopicEndedError)
            records = await read_all(other, "t")
            assert [record.body for record in records] == [b"1", b"2", b"3", b"4"]
            assert [record.final for record in records] == [False, False, False, True]

    async def test_an_event_of_a_run_that_is_too_large(self) -> None:
        """It is refused, like any other, and so is a last event."""
        async with self._logs_with_runs(max_bytes=1000) as logs:
            for log in logs[:1]:
                await _refused(log.begin_run("t", ADA, b"x" * 1001), EventTooLargeError)
                await log.begin_run("t", ADA, LAST)
                large = log.append_of_run("t", b"x" * 1001, runner=ADA)
                await _refused(large, EventTooLargeError)
                assert (await log.append_of_run("t", b"y", runner=ADA)).offset == 1

    async def test_renewing_runs(self) -> None:
        """The topics that are told are those that have ended, or do not have that runner."""
        async with self._logs_with_runs() as logs:
            if not logs:
                return
            log, other = logs
            runners = {"ended": ADA, "goes on": ADA, "of another": BEN, "nobody's": ADA}
            for topic in ("ended", "goes on", "of another"):
                await log.begin_run(topic, ADA, LAST)
            assert set(await log.renew_runs(runners)) == {"of another", "nobody's"}
            await other.append("ended", b"1", final=True)
            lost = {"ended", "of another", "nobody's"}
            assert set(await log.renew_runs(runners)) == lost
            assert list(await log.renew_runs({})) == []
            await log.append_of_run("goes on", b"1", runner=ADA)

    async def test_a_lease_that_is_not_renewed(self) -> None:
        """The log ends the topic with the last event, if that is to be soon enough for a test."""
        async with self._open() as nodes:
            logs: list[Any] = [node.log for node in nodes]
            log, node = logs[0], nodes[-1]
            if not hasattr(log, "begin_run") or log.lease > self.patience / 4:
                return
            await log.begin_run("t", ADA, LAST)
            await log.begin_run("renewed", ADA, LAST)
            first = await log.append_of_run("t", b"1", runner=ADA)
            await node.log.read("t", None, 0)
            node.log.follow("t", first)
            with anyio.fail_after(self.patience):
                while not node.delivered:
                    await log.renew_runs({"renewed": ADA})
                    await anyio.sleep(log.lease / 10)
            await self._delivered(node, first._replace(offset=2))
            (record,) = [record for _, record in node.delivered]
            assert (record.body, record.final) == (LAST, True)
            await _refused(log.append_of_run("t", b"2", runner=ADA), TopicEndedError)
            assert (await log.append_of_run("renewed", b"1", runner=ADA)).offset == 1
