"""The contract of logs whose topics can have a runner."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from .positions import Position

__all__ = ["ANY_RUNNER", "RunLog"]

#: Stands for the runner of a topic, whichever it is.
ANY_RUNNER = "*"


class RunLog(Protocol):
    """What a log needs in addition so that a hub can run sources: see :meth:`Hub.run`.

    A topic has one runner at most, on all nodes together, and never another one. The topic ends
    with its run. If the runner does not renew its lease, the log ends the topic itself, with the
    last event that the runner has left there. So nobody who was taken for dead can append any more.

    :class:`sse_asgi.testing.LogContract` tests it if a log has it.
    """

    @property
    def lease(self) -> float:
        """For how many seconds a topic is the runner's, if it does not renew its lease.

        ``math.inf``: until its run has ended. Then :meth:`renew_runs` need not be called.
        """
        ...

    async def begin_run(self, topic: str, runner: str, last: bytes) -> None:
        """Make a runner that of a topic. If an attempt may have failed, it may be made again.

        :param topic: the topic; it need not exist.
        :param runner: any text that no other runner has, except ``"*"``.
        :param last: the frame of the final event, for the case that the runner does not renew its
            lease.
        :raises TopicEndedError: the topic has ended.
        :raises TopicRunningError: the topic has another runner.
        """
        ...

    async def append_of_run(
        self, topic: str, body: bytes, *, runner: str, key: str | None = None, final: bool = False
    ) -> Position:
        """Append an event as :meth:`Log.append` does, if the topic has that runner.

        ``body``, ``key`` and ``final`` are as there.

        :param topic: the topic.
        :param body: the frame of the event, without the id.
        :param key: as for :meth:`Log.append`.
        :param final: as for :meth:`Log.append`.
        :param runner: the runner; ``"*"``: the topic must have one, whichever it is.
        :raises TopicEndedError: the topic has ended.
        :raises TopicRunningError: the topic does not have that runner.
        """
        ...

    async def renew_runs(self, runners: Mapping[str, str]) -> Collection[str]:
        """Renew the leases of runners.

        :param runners: the runner of each topic.
        :returns: the topics that have ended, or do not have that runner any more.
        """
        ...
