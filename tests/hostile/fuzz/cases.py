"""Cases: plain data, made from a seed, that can be printed, stored, and made smaller."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = ["MODES", "Case", "Step", "make", "smaller", "walk"]

#: What a source does, one after the other. A step is a list: its name, and what it takes. What has
#: steps of its own has them at the end.
Step = list[Any]

#: How the application runs: in a bare task of asyncio, as servers do; in a task group of anyio's;
#: on trio. ("eager" is a bare task, too, with asyncio.eager_task_factory.)
MODES = ("bare", "group", "trio", "eager")

#: Waits, in seconds of a clock that jumps.
WAITS = (0, 0.001, 0.02, 0.1, 0.3, 1, 3)
SIZES = (1, 1, 10, 10, 100, 1000, 5000, 70_000, 1 << 20)


@dataclass(frozen=True)
class Case:
    """One stream: its source, its client, and all that happens to it."""

    seed: int = 0
    mode: str = "bare"
    #: "at once": like uvicorn's; "write first": takes all, then waits for the client; "wait first".
    server: str = "wait first"
    #: Whether `send` raises OSError when the client has left; else it returns silently.
    send_raises: bool = False
    #: Whether a `send` that waits goes on waiting when the client leaves.
    send_hangs: bool = False
    #: How many bytes a server takes before `send` waits.
    buffer: int = 65536
    entry: str = "sse_app"  # or "starlette"
    middleware: str = ""  # "base": BaseHTTPMiddleware; "replay", "replay more": see driver.py
    #: Cancel scopes around the application: "", "scope", or seconds until it is cancelled.
    around: float | None = None
    kind: str = "async"  # "sync", "iterator", "bare iterator", "list", "hub", "feed"
    #: What the factory awaits before it returns the source, in seconds; None: it awaits nothing.
    factory_waits: float | None = None
    factory_raises: str = ""
    steps: list[Step] = field(default_factory=list)
    #: What the feed of an EventSourceResponse does, and what publishes to a hub.
    feed: list[Step] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    on_close: str = ""  # "sync", "wait <s>", "raise"
    on_error: str = ""  # "event", "none", "raise", "wait <s>"
    #: What happens when: (time, what, argument).
    #: Of the client: "pause", "slow" (bytes a second), "read", "leave".
    #: Of the host: "drain" (grace or None), "cancel", "cancel scope".
    happens: list[list[Any]] = field(default_factory=list)
    #: The same, when so many bytes of the body have arrived.
    happens_at_byte: list[list[Any]] = field(default_factory=list)
    #: On real servers: whether the client sends a second request behind the first, and whether it
    #: says that it comes from the address of another client.
    pipelined: bool = False
    forged: bool = False
    #: When the client leaves in any case.
    last_call: float = 12.0

    def __str__(self) -> str:
        plain = Case()
        changed = {k: v for k, v in asdict(self).items() if v != getattr(plain, k)}
        return json.dumps(changed)

    @classmethod
    def parse(cls, text: str) -> Case:
        """Return the case that was printed."""
        return cls(**json.loads(text))


def make(seed: int, modes: tuple[str, ...] = MODES[:3]) -> Case:
    """Make a case. The same seed gives the same case."""
    rng = random.Random(seed)
    maker = _Maker(rng)
    mode = rng.choice(modes)
    kind = maker.pick({"async": 60, "sync": 4, "iterator": 8, "bare iterator": 4, "list": 3,
                       "hub": 8, "feed": 9})  # fmt: skip
    entry = "starlette" if kind == "feed" or rng.random() < 0.25 else "sse_app"
    server = rng.choice(("at once", "at once", "wait first", "write first"))
    if mode == "trio" and server == "at once":
        server = "wait first"
    middleware = maker.pick({"": 80, "base": 6, "replay": 5, "replay more": 1})
    has_data = kind in ("hub", "feed")
    options = maker.options(entry)
    if kind in ("sync", "list") and 0 < options["ping"] < 0.5:
        options["ping"] = 0.5  # the clock waits for threads, each time before it jumps
    return Case(
        seed=seed,
        mode=mode,
        server=server,
        send_raises=server != "at once" and rng.random() < 0.4,
        send_hangs=server == "wait first" and middleware != "base" and rng.random() < 0.2,
        buffer=rng.choice((0, 1000, 65536, 65536)),
        entry=entry,
        middleware=middleware,
        around=rng.choice((-1, 0.01, 0.25, 1.5)) if rng.random() < 0.12 else None,
        kind=kind,
        factory_waits=rng.choice(WAITS[:5]) if rng.random() < 0.12 else None,
        factory_raises=rng.choice(("HTTPError", "Boom")) if rng.random() < 0.02 else "",
        steps=[] if has_data else maker.steps(kind),
        feed=maker.feed() if has_data else [],
        options=options,
        last_call=4.0 if kind in ("sync", "list") else Case.last_call,
        on_close=maker.pick(
            {"sync": 60, "wait 0.1": 15, "wait 0": 5, "wait 30": 5, "raise": 5, "": 10}
        ),
        on_error=maker.pick({"": 70, "event": 10, "none": 5, "raise": 5, "wait 0.1": 10}),
        happens=maker.happens(),
        happens_at_byte=maker.happens_at_byte(),
    )


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, weights: dict[str, int]) -> str:
        return self._rng.choices(list(weights), list(weights.values()))[0]

    def options(self, entry: str) -> dict[str, Any]:
        rng, options = self._rng, dict[str, Any]()
        options["ping"] = rng.choice((0, 0.03, 0.5, 15))
        options["send_timeout"] = rng.choice((None, 0.2, 1, 30))
        options["cleanup_timeout"] = rng.choice((0.05, 0.5, 5))
        if rng.random() < 0.2:
            options["retry"] = 100
        if rng.random() < 0.15:
            options["max_lifetime"] = rng.choice((0.02, 0.5, 2))
        if rng.random() < 0.2:
            options["shutdown_grace_period"] = rng.choice((0.02, 0.5, 2))
        if rng.random() < 0.2:
            options["defer_start"] = rng.choice((True, 0.05, 1))
        if rng.random() < 0.1:
            options["sep"] = "\r\n"
        return options

    def steps(self, kind: str) -> list[Step]:
        if kind == "list":
            return [self._burst()]
        if self._rng.random() < 0.02:
            return [["raise", "HTTPError"]]
        if kind == "bare iterator":  # nobody can close it
            return [self._rng.choice((self._event(), self._burst(), ["wait", self._wait()]))
                    for _ in range(4)]  # fmt: skip
        steps = self._some(kind, 3)
        if self._rng.random() < 0.6:
            steps.append(["for ever", [self._event(), ["wait", self._wait() or 0.05]]])
        elif self._rng.random() < 0.1 and kind == "async":
            steps.append(["for ever", [self._event()]])
        if self._rng.random() < 0.5:
            steps = [["finally", steps, self._cleanup(kind)]]
        return steps

    def feed(self) -> list[Step]:
        rng, steps = self._rng, list[Step]()
        for _ in range(rng.randint(1, 6)):
            event = ["event", rng.choice(SIZES[:-1])]  # a hub takes none that is larger
            steps.append(rng.choice((event, self._burst(), ["wait", self._wait()])))
        if rng.random() < 0.3:
            steps.append(["raise", rng.choice(("Boom", "Panic", "Cancelled"))])
        return steps

    def _wait(self) -> float:
        return self._rng.choice(WAITS)

    def _event(self) -> Step:
        return ["event", self._rng.choice(SIZES)]

    def _burst(self) -> Step:
        size = self._rng.choice(SIZES[:6])
        return ["burst", self._rng.choice((2, 5, 20, 300, 300)) if size < 1000 else 20, size]

    def _some(self, kind: str, depth: int) -> list[Step]:
        return [self._step(kind, depth) for _ in range(self._rng.randint(1, 4))]

    def _step(self, kind: str, depth: int) -> Step:
        rng = self._rng
        simple = {"event": 30, "burst": 15, "wait": 25, "raise": 3, "bad": 1}
        if kind != "sync":
            simple.update({"shield": 5, "thread": 3, "tasks": 3, "scoped": 5})
        nested = {"finally": 10, "swallow": 6, "swallow all": 2}
        if kind != "sync":
            nested.update({"around": 4, "group": 3})
        name = self.pick({**simple, **nested} if depth else simple)
        if name == "event":
            return self._event()
        if name == "burst":
            return self._burst()
        if name == "wait":
            return ["wait", self._wait()]
        if name == "shield":
            return ["shield", self._wait()]
        if name in ("thread", "tasks", "bad"):
            return [name]
        if name == "raise":
            return ["raise", rng.choice(("Boom", "Panic", "HTTPError", "OSError", "Closed"))]
        if name == "scoped":
            return ["scoped", self._wait(), [["wait", self._wait()]]]
        if name == "finally":
            return ["finally", self._some(kind, depth - 1), self._cleanup(kind)]
        if name == "around":
            return ["around", rng.choice((None, self._wait())), self._some(kind, depth - 1)]
        return [name, self._some(kind, depth - 1)]

    def _cleanup(self, kind: str) -> list[Step]:
        rng, steps = self._rng, list[Step]()
        for _ in range(rng.randint(1, 2)):
            name = self.pick({"wait": 50, "slow": 8, "shield": 20 * (kind != "sync"),
                              "thread": 10 * (kind != "sync"), "event": 5, "raise": 5})  # fmt: skip
            if name == "wait":
                steps.append(["wait", rng.choice((0, 0.001, 0.02, 0.02))])
            elif name == "slow":
                steps.append(["wait", 20] if kind != "sync" else ["wait", 0.2])
            elif name == "shield":
                steps.append(["shield", self._wait()])
            elif name == "event":
                steps.append(self._event())
            elif name == "raise":
                steps.append(["raise", rng.choice(("Boom", "Panic", "OSError"))])
            else:
                steps.append([name])
        return steps

    def happens(self) -> list[list[Any]]:
        rng, happens = self._rng, list[list[Any]]()
        if rng.random() < 0.2:  # the client is stuck when it happens
            began, later = rng.choice((0, 0.015, 0.1)), rng.choice((0.05, 0.3, 1))
            what = rng.choice(("drain", "drain", "leave", "cancel", "cancel scope"))
            happens = [
                [began, "pause", None],
                [began + later, what, 0 if what == "drain" else None],
            ]
            if what != "leave" and rng.random() < 0.7:
                happens.append([began + 2 * later, "read", None])
            return happens
        for _ in range(self._rng.choice((0, 0, 1, 1, 1, 2, 3))):
            when = rng.choice((0, 0, 0.001, 0.02, 0.1, 0.3, 1, 2.5, 8))
            what = self.pick({"leave": 30, "pause": 15, "read": 10, "slow": 8, "drain": 20,
                              "cancel": 12, "cancel scope": 4})  # fmt: skip
            argument: Any = None
            if what == "drain":
                argument = rng.choice((None, 0, 0.05, 1))
            elif what == "slow":
                argument = rng.choice((100, 10_000, 1_000_000))
            happens.append([when, what, argument])
        if any(what in ("pause", "slow") for _, what, _ in happens) and rng.random() < 0.5:
            happens.append([rng.choice((0.5, 2, 8)), "read", None])
        return sorted(happens, key=lambda event: float(event[0]))

    def happens_at_byte(self) -> list[list[Any]]:
        rng = self._rng
        if rng.random() > 0.2:
            return []
        what = self.pick({"leave": 50, "pause": 25, "drain": 15, "cancel": 10})
        return [[rng.choice((1, 10, 100, 5000, 100_000)), what, None]]


def walk(steps: list[Step]) -> Iterator[Step]:
    """Give all steps in the order in which the program is written."""
    for step in steps:
        yield step
        for part in step[1:]:
            if isinstance(part, list):
                yield from walk(part)


# -- making a case smaller -------------------------------------------------------------------------


def smaller(case: Case) -> Iterator[Case]:
    """Give cases that are a little simpler, the boldest first."""
    plain = Case()
    for name in ("happens_at_byte", "happens", "feed", "steps"):
        for steps in _fewer(getattr(case, name), nested=name in ("steps", "feed")):
            yield replace(case, **{name: steps})  # type: ignore[arg-type]
    for name in ("middleware", "around", "factory_waits", "factory_raises", "on_error", "entry",
                 "send_hangs", "send_raises", "on_close", "kind", "server", "buffer"):  # fmt: skip
        if getattr(case, name) != getattr(plain, name):
            yield replace(case, **{name: getattr(plain, name)})
    for name in case.options:
        fewer = {k: v for k, v in case.options.items() if k != name}
        yield replace(case, options=fewer)


def _fewer(steps: list[Step], *, nested: bool) -> Iterator[list[Step]]:
    if len(steps) > 2:
        yield steps[: len(steps) // 2]
        yield steps[len(steps) // 2 :]
    for i, step in enumerate(steps):
        before, after = steps[:i], steps[i + 1 :]
        yield before + after
        if not nested:
            continue
        for position, part in enumerate(step):
            if isinstance(part, list):
                if position == 1 or step[0] in ("around", "scoped"):
                    yield before + part + after
                for less in _fewer(part, nested=True):
                    if less or step[0] != "for ever":
                        yield [*before, [*step[:position], less, *step[position + 1 :]], *after]
            elif isinstance(part, int) and not isinstance(part, bool) and part > 1:
                yield [*before, [*step[:position], part // 2, *step[position + 1 :]], *after]
