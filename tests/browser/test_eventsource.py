"""A browser's own EventSource, and its fetch(), against uvicorn."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.servers.harness import steady_port

from .apps import BIG, BURST, UNICODE
from .conftest import BrowserServer, StartServer
from .pages import CLOSED, CONNECTING, LOST, OPEN, OPENED, REFUSED, Happened, Source

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

GONE = ["closed client_disconnected", "app returned"]


@pytest.fixture
def page(context: BrowserContext, server: BrowserServer) -> Page:
    """A page of the shared server."""
    page = context.new_page()
    page.goto(server.url)
    return page


def starts(server: BrowserServer, tag: str) -> list[str]:
    """Where the streams of the tag have started, as the browser said."""
    history = server.status(tag)["history"]
    return [what.removeprefix("from ") for what in history if what.startswith("from ")]


# What comes out.


def test_opens_before_there_is_an_event(page: Page, tag: str) -> None:
    state = page.evaluate("(url) => new EventSource(url).readyState", f"/idle?tag={tag}")
    assert state == CONNECTING
    source = Source(page, f"/idle?tag={tag}")
    source.wait_for("source.of('open').length")
    assert source.log() == [OPENED]
    assert source.ready_state == OPEN


@pytest.mark.parametrize("separator", ["lf", "crlf", "cr"])
def test_events(page: Page, tag: str, separator: str) -> None:
    names = ["lines", "gr\xfc\xdfe \U0001f389", "json", "constructor", "last"]
    source = Source(page, f"/many-{separator}?tag={tag}", names)
    source.wait_for_events(1, "last")
    opened, *events = source.log()
    assert opened == OPENED
    parsed = source.evaluate("source.of('json').map((event) => JSON.parse(event.data))")
    assert parsed == [
        {"text": UNICODE, "list": [1, None, True, 0.5, "\n"]},
        [{"a": "\u2028"}],
    ]
    events = [event._replace(data=None) if event.type == "json" else event for event in events]
    assert events == [
        Happened("message", "hello", ""),
        Happened("lines", "one\ntwo\nthree\nfour\n\n", "1"),
        Happened("gr\xfc\xdfe \U0001f389", UNICODE, "\xfc \u6f22\u5b57 \U0001f389"),
        Happened("message", "", "\xfc \u6f22\u5b57 \U0001f389"),
        Happened("message", " : indented, and a field: too\n\n :", "\xfc \u6f22\u5b57 \U0001f389"),
        Happened("json", None, "\xfc \u6f22\u5b57 \U0001f389"),
        Happened("json", None, "2"),
        # What came with nothing but an id was no event, but its id counts.
        Happened("message", "raw", "3"),
        Happened("message", "the id is forgotten", ""),
        Happened("constructor", "a name that objects have", ""),
        Happened("last", "end", "4"),
    ]


def test_names_of_its_own_events_do_not_confuse_it(page: Page, tag: str) -> None:
    """`event: error` is an event like others: it has data, and the stream stays open."""
    source = Source(page, f"/named-like-its-own?tag={tag}")
    source.wait_for_events(1)
    assert source.log() == [
        OPENED,
        Happened("error", "an error", "1"),
        Happened("open", "an opening", "2"),
        Happened("message", "a message", "3"),
    ]


def test_pings_are_no_events(page: Page, tag: str) -> None:
    source = Source(page, f"/pinged?tag={tag}")
    source.wait_for_events(2)
    assert source.log() == [
        OPENED,
        Happened("message", "before", ""),
        Happened("message", "after", ""),
    ]


def test_each_event_comes_at_once(page: Page, tag: str) -> None:
    """Nothing on the way keeps an event until there is another."""
    source = Source(page, f"/told?tag={tag}")
    for number in range(1, 6):
        source.wait_for_events(number)
        page.evaluate("(url) => fetch(url)", f"/tell?tag={tag}")
    source.wait_for_events(6)
    assert source.messages() == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_each_compressed_event_comes_at_once(page: Page, tag: str, coding: str) -> None:
    with page.expect_response(lambda response: coding in response.url) as responded:
        source = Source(page, f"/told-{coding}?tag={tag}")
    assert responded.value.headers["content-encoding"] == coding
    for number in range(1, 6):
        source.wait_for_events(number)
        page.evaluate("(url) => fetch(url)", f"/tell?tag={tag}")
    source.wait_for_events(6)
    assert source.messages() == ["1", "2", "3", "4", "5", "6"]


def test_large_event(page: Page, tag: str) -> None:
    """It comes in many chunks, which end within characters."""
    source = Source(page, f"/big?tag={tag}")
    source.wait_for_events(1)
    assert source.log() == [OPENED, Happened("message", BIG, "big")]


def test_burst(page: Page, tag: str) -> None:
    source = Source(page, f"/burst?tag={tag}")
    source.wait_for_events(BURST)
    assert source.messages() == [str(number) for number in range(BURST)]


# Coming back.


def test_comes_back_when_the_source_ends(page: Page, server: BrowserServer, tag: str) -> None:
    source = Source(page, f"/three?tag={tag}")
    source.wait_for_events(9)
    source.close()
    numbers = [Happened("message", str(number), str(number)) for number in range(1, 10)]
    assert (
        source.log()[:14]
        == [
            *(OPENED, *numbers[:3], LOST),
            *(OPENED, *numbers[3:6], LOST),
            *(OPENED, *numbers[6:]),
        ][:14]
    )
    assert starts(server, tag)[:3] == ["None", "3", "6"]


def test_comes_back_after_max_lifetime(page: Page, server: BrowserServer, tag: str) -> None:
    source = Source(page, f"/numbers-for-a-while?tag={tag}")
    source.wait_for("source.of('open').length >= 4 && source.log.at(-1).type === 'message'")
    source.close()
    messages = source.messages()
    assert messages == [str(number) for number in range(1, len(messages) + 1)]
    history = server.wait_for_end(tag, source.evaluate("source.of('open').length"))
    assert history.count("closed max_lifetime") >= 3
    # Where the next one starts, the one before has ended for the browser.
    last = source.evaluate(
        "source.log.filter((event, i) => source.log[i + 1]?.type === 'error').map((e) => e.id)"
    )
    assert starts(server, tag)[:4] == ["None", *last[:3]]


IDS = {
    "ASCII": "0-17",
    "Latin-1": "\xe9-\xfc-\xff",
    "CJK": "\u96ea",
    "emoji": "\u2603 \U0001f389",
    "punctuation": "a%20b;c=\"d\",  'e'\tf\\",
}


@pytest.mark.parametrize("id", IDS.values(), ids=IDS.keys())
def test_comes_back_with_the_id(page: Page, server: BrowserServer, tag: str, id: str) -> None:
    url = page.evaluate("([tag, id]) => `/remember?${new URLSearchParams({tag, id})}`", [tag, id])
    source = Source(page, url, ["back"])
    source.wait_for_events(1, "back")
    assert source.evaluate("source.of('message')[0].id") == id
    assert source.evaluate("JSON.parse(source.of('back')[0].data)") == id
    raw = [what for what in server.status(tag)["history"] if what.startswith("last-event-id")]
    assert raw == ["last-event-id []", f"last-event-id {[id.encode()]!r}"]


def test_comes_back_without_an_id_that_was_taken_back(
    page: Page, server: BrowserServer, tag: str
) -> None:
    source = Source(page, f"/forget?tag={tag}")
    source.wait_for_events(3)
    source.close()
    assert source.log()[1:3] == [
        Happened("message", "remember", "1"),
        Happened("message", "forget", ""),
    ]
    assert set(starts(server, tag)) == {"None"}


def test_waits_as_long_as_it_is_told(page: Page, tag: str) -> None:
    """Longer than it would by itself: `retry` was read."""
    source = Source(page, f"/three-later?tag={tag}")
    source.wait_for("source.of('open').length >= 2")
    # The last message came before the end from which it waits.
    waited = source.evaluate("source.of('open')[1].at - source.of('message')[2].at")
    assert waited >= 4000


@pytest.mark.parametrize("code", [204, 403, 503])
@pytest.mark.parametrize("when", ["at first", "later"])
def test_stays_away_when_told_to(
    page: Page, server: BrowserServer, tag: str, code: int, when: str
) -> None:
    url = f"/refuse?tag={tag}&code={code}"
    source = Source(page, url if when == "later" else f"{url}&now")
    source.wait_for("source.readyState === EventSource.CLOSED")
    numbers = [Happened("message", str(number), str(number)) for number in range(1, 4)]
    before = [OPENED, *numbers, LOST] if when == "later" else []
    # One that comes back as soon shows how often this one could have.
    other = Source(page, f"/three?tag={tag}-other")
    other.wait_for("source.of('open').length >= 5")
    other.close()
    assert source.log() == [*before, REFUSED]
    assert source.ready_state == CLOSED
    history = server.status(tag)["history"]
    assert [what for what in history if what.startswith(("from", "refused"))] == (
        ["from None", "refused 3"] if when == "later" else ["refused None"]
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_comes_back_to_a_new_server(
    start_server: StartServer, context: BrowserContext, tag: str, number: signal.Signals
) -> None:
    where = steady_port()
    server = start_server(where)
    page = context.new_page()
    page.goto(server.url)
    source = Source(page, f"/numbers?tag={tag}")
    seen = 0
    for _ in range(2):
        source.wait_for_events(seen + 5)
        server.signal(number)
        # uvicorn ends by the signal it was sent, when it has stopped.
        assert server.wait() == -number
        assert server.complaints() == []
        source.wait_for("source.readyState === EventSource.CONNECTING")
        seen = len(source.messages())
        server = start_server(where)
        source.wait_for_events(seen + 5)
        assert starts(server, tag) == [str(seen)]
    source.close()
    assert server.wait_for_end(tag)[-2:] == GONE
    messages = source.messages()
    assert messages == [str(number) for number in range(1, len(messages) + 1)]
    log = source.log()
    assert log[0] == OPENED
    # One for each end, and more while there is nobody. A server that is stopping may have let it
    # in once more, to a stream that ended at once.
    assert {event for event in log if event.type == "error"} == {LOST}


# Going away.


@pytest.mark.parametrize("path", ["/idle", "/clock"])
@pytest.mark.parametrize("leave", ["source.close()", "close the page", "leave the page"])
def test_server_notices_that_it_is_gone(
    page: Page, server: BrowserServer, tag: str, leave: str, path: str
) -> None:
    source = Source(page, f"{path}?tag={tag}")
    source.wait_for("source.readyState === EventSource.OPEN")
    assert server.status(tag)["history"] == ["source started"]
    if leave == "close the page":
        page.close()
    elif leave == "leave the page":
        page.goto("about:blank")
    else:
        source.close()
        assert source.ready_state == CLOSED
    history = server.wait_for_end(tag)
    assert history == ["source started", "source cleaned up on the loop", *GONE]


def test_two_tabs(page: Page, context: BrowserContext, server: BrowserServer, tag: str) -> None:
    """Each has a stream of its own; that of the one goes on when the other is closed."""
    other = context.new_page()
    other.goto(server.url)
    one, two = (Source(tab, f"/numbers?tag={tag}") for tab in (page, other))
    one.wait_for_events(5)
    two.wait_for_events(5)
    assert starts(server, tag) == ["None", "None"]
    other.close()
    history = server.wait_for_status(tag, lambda status: status["running"] == 1)["history"]
    assert history[-2:] == GONE
    one.wait_for_events(len(one.messages()) + 5)
    opened, *events = one.log()
    assert opened == OPENED
    assert events == [
        Happened("message", str(number), str(number)) for number in range(1, len(events) + 1)
    ]


# fetch(), which gives the bytes.


def test_fetch_reads_the_stream(page: Page, server: BrowserServer, tag: str) -> None:
    """Every event is there before the next is asked for; aborting it is a disconnect."""
    result = page.evaluate(
        """
        async (tag) => {
          const aborter = new AbortController();
          const response = await fetch(`/told?tag=${tag}`, { signal: aborter.signal });
          const reader = response.body.getReader();
          const text = new TextDecoder("utf-8", { fatal: true });
          const seen = [];
          for (let number = 1; number <= 5; number += 1) {
            let event = "";
            while (!event.endsWith("\\n\\n")) {
              event += text.decode((await reader.read()).value, { stream: true });
            }
            seen.push(event);
            if (number < 5) await fetch(`/tell?tag=${tag}`);
          }
          aborter.abort();
          return {
            status: response.status,
            type: response.headers.get("content-type"),
            cache: response.headers.get("cache-control"),
            seen,
          };
        }
        """,
        tag,
    )
    assert result == {
        "status": 200,
        "type": "text/event-stream; charset=utf-8",
        "cache": "no-cache, no-transform",
        "seen": [f"data: {number}\n\n" for number in range(1, 6)],
    }
    assert server.wait_for_end(tag)[-2:] == GONE


def test_fetch_reads_to_the_end(page: Page, tag: str) -> None:
    text = page.evaluate("(url) => fetch(url).then((r) => r.text())", f"/three?tag={tag}")
    assert text == "retry: 20\n\n" + "".join(f"id: {n}\ndata: {n}\n\n" for n in (1, 2, 3))


# Other origins.


def elsewhere(server: BrowserServer) -> str:
    """The same server under another name, which is another origin."""
    return f"http://localhost:{server.address.port}"


def test_other_origin_that_lets_it(page: Page, server: BrowserServer, tag: str) -> None:
    source = Source(page, f"{elsewhere(server)}/cors?tag={tag}", withCredentials=False)
    source.wait_for_events(6)
    source.close()
    assert source.messages()[:6] == ["1", "2", "3", "4", "5", "6"]
    assert starts(server, tag)[:2] == ["None", "3"]
    # To send Last-Event-ID, the browser needs no leave.
    assert f"GET /cors?tag={tag}" in server.log()
    assert f"OPTIONS /cors?tag={tag}" not in server.log()


def test_other_origin_that_does_not_let_it(page: Page, server: BrowserServer, tag: str) -> None:
    source = Source(page, f"{elsewhere(server)}/three?tag={tag}")
    source.wait_for("source.readyState === EventSource.CLOSED")
    assert source.log() == [REFUSED]
