"""The page of `python -m sse_asgi`, in a browser."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.servers.harness import steady_port
from tests.test_demo import append, rotate, running

from .conftest import NewContext

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.touch()
    return path


def write(log: Path, *lines: str) -> None:
    append(log, "".join(f"{line}\n" for line in lines).encode())


class Demo:
    """The page, as somebody sees it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.requests: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def evaluate(self, expression: str) -> Any:
        return self.page.evaluate(f"() => ({expression})")

    def text(self, selector: str) -> str:
        text: str = self.evaluate(f"document.querySelector({selector!r}).textContent")
        return text

    def state(self, stream: str) -> str:
        return self.text(f"#{stream}-status .state")

    def number(self, stream: str, name: str) -> int:
        """What it says of the stream: so many events, or so many reconnects."""
        return int(self.text(f"#{stream}-status [data-is={name}]").replace(",", ""))

    def wait_for_text(self, selector: str, text: str) -> None:
        self._wait_for(f"document.querySelector({selector!r})?.textContent === {text!r}")

    def wait_for_state(self, stream: str, state: str) -> None:
        self.wait_for_text(f"#{stream}-status .state", state)

    def wait_for_number(self, stream: str, name: str, least: int) -> None:
        selector = f"#{stream}-status [data-is={name}]"
        text = f"document.querySelector({selector!r})?.textContent"
        self._wait_for(f"Number({text}?.replaceAll(',', '')) >= {least}")

    def wait_for_rows(self, count: int) -> None:
        self._wait_for(f"document.querySelectorAll('#lines .row').length >= {count}")

    def _wait_for(self, condition: str) -> None:
        try:
            self.page.wait_for_function(f"() => {condition}")
        except Exception as exc:
            raise AssertionError(f"never {condition}: {self.text('main')}") from exc

    def rows(self) -> list[str]:
        """The lines of the log that are shown."""
        rows: list[str] = self.evaluate(
            "[...document.querySelectorAll('#lines .row > :last-child')].map((e) => e.textContent)"
        )
        return rows

    def notes(self) -> list[str]:
        """What is said between them."""
        notes: list[str] = self.evaluate(
            "[...document.querySelectorAll('#lines .note')].map((e) => e.textContent)"
        )
        return notes

    def happened(self) -> list[str]:
        """What it says of the connection."""
        happened: list[str] = self.evaluate(
            "[...document.querySelectorAll('#happened .row > :last-child')]"
            ".map((e) => e.textContent)"
        )
        return happened

    def wait_for_happened(self, *patterns: str) -> None:
        """Wait until the last things that it says match these."""
        self._wait_for(
            f"document.querySelectorAll('#happened .row').length >= {len(patterns)}"
            f" && new RegExp({patterns[-1]!r})"
            ".test(document.querySelector('#happened > :last-child').textContent)"
        )
        for pattern, text in zip(patterns, self.happened()[-len(patterns) :], strict=True):
            assert re.fullmatch(pattern, text), self.happened()

    def boxes(self) -> dict[str, dict[str, float]]:
        """Where all is that must not move, by its id or class."""
        boxes: dict[str, dict[str, float]] = self.evaluate(
            "Object.fromEntries([...document.querySelectorAll("
            "'.card, h1, h2, button:not(#jump), dt, canvas, .lines, form, #facts, .state')]"
            ".map((e, i) => [`${i} ${e.tagName} ${e.id || e.classList[0] || ''}`,"
            " e.getBoundingClientRect().toJSON()]))"
        )
        return boxes

    def say(self, text: str, name: str = "Ann") -> None:
        self.page.locator("#name").fill(name)
        self.page.locator("#text").fill(text)
        self.page.locator("#send").click()

    def wall(self) -> list[str]:
        """What is on the wall: messages, and what is said between them."""
        wall: list[str] = self.evaluate(
            "[...document.querySelectorAll('#wall > *')].map("
            "(row) => (row.lastElementChild ?? row).textContent)"
        )
        return wall

    def wait_for_wall(self, last: str) -> None:
        self.wait_for_text("#wall > :last-child > :last-child", last)

    def painted(self, canvas: str, variable: str) -> int:
        """How many pixels of the canvas have the colour of a style variable."""
        pixels: int = self.page.evaluate(
            """
            ([id, variable]) => {
              const style = getComputedStyle(document.documentElement).getPropertyValue(variable);
              const colour = style.trim().match(/[0-9a-f]{2}/g).map((byte) => parseInt(byte, 16));
              const canvas = document.getElementById(id);
              const { data } = canvas.getContext("2d")
                .getImageData(0, 0, canvas.width, canvas.height);
              let count = 0;
              window.highest = 1;
              for (let at = 0; at < data.length; at += 4) {
                const near = colour.every((c, i) => Math.abs(c - data[at + i]) < 30);
                if (!near || data[at + 3] <= 150) continue;
                const row = Math.floor(at / 4 / canvas.width);
                window.highest = Math.min(window.highest, row / canvas.height);
                count += 1;
              }
              return count;
            }
            """,
            [canvas, variable],
        )
        return pixels

    def highest(self, canvas: str, variable: str) -> float:
        """How high on the canvas the colour of a style variable is, from 0 to 1."""
        self.painted(canvas, variable)
        height: float = self.evaluate("1 - window.highest")
        return height

    def overflow(self) -> int:
        """How many pixels are to be scrolled to the side."""
        pixels: int = self.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return pixels


