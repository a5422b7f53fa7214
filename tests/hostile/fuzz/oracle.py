"""What must be true of every case, whatever happens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from .cases import Case, Step, walk
from .sources import Log
from .stage import LAST, Message, Outcome, Stage

__all__ = ["Oracle", "describe", "faults"]

PING = b":\n\n"
#: How much later something may happen than it must: a clock that jumps is exact.
SOON = 0.02
#: In a loop of asyncio's without scopes a cancellation that is swallowed comes again after so long.
AGAIN = 0.15


def faults(stage: Stage) -> list[str]:
    """Return what is wrong, in the order of importance."""
    if stage.broken:  # the rest follows from this
        return list(dict.fromkeys(stage.outcome.faults))
    oracle = Oracle(stage)
    return [*stage.outcome.faults, *oracle.check()]


class Oracle:
    """Looks at one case that is over."""

    #: Whether the last bytes of the body may be a part of something.
    cut = False

    def __init__(self, stage: Stage) -> None:
        self.case: Case = stage.case
        self.log: Log = stage.log
        self.seen: Outcome = stage.outcome
        self.names = {step[0] for step in walk(self.case.steps)}
        self.what = {what for _, what, _ in self.seen.happened}
        options = self.case.options
        usual = 30.0 if self.case.entry == "starlette" else 5.0
        self.cleanup_timeout: float = options.get("cleanup_timeout", usual)
        self.sep = options.get("sep", "\r\n" if self.case.entry == "starlette" else "\n")
        self.delivered = 0
        self.told_last = False
        self.reason = self.seen.reports[0].reason.value if self.seen.reports else None
        self.prompt = not self.what & {"pause", "slow"}
        self.left_at = self._first("leave")
        self.cancelled = (
            bool(self.what & {"cancel", "cancel scope"}) or self.case.around is not None
        )

    def _first(self, *names: str) -> float:
        return min((t for t, what, _ in self.seen.happened if what in names), default=math.inf)

    def check(self) -> Iterator[str]:
        if self.seen.returned is None or any("event loop" in f for f in self.seen.faults):
            return
        if self.seen.status in (0, 200):
            yield from self.check_status_at_once()
            yield from self.check_body()
            yield from self.check_end()
            yield from self.check_hub()
            yield from self.check_pings()
            yield from self.check_report()
        else:
            yield from self.check_status()
        yield from self.check_source()
        yield from self.check_exception()
        yield from self.check_log()
        yield from self.check_time()
        yield from self.check_left()

    def check_status_at_once(self) -> Iterator[str]:
        """See that an HTTPError before the source has waited or yielded is a status."""
        if (
            self.case.steps[:1] == [["raise", "HTTPError"]]
            and self.seen.status == 200
            and not self.what
            and self.case.around is None
            and self.case.kind in ("async", "iterator", "bare iterator")
            and "max_lifetime" not in self.case.options
        ):
            yield "rule 15: an HTTPError that was raised at once is no status"

    # -- the bytes -------------------------------------------------------------------------------

    def check_body(self) -> Iterator[str]:
        body, at, place, sep = self.seen.body, 0, 0, self.sep.encode()
        retry, frames = self.case.options.get("retry"), self.log.frames
        if self.case.kind == "hub":  # which gives the ids, and always has its own line ends
            body = re.sub(rb"^id: [^\n]*\n", b"", body, flags=re.MULTILINE)
            frames = [frame.replace(sep, b"\n") for frame in frames]
        last = f"data: {LAST}".encode() + 2 * sep
        if retry is not None and body:
            preamble = b"retry: %d" % retry + 2 * sep
            if not body.startswith(preamble):
                yield f"the body begins with {body[:40]!r}, not with the reconnection time"
            at = len(preamble)
        while at < len(body):
            if place < len(frames) and body.startswith(frames[place], at):
                at += len(frames[place])
                place += 1
            elif body.startswith(PING, at):
                at += len(PING)
            elif body.startswith(last, at) and self.case.on_error in ("event", "wait 0.1"):
                at += len(last)
                self.told_last = at == len(body)
            elif (
                retry is not None
                and re.fullmatch(rb"retry: [12]\d\d(\r\n|\n){2}", body[at : at + 40])
            ) or (
                self.cut
                and not self.seen.clean
                and any(
                    part.startswith(body[at:]) for part in (PING, last, *frames[place : place + 1])
                )
            ):
                break
            else:
                yield f"after event {place - 1} of {len(frames)} comes {body[at : at + 60]!r}"
                break
        self.delivered = place

    def check_end(self) -> Iterator[str]:
        resumed = self.seen.fed if self.case.kind in ("hub", "feed") else self.log.resumed_after
        raised = bool(self.log.raised) and self.case.kind != "hub"
        if self.seen.clean:
            if self.delivered < resumed and self.case.kind not in ("hub", "feed"):
                yield (f"rule 3: a clean end, but {resumed - self.delivered} of {resumed} events "
                       "that the source was resumed after are missing")  # fmt: skip
            failed = self.reason == "error" or self.seen.raised_own
            # (BaseHTTPMiddleware ends the response first, and raises then.)
            if failed and not self.told_last and self.case.middleware != "base":
                yield f"rule 3: a clean end after an error ({self.seen.raised})"
        elif (
            self.seen.messages
            and self.prompt
            and self.left_at == math.inf
            and self.reason in ("finished", "shutdown", "max_lifetime", "cancelled")
            and self.case.middleware != "base"
            and not raised
        ):
            yield f"rule 3: {self.reason}, the client reads, and the end is not clean"
        if (
            self.case.kind == "feed"
            and self.prompt
            and self.left_at == math.inf
            and self.reason in ("finished", "error")
            and self.delivered < self.seen.fed
        ):
            yield f"a feed had {self.seen.fed} events accepted, {self.delivered} were sent"

    def check_hub(self) -> Iterator[str]:
        """See that a client that reads gets all that is published while it is there."""
        calm = self.what <= {"leave"} and self.case.around is None
        long = self.left_at - self.seen.began >= self.case.last_call - SOON
        if (
            self.case.kind == "hub"
            and calm
            and long
            and "max_lifetime" not in self.case.options
            and self.delivered != self.seen.fed
        ):
            yield f"{self.seen.fed} events were published, {self.delivered} were sent"

    def check_status(self) -> Iterator[str]:
        if not any(type(e).__name__ == "HTTPError" for e in self.log.raised):
            yield f"status {self.seen.status}"
        if not self.seen.clean and self.left_at == math.inf and self.prompt and not self.cancelled:
            yield "the answer has no end"

    def check_pings(self) -> Iterator[str]:
        """See that a ping comes when nothing was written for so long, and not earlier."""
        ping = self.case.options.get("ping", 15)
        quiet = min(self._first(*self.what), self._lifetime_ends())
        late = ping and self.case.kind != "sync" and not self._spins() and self.case.around is None
        before: Message | None = None
        for message in self.seen.messages:
            gap = message.began - before.began if before is not None else 0.0
            if message.body == PING and message.more:
                if not ping:
                    yield "rule 5: a ping although ping=0"
                elif before is not None and gap < ping * 0.99 and self.case.middleware != "base":
                    yield f"rule 5: a ping {gap:.4f} s after a write, ping={ping}"
            if late and gap > ping + SOON and message.more and message.began < quiet:
                yield f"rule 5: nothing was written for {gap:.4f} s, ping={ping}"
            before = message

    def _lifetime_ends(self) -> float:
        lifetime: float = self.case.options.get("max_lifetime", math.inf)
        return self.seen.began + lifetime * 0.9

    # -- the source ------------------------------------------------------------------------------

    def check_source(self) -> Iterator[str]:
        log = self.log
        if log.started > 1 or len(log.closed) > log.started:
            yield f"rule 3: started {log.started} times, closed {len(log.closed)} times"
        closes = self.case.kind in ("async", "sync", "iterator")
        if closes and len(log.closed) < log.started:
            yield "rule 3: the source is not closed"
        if closes and self.case.kind != "sync" and not all(log.closed):
            yield "rule 3: the source is closed in another task"
        cancel_at = self._first("cancel") if self.case.mode in ("bare", "eager") else math.inf
        if log.broken_shields and cancel_at == math.inf:
            yield f"rule 3: {log.broken_shields[0]}"
        yield from self.check_cleanups(cancel_at)

    def check_cleanups(self, cancel_at: float) -> Iterator[str]:
        if self.names & {"around", "group", "scoped", "swallow", "swallow all"}:
            return
        if self.case.kind not in ("async", "iterator"):
            return
        budgets = {}
        number = 0
        for step in walk(self.case.steps):
            if step[0] == "finally":
                inside = [s for s in step[2] if s[0] in ("event", "raise")]
                budgets[number] = math.inf if inside else _budget(step[2])
                number += 1
        busy = sum(_budget([s]) for s in walk(self.case.steps)
                   if s[0] in ("shield", "thread", "tasks"))  # fmt: skip
        began = [n for n, (_, kind) in self.log.cleanups.items() if _ends(kind)]
        if busy + sum(budgets[n] for n in began) > 0.7 * self.cleanup_timeout:
            return
        for n in began:
            at, kind = self.log.cleanups[n]
            if (
                n not in self.log.cleaned
                and sum(what == "cancel" for _, what, _ in self.seen.happened) <= 1
                and not at <= cancel_at < math.inf
            ):
                yield (
                    f"rule 3: cleanup {n} of {budgets[n]} s did not run to its end "
                    f"(cleanup_timeout={self.cleanup_timeout}, {kind and kind.__name__})"
                )

    # -- what it says ----------------------------------------------------------------------------

    def possible(self) -> set[str]:
        """Return the reasons that this case may have."""
        log, case, reasons = self.log, self.case, set[str]()
        if log.ended or case.kind in ("list", "feed"):
            reasons.add("finished")
        if self.left_at < math.inf:
            reasons.add("client_disconnected")
        if "drain" in self.what:
            reasons.add("shutdown")
        if not self.prompt and case.options.get("send_timeout"):
            reasons.add("send_timeout")
        if case.options.get("max_lifetime"):
            reasons.add("max_lifetime")
        if self.cancelled:
            reasons.add("cancelled")
        if case.middleware == "base":
            reasons.add("cancelled")
        if log.raised or self.names & {"around", "group", "bad", "swallow", "swallow all", "tasks"}:
            reasons.add("error")
        return reasons

    def check_report(self) -> Iterator[str]:
        case, seen = self.case, self.seen
        if not case.on_close:
            return
        opened = case.factory_waits is None and not case.factory_raises
        if len(seen.reports) != 1:
            if opened or len(seen.reports) > 1:
                yield f"rule 13: on_close was called {len(seen.reports)} times"
            return
        report = seen.reports[0]
        wait = float(case.on_close.split()[1]) if case.on_close.startswith("wait") else 0
        if (
            wait < self.cleanup_timeout * 0.9
            and case.on_close != "raise"
            and not seen.on_close_ended
        ):
            yield f"rule 13: on_close was cut short ({self.reason})"
        if self.reason not in self.possible():
            yield f"reason {self.reason}, possible are {sorted(self.possible())}"
        if (
            self.prompt
            and self.left_at == math.inf
            and case.middleware != "base"
            and all(m.ended is not None for m in seen.messages)
        ):
            if report.bytes != len(seen.body):
                yield f"the report says {report.bytes} bytes, {len(seen.body)} were sent"
            if case.kind != "hub" and report.events not in (
                self.delivered,
                self.delivered + self.told_last,
            ):
                yield f"the report says {report.events} events, {self.delivered} were sent"

    def check_exception(self) -> Iterator[str]:
        seen = self.seen
        if not seen.raised or seen.raised_own:
            return
        if self.case.middleware == "base" and re.search("BrokenPipe|No resp|Group", seen.raised):
            return  # it is Starlette's
        if "SendTimeoutError" in seen.raised and "send_timeout" in self.possible():
            return
        if seen.raised_cancelled:
            if not self.cancelled:
                yield f"raised {seen.raised}, and nobody has cancelled it"
        elif re.search("a cancel scope, timeout or task group|was cancelled, and not", seen.raised):
            if not self.names & {"around", "group"}:
                yield f"raised {seen.raised[:200]}"
        elif "bad" in self.names and "TypeError" in seen.raised:
            pass
        elif not self.names & {"group", "tasks"} or "Group" not in seen.raised:
            yield f"rule 4: raised {seen.raised[:200]}"

    def check_log(self) -> Iterator[str]:
        case, seen = self.case, self.seen
        for _, level, message in seen.records:
            if "was not closed within" in message or "has not ended within" in message:
                ok = bool(self.names) or case.kind == "feed"
                if message.startswith("on_close"):
                    ok = (case.on_close or "").startswith("wait")
            elif "yielded while it was being closed" in message:
                ok = bool(self.names & {"event", "burst"})
            elif "on_close raised" in message:
                ok = case.on_close == "raise"
            elif "on_close" in message:
                ok = case.on_close == "wait 30"
            elif "another exception while" in message:
                ok = len(self.log.raised) > 0
            elif "after the response had started" in message:
                ok = any(type(e).__name__ == "HTTPError" for e in self.log.raised)
            elif said := re.match(r"a stream has ended: (send_timeout|error|cancelled)\b", message):
                ok = said[1] in ({self.reason} if seen.reports else self.possible())
            elif "body" in message:
                ok = case.middleware.startswith("replay")
            else:
                ok = False
            if not ok:
                yield f"logged: {level} {message[:200]}"

    # -- when it ends ----------------------------------------------------------------------------

    def check_time(self) -> Iterator[str]:
        """See whether a client that leaves, and a cancellation, are seen at once."""
        case, seen = self.case, self.seen
        assert seen.returned is not None
        if case.kind == "sync" or self._spins():
            return
        shields = sum(_budget([s]) for s in walk(case.steps) if s[0] in ("shield", "thread"))
        on_close = float(case.on_close.split()[1]) if case.on_close.startswith("wait") else 0
        after = SOON + shields + self.cleanup_timeout + min(on_close, self.cleanup_timeout)
        if case.kind == "feed":
            after += self.cleanup_timeout
        if case.on_error.startswith("wait"):
            after += 0.1
        if case.middleware.startswith("replay"):
            after += 1.5  # receive() is not called again and again
        if self.names & {"swallow", "swallow all"}:
            after += AGAIN * 3
        if not (case.steps and "slow" not in case.on_close and self._has_slow_cleanup()):
            # Nothing in it takes so long.
            exact = sum(_budget(s[2]) for s in walk(case.steps) if s[0] == "finally")
            if not self.names & {"swallow", "swallow all", "around", "group", "tasks"}:
                after -= max(0, self.cleanup_timeout - exact)
        stuck = 0 if self.prompt else self.cleanup_timeout + SOON
        # Whoever hides the client, or goes on after a cancellation, ends later.
        stubborn = bool(self.names & {"swallow", "swallow all"})
        # A second cancellation gives the cleanup its time once more.
        again = max(0, seen.began + (case.around or 0) - self._cancelled_at())
        hidden = case.middleware == "base" or (case.send_hangs and case.middleware != "")
        for began, what, rule, most, applies in (
            (self.left_at, "the client has left", 1, after, not hidden),
            (self._cancelled_at(), "a cancellation", 17, after + again + 1.1, not stubborn),
            (self._drained_at(), "the grace period", 12, after + stuck, not hidden),
        ):
            late = seen.returned - began
            if applies and late > most:
                yield f"rule {rule}: {late:.3f} s after {what} it returns (<= {most:.3f})"

    def _cancelled_at(self) -> float:
        at = self._first("cancel", "cancel scope")
        if self.case.around is not None:
            at = min(at, self.seen.began + max(self.case.around, 0))
        return at

    def _drained_at(self) -> float:
        """Return when the grace period is over of a stream that was told to end."""
        usual = self.case.options.get("shutdown_grace_period", 0)
        opened = self.seen.began + (self.case.factory_waits or 0)
        told = [
            max(opened, at) + (usual if grace is None else grace)
            for at, what, grace in self.seen.happened
            if what == "drain"
        ]
        if "max_lifetime" in self.case.options:
            told.append(opened + self.case.options["max_lifetime"] + usual)
        return min(told, default=math.inf)

    def _spins(self) -> bool:
        return any(s[0] == "for ever" and "wait" not in repr(s) for s in walk(self.case.steps))

    def _has_slow_cleanup(self) -> bool:
        return any(step[0] == "finally" and _budget(step[2]) > self.cleanup_timeout
                   for step in walk(self.case.steps))  # fmt: skip

    def check_left(self) -> Iterator[str]:
        for what, count in self.seen.left.items():
            if count:
                yield f"left: {count} {what}"


def _ends(kind: type[BaseException] | None) -> bool:
    return kind is not None and kind.__name__ in ("GeneratorExit", "Cancelled", "CancelledError")


def _budget(steps: list[Step]) -> float:
    """Return how long steps of a cleanup take."""
    total = 0.0
    for step in steps:
        if step[0] in ("wait", "shield"):
            total += step[1]
        elif step[0] in ("thread", "tasks"):
            total += 0.06
    return total


def describe(stage: Stage) -> dict[str, Any]:
    """Return what is worth to be printed of a case that has failed."""
    seen, log = stage.outcome, stage.log
    return {
        "happened": [(round(t - seen.began, 4), *rest) for t, *rest in seen.happened],
        "returned": seen.returned and round(seen.returned - seen.began, 4),
        "raised": seen.raised,
        "reports": [str(report)[:200] for report in seen.reports],
        "messages": [
            (
                round(m.began - seen.began, 4),
                m.ended and round(m.ended - seen.began, 4),
                m.type[14:],
                m.body[:24],
                len(m.body),
                m.more,
            )
            for m in seen.messages[-6:]
        ],
        "yielded": len(log.frames),
        "resumed after": log.resumed_after,
        "log": [(round(t - seen.began, 4), *rest) for t, *rest in seen.records],
        "left": {what: count for what, count in seen.left.items() if count},
    }
