"""A run: a source that is read into a topic, whoever listens."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from itertools import dropwhile
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from ..errors import HubClosedError, HubError, TopicEndedError, TopicRunningError
from ..runtime import current
from ..runtime.detached import DetachedTask
from ..source import YIELDS_IN_CLEANUP
from .asking import answer_of
from .body import body_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
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


#: The error of a source that was cancelled, and not because the run is to end.
_CANCELLED = (
    "the source was cancelled: it awaited a cancelled task, or a cancel scope, timeout or task "
    "group that it holds open around a yield was cancelled (PEP 789)"
)


class _ClosedError(Exception):
    """The hub was closed."""


class Run:
    """A source that is read into a topic: what :meth:`Hub.run` returns.

    It goes on whether anybody refers to this object or not.
    """

    __slots__ = (
        "_cleanup", "_ended", "_ending", "_error", "_frames", "_log", "_number", "_on_end",
        "_reason", "_runtime", "_scope", "_source", "_traceback", "_waits", "_wanted", "runner",
        "topic",
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
        self._waits = False
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._reason: RunReason | None = None
        # Why it is to end; None: that is to be looked up, or it is not to end.
        self._wanted: RunReason | None = None
        self._runtime = runtime = current()
        # From the outside in: what ends the run, and what bounds the cleanup of the source.
        self._scope = runtime.scope()
        self._cleanup = runtime.scope(within=self._scope)
        self._ending = anyio.CancelScope(shield=True)
        self._ended = anyio.Event()

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

        :raises BaseException: what the source has raised.
        """
        await self._ended.wait()
        if self._error is not None:
            # Each time with the same traceback: it would grow by each call.
            raise self._error.with_traceback(self._traceback)
        assert self._reason is not None
        return self._reason

    # -- for the hub -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the task. With an eager task factory, the source may have ended when it returns."""
        DetachedTask(self._runtime, self._run)

    def end(self, reason: RunReason | None) -> None:
        """Close the source, and end the topic.

        :param reason: why; ``None``: the topic has ended, and its log knows why.
        """
        if not self._scope.cancel_called:
            self._wanted = reason
            self._scope.cancel()

    @property
    def is_left(self) -> bool:
        """Whether it will never end, since its event loop was closed before."""
        return self._runtime.is_over()

    def give_up(self) -> None:
        """Do not try any longer to tell the log of the end."""
        self._ending.cancel()

    async def ended(self) -> None:
        """Wait until it has ended."""
        await self._ended.wait()

    # -- the task --------------------------------------------------------------------------------

    async def _run(self) -> None:
        reason: RunReason | None = "interrupted"
        try:
            reason = await self._read_and_close()
        except Exception:
            logger.exception("a run has failed, in the topic %.80r", self.topic)
        finally:
            try:
                with self._ending:
                    reason = await self._end_topic(reason)
            finally:
                self._reason = reason or "interrupted"
                self._on_end(self)
                self._ended.set()

    async def _read_and_close(self) -> RunReason | None:
        """Read the source, close it, and return why the run has ended.

        No scope is opened after the source was entered: it may have scopes of its own open around a
        yield, and scopes must be left in order.

        :returns: ``None``: the topic has ended, and its log knows why.
        """
        reason: RunReason | None = None
        error: BaseException | None = None
        with self._scope, self._cleanup:
            try:
                reason = await self._read()
            except GeneratorExit:  # the event loop was closed: nothing can be awaited
                raise
            except BaseException as exc:
                error = exc
            self._cleanup.shield = True
            self._cleanup.deadline = self._runtime.clock() + CLEANUP
            in_cleanup = await self._close()
            cancels_task = self._runtime.cancel_requests(self._runtime.task()) > 0
            is_over = cancels_task or self._is_cancelled()
        try:
            if error is None:
                return reason
            is_cancelled = self._runtime.is_cancellation(error)
            if self._scope.cancel_called:
                if not is_cancelled:
                    _log_cleanup(error)
                return self._wanted
            if is_cancelled:
                if is_over:  # the event loop ends
                    return "interrupted"
                if in_cleanup is None:
                    in_cleanup = RuntimeError(_CANCELLED)
                    in_cleanup.__cause__ = error
                error = in_cleanup
            logger.error(
                "the source of a run has failed, in the topic %.80r", self.topic, exc_info=error
            )
            self._error, self._traceback = error, error.__traceback__
            return "failed"
        finally:
            del error, in_cleanup  # their tracebacks have this frame: no cycle

    def _is_cancelled(self) -> bool:
        """Return whether something around the run is cancelled."""
        scopes = iter(self._runtime.scopes(self._runtime.task()))
        around = dropwhile(lambda scope: scope is not self._scope, scopes)
        return any(scope.cancel_called for scope in around)

    async def _close(self) -> BaseException | None:
        """Close the source. Log what its cleanup raises, and return it."""
        raised: BaseException | None = None
        try:
            try:
                await self._source.aclose()
            except RuntimeError as exc:
                if "ignored GeneratorExit" not in str(exc):
                    raise
                logger.warning("the source of a run yielded while it was closed; that is not sent")
                await self._finish_cleanup()
        except GeneratorExit:
            raise
        except BaseException as exc:
            raised = exc
            if isinstance(exc, BaseExceptionGroup):
                # A task group open around the yield: it wraps the GeneratorExit that closes it.
                raised = exc.split(GeneratorExit)[1]
            # It may have cancelled a task of its own, and waited for that.
            if raised is not None and self._runtime.is_cancellation(raised):
                raised = None
        if raised is not None:
            _log_cleanup(raised)
        if self._cleanup.cancel_called:
            logger.warning("the source of a run was not closed within %s s", CLEANUP)
        return raised

    async def _finish_cleanup(self) -> None:
        """Let a generator that has yielded in its cleanup come to the end of that."""
        with suppress(StopAsyncIteration, GeneratorExit):
            for _ in range(YIELDS_IN_CLEANUP):
                await self._source.step()  # it can't be closed a second time
                await checkpoint()

    async def _read(self) -> RunReason | None:
        """Publish all events of the source, and return why that has ended.

        :returns: ``None``: the topic has ended, and its log knows why.
        """
        while not self._scope.cancel_called:  # it may be stopped before the first step
            try:
                event = await self._source.step()
            except StopAsyncIteration:
                return "finished"
            try:
                if not await self._publish(body_of(event)):
                    return None
            except _ClosedError:
                return "interrupted"
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
        except HubClosedError:
            raise
        except HubError as exc:
            if not self._waits:
                logger.warning("a run waits for its log, in the topic %.80r: %s", self.topic, exc)
            self._waits = True
            raise

    async def _end_topic(self, reason: RunReason | None) -> RunReason | None:
        """End the topic, unless it has ended, and return why it has.

        If the log can't be reached before the hub is closed, it ends the topic itself.
        """
        try:
            if reason is not None:
                # With a key: if it was stored and the answer is lost, that is no other end.
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
        if not end.ended:
            return await self._end_again()
        page = await self._log.read(self.topic, end.last - 1, 0)
        bodies = [record.body for record in page.records]
        return "interrupted" if bodies[-1:] == [self._frames["interrupted"]] else "stopped"

    async def _end_again(self) -> RunReason:
        """End a topic of which the log has forgotten that it has this run, as after a restart.

        Nobody else would, and its subscribers would wait for ever.
        """
        frame = self._frames["interrupted"]
        with suppress(TopicEndedError, TopicRunningError):  # by somebody else, meanwhile
            await self._log.begin_run(self.topic, self.runner, frame)
            await self._append(frame, f"{self.runner} end", final=True)
        return "interrupted"


async def close_source(source: OpenSource) -> None:
    """Close a source that was not read, and log what its cleanup raises."""
    with anyio.move_on_after(CLEANUP, shield=True) as scope:
        try:
            await source.aclose()
        except Exception as exc:
            _log_cleanup(exc)
    if scope.cancelled_caught:
        logger.warning("the source of a run was not closed within %s s", CLEANUP)


def _log_cleanup(error: BaseException) -> None:
    logger.error("the source of a run raised while it was closed", exc_info=error)