def begin(log: Path, demo: Demo, line: str) -> None:
    """Write a first line, and wait for it. Who has an open stream may not have a position yet."""
    write(log, line)
    demo.wait_for_rows(1)


def test_charts_show_this_machine(context: BrowserContext) -> None:
    with running() as program:
        demo = Demo(context, program.url)
        demo.wait_for_state("stats", "open")
        demo.wait_for_number("stats", "events", 4)
        texts = "[...document.querySelectorAll('#stats-status dd')].map((e) => e.textContent)"
        ready, events, reconnects, last_event_id = demo.evaluate(texts)
        assert (ready, int(events) >= 4, reconnects) == ("1", True, "0")
        assert "-" in last_event_id
        assert demo.page.title() == f"{demo.text('#facts').split(' ')[0]}, live: sse_asgi"
        assert 0 <= int(demo.text("#cpu")) <= 100
        cores = len(psutil.cpu_times(percpu=True))
        assert demo.evaluate("document.getElementById('cores').childElementCount") == cores
        value, unit = demo.text("#memory-share").split()[-2:]
        total = float(value) * 2 ** {"MiB": 20, "GiB": 30, "TiB": 40}[unit]
        assert total == pytest.approx(psutil.virtual_memory().total, rel=0.01)
        for canvas, said, variable in (
            ("cpu-chart", "CPU load, last two minutes: all processors ", "--cpu"),
            ("memory-chart", "Memory in use, last two minutes: used ", "--memory"),
            ("network-chart", "Network traffic, last two minutes: received ", "--sent"),
        ):
            label = demo.evaluate(f"document.getElementById('{canvas}').ariaLabel")
            assert label.startswith(said)
            assert demo.painted(canvas, variable) > 10
        assert demo.page.locator("#hint").is_visible()
        assert not demo.page.locator("#lines").is_visible()
        # Its scale is that of what is used, not of all that there is.
        assert demo.highest("memory-chart", "--memory") > 0.25
        # It needs nobody else.
        assert demo.requests
        assert all(url.startswith((program.url, "data:")) for url in demo.requests)


