"""The tests of the contract between a hub and its log, for any log."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import anyio
from anyio.lowlevel import checkpoint

from ..errors import EventTooLargeError, TopicEndedError
from .follower import Follower, read_all
from .place_contract import PlaceContract
from .presence_contract import PresenceContract
from .run_contract import RunContract

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from ..hub import Log, Page, Position
    from ..hub.log import NewRecord

__all__ = ["LogContract"]


def _appends_many(log: Log) -> bool:
    """Return whether a log is a :class:`sse_asgi.hub.BatchLog`."""
    return hasattr(log, "append_many")


class _Event(NamedTuple):
    """A ``NewRecord``. What is tested is what it is given, so nothing of the hub is imported."""

    body: bytes
    key: str | None
    collapse_key: str | None
    final: bool = False
    runner: str | None = None


def _new(body: bytes, key: str | None = None, collapse_key: str | None = None) -> NewRecord:
    return cast("NewRecord", _Event(body, key, collapse_key))


class LogContract(PresenceContract, RunContract, PlaceContract):
    """The tests of the contract of :class:`sse_asgi.hub.Log`, for any log.

    If the log keeps presence, they test :class:`sse_asgi.hub.PresenceLog` too, and if its topics
    can have a runner, :class:`sse_asgi.hub.RunLog`; if it counts for all nodes,
    :class:`sse_asgi.hub.PlaceLog`.

    Define how a log is made. Then run the tests in pytest, with anyio's plugin, or by :meth:`run`::

        @pytest.mark.anyio
        class TestMyLog(LogContract):
            def make_log(self, *, max_events, max_bytes):
                return my_log(max_events=max_events, max_bytes=max_bytes)

    A test that fails raises :class:`AssertionError`, or the exception that the log has raised. Each
    test begins with a log that has no topics.
    """

    #: How long a log may take to deliver an event, in seconds.
    patience: float = 10.0

    #: Whether the log keeps exactly ``max_events`` and ``max_bytes``, or may keep some more events.
    exact: bool = True

    def make_log(self, *, max_events: int, max_bytes: int) -> AbstractAsyncContextManager[Log]:
        """Return an async context manager that makes a log without topics.

        It does not call :meth:`~sse_asgi.hub.Log.attach` or :meth:`~sse_asgi.hub.Log.run`: the
        tests do.

        :param max_events: how many events of each topic the log keeps.
        :param max_bytes: how many bytes of their bodies.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def make_logs(
        self, *, max_events: int, max_bytes: int
    ) -> AsyncGenerator[Sequence[Log], None]:
        """Make logs that share their events, as the logs of several processes do.

        By default this makes one log. The tests append to the first log, and follow all of them.
        The parameters are those of :meth:`make_log`.
        """
        async with self.make_log(max_events=max_events, max_bytes=max_bytes) as log:
            yield (log,)

    async def run(self) -> None:
        """Run all tests without pytest, one after another. The first that fails raises."""
        for name in dir(self):
            if name.startswith("test_"):
                await getattr(self, name)()

    @asynccontextmanager
    async def _open(
        self, max_events: int = 1000, max_bytes: int = 2**20
    ) -> AsyncGenerator[list[Follower], None]:
        async with AsyncExitStack() as stack:
            logs = await stack.enter_async_context(
                self.make_logs(max_events=max_events, max_bytes=max_bytes)
            )
            followers = [Follower(log) for log in logs]
            failure: Exception | None = None
            async with anyio.create_task_group() as tasks:
                for log in logs:
                    await tasks.start(log.run)
                try:
                    with anyio.fail_after(10 * self.patience):
                        yield followers
                except Exception as exc:
                    failure = exc  # raised below, not in an exception group
                tasks.cancel_scope.cancel()
            if failure is not None:
                raise failure

    async def _until(self, condition: Callable[[], object], what: str) -> None:
        with anyio.move_on_after(self.patience):
            while not condition():
                await anyio.sleep(0.01)
        assert condition(), what

    async def _delivered(self, node: Follower, position: Position) -> None:
        await self._until(
            lambda: node.offsets("t", position.epoch)[-1:] == [position.offset],
            "what was appended has not been delivered",
        )

    # -- append ----------------------------------------------------------------------------------

    async def test_offsets_begin_with_1_and_have_no_holes(self) -> None:
        """Reading returns what was appended, in order."""
        async with self._open() as (node, *_):
            bodies = [b"data: %d\n\n" % number for number in range(20)]
            positions = [await node.log.append("t", body) for body in bodies]
            assert [position.offset for position in positions] == list(range(1, 21))
            (epoch,) = {position.epoch for position in positions}
            records = await read_all(node.log, "t")
            assert [record.body for record in records] == bodies
            assert [record.position for record in records] == positions
            page = await node.log.read("t", None, 100)
            assert (page.epoch, page.first, page.last) == (epoch, 1, 20)

    async def test_each_topic_has_its_own_log(self) -> None:
        """Each has an epoch of its own, of lower-case letters and digits."""
        async with self._open() as (node, *_):
            topics = [f"t/{number}" for number in range(10)]
            positions = [await node.log.append(topic, b"x") for topic in topics]
            assert {position.offset for position in positions} == {1}
            epochs = {position.epoch for position in positions}
            assert len(epochs) == len(topics)
            for epoch in epochs:
                assert epoch.isascii()
                assert epoch.isalnum()
                assert epoch == epoch.lower()
                assert len(epoch) <= 32

    async def test_appends_at_the_same_time(self) -> None:
        """Each gets an offset of its own, and all logs have the same order."""
        async with self._open() as nodes:
            stored: dict[int, bytes] = {}

            async def append(number: int) -> None:
                body = b"%d" % number
                log = nodes[number % len(nodes)].log
                position = await log.append("t", body)
                assert position.offset not in stored
                stored[position.offset] = body

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(append, number)
            assert sorted(stored) == list(range(1, 51))
            for node in nodes:
                records = await read_all(node.log, "t")
                assert {record.offset: record.body for record in records} == stored

    async def test_a_key_appends_once(self) -> None:
        """Of appends to a topic with the same key, one takes place, also if they are concurrent."""
        async with self._open() as nodes:
            log = nodes[0].log
            first = await log.append("t", b"1", key="k")
            assert (await log.append("t", b"2"))[:2] == (first.epoch, 2)
            assert await log.append("t", b"1", key="k") == first
            assert (await log.append("t", b"1", key="other")).offset == 3
            assert await log.append("u", b"1", key="k") == await log.append("u", b"1", key="k")
            assert [r.body for r in await read_all(log, "u")] == [b"1"]
            positions: list[Position] = []

            async def append(number: int) -> None:
                log = nodes[number % len(nodes)].log
                positions.append(await log.append("t", b"both", key="both"))

            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(append, number)
            assert {position[:2] for position in positions} == {(first.epoch, 4)}
            assert len(set(positions)) == 1
            assert [r.body for r in await read_all(log, "t")] == [b"1", b"2", b"1", b"both"]

    async def test_a_key_is_known_as_long_as_its_event(self) -> None:
        """When its event is gone, the same key appends again."""
        async with self._open(max_events=2) as (node, *_):
            first = await node.log.append("t", b"x", key="k")
            for _ in range(2):
                await node.log.append("t", b"y")
            while (await node.log.read("t", None, 0)).first == 1:
                assert not self.exact
                assert await node.log.append("t", b"x", key="k") == first
                await node.log.append("t", b"y")
            again = await node.log.append("t", b"x", key="k")
            assert again != first
            assert (await read_all(node.log, "t"))[-1].body == b"x"

    async def test_a_cancelled_append(self) -> None:
        """It has taken place or not, and the log goes on."""
        async with self._open() as (node, *_):
            done: list[Position] = []

            async def append(body: bytes) -> None:
                done.append(await node.log.append("t", body, key=body.decode()))

            for steps in range(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append, b"cancelled %d" % steps)
                    for _ in range(steps):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
                # A publisher that was cancelled does not know, and appends again.
                await append(b"cancelled %d" % steps)
                await append(b"%d" % steps)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await node.log.read("t", 0, 100)
            records = await read_all(node.log, "t")
            assert [record.offset for record in records] == list(range(1, 41))
            bodies = [body for n in range(20) for body in (b"cancelled %d" % n, b"%d" % n)]
            assert [record.body for record in records] == bodies
            assert {position.offset for position in done} == set(range(1, 41))

    async def test_bodies_are_any_bytes(self) -> None:
        """The body and the collapse key come back unchanged."""
        bodies = [bytes(range(256)), b"", b"\r\n\0", "\u2028\U0001f600".encode(), b"x" * 70000]
        async with self._open() as (node, *others):
            topic = "t\u00e4 :{}"
            first = await node.log.append(topic, b"")
            bodies.insert(0, b"")
            node.follow(topic, first._replace(offset=0))
            for number, body in enumerate(bodies[1:]):
                await node.log.append(topic, body, key=f"k\u00e4 {number}")
            await node.log.append(topic, b"y", collapse_key="c\u00e4")
            expected = [(body, None) for body in bodies] + [(b"y", "c\u00e4")]
            for log in (node.log, *(other.log for other in others)):
                records = await read_all(log, topic)
                assert [(record.body, record.collapse_key) for record in records] == expected
            await self._until(lambda: len(node.delivered) >= len(expected), "not delivered")
            assert [(record.body, record.collapse_key) for _, record in node.delivered] == expected

    async def test_a_body_that_is_too_large(self) -> None:
        """It is refused, and leaves nothing behind. A body that just fits is accepted."""
        async with self._open(max_bytes=1000) as (node, *_):
            await node.log.append("t", b"x" * 1000)
            try:
                await node.log.append("t", b"x" * 1001, key="k")
            except EventTooLargeError:
                pass
            else:
                raise AssertionError("no EventTooLargeError")
            assert (await node.log.append("t", b"y", key="k")).offset == 2
            assert node.log.limits.max_bytes == 1000

    async def test_a_topic_that_ends(self) -> None:
        """Nothing is appended after the final event, and all logs know. Other topics go on."""
        async with self._open() as nodes:
            log = nodes[0].log
            first = await log.append("t", b"1", key="k")
            for node in nodes:
                assert node.log.has_ended("t") in (None, False)
                assert not (await node.log.read("t", None, 0)).ended
                node.follow("t", first)
            last = await log.append("t", b"2", key="l", final=True)
            for node in nodes:
                assert node.log.has_ended("t") in (None, True)
                page = await node.log.read("t", 0, 1000)
                assert page.ended
                assert [record.final for record in page.records] == [False, True]
                for final in (False, True):
                    try:
                        await node.log.append("t", b"3", final=final)
                    except TopicEndedError:
                        continue
                    raise AssertionError("no TopicEndedError")
                assert await node.log.append("t", b"1", key="k") == first
                assert await node.log.append("t", b"2", key="l", final=True) == last
                await self._delivered(node, last)
                assert node.delivered[-1][1].final
                assert node.log.has_ended("u") in (None, False)
            assert (await log.append("u", b"1")).offset == 1

    # -- append_many, if the log has it ----------------------------------------------------------

    async def test_many_are_appended_in_order_and_next_to_each_other(self) -> None:
        """Also if others append at the same time."""
        async with self._open() as nodes:
            if not _appends_many(nodes[0].log):
                return
            together: list[list[int]] = []

            async def append_many(number: int) -> None:
                log: Any = nodes[number % len(nodes)].log
                records = [_new(b"%d %d" % (number, n), None, "c") for n in range(10)]
                positions = await log.append_many("t", records)
                together.append([position.offset for position in positions])
                await log.append("t", b"alone")

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(append_many, number)
            for offsets in together:
                assert offsets == list(range(offsets[0], offsets[0] + 10))
            for node in nodes:
                records = await read_all(node.log, "t")
                assert [record.offset for record in records] == list(range(1, 89))
                bodies = [record.body for record in records if record.collapse_key == "c"]
                for number in range(8):
                    own = [b"%d %d" % (number, n) for n in range(10)]
                    begin = bodies.index(own[0])
                    assert bodies[begin : begin + 10] == own

    async def test_many_are_delivered(self) -> None:
        """Each log delivers them once and in order."""
        async with self._open() as nodes:
            log: Any = nodes[0].log
            if not _appends_many(log):
                return
            first = await log.append("t", b"x")
            for node in nodes:
                await node.log.read("t", None, 0)
                node.follow("t", first)
            for _ in range(5):
                await log.append_many("t", [_new(b"x")] * 7)
            for node in nodes:
                await self._delivered(node, first._replace(offset=36))
                assert node.offsets("t", first.epoch) == list(range(2, 37))

    async def test_keys_of_many(self) -> None:
        """An event whose key is known is not appended, also if it is known from the same call."""
        async with self._open() as (node, *_):
            log: Any = node.log
            if not _appends_many(log):
                return
            known = await log.append("t", b"known", key="known")
            keys = [None, "a", "known", "b", "a", None]
            records = [_new(b"%d" % number, key) for number, key in enumerate(keys)]
            positions = await log.append_many("t", records)
            assert [position.offset for position in positions] == [2, 3, known.offset, 4, 3, 5]
            again = await log.append_many("t", [_new(b"new", "c"), *records[1:5]])
            assert [position.offset for position in again] == [6, 3, known.offset, 4, 3]
            bodies = [record.body for record in await read_all(log, "t")]
            assert bodies == [b"known", b"0", b"1", b"3", b"5", b"new"]

    async def test_many_more_than_the_log_keeps(self) -> None:
        """The newest are kept. A key in the same call is known as long as its event is kept."""
        async with self._open(max_events=4) as (node, *_):
            log: Any = node.log
            if not _appends_many(log):
                return
            keys = ["a", "b", "c", "d", "e", "a", "e"]
            positions = await log.append_many("t", [_new(k.encode(), k) for k in keys])
            assert [position.offset for position in positions] == [1, 2, 3, 4, 5, 6, 5]
            bodies = [record.body for record in await read_all(log, "t")]
            assert bodies[-4:] == [b"c", b"d", b"e", b"a"]
            assert len(bodies) == 4 or not self.exact

    async def test_one_of_many_that_is_too_large(self) -> None:
        """Nothing is appended, and the topic is not created. Neither is it by no events."""
        async with self._open(max_bytes=1000) as (node, *_):
            log: Any = node.log
            if not _appends_many(log):
                return
            await log.follow_topics()
            assert await log.append_many("t", []) == []
            try:
                await log.append_many("t", [_new(b"x", "k"), _new(b"x" * 1001)])
            except EventTooLargeError:
                pass
            else:
                raise AssertionError("no EventTooLargeError")
            assert list(log.topics()) == []
            (position,) = await log.append_many("t", [_new(b"x" * 1000, "k")])
            assert position.offset == 1

    async def test_many_that_are_cancelled(self) -> None:
        """All have been appended or none, and the same call again appends them once."""
        async with self._open() as (node, *_):
            log: Any = node.log
            if not _appends_many(log):
                return
            for steps in range(20):
                records = [_new(b"%d" % n, f"{steps} {n}") for n in range(5)]
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(log.append_many, "t", records)
                    for _ in range(steps):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
                page = await log.read("t", None, 0)
                assert (0 if page.absent else page.last) in (5 * steps, 5 * steps + 5)
                positions = await log.append_many("t", records)
                offsets = [position.offset for position in positions]
                assert offsets == list(range(5 * steps + 1, 5 * steps + 6))

    # -- read ------------------------------------------------------------------------------------

    async def test_reading_after_an_offset(self) -> None:
        """A page has up to so many bytes of bodies, and at least one event."""
        async with self._open() as (node, *_):
            for number in range(10):
                await node.log.append("t", b"%d" % number * 10)

            async def read(after: int | None, max_bytes: int) -> list[int]:
                page = await node.log.read("t", after, max_bytes)
                assert (page.first, page.last) == (1, 10)
                assert {record.epoch for record in page.records} <= {page.epoch}
                return [record.offset for record in page.records]

            for after in range(10):
                assert await read(after, 0) == await read(after, 1) == [after + 1]
                assert await read(after, 2**60) == list(range(after + 1, 11))
            assert await read(2, 30) == await read(2, 39) == [3, 4, 5]
            assert await read(2, 29) == [3, 4]
            assert await read(None, 1000) == []
            for beyond in (10, 11, 1000, 10**15):
                assert await read(beyond, 1000) == []

    async def test_checks_are_those_of_the_events(self) -> None:
        """A page tells no other check of an event than its position has. It may tell none."""
        async with self._open(max_events=8) as nodes:
            positions = [await nodes[0].log.append("t", b"%d" % number) for number in range(20)]
            checks = {position.offset: position.check for position in positions} | {0: ""}
            for node in nodes:
                for after in (None, *range(22)):
                    page = await node.log.read("t", after, 2)
                    assert page.checks.items() <= checks.items()
                    assert page.end[:2] == positions[-1][:2]
                    for record in page.records:
                        assert record.position == positions[record.offset - 1]

    async def test_a_topic_that_was_not_there(self) -> None:
        """Reading creates it, and it keeps its epoch; or tells that it does not exist."""
        async with self._open() as nodes:
            node = nodes[0]
            page = await node.log.read("t", None, 0)
            assert (page.first, list(page.records), page.ended) == (page.last + 1, [], False)
            again = await node.log.read("t", 0, 100)
            assert again.epoch == page.epoch
            if page.absent:
                await self._a_topic_is_created(nodes, page, again)
                return
            assert (page.last, again.first, again.last) == (0, 1, 0)
            assert (await node.log.append("t", b"x")).epoch == page.epoch

    async def _a_topic_is_created(self, nodes: Sequence[Follower], page: Page, again: Page) -> None:
        """The first event comes after each moment in which the topic did not exist."""
        log = nodes[0].log
        assert page.last <= again.last
        moments = [page.end, again.end]
        if (moment := log.position("t")) is not None:
            assert moment.epoch == page.epoch
            assert moment.offset >= again.last
            moments.append(moment)
        others = {(await log.read(topic, None, 0)).epoch for topic in ("u", "v", "w")}
        assert len(others | {page.epoch}) == 4
        for node in nodes:
            assert (await node.log.read("t", None, 0)).epoch == page.epoch
            await node.log.follow_topics()
            assert list(node.log.topics() or ()) == node.created == []
            assert node.log.has_ended("t") in (None, False)
            node.follow("t", page.end)
        position = await log.append("t", b"1")
        assert (position.epoch != page.epoch, position.offset) == (True, 1)
        for node in nodes:
            await self._delivered(node, position)
            now = await node.log.read("t", 0, 1000)
            assert (now.epoch, now.absent) == (position.epoch, False)
            assert all(map(now.begins_after, moments))
            assert not now.begins_after(position._replace(offset=0))
            node.log.unfollow("t")
        last = await log.append("t", b"2")
        for node in nodes:  # it may be created before it is followed
            node.follow("t", page.end)
            await self._delivered(node, last)
            assert node.offsets("t", last.epoch) == [1, 2]

    async def test_subscribers_leave_nothing_behind(self) -> None:
        """Whoever reads and follows topics that do not exist creates none."""
        async with self._open() as (node, *_):
            log = node.log
            if not (await log.read("t", None, 0)).absent:
                return
            await log.follow_topics()
            for number in range(100):
                page = await log.read(f"{number}", 0, 1000)
                log.follow(f"{number}", page.end)
                log.position(f"{number}")
                log.unfollow(f"{number}")
            assert (await log.append("last", b"x")).offset == 1
            await self._until(lambda: node.created, "a topic was not said")
            assert node.created == list(log.topics() or ()) == ["last"]

    async def test_old_events_go(self) -> None:
        """Both limits hold. The rest has no hole, and begins where the page says."""
        for max_events, max_bytes in ((5, 2**20), (1000, 50)):
            async with self._open(max_events, max_bytes) as (node, *_):
                for number in range(1, 401):
                    await node.log.append("t", b"%010d" % number)
                page: Page = await node.log.read("t", 0, 10**6)
                assert page.last == 400
                offsets = [record.offset for record in page.records]
                assert offsets == list(range(page.first, 401))
                assert [int(record.body) for record in page.records] == offsets
                assert page.first == 396 or (not self.exact and 1 < page.first < 396)
                for after in (page.first - 2, page.first - 1):
                    (record,) = (await node.log.read("t", after, 1)).records
                    assert record.offset == page.first
                limits = node.log.limits
                assert (limits.max_events, limits.max_bytes) == (max_events, max_bytes)

    # -- follow ----------------------------------------------------------------------------------

    async def test_following(self) -> None:
        """Each log delivers all events after a position, once and in order."""
        for back in (0, 1, 3):
            async with self._open() as nodes:
                log = nodes[0].log
                newest = await log.append("t", b"1")
                for number in (2, 3):
                    newest = await log.append("t", b"%d" % number)
                for node in nodes:
                    await node.log.read("t", None, 0)
                    node.follow("t", newest._replace(offset=newest.offset - back))
                for number in range(4, 54):
                    await log.append("t", b"%d" % number)
                    await log.append("u", b"x")
                expected = list(range(4 - back, 54))
                for node in nodes:
                    await self._delivered(node, newest._replace(offset=53))
                    assert node.offsets("t", newest.epoch) == expected
                    assert all(
                        record.body == b"%d" % record.offset
                        for topic, record in node.delivered
                        if topic == "t"
                    )

    async def test_following_while_others_append(self) -> None:
        """Whenever following begins, no event after the position that was read is missing."""
        for steps in range(20):
            async with self._open() as nodes:
                first = await nodes[0].log.append("t", b"x")

                async def append(log: Log) -> None:
                    for _ in range(10):
                        await log.append("t", b"x")

                node = nodes[-1]
                page = await node.log.read("t", None, 0)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append, nodes[0].log)
                    for _ in range(steps):
                        await checkpoint()
                    page = await node.log.read("t", None, 0)
                    node.follow("t", first._replace(offset=page.last))
                if page.last < 11:
                    await self._delivered(node, first._replace(offset=11))
                offsets = node.offsets("t", first.epoch)
                assert offsets == list(range(page.last + 1, 12))

    async def test_following_no_longer(self) -> None:
        """A topic can be followed again, from an earlier position."""
        async with self._open() as nodes:
            log, node = nodes[0].log, nodes[-1]
            newest = await log.append("t", b"x")
            await node.log.read("t", None, 0)
            node.follow("t", newest)
            node.log.unfollow("t")
            node.log.unfollow("t")
            for _ in range(3):
                newest = await log.append("t", b"x")
            page = await node.log.read("t", None, 0)
            node.follow("t", newest._replace(offset=page.last - 2))
            await log.append("t", b"x")
            await self._delivered(node, newest._replace(offset=5))
            assert [r.offset for _, r in node.delivered] == [3, 4, 5]

    # -- topics ----------------------------------------------------------------------------------

    async def test_topics_are_said_when_they_are_new(self) -> None:
        """Each log tells of a new topic once, whether it was read before or not, and knows it."""
        async with self._open() as nodes:
            log = nodes[0].log
            for node in nodes:
                await node.log.follow_topics()
                assert list(node.log.topics() or ()) == []
            for _ in range(2):
                await log.append("appended", b"x")
                await log.read("read", None, 0)
                await log.append("read", b"x")
            await self._until(
                lambda: all(len(node.created) >= 2 for node in nodes), "a topic was not said"
            )
            for node in nodes:
                assert sorted(node.created) == ["appended", "read"]
                assert sorted(node.log.topics() or ()) == ["appended", "read"]

    async def test_the_position_that_is_known(self) -> None:
        """It is the newest one, or ``None``."""
        async with self._open() as (node, *_):
            for topic in ("t", "t", "u"):
                position = await node.log.append(topic, b"x")
                assert node.log.position(topic) in (None, position)

    async def test_a_log_belongs_to_one_hub(self) -> None:
        """A second hub is refused."""
        async with self._open() as (node, *_):
            try:
                Follower(node.log)
            except RuntimeError:
                return
            raise AssertionError("no RuntimeError")
