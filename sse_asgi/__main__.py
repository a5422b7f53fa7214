"""``python -m sse_asgi``: a page that shows the load of this machine and a log file, live.

``python -m sse_asgi tail URL`` follows a stream from a terminal.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import signal
import socket
import stat
import sys
import time
from typing import TYPE_CHECKING

from .command_line import PROG, Parser, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    import uvicorn

    from .types import ASGIApp


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the demo until SIGINT or SIGTERM, or run ``tail``. Return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["tail"]:
        from .tail.command import main as tail

        return tail(arguments[1:])
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        import uvicorn  # noqa: F401

        from .demo.app import AWAY, Lasting, create_app
    except ModuleNotFoundError as exc:
        if exc.name not in {"psutil", "uvicorn"}:
            raise
        parser.error(f"{exc.name} is not installed: pip install {exc.name}")
    try:
        listener = _listen(options.host, options.port)
    except (OSError, UnicodeError) as exc:
        parser.error(f"can't listen on {options.host!r}, port {options.port}: {_reason(exc)}")
    # Port 0 was any port. When the server comes back it is to be the same one.
    port = listener.getsockname()[1]
    loopback = _is_loopback(listener)
    names = {name.lower() for name in (options.host, *_own_names(), *options.allow_host)}
    lasting, serving = Lasting(), Serving()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, serving.end)
    url = _url(options.host, listener)
    print(f"sse_asgi demo on {url} (Ctrl-C to stop)")
    print(f"Its events in a terminal: {PROG} tail {url}events", flush=True)
    while True:
        with listener:
            app = create_app(
                options.tail,
                ping=options.ping,
                names=names,
                stop=serving.pause if loopback or options.allow_stop else None,
                lasting=lasting,
            )
            serving.run(app, listener)
        if not serving.wait(AWAY):
            return 0
        try:
            listener = _listen(options.host, port)
        except OSError as exc:
            parser.error(f"can't listen again on port {port}: {_reason(exc)}")


class Serving:
    """The servers of this process, one after another, until a signal ends them."""

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None
        self._over = False

    def run(self, app: ASGIApp, listener: socket.socket) -> None:
        """Serve until a signal comes, or :meth:`pause` is called."""
        import uvicorn

        config = uvicorn.Config(
            app, lifespan="on", ws="none", log_level="warning", access_log=False
        )
        self._server = uvicorn.Server(config)
        if not self._over:
            self._server.run(sockets=[listener])

    def pause(self) -> None:
        """Stop the server that runs."""
        assert self._server is not None
        self._server.should_exit = True

    def end(self, signum: int, frame: FrameType | None) -> None:
        """End it all: this is a signal handler.

        uvicorn stops on these signals, and then raises them for the handlers it has replaced. This
        is such a handler, so ``run`` returns and the process exits by itself.
        """
        self._over = True
        if self._server is not None:
            self._server.should_exit = True

    def wait(self, seconds: float) -> bool:
        """Wait before the next server. Return whether there is to be one."""
        until = time.monotonic() + seconds
        while not self._over and time.monotonic() < until:
            time.sleep(0.05)
        return not self._over


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Serve a page that shows this machine live, by Server-Sent Events.",
        epilog=f"'{PROG} tail URL' follows a stream: see '{PROG} tail --help'.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address or name to listen on (%(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=8000, help="port to listen on; 0: any free one (%(default)s)"
    )
    parser.add_argument(
        "--ping",
        type=seconds,
        default=15.0,
        metavar="SECONDS",
        help="send a comment after so many seconds of silence; 0: never (%(default)s)",
    )
    parser.add_argument(
        "--tail", type=_log_file, metavar="FILE", help="also stream the lines of this log file"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests for this name, such as that of a proxy in front; those for an "
        "IP address or a name of this machine are always answered",
    )
    parser.add_argument(
        "--allow-stop",
        action="store_true",
        help="let everybody who can open the page stop the server for some seconds; on a loopback "
        "address that is always so",
    )
    return parser


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {text!r}")
    return port


def _log_file(text: str) -> str:
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(text).st_mode):
            raise argparse.ArgumentTypeError(f"{text!r} is not a regular file")
        with open(text, "rb"):
            return text
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"can't read {text!r}: {exc.strerror}") from None


def _listen(host: str, port: int) -> socket.socket:
    """Listen on the first address of ``host`` that this machine has.

    :raises OSError: if the name has no address, no address is this machine's, or the port is
        taken.
    """
    failure = OSError(errno.EADDRNOTAVAIL, "no address")
    for family, _, _, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            return socket.create_server(address, family=family)
        except OSError as exc:
            if exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
            failure = exc
    raise failure


def _own_names() -> tuple[str, ...]:
    """Return the names of this machine, also that of multicast DNS."""
    name = socket.gethostname()
    return (name, f"{name.partition('.')[0]}.local")


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _reason(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, UnicodeError):  # from encoding the name for DNS
        return "not a host name"
    if isinstance(exc, socket.gaierror) or exc.errno is None:
        return exc.strerror or str(exc)
    return os.strerror(exc.errno)


def _url(host: str, listener: socket.socket) -> str:
    # A browser can't open the address that stands for all addresses.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the server has started
        sys.exit(130)