def test_log_grows(context: BrowserContext, log: Path) -> None:
    write(log, *(f"old {number}" for number in range(20)))
    with running("--tail", str(log)) as program:
        demo = Demo(context, program.url)
        expected = [f"old {number}" for number in range(10, 20)]
        demo.wait_for_rows(len(expected))
        assert demo.rows() == expected
        assert demo.text("#log-name") == str(log)
        special = [
            "<b>bold</b> &amp; <script>throw 1</script>",
            "snow \u2603 \U0001f389 \u6f22\u5b57",
            "  indented\tand tabbed",
            "",
            "an ERROR",
            "a warning",
        ]
        for line in special:
            write(log, line)
            expected.append(line)
            demo.wait_for_rows(len(expected))
        assert demo.rows() == expected
        assert demo.evaluate("document.querySelectorAll('#lines :is(b, script)').length") == 0
        assert demo.text("#lines .bad > :last-child") == "an ERROR"
        assert demo.text("#lines .warn > :last-child") == "a warning"
        # The id of a line is next to it, and is what the stream says it has.
        assert demo.text("#lines .row:last-child > :first-child") == str(log.stat().st_size)
        assert demo.text("#log-status [data-is=id]") == str(log.stat().st_size)
        rotate(log, b"new\n")
        demo.wait_for_rows(len(expected) + 1)
        assert demo.rows() == [*expected, "new"]
        assert demo.notes() == ["file rotated: reading from its beginning"]


def test_log_is_followed_until_somebody_reads(context: BrowserContext, log: Path) -> None:
    with running("--tail", str(log)) as program:
        demo = Demo(context, program.url)
        begin(log, demo, "line 0")
        write(log, *(f"line {number}" for number in range(1, 200)))
        demo.wait_for_rows(200)
        lines, jump = demo.page.locator("#lines"), demo.page.locator("#jump")
        left = "document.getElementById('lines')"
        left = f"{left}.scrollHeight - {left}.scrollTop - {left}.clientHeight"
        demo.page.wait_for_function(f"() => {left} < 2")
        assert not jump.is_visible()
        lines.evaluate("(element) => { element.scrollTop = 0; }")
        demo.wait_for_text("#jump", "\u2193 Follow")
        write(log, *(f"more {number}" for number in range(5)))
        demo.wait_for_text("#jump", "\u2193 5 new lines")
        assert lines.evaluate("(element) => element.scrollTop") == 0
        jump.click()
        jump.wait_for(state="hidden")
        demo.page.wait_for_function(f"() => {left} < 2")
        write(log, "last")
        demo.wait_for_rows(206)
        demo.page.wait_for_function(f"() => {left} < 2")
        assert not jump.is_visible()


def test_survives_a_killed_server(context: BrowserContext, log: Path, tmp_path: Path) -> None:
    """SIGKILL, and another server on the same port: no line is lost or comes twice."""
    arguments = ("--port", str(steady_port()), "--tail", str(log))
    expected = [f"first {number}" for number in range(5)]
    write(log, *expected)

    def more(what: str) -> None:
        lines = [f"{what} {number}" for number in range(20)]
        write(log, *lines)
        expected.extend(lines)

    with running(*arguments) as program:
        demo = Demo(context, program.url)
        demo.wait_for_rows(5)
        demo.wait_for_number("stats", "events", 2)
        more("before")
        demo.wait_for_rows(10)
        program.process.kill()
        demo.wait_for_state("stats", "connecting")
        demo.wait_for_state("log", "connecting")
        demo.page.screenshot(path=tmp_path / "disconnected.png", full_page=True)
    for kill in (1, 2):
        more(f"while down {kill}")
        with running(*arguments) as program:
            events = demo.number("stats", "events")
            for stream in ("stats", "log"):
                demo.wait_for_state(stream, "open")
                demo.wait_for_number(stream, "reconnects", kill)
            demo.wait_for_number("stats", "events", events + 1)
            more(f"after {kill}")
            demo.wait_for_rows(len(expected))
            assert demo.rows() == expected
            program.process.kill()
            demo.wait_for_state("stats", "connecting")
            demo.wait_for_state("log", "connecting")
    assert [demo.number(stream, "reconnects") for stream in ("stats", "log")] == [2, 2]
    lost, again, *_ = notes = demo.notes()
    assert lost == "connection lost"
    assert again.startswith("connected again, continuing at byte ")
    assert notes[2::2] == [lost, lost]
    demo.page.screenshot(path=tmp_path / "killed.png", full_page=True)


