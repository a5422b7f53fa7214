"""Presence in memory against a model, on a clock that does not tick by itself."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi.hub import Hub, Subscription

GRACE = 2.0

INFOS = [None, "a", {"b": 1}, {"b": 1, "c": [2]}]
TOPICS = ["x/1", "x/2", "y"]

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("come"),
            st.sampled_from([["x/1"], ["x/2"], ["x/1", "y"], ["x/*"], ["y", "x/*"]]),
            st.sampled_from(INFOS),
        ),
        st.tuples(st.just("go"), st.integers(0, 9), st.none()),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 1.75, 3.0]), st.none()),
        st.tuples(
            st.just("disconnect"),
            st.sampled_from([None, *TOPICS]),
            st.sampled_from([None, "a", {"b": 1}, {}]),
        ),
    ),
    max_size=40,
)


class Model:
    """Who is there, and since when somebody is not."""

    def __init__(self) -> None:
        self.there: list[tuple[Subscription, list[str], Any]] = []
        self.gone: dict[tuple[str, str], float] = {}

    def topics(self, names: list[str]) -> set[str]:
        found = {topic for topic in TOPICS if topic in names}
        return found | {topic for topic in TOPICS if "x/*" in names and topic.startswith("x/")}

    def count(self, topic: str) -> int:
        return sum(topic in self.topics(names) for _, names, _ in self.there)

    def have(self, topic: str) -> set[str]:
        return {
            json.dumps(info)
            for _, names, info in self.there
            if topic in self.topics(names) and info is not None
        }

    def present(self, topic: str) -> set[str]:
        now = trio.current_time()
        return self.have(topic) | {
            info for (of, info), since in self.gone.items() if of == topic and now < since + GRACE
        }

    def leave(self, chosen: list[tuple[Subscription, list[str], Any]]) -> None:
        before = {topic: self.have(topic) for topic in TOPICS}
        self.there = [each for each in self.there if each not in chosen]
        for topic in TOPICS:
            for info in before[topic] - self.have(topic):
                self.gone[topic, info] = trio.current_time()

    def matches(self, names: list[str], own: Any, topic: str | None, info: Any) -> bool:
        if topic is not None and topic not in self.topics(names):
            return False
        if info is None:
            return True
        if isinstance(info, dict) and isinstance(own, dict):
            return info.items() <= own.items()
        return bool(own == info)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps)
def test_presence_is_what_the_model_says(program: list[Any]) -> None:
    async def main() -> None:
        hub, model = Hub(presence=True, presence_grace=GRACE), Model()
        for topic in TOPICS:
            await hub.publish(topic, "x")
        told: dict[str, list[tuple[str, str]]] = {topic: [] for topic in TOPICS}

        async def read(topic: str) -> None:
            async for event in hub.presence_events(topic):
                assert event.event is not None
                if event.event != "presence":
                    told[topic].append((event.event, event.data or ""))

        async def check() -> None:
            await trio.testing.wait_all_tasks_blocked()
            for topic in TOPICS:
                assert set(map(json.dumps, await hub.presence(topic))) == model.present(topic)
                assert await hub.count(topic) == hub.subscribers(topic) == model.count(topic)
                there: set[str] = set()
                for kind, info in told[topic]:
                    assert (info in there) == (kind == "leave")
                    (there.add if kind == "join" else there.remove)(info)
                assert {json.dumps(json.loads(info)) for info in there} == model.present(topic)

        async with trio.open_nursery() as nursery:
            for topic in TOPICS:
                nursery.start_soon(read, topic)
            await trio.testing.wait_all_tasks_blocked()
            for what, one, other in program:
                if what == "come":
                    plain = [name for name in one if "*" not in name]
                    subscription = hub.subscribe(
                        *plain,
                        patterns=[name for name in one if "*" in name],
                        last_event_id="strange",
                        info=other,
                    )
                    await anext(subscription)
                    model.there.append((subscription, one, other))
                elif what == "go" and one < len(model.there):
                    each = model.there[one]
                    model.leave([each])
                    each[0].close()
                elif what == "wait":
                    await trio.sleep(one)
                elif what == "disconnect":
                    await hub.disconnect(one, other)
                    model.leave([e for e in model.there if model.matches(e[1], e[2], one, other)])
                await check()
            model.leave(model.there)
            await hub.disconnect()
            await trio.sleep(GRACE)
            await check()
            assert not any(model.present(topic) for topic in TOPICS)
            assert all(
                Counter(kind for kind, _ in events)["join"]
                == Counter(kind for kind, _ in events)["leave"]
                for events in told.values()
            )
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
