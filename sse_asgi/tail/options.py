"""The command line of ``tail``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import PROG, Parser, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parse"]

#: A token (RFC 9110, 5.6.2).
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

EPILOG = """\
exit status:
  0    the stream has ended: the server says so (204), or --once or -n does
  1    it can't be followed: a status, a content type, an event that is too large; with --once the
       network, too; or the output can't be written
  2    wrong arguments
  3    --timeout is over
  130  interrupted (Ctrl-C)

If the output is no terminal, it is one JSON object a line:
  %(prog)s URL | jq .data
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options; exit with status 2 if they are wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.raw and (options.event or options.bench or options.json or options.pretty):
        parser.error("--raw shows the bytes as they come: no --event, --bench, --json or --pretty")
    if "://" not in options.url:
        options.url = f"http://{options.url}"
    options.headers = [_header(parser, text) for text in options.header]
    if any(
        ord(char) < 0x20 or 0xD800 <= ord(char) < 0xE000 for char in options.last_event_id or ""
    ):
        parser.error(f"--from: no header field can have this id: {options.last_event_id!r:.80}")
    if options.data is not None:
        options.data = _data(parser, options.data)
        if not any(name.lower() == "content-type" for name, _ in options.headers):
            options.headers.append(("content-type", _content_type(options.data)))
    options.method = options.request or ("GET" if options.data is None else "POST")
    if not _TOKEN.fullmatch(options.method):
        parser.error(f"-X: {options.method!r:.80} is no method")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{PROG} tail",
        description="Follow an event stream, and reconnect as a browser does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="where the stream is; http:// may be left out")
    request = parser.add_argument_group("request")
    add = request.add_argument
    add("-H", "--header", action="append", default=[], metavar="'NAME: VALUE'",
        help="send this header field, too (may be repeated)")  # fmt: skip
    add("-d", "--data", metavar="DATA",
        help="POST this body; @FILE: that of a file; @-: of the standard input")  # fmt: skip
    add("-X", "--request", metavar="METHOD", help="the method (GET; with -d POST)")
    add("-k", "--insecure", action="store_true", help="do not check the server's certificate")
    add("--from", dest="last_event_id", metavar="ID", help="begin after this event id")

    what = parser.add_argument_group("what is shown")
    add = what.add_argument
    add("--event", action="append", metavar="NAME",
        help="only events of this name (may be repeated)")  # fmt: skip
    add("--json", action="store_true",
        help="one JSON object for each event, on a line of its own; the default if the output is no"
        " terminal")  # fmt: skip
    add("--text", action="store_true", help="as on a terminal, even if the output is none")
    add("--pretty", action="store_true", help="show JSON data on several lines")
    add("--raw", action="store_true", help="the bytes of the stream as they come")
    add("--bench", action="store_true",
        help="once a second: events, bytes, gaps, and latency if the data is a Unix time, or JSON"
        " with one")  # fmt: skip
    add("--time-field", default="time", metavar="NAME",
        help="where the time is in JSON data, for --bench (%(default)s)")  # fmt: skip
    add("--color", choices=("auto", "always", "never"), default="auto",
        help="auto: on a terminal, unless NO_COLOR is set (%(default)s)")  # fmt: skip
    add("-q", "--quiet", action="store_true", help="do not say on stderr what the connection does")

    when = parser.add_argument_group("when it ends")
    add = when.add_argument
    add("-n", "--count", type=_count, metavar="NUMBER", help="after so many events")
    add("--once", action="store_true", help="with the first response: do not reconnect")
    add("--timeout", type=seconds, metavar="SECONDS", help="after so long")
    add("--idle", type=seconds, default=60.0, metavar="SECONDS",
        help="reconnect after so long without a byte; 0: never (%(default)s)")  # fmt: skip
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)


def _header(parser: argparse.ArgumentParser, text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        parser.error(f"a header field is 'NAME: VALUE', not {text!r}")
    if not _TOKEN.fullmatch(name.strip()):
        parser.error(f"-H: {name.strip()!r:.80} is no name of a header field")
    if any(ord(char) > 0xFF for char in text):
        parser.error(f"-H: a header field can have characters of Latin-1 only, not {text!r:.80}")
    if name.strip().lower() == "last-event-id":
        parser.error("use --from for the Last-Event-ID: it changes when the stream goes on")
    return name.strip(), value.strip()


def _data(parser: argparse.ArgumentParser, text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    if text == "@-":
        if sys.stdin is None:
            parser.error("-d @-: the standard input is closed")
        return sys.stdin.buffer.read()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as exc:
        parser.error(f"can't read {text[1:]!r}: {exc.strerror}")


def _content_type(data: bytes) -> str:
    try:
        json.loads(data)
    except ValueError:
        return "application/x-www-form-urlencoded"  # what curl says
    return "application/json"