LOST = r"connection lost: the browser tries again by itself \(readyState 0\)"
AGAIN = r"connected again after \d+\.\d s and \d+ (try|tries), with Last-Event-ID [-.0-9a-f]+"


def test_new_tab_begins_with_what_was(context: BrowserContext) -> None:
    with running() as program:
        first = Demo(context, program.url)
        first.wait_for_number("stats", "events", 6)
        second = Demo(context, program.url)
        second.wait_for_happened(r"connected: the server began with \d+ events .*")
        (began,) = second.happened()
        assert int(began.split()[5]) >= 5
        # The charts show it at once.
        assert second.painted("memory-chart", "--memory") > 10


def test_disconnect_me(context: BrowserContext) -> None:
    with running() as program:
        demo, other = Demo(context, program.url), Demo(context, program.url)
        for tab in (demo, other):
            tab.wait_for_happened(
                r"connected: the server began with \d+ events? of the time before"
            )
        # By the keyboard, and the focus stays where it was.
        demo.page.locator("#disconnect").focus()
        for count in (1, 2):
            demo.page.keyboard.press("Enter")
            demo.wait_for_number("stats", "reconnects", count)
            replayed = r"\d+ events? replayed, none is missing"
            asked = "the server ended this response, as you asked"
            demo.wait_for_happened(asked, LOST, AGAIN, replayed)
        assert demo.evaluate("document.activeElement.id") == "disconnect"
        assert demo.text("#stats-status [data-is=ready]") == "1"
        assert int(demo.text("[data-reason=finished]")) >= 1
        assert other.number("stats", "reconnects") == 0


def test_stop_the_server(context: BrowserContext, log: Path) -> None:
    """A drain and a restart: nothing on the page moves, and what is lost is said."""
    write(log, "one", "two")
    with running("--tail", str(log)) as program:
        demo = Demo(context, program.url)
        demo.wait_for_number("stats", "events", 3)
        demo.wait_for_rows(2)
        demo.say("hello")
        demo.wait_for_wall("Ann hello")
        before = demo.boxes()
        demo.page.locator("#stop").click()
        demo.wait_for_state("stats", "connecting")
        demo.wait_for_state("log", "connecting")
        demo.wait_for_happened("the server is stopping, to be back in 5 s", LOST)
        demo.page.get_by_text(re.compile(r"^back in [1-5] s · \d+ (try|tries)$")).wait_for()
        for button in ("disconnect", "stop"):
            assert demo.evaluate(f"document.getElementById('{button}').ariaDisabled") == "true"
        assert demo.boxes() == before
        write(log, "three")
        for stream in ("stats", "log"):
            demo.wait_for_state(stream, "open")
            demo.wait_for_number(stream, "reconnects", 1)
        forgotten = "the server was restarted, and has forgotten what was before"
        demo.wait_for_happened("the server is stopping, .*", LOST, AGAIN, forgotten)
        demo.wait_for_text("#wall > :last-child", RESTARTED)
        demo.wait_for_text("[data-reason=shutdown]", "2")
        # The log was not in the memory of the server.
        demo.wait_for_rows(3)
        assert demo.rows() == ["one", "two", "three"]
        assert demo.boxes() == before


def test_refusal_is_said(context: BrowserContext) -> None:
    with running("--host", "0.0.0.0") as program:
        demo = Demo(context, program.url)
        demo.wait_for_number("stats", "events", 2)
        assert not demo.page.locator("#stop").is_visible()  # for whom it would be refused
        before = demo.boxes()
        text = "this may be done 10 times in 10 s: try again in 8 s"
        demo.page.route("**/disconnect", lambda route: route.fulfill(status=429, body=text))
        demo.page.locator("#disconnect").click()
        demo.wait_for_text("#refused", text)
        assert not demo.page.locator("#waiting").is_visible()  # they have the same place
        assert demo.boxes() == before


