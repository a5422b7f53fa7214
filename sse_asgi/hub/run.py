"""A run: a source that is read into a topic, whoever listens."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio

from ..errors import HubClosedError, HubError, TopicEndedError, TopicRunningError
from ..runtime import current
from ..runtime.detached import DetachedTask
from .asking import answer_of
from .body import body_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from ..source import OpenSource
    from .log import Log
    from .positions import Position
    from .run_log import RunLog

    class Readable(RunLog, Log, Protocol):
        """A log whose topics can have a runner."""


__all__ = ["CLEANUP", "Run", "RunReason", "close_source"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: Why a run has ended: see :meth:`Hub.run`.
RunReason: TypeAlias = Literal["finished", "stopped", "failed", "interrupted"]

#: How long closing the source may take, in seconds.
CLEANUP = 5.0


class _ClosedError(Exception):
    """The hub was closed."""


class Run:
    """A source that is read into a topic: what :meth:`Hub.run` returns.

    It goes on whether anybody refers to this object or not.
    """

    __slots__ = (
        "_ended", "_ending", "_error", "_frames", "_log", "_number", "_on_end", "_reason",
        "_scope", "_source", "_task", "_wanted", "runner", "topic",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        runner: str,
        source: OpenSource,
        log: Readable,
        frames: Mapping[RunReason, bytes],
        on_end: Callable[[Run], object],
    ) -> None:
        #: The topic.
        self.topic: str = topic
        #: Stands for this run in the log.
        self.runner: str = runner
        self._source = source
        self._log = log
        self._frames = frames
        self._on_end = on_end
        self._number = 0
        self._error: Exception | None = None
        self._reason: RunReason | None = None
        # Why it is to end; None: that is to be looked up, or it is not to end.
        self._wanted: RunReason | None = None
        self._scope = anyio.CancelScope()
        self._ending = anyio.CancelScope(shield=True)
        self._ended = anyio.Event()
        self._task = DetachedTask(current(), self._run)

    def __repr__(self) -> str:
        return f"<Run {self.topic} {self._reason or 'goes on'}>"

    @property
    def reason(self) -> RunReason | None:
        """Why it has ended; ``None``: it goes on."""
        return self._reason

    def stop(self) -> None:
        """Close the source, and end the topic. It has ended when :meth:`wait` returns.

        Call it in the event loop of the hub.
        """
        self.end("stopped")

    async def wait(self) -> RunReason:
        """Wait until the source is closed and the topic has ended, and return why.

        Cancelling it does not stop the run.

        :raises Exception: the exception that the source has raised.
        """
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        assert self._reason is not None
        return self._reason

    # -- for the hub -----------------------------------------------------------------------------

    def end(self, reason: RunReason | None) -> None:
        """Close the source, and end the topic.

        :param reason: why; ``None``: the topic has ended, and its log knows why.
        """
        if not self._scope.cancel_called:
            self._wanted = reason
            self._scope.cancel()

    def give_up(self) -> None:
        """Do not try any longer to tell the log of the end."""
        self._ending.cancel()

    async def ended(self) -> None:
        """Wait until it has ended."""
        await self._ended.wait()

    # -- the task --------------------------------------------------------------------------------

    async def _run(self) -> None:
        reason: RunReason | None = "interrupted"  # if the event loop ends
        try:
            reason = await self._read()
        finally:
            try:
                with self._ending:
                    await close_source(self._source)
                    reason = await self._end_topic(reason)
            finally:
                self._reason = reason or "interrupted"
                self._on_end(self)
                self._ended.set()

    async def _read(self) -> RunReason | None:
        """Publish all events of the source, and return why that has ended.

        :returns: ``None``: the topic has ended, and its log knows why.
        """
        with self._scope:
            try:
                while True:
                    try:
                        event = await self._source.step()
                    except StopAsyncIteration:
                        return "finished"
                    if not await self._publish(body_of(event)):
                        return None
            except _ClosedError:
                return "interrupted"
            except Exception as exc:
                logger.exception("the source of a run has failed, in the topic %.80r", self.topic)
                self._error = exc
                return "failed"
        return self._wanted

    async def _publish(self, body: bytes) -> Position | bool | None:
        self._number += 1
        # The event is stored once, however often it is sent while the log can't be reached.
        key = f"{self.runner} {self._number}"
        try:
            return await answer_of(partial(self._append, body, key, final=False), lambda: False)
        except HubClosedError as exc:
            raise _ClosedError from exc

    async def _append(self, body: bytes, key: str, final: bool) -> Position | bool:
        """Append an event; return false if the topic does not have this runner any more."""
        try:
            return await self._log.append_of_run(
                self.topic, body, runner=self.runner, key=key, final=final
            )
        except (TopicEndedError, TopicRunningError):
            return False

    async def _end_topic(self, reason: RunReason | None) -> RunReason | None:
        """End the topic, unless it has ended, and return why it has.

        If the log can't be reached before the hub is closed, it ends the topic itself.
        """
        try:
            if reason is not None:
                # With a key, it knows its own end again if the answer to an attempt was lost.
                key = f"{self.runner} end"
                append = partial(self._append, self._frames[reason], key, final=True)
                if await answer_of(append, lambda: False):
                    return reason
            return await answer_of(self._look_up, lambda: False)
        except HubError:
            return reason

    async def _look_up(self) -> RunReason:
        """Return why the topic has ended: somebody else has ended it."""
        end = await self._log.read(self.topic, None, 0)
        page = await self._log.read(self.topic, end.last - 1, 0)
        bodies = [record.body for record in page.records]
        return "interrupted" if bodies[-1:] == [self._frames["interrupted"]] else "stopped"


async def close_source(source: OpenSource) -> None:
    """Close a source, and log what its cleanup raises."""
    with anyio.move_on_after(CLEANUP, shield=True) as scope:
        try:
            await source.aclose()
        except Exception:
            logger.exception("the source of a run raised while it was closed")
    if scope.cancelled_caught:
        logger.warning("the source of a run was not closed within %s s", CLEANUP)
