"""The contract of presence: what a hub with presence needs from its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

__all__ = ["Changed", "Found", "PresenceLog", "Received"]


#: Called with a topic, an info, and whether it has come (or has gone).
Changed: TypeAlias = Callable[[str, str, bool], None]

#: Called with a topic, all infos that are present, and whether the log knows them all. If it has
#: lost some, and waits for the nodes to say them again, it does not.
Found: TypeAlias = Callable[[str, Sequence[str], bool], None]

#: Called with a message that a node has broadcast.
Received: TypeAlias = Callable[[str], None]


class PresenceLog(Protocol):
    """The contract of presence. A log has it as its attribute ``presence``.

    Each process that has a hub is a node. The nodes on one log know of each other: how many
    subscribers each has, and which infos are present there. A node that dies is forgotten after a
    bounded time. Infos are JSON texts, in ASCII. Equal infos have the same text.

    The hub calls all methods in one event loop. Coroutine functions may be cancelled at any time.
    If the log can't be reached, they raise :class:`~sse_asgi.hub.HubError` after a bounded time.
    The other methods only note what the log then says to the other nodes, within a second, or when
    it can be reached again. What is taken back at once need not be said.

    If :meth:`Log.run` is cancelled, everything that was noted is forgotten.

    :class:`sse_asgi.testing.LogContract` tests all of this.
    """

    def attach(self, changed: Changed, found: Found, received: Received) -> None:
        """Register the functions that tell the hub what happens. They do not raise.

        It is called once, before anything else. A hub without presence does not call it.

        :param changed: to be called when an info has come to a topic that is followed, or has gone:
            when the first node has it, and when the last one no longer has it.
        :param found: to be called with all infos of a topic soon after it is followed, and again if
            changes may have been missed.
        :param received: to be called with each message that a node broadcasts, also this one.
        """
        ...

    def set_subscribers(self, topic: str, count: int) -> None:
        """Note the count of subscribers that a topic has on this node.

        :param topic: the topic.
        :param count: the number of its subscribers on this node.
        """
        ...

    def set_present(self, topic: str, info: str, present: bool) -> None:
        """Note that an info is present in a topic on this node, or is no longer.

        :param topic: the topic.
        :param info: the info, as JSON.
        :param present: whether it is present, or is no longer.
        """
        ...

    async def infos(self, topic: str) -> Sequence[str]:
        """Return the infos that are present in a topic on all nodes, each once.

        It has all that this node has noted.

        :param topic: the topic.
        """
        ...

    async def subscribers(self, topic: str) -> int:
        """Return how many subscribers a topic has on all nodes.

        It has all that this node has noted.

        :param topic: the topic.
        """
        ...

    def follow(self, topic: str) -> None:
        """Call ``found``, and from now on ``changed``, for a topic.

        :param topic: the topic.
        """
        ...

    def unfollow(self, topic: str) -> None:
        """Stop following a topic.

        :param topic: a topic that is followed.
        """
        ...

    async def broadcast(self, message: str) -> None:
        """Send a message to all nodes. Each gets it within a second, once.

        :param message: any text.
        """
        ...

    async def leave(self, seconds: float) -> None:
        """Say that this node ends: its infos are gone in so many seconds, its subscribers now.

        An error does not matter: then the node is forgotten as one that has died.

        :param seconds: after this time the infos of this node are gone.
        """
        ...