def test_commands_can_be_copied(new_context: NewContext) -> None:
    context = new_context(permissions=["clipboard-read", "clipboard-write"])
    with running() as program:
        demo = Demo(context, program.url)
        for name, command in (
            ("curl", f"curl -N {program.url}events"),
            ("tail", f"python -m sse_asgi tail {program.url}events"),
        ):
            demo.page.get_by_role("button", name=f"Copy the {name} command").click()
            demo.wait_for_text("#copied", "Copied")
            assert demo.evaluate("navigator.clipboard.readText()") == command
        demo.page.get_by_role("link", name="Source of this demo").click()
        demo.page.get_by_text("def create_app(").wait_for()


def test_keyboard_and_screen_reader(context: BrowserContext, log: Path) -> None:
    write(log, "one")
    with running("--tail", str(log)) as program:
        demo = Demo(context, program.url)
        demo.wait_for_rows(1)
        demo.wait_for_number("stats", "events", 3)
        assert demo.evaluate("document.documentElement.lang") == "en"
        levels = "[...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))"
        levels = demo.evaluate(levels)
        assert levels[0] == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        assert levels.count(1) == 1
        # All that can be used or scrolled is reached by Tab, in the order of the page, and seen.
        places: list[str] = []
        while True:
            demo.page.keyboard.press("Tab")
            place, outline = demo.evaluate(
                "(({ activeElement: e }) => [e.id || e.getAttribute('aria-label') || e.textContent,"
                " getComputedStyle(e).outlineStyle])(document)"
            )
            if demo.evaluate("document.activeElement === document.body") or place in places:
                break
            assert outline == "solid", place
            places.append(place)
        assert places == [
            "Source of this demo",
            "Copy the curl command",
            "Copy the tail command",
            "happened",
            *("disconnect", "stop"),
            *("wall", "name", "text", "send"),
            "lines",
        ]
        # What is read aloud by itself: what happens, and messages. Not the log, nor numbers.
        live = (
            "[...document.querySelectorAll('[role=log], [role=status], [role=alert], [aria-live]')]"
        )
        live = demo.evaluate(f"{live}.filter((e) => e.ariaLive !== 'off').map((e) => e.id)")
        assert live == ["happened", "refused", "wall", "unsaid", "copied"]
        demo.wait_for_happened("connected: .*")
        assert demo.evaluate("document.getElementById('wall').ariaBusy") == "false"
        tree = demo.page.locator("main").aria_snapshot()
        for region in ("CPU", "Memory", "Your connection", "All streams so far", "Wall, the same"):
            assert f'- region "{region}' in tree
        assert 'textbox "Message"' in tree
        assert 'textbox "Name"' in tree
        assert 'log "Your connection"' in tree


CONTRASTS = """
() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colour, below) => {
    context.fillStyle = `rgb(${below})`;
    context.fillRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const background = (element) => {
    const below = element.parentElement ? background(element.parentElement) : [255, 255, 255];
    return over(getComputedStyle(element).backgroundColor, below);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => value / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const below = background(element);
    const [a, b] = [light(over(getComputedStyle(element).color, below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found[walker.currentNode.data.trim().slice(0, 40)] = contrast;
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(new_context: NewContext, log: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: text has a contrast of 4.5 to 1."""
    write(log, "one", "a warning", "an ERROR")
    with running("--tail", str(log)) as program:
        demo = Demo(new_context(color_scheme=scheme), program.url)
        demo.wait_for_rows(3)
        demo.wait_for_happened("connected: .*")
        demo.say("hello")
        demo.wait_for_wall("Ann hello")
        demo.page.locator("#stop").click()
        for state in ("connecting", "open"):
            demo.wait_for_state("stats", state)
            contrasts = demo.page.evaluate(CONTRASTS)
            assert {"This machine, live", state, "an ERROR", "hello"} <= set(contrasts)
            assert {text: c for text, c in contrasts.items() if c < 4.5} == {}


