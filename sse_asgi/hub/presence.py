"""Which infos are present on this node, and what it tells the other nodes."""

from __future__ import annotations

import json
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from .infos import info_of, info_text, matches
from .names import matcher
from .presence_events import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from weakref import ReferenceType

    from ..runtime.base import Cancel
    from .affinity import Affinity
    from .presence_log import PresenceLog

    #: Closes the subscriptions for which a function returns true, with a last event.
    Close = Callable[[Callable[[Any], object], bytes | None], object]


__all__ = ["Member", "Presence", "infos_of", "is_meant"]


class Member(Protocol):
    """What presence needs from a subscription."""

    @property
    def reference(self) -> ReferenceType[Any]:
        """A weak reference to it, always the same."""
        ...

    @property
    def topics(self) -> Sequence[str]:
        """The topics that it subscribes to, without patterns."""
        ...

    @property
    def patterns(self) -> Sequence[str]:
        """The patterns that it subscribes to."""
        ...

    @property
    def info(self) -> Any:
        """What the application has passed as ``info``."""
        ...


def text_of(subscription: Member) -> str | None:
    """Return the text of the info of a subscription; ``None``: it has none, or one without."""
    try:
        return info_text(subscription.info)
    except (TypeError, ValueError):
        return None


def infos_of(subscriptions: Iterable[Member]) -> list[Any]:
    """Return the infos of some subscriptions that can be JSON, each once."""
    texts = dict.fromkeys(map(text_of, subscriptions))
    return [info_of(text) for text in texts if text is not None]


def is_meant(
    topic: str | None,
    info: str | None,
    subscription: Member,
    text_of: Callable[[Member], str | None] = text_of,
) -> bool:
    """Return whether :meth:`Hub.disconnect` closes a subscription.

    :param info: the text of the info that it is to match.
    :param text_of: returns the text of the info of a subscription.
    """
    if info is not None and not matches(text_of(subscription), info):
        return False
    return (
        topic is None
        or topic in subscription.topics
        or any(matcher(pattern)(topic) for pattern in subscription.patterns)
    )


class Presence:
    """The infos of the subscriptions of this node.

    An info is present in a topic as long as a subscription has it, and for a moment longer: when a
    page is loaded again, its new stream comes after the old one has ended.

    :param grace: how long that moment is, in seconds.
    :param close: closes subscriptions of this node.
    """

    def __init__(self, log: PresenceLog, affinity: Affinity, grace: float, close: Close) -> None:
        self._log = log
        self._affinity = affinity
        self._grace = grace
        self._close = close
        self.watches: Watches = Watches(log, affinity)
        # The texts of infos: of subscriptions that are not in a topic yet, and of those that are.
        self._made: WeakKeyDictionary[Member, str] = WeakKeyDictionary()
        self._begun: dict[ReferenceType[Any], str] = {}
        # How many subscriptions have an info in a topic. If it is 0, the info is about to go.
        self._present: dict[str, dict[str, int]] = {}
        # Those that are about to go, and when: the next one first.
        self._going: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._timer: Cancel | None = None
        log.attach(self.watches.changed, self.watches.found, self._receive)

    # -- for the registry ------------------------------------------------------------------------

    def add(self, subscription: Member, text: str | None) -> None:
        """Add a subscription, which has not begun, with the text of its info."""
        if text is not None:
            self._made[subscription] = text

    def enter(self, topic: str, subscription: Member, count: int) -> None:
        """Note that a subscription has entered a topic, which now has so many of them here."""
        self._log.set_subscribers(topic, count)
        reference = subscription.reference
        if (made := self._made.pop(subscription, None)) is not None:
            self._begun[reference] = made
        if (text := self._begun.get(reference)) is None:
            return
        infos = self._present.setdefault(topic, {})
        if text not in infos:
            self._log.set_present(topic, text, True)
        infos[text] = infos.get(text, 0) + 1
        self._going.pop((topic, text), None)

    def leave(self, topic: str, reference: ReferenceType[Any], count: int) -> None:
        """Note that a subscription has left a topic, which now has so many of them here."""
        self._log.set_subscribers(topic, count)
        if (text := self._begun.get(reference)) is None:
            return
        infos = self._present[topic]
        infos[text] -= 1
        if not infos[text]:
            self._going[topic, text] = self._affinity.clock() + self._grace
            if not self._grace:
                self._let_go()
            elif self._timer is None and not self._affinity.closed:
                self._wait(self._grace)

    def forget(self, reference: ReferenceType[Any]) -> None:
        """Forget a subscription that has left all its topics."""
        self._begun.pop(reference, None)

    def clear(self) -> None:
        """Forget everything: the event loop has ended in which it was."""
        self._timer = None
        for topic, infos in self._present.items():
            self._log.set_subscribers(topic, 0)
            for text in infos:
                self._log.set_present(topic, text, False)
        self._begun.clear()
        self._present.clear()
        self._going.clear()
        self.watches.close()

    # -- those who go ----------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        assert self._affinity.runtime is not None
        self._timer = self._affinity.runtime.after(seconds, self._let_go)

    def _let_go(self) -> None:
        """Let those go whose moment is over."""
        self._timer = None
        now = self._affinity.clock()
        while self._going:
            (topic, text), due = next(iter(self._going.items()))
            if due > now:
                self._wait(due - now)
                return
            del self._going[topic, text]
            del self._present[topic][text]
            if not self._present[topic]:
                del self._present[topic]
            self._log.set_present(topic, text, False)

    def close(self) -> None:
        """End the streams of presence, and stop the clock: the hub is closed."""
        self.watches.close()
        if self._timer is not None:
            self._timer()
        if self._affinity.open:  # `end` follows
            self._timer = None
        else:
            self.clear()

    async def end(self) -> None:
        """Tell the other nodes that this one ends. Its clients may come back to another one."""
        try:
            await self._log.leave(self._grace)
        finally:
            self.clear()

    # -- for the hub -----------------------------------------------------------------------------

    async def infos(self, topic: str) -> list[Any]:
        """Return the infos that are present in a topic, on all nodes."""
        return [info_of(text) for text in await self._log.infos(topic)]

    async def count(self, topic: str) -> int:
        """Return how many subscribers a topic has, on all nodes."""
        return await self._log.subscribers(topic)

    async def disconnect(self, topic: str | None, info: str | None, last: bytes | None) -> None:
        """Tell all nodes to close subscriptions.

        :param info: the text of the info that they are to match.
        """
        message = {
            "topic": topic,
            "info": info,
            "last": None if last is None else last.decode("latin-1"),  # any bytes
        }
        await self._log.broadcast(json.dumps(message))

    def _receive(self, text: str) -> None:
        """Close the subscriptions that a message is about."""
        message = json.loads(text)
        topic, info, last = message["topic"], message["info"], message["last"]
        meant = partial(is_meant, topic, info, text_of=self._text)
        self._close(meant, None if last is None else last.encode("latin-1"))

    def _text(self, subscription: Member) -> str | None:
        text = self._begun.get(subscription.reference)
        return self._made.get(subscription) if text is None else text
