"""Proxies under test, each with its configuration from docs/how-to/proxies.md."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers import missing
from tests.servers.clients import DEADLINE, Address, Fields, Response
from tests.servers.harness import Certificate, Process, free_port, started
from tests.test_docs import blocks

PAGE = "docs/how-to/proxies.md"

#: By the path in the comment that each begins with.
FILES: Mapping[str, str] = {
    path[1]: block.text
    for block in blocks(PAGE)
    if (path := re.match(r"# (/\S+)\n", block.text)) is not None
}


@dataclass(frozen=True)
class Kind:
    """A proxy, and how to run it in a directory without being root."""

    #: The program and its arguments, with {program}, {directory}; it stays in the foreground.
    command: tuple[str, ...]
    #: The file on the page.
    configuration: str
    #: What stands for the same thing in a test, with {port}, {directory}, {chain}, {key}.
    substitutions: Mapping[str, str]
    #: Makes it compress, all of the page that it can.
    compressing: Mapping[str, str]
    #: Takes /live off the path, as the page says, which has these lines.
    below: Mapping[str, str]
    #: Further files that the program needs; as a rule a distribution brings them.
    files: Mapping[str, str] = field(default_factory=dict)
    #: The protocols by which a client can tell that a response was broken off. Later versions may
    #: be better than those that were tested.
    shows_errors: tuple[str, ...] = ()


#: Workers of a master that is root are somebody else by default, who may not enter our directory.
_NGINX_USER = "user root;" if os.geteuid() == 0 else ""

KINDS: Mapping[str, Kind] = {
    "nginx": Kind(
        ("{program}", "-p", "{directory}", "-c", "nginx.conf", "-e", "stderr"),
        "/etc/nginx/conf.d/example.com.conf",
        {
            "listen 443 ": "listen 127.0.0.1:{port} ",
            "/etc/ssl/example.com/chain.pem": "{chain}",
            "/etc/ssl/example.com/key.pem": "{key}",
        },
        compressing={
            "location / {": (
                "gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;\n"
                "location / {"
            )
        },
        below={
            "location / {": "location /live/ {",
            "proxy_pass http://app;": "proxy_pass http://app/;",
        },
        files={
            "nginx.conf": f"""
                {_NGINX_USER}
                daemon off;
                pid nginx.pid;
                events {{ }}
                http {{
                    access_log off;
                    client_body_temp_path body;
                    proxy_temp_path proxy;
                    fastcgi_temp_path fastcgi;
                    uwsgi_temp_path uwsgi;
                    scgi_temp_path scgi;
                    include example.com.conf;
                }}
            """
        },
        shows_errors=("http1", "http2"),
    ),
    "haproxy": Kind(
        ("{program}", "-db", "-f", "{directory}/haproxy.cfg"),
        "/etc/haproxy/haproxy.cfg",
        {
            "bind :443 ": "bind 127.0.0.1:{port} ",
            "/etc/ssl/example.com/chain-and-key.pem": "{directory}/chain-and-key.pem",
        },
        compressing={
            "balance leastconn": (
                "compression algo gzip\n    compression type text/event-stream\n"
                "    balance leastconn"
            )
        },
        below={
            "balance leastconn": ("balance leastconn\n    http-request replace-path /live(/.*) \\1")
        },
        shows_errors=("http1",),
    ),
    "caddy": Kind(
        (
            *("env", "XDG_CONFIG_HOME={directory}", "XDG_DATA_HOME={directory}"),
            *("{program}", "run", "--adapter", "caddyfile", "--config", "{directory}/Caddyfile"),
        ),
        "/etc/caddy/Caddyfile",
        {
            # A certificate of our own, and nothing that listens on another port.
            "example.com {{\n": (
                "{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n"
                ":{port} {{\n\tbind 127.0.0.1\n\ttls {chain} {key}\n"
            ),
        },
        compressing={"\treverse_proxy ": "\tencode gzip\n\treverse_proxy "},
        below={"\treverse_proxy ": "\turi strip_prefix /live\n\treverse_proxy "},
    ),
}


class Proxy(Process):
    """A proxy that runs, and answers at `address` by HTTP/2 and HTTP/1.1."""

    def __init__(
        self,
        name: str,
        program: str,
        directory: Path,
        certificate: Certificate,
        nodes: tuple[int, int],
        changes: Mapping[str, str],
    ) -> None:
        self.name = name
        self.kind = kind = KINDS[name]
        port = free_port()
        http1 = ssl.create_default_context(cafile=str(certificate.authority))
        http1.set_alpn_protocols(["http/1.1"])
        self.addresses = {
            "http1": Address(port, http1),
            "http2": Address(port, certificate.client, http2=True),
        }
        places = {
            "program": program,
            "port": port,
            "directory": directory,
            "chain": certificate.chain,
            "key": certificate.key,
        }
        substitutions = {
            **changes,
            "127.0.0.1:8001": f"127.0.0.1:{nodes[0]}",
            "127.0.0.1:8002": f"127.0.0.1:{nodes[1]}",
            **{old.format(): new.format(**places) for old, new in kind.substitutions.items()},
        }
        text = FILES[kind.configuration]
        for old, new in substitutions.items():
            assert old in text, f"{PAGE} does not have {old!r} in {kind.configuration}"
            text = text.replace(old, new)
        (directory / Path(kind.configuration).name).write_text(text)
        (directory / "chain-and-key.pem").write_bytes(
            certificate.chain.read_bytes() + certificate.key.read_bytes()
        )
        for file, content in kind.files.items():
            (directory / file).write_text(content)
        command = [part.format(**places) for part in kind.command]
        super().__init__([], directory / "log", program=command)

    def ready(self) -> bool:
        """Wait until it listens; false where it has exited instead."""
        ends = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < ends, f"{self.name} does not listen: {self.log()}"
            try:
                self.addresses["http1"].connect().close()
                return True
            except OSError:  # also where it is not our certificate
                time.sleep(0.02)
        return False

    def open(
        self, protocol: str, path: str, *, method: str = "GET", headers: Fields = ()
    ) -> Response:
        return self.addresses[protocol].open(path, method=method, headers=headers)


def start(
    name: str,
    directory: Path,
    certificate: Certificate,
    nodes: tuple[int, int],
    changes: Mapping[str, str] | None = None,
) -> Proxy:
    """Start a proxy in front of the servers on two ports; skip where it is not installed.

    `changes` are strings of the page's configuration, and what to put in their place.
    """
    # Debian has two of them where only root looks.
    program = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if program is None:
        missing("proxies", f"there is no {name} on the PATH")
    return started(lambda: Proxy(name, program, directory, certificate, nodes, changes or {}))