def test_less_motion(new_context: NewContext) -> None:
    with running() as program:
        demo = Demo(new_context(reduced_motion="reduce"), program.url)
        demo.wait_for_number("stats", "events", 3)
        core = "getComputedStyle(document.querySelector('#cores i'), '::after').transitionDuration"
        assert demo.evaluate(core) == "0s"
        # Between two samples the charts stand still.
        still = demo.page.evaluate(
            """
            async () => {
              const look = () => document.getElementById("memory-chart").toDataURL();
              const events = () => document.querySelector("[data-is=events]").textContent;
              const wait = (ms) => new Promise((done) => setTimeout(done, ms));
              for (;;) {
                await wait(60);
                const [before, count] = [look(), events()];
                await wait(200);
                const after = look();
                await wait(60);
                if (count === events()) return before === after;
              }
            }
            """
        )
        assert still


def test_policy_allows_what_the_page_needs(context: BrowserContext, log: Path) -> None:
    """And no other page may show it in a frame."""
    write(log, "one")
    said: list[str] = []
    with running("--tail", str(log)) as program:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.goto(program.url)
        page.get_by_text("connected: the server began").wait_for()
        page.locator("#lines .row").wait_for()
        assert said == []
        other = context.new_page()
        other.on("console", lambda message: said.append(message.text))
        other.goto(f"{program.url}nothing")
        other.evaluate(
            "(url) => document.body.append(Object.assign("
            "document.createElement('iframe'), { src: url }))",
            program.url,
        )
        other.wait_for_event("console", lambda message: "frame-ancestors" in message.text)


RESTARTED = "the server forgot the messages above when it was restarted: only this tab has them"


def test_wall_is_the_same_in_every_tab(context: BrowserContext) -> None:
    arguments = ("--port", str(steady_port()))
    special = "<b>bold</b> &amp; <script>throw 1</script> an ERROR \u2603"
    with running(*arguments) as program:
        one, two = Demo(context, program.url), Demo(context, program.url)
        for demo, text in ((one, "first"), (two, special), (one, "first")):
            demo.say(text)
            for tab in (one, two):
                tab.wait_for_wall(f"Ann {text}")
            demo.wait_for_text("#unsaid", "")
        late = Demo(context, program.url)
        late.wait_for_wall("Ann first")
        for tab in (one, two, late):
            assert tab.wall() == ["Ann first", f"Ann {special}", "Ann first"]
            assert tab.evaluate("document.querySelectorAll('#wall :is(script, .bad)').length") == 0
            # The names are the only ones in bold.
            assert tab.evaluate("document.querySelectorAll('#wall b').length") == 3
        # The browser remembers the name.
        late.page.reload()
        assert late.page.locator("#name").input_value() == "Ann"
        late.page.close()
        program.process.kill()
        one.wait_for_state("stats", "connecting")
        one.say("lost?", "<b>Bob</b>")
        one.page.get_by_text("Not sent, try again").wait_for()
    with running(*arguments):
        for tab in (one, two):
            tab.wait_for_text("#wall > :last-child", RESTARTED)
        one.page.locator("#send").click()
        two.wait_for_wall("<b>Bob</b> lost?")
        one.wait_for_wall("<b>Bob</b> lost?")
        one.wait_for_text("#unsaid", "")
        after = ["connection lost", "connected again", RESTARTED, "<b>Bob</b> lost?"]
        for tab in (one, two):
            assert tab.wall() == ["Ann first", f"Ann {special}", "Ann first", *after]
            assert tab.evaluate("document.querySelectorAll('#wall .forgotten').length") == 3


