"""What a hub asks and tells all nodes: who is there, how many, and who has to go."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from ..encoder import encode
from .infos import info_text
from .memory import MemoryLog
from .names import check_topic
from .places import HubPlaces
from .presence import Presence, infos_of, is_meant
from .presence_events import PresenceEvents

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..types import EventLike, Source
    from .affinity import Affinity
    from .log import Log
    from .registry import Registry
    from .run import Run
    from .runs import Runs
    from .subscription import Subscription

__all__ = ["AllNodes"]

#: For how many seconds a hub that is closed tries to tell the other nodes.
FAREWELL = 1.0


class AllNodes:
    """The methods of a hub that reach all nodes: the hubs of all processes that share a log."""

    _affinity: Affinity
    _registry: Registry[Subscription]
    _presence: Presence | None
    _runs: Runs
    _is_alone: bool

    def kick(
        self, predicate: Callable[[Subscription], object], *, last: EventLike | None = None
    ) -> int:
        """See :meth:`Hub.kick`."""
        raise NotImplementedError

    def _keep_presence(self, log: Log, keep: object, grace: object) -> None:
        """Keep presence, if that is asked for.

        :raises TypeError: a parameter has a wrong type; the log can't keep presence.
        :raises ValueError: the grace is out of range.
        """
        if not isinstance(keep, bool):
            raise TypeError(f"presence must be a bool, not {keep!r:.80}")
        if not isinstance(grace, (int, float)) or isinstance(grace, bool):
            raise TypeError(f"presence_grace must be a number of seconds, not {grace!r:.80}")
        if not 0 <= grace < math.inf:
            raise ValueError(f"presence_grace must be a number of seconds >= 0, not {grace!r}")
        self._presence = None
        # Then what is asked of all nodes can be answered without presence.
        self._is_alone = isinstance(log, MemoryLog)
        if keep:
            kept_by = getattr(log, "presence", None)
            if kept_by is None:
                raise TypeError(f"this log can't keep presence: {log!r:.80}")
            self._presence = Presence(kept_by, self._affinity, grace, self._close)

    def _close(self, is_meant: Callable[[Any], object], last: bytes | None) -> None:
        self.kick(is_meant, last=last)

    def _sse_asgi_places(self) -> HubPlaces | None:
        """Return the places that all nodes share, for a limit; ``None``: there is one node.

        :raises TypeError: the log can't count for all nodes.
        """
        if self._is_alone:
            return None
        places = getattr(self._registry.log, "places", None)
        if places is None:
            raise TypeError(f"this log can't count for all nodes: {self._registry.log!r:.80}")
        return HubPlaces(places, self._affinity)

    async def _alone(self) -> bool:
        """Return whether this is the only node, and the hub keeps no presence."""
        if self._presence is not None or not self._is_alone:
            return False
        self._affinity.use()
        await checkpoint()
        return True

    def _together(self) -> Presence:
        """Return the presence, and bind the hub to the running event loop."""
        if self._presence is None:
            raise RuntimeError("the hub does not keep presence: Hub(..., presence=True)")
        self._affinity.use()
        return self._presence

    async def _farewell(self) -> None:
        """Tell the other nodes that this one ends."""
        await self._runs.end(FAREWELL)
        if self._presence is not None:
            with anyio.move_on_after(FAREWELL, shield=True):
                await self._presence.end()

    async def run(self, topic: str, source: Source) -> Run:
        """Read a source into a topic, whoever listens, and return the run.

        ::

            run = await hub.run(f"answer:{number}", answer(question))

        The source has a task of its own, with the context variables of the caller. Subscribers of
        the topic get its events, also those who come late or come back. The topic ends with the
        run: its last event has the name of ``end_event`` and the data ``{"reason": reason}``. The
        reason is one of these:

        - ``"finished"``: the source has ended.
        - ``"stopped"``: by :meth:`stop` or :meth:`Run.stop`.
        - ``"failed"``: the source has raised an exception, or an event can't be published. The
          exception is logged, and :meth:`Run.wait` raises it.
        - ``"interrupted"``: the hub was closed, its process has died, or the log has lost
          the topic.

        A topic has one run, on all nodes together. If the process dies, or can't reach the log for
        15 seconds while other nodes can, one of them ends the topic: within 20 seconds, if it has
        subscribers there, and has been connected for so long. While no node can reach the log, the
        run waits.

        :param topic: the topic. It may have events already.
        :param source: an async iterable of event-likes without ids, such as an async generator. A
            sync one is read in a thread. The hub closes it, also if it can't be run.
        :raises TypeError: the source is not an iterable of events; the topic is not a ``str``.
        :raises ValueError: the value can't be a topic.
        :raises TopicRunningError: the topic has a run.
        :raises TopicEndedError: the topic has ended.
        :raises RuntimeError: the log can't tell who runs a topic.
        :raises HubClosedError: the hub is closed.
        :raises HubError: the log can't be reached.
        """
        return await self._runs.begin(topic, source)

    async def stop(self, topic: str) -> bool:
        """Stop the run of a topic, on whatever node it is, and return whether there was one.

        When this returns, the topic has ended. The source is closed when its next event comes, and
        within 3 seconds if none comes; at once if it runs in this process.

        :raises Exception: as :meth:`run`, except for :class:`~sse_asgi.TopicRunningError` and
            :class:`~sse_asgi.TopicEndedError`.
        """
        check_topic(topic)
        return await self._runs.stop(topic)

    async def presence(self, topic: str) -> list[Any]:
        """Return who is present in a topic, on all nodes: the infos of its subscriptions.

        Each info is there once, as what :func:`json.loads` makes of its JSON, in no particular
        order. Infos are equal if their JSON is, whatever the order of keys. Subscriptions without
        an info are not there. Those with a pattern are present in all topics of the log that match
        it.

        An info is present from the first step of its first subscription until ``presence_grace``
        seconds after the last one is closed. Other nodes know within a second. The infos of a node
        that has died are gone within 15 seconds. A hub in memory that keeps no presence tells the
        infos of the moment that can be JSON.

        :param topic: the topic; a pattern is refused.
        :raises TypeError: the topic is not a ``str``.
        :raises ValueError: the value can't be a topic.
        :raises RuntimeError: the hub has a log that other nodes share, and was made without
            ``presence=True``.
        :raises HubClosedError: the hub is closed.
        :raises HubError: the log can't be reached.
        """
        check_topic(topic)
        if await self._alone():
            return infos_of(self._registry.subscriptions_of(topic))
        return await self._together().infos(topic)

    async def count(self, topic: str) -> int:
        """Return how many subscribers a topic has, on all nodes, with an info or without.

        It is the sum of :meth:`subscribers` of all nodes. Other nodes know of a change within a
        second. The subscribers of a node that has died no longer count after 15 seconds at most.

        :param topic: the topic; a pattern is refused.
        :raises Exception: as :meth:`presence`.
        """
        check_topic(topic)
        if await self._alone():
            return self._registry.subscribers(topic)
        return await self._together().count(topic)

    def presence_events(self, topic: str) -> PresenceEvents:
        """Return an async iterator of those who come and go, for a factory to return.

        Its events have JSON as data. The first is ``presence``, with a list of all infos that are
        present. Then there is one ``join`` for each info that comes, and one ``leave`` for each one
        that goes, on whatever node: see :meth:`presence` for when. Whoever reads so slowly that
        changes are missing gets ``presence`` again, with a new list. The events have no ids: a
        client that reconnects begins with ``presence``.

        :param topic: the topic; a pattern is refused.
        :raises RuntimeError: the hub was made without ``presence=True``.
        :raises Exception: as :meth:`presence`, except for :class:`~sse_asgi.HubError`: the iterator
            waits until the log can be reached.
        """
        check_topic(topic)
        return PresenceEvents(self._together().watches, topic)

    async def disconnect(
        self, topic: str | None = None, info: Any = None, last: EventLike | None = None
    ) -> None:
        """Close subscriptions on all nodes, and so end their streams.

        It returns when all nodes are told, and this node has closed its own. The others close
        theirs within a second. A client reconnects, unless the factory tells it not to, for example
        by ``HTTPError(204)``.

        :param topic: close subscriptions to this topic, also those with a pattern that it matches.
            ``None``: of all topics.
        :param info: close subscriptions whose info matches this value. A ``dict`` matches an info
            that has all its fields, with equal values; other values match if they are equal.
            ``None``: with any info, or without.
        :param last: an event to be sent before the end, to say why.
        :raises TypeError: the topic is not a ``str``, the info can't be JSON, or ``last`` is not an
            event-like.
        :raises ValueError: the value can't be a topic, the info can't be JSON, or ``last`` can't be
            encoded.
        :raises RuntimeError: the hub has a log that other nodes share, and was made without
            ``presence=True``.
        :raises HubClosedError: the hub is closed.
        :raises HubError: the log can't be reached. Some nodes may have been told.
        """
        if topic is not None:
            check_topic(topic)
        wanted = info_text(info)
        frame = None if last is None else encode(last)
        if await self._alone():
            self._close(partial(is_meant, topic, wanted), frame)
        else:
            await self._together().disconnect(topic, wanted, frame)
