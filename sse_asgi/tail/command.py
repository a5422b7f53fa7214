"""Follow a stream, and show what it brings."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import anyio

from ..client import EventSource, EventSourceError, State, TooManyReconnectsError
from ..command_line import PROG
from ..errors import EventTooLargeError
from .bench import Bench
from .options import parse
from .show import as_json, as_text, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..client import DecodedEvent, StateChange

__all__ = ["main"]

ENDED, FAILED, USAGE, TIMEOUT, INTERRUPTED = 0, 1, 2, 3, 130

#: What is no fault of this program. OSError: the output can't be written, or a file of the
#: environment (SSL_CERT_FILE) can't be read; ImportError: what a proxy needs is not installed;
#: OverflowError: the port is none.
FAILURES = EventSourceError, EventTooLargeError, ValueError, OverflowError, OSError, ImportError


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow a stream until it ends. Return the exit status."""
    options = parse(arguments)
    if sys.stdout is None:
        _say("error: the standard output is closed")
        return FAILED
    try:
        import httpx2
    except ModuleNotFoundError:
        _say("error: httpx2 is not installed: pip install httpx2")
        return USAGE
    try:
        return anyio.run(Tail(options, httpx2).run)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads, such as `head`, has had enough
        _write_no_more(sys.stdout)
        return ENDED
    except httpx2.InvalidURL as exc:
        _say(f"error: {options.url!r} is no URL: {exc}")
        return USAGE
    except FAILURES as exc:
        _write_no_more(sys.stdout)
        _say(f"error: {_reason(exc)}")
        return FAILED
    except httpx2.HTTPError as exc:
        _say(f"error: {_reason(exc)}")
        return FAILED


class Tail:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, httpx2: Any) -> None:
        self.options = options
        self.httpx2 = httpx2
        is_terminal = sys.stdout.isatty()
        self.as_json: bool = options.json or not (is_terminal or options.text or options.pretty)
        self.colours: bool = options.color == "always" or (
            options.color == "auto" and is_terminal and not os.environ.get("NO_COLOR")
        )
        self.names: set[str] = set(options.event or ())
        self.shown: int = 0
        self.bench: Bench | None = None
        if options.bench:
            self.bench = Bench(options.time_field, time.monotonic())

    async def run(self) -> int:
        """Follow the stream. Return the exit status."""
        options = self.options
        with anyio.move_on_after(options.timeout) as limit:
            async with self.httpx2.AsyncClient(verify=not options.insecure) as client:
                source = EventSource(
                    options.url,
                    client=client,
                    method=options.method,
                    headers=options.headers,
                    content=options.data,
                    last_event_id=options.last_event_id,
                    max_reconnects=0 if options.once else None,
                    idle_timeout=options.idle or None,
                    on_state_change=None if options.quiet else self.tell,
                    on_bytes=self.receive,
                )
                try:
                    async with source, anyio.create_task_group() as tasks:
                        if self.bench is not None:
                            tasks.start_soon(self.report, self.bench)
                        await self.follow(source)
                        tasks.cancel_scope.cancel()
                except BaseExceptionGroup as group:
                    error = _only(group)
                    raise error from error.__cause__
                finally:
                    if self.bench is not None:
                        _write(self.bench.summary(time.monotonic()))
        return TIMEOUT if limit.cancelled_caught else ENDED

    async def follow(self, source: EventSource) -> None:
        """Show events until there are no more, or enough."""
        async for event in source:
            if not self.names or event.event in self.names:
                self.show(event)
                self.shown += 1
                if self.shown == self.options.count:
                    return

    def show(self, event: DecodedEvent) -> None:
        """Show an event, or count it."""
        if self.options.raw:
            return
        if self.bench is not None:
            self.bench.count(event, time.time())
            return
        when = datetime.now().astimezone()
        if self.as_json:
            _write(as_json(event, when))
        else:
            pretty = self.options.pretty
            _write(as_text(event, when, pretty=pretty, colours=self.colours))

    def receive(self, chunk: bytes) -> None:
        """Show bytes, or count them."""
        if self.options.raw:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        elif self.bench is not None:
            self.bench.receive(len(chunk))

    async def report(self, bench: Bench) -> None:
        """Say once a second how fast the stream is."""
        while True:
            await anyio.sleep(1)
            _write(bench.line(time.monotonic()))

    def tell(self, change: StateChange) -> None:
        """Say what the connection does."""
        if change.state is State.OPEN:
            _say(f"connected to {self.options.url}")
        elif change.delay is not None and not _leaves():
            error = change.error
            reason = "the response has ended" if error is None else _reason(error)
            _say(f"{reason}; connecting again in {change.delay:.1f} s")


def _write(text: str) -> None:
    # Not print(): its encoding may be one that can't carry all text.
    sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def _write_no_more(stream: TextIO) -> None:
    """Keep the interpreter from writing what is left when it exits: that would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _reason(error: BaseException) -> str:
    if isinstance(error, TooManyReconnectsError) and error.__cause__ is not None:
        error = error.__cause__  # --once allows none, so that says more
    return printable(str(error)) or repr(error)


def _say(text: str) -> None:
    if sys.stderr is None:  # it is closed
        return
    try:
        sys.stderr.write(f"{PROG} tail: {text}\n")
        sys.stderr.flush()
    except OSError:  # nobody can be told
        _write_no_more(sys.stderr)


def _leaves() -> bool:
    """Return whether it is Ctrl-C, or the end of the time, that costs the connection."""
    return isinstance(sys.exception(), anyio.get_cancelled_exc_class())


def _only(error: BaseException) -> BaseException:
    """Return the first error of a group that is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