@contextmanager
def refusing(port: int) -> Iterator[None]:
    """Something that answers 502, as a proxy does whose server is away."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(502)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_survives_a_proxy_that_refuses(context: BrowserContext, log: Path) -> None:
    """After an HTTP error an EventSource gives up; the page does not, and knows where it was."""
    number = steady_port()
    arguments = ("--port", str(number), "--tail", str(log))
    with running(*arguments) as program:
        demo = Demo(context, program.url)
        begin(log, demo, "before 0")
        write(log, *(f"before {number}" for number in range(1, 20)))
        demo.wait_for_rows(20)
        position = log.stat().st_size
        demo.wait_for_number("stats", "events", 1)
        program.process.kill()
    write(log, *(f"meanwhile {number}" for number in range(20)))
    with refusing(number):
        demo.wait_for_state("stats", "closed")
        demo.wait_for_state("log", "closed")
        before = len(demo.requests)
        # It tries by itself.
        with demo.page.expect_response(lambda response: response.status == 502):
            pass
        assert len(demo.requests) > before
        demo.wait_for_state("log", "closed")
    with running(*arguments):
        demo.wait_for_state("stats", "open")
        demo.wait_for_state("log", "open")
        write(log, "after")
        demo.wait_for_rows(41)
        demo.wait_for_number("stats", "events", 2)
    assert demo.rows() == [
        *(f"before {number}" for number in range(20)),
        *(f"meanwhile {number}" for number in range(20)),
        "after",
    ]
    assert demo.notes()[:2] == [
        "connection lost",
        f"connected again, continuing at byte {position}",
    ]


def test_survives_a_server_without_the_log(context: BrowserContext, log: Path) -> None:
    """What is shown is what came since there is a log again."""
    arguments = ("--port", str(steady_port()))
    write(log, "one", "two")
    with running(*arguments, "--tail", str(log)) as program:
        demo = Demo(context, program.url)
        demo.wait_for_rows(2)
        program.process.kill()
    with running(*arguments) as program:
        demo.page.locator("#hint").wait_for()
        assert not demo.page.locator("#lines").is_visible()
        program.process.kill()
    write(log, "three")
    with running(*arguments, "--tail", str(log)):
        demo.page.locator("#lines").wait_for()
        write(log, "four")
        demo.wait_for_text("#lines .row:last-child > :last-child", "four")
    assert demo.rows() == ["one", "two", "three", "four"]


def test_looks(new_context: NewContext, log: Path, tmp_path: Path) -> None:
    """Screenshots, to be looked at; nothing is to be scrolled to the side."""
    write(log, *(f"2026-11-22 15:00:0{number} INFO worker-{number} started" for number in range(7)))
    write(log, "2026-11-22 15:00:08 WARNING queue is nearly full: 97 of 100")
    write(log, "2026-11-22 15:00:09 ERROR " + "a line that is long, " * 30)
    write(log, "https://example.org/" + "without-a-space" * 30)
    with running("--tail", str(log)) as program, running() as without_log:
        light, dark = new_context(color_scheme="light"), new_context(color_scheme="dark")
        demos = [
            ("light", Demo(light, program.url), [320, 768, 1280]),
            ("dark", Demo(dark, program.url), [390]),
            ("without-log", Demo(light, without_log.url), [320]),
        ]
        for name, demo, widths in demos:
            demo.wait_for_number("stats", "events", 3)
            for width in widths:
                demo.page.set_viewport_size({"width": width, "height": 800})
                # The charts are drawn anew.
                demo.page.wait_for_function(
                    "() => [...document.querySelectorAll('canvas')]"
                    ".every((c) => c.width === c.clientWidth)"
                )
                assert demo.overflow() == 0, width
                picture = tmp_path / f"{name}-{width}.png"
                demo.page.screenshot(path=picture, full_page=True)
                assert picture.stat().st_size > 10_000
