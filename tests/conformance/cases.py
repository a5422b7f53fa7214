"""The cases, by subject: what a server sends, and what WHATWG HTML 9.2 has a client do."""

from __future__ import annotations

from .model import (
    CLOSED,
    GONE,
    LOST,
    OPEN,
    STREAM,
    Answer,
    Case,
    Entry,
    Request,
    event,
    stream,
)

BOM = b"\xef\xbb\xbf"
PARSING, INTERPRETING = "9.2.5", "9.2.6"
CONNECTING, HEADER = "9.2.3", "9.2.4"

CASES: list[Case] = []


def parse(
    subject: str,
    name: str,
    body: bytes | tuple[bytes | float, ...],
    *events: Entry,
    clause: str = INTERPRETING,
    last: str | None = None,
    **options: str,
) -> None:
    """Add a stream that ends, and then is gone.

    :param last: the last event ID at its end; by default that of the last event.
    """
    if last is None:
        last = events[-1][3] if events else ""
    chunks = body if isinstance(body, tuple) else (body,)
    CASES.append(
        Case(
            subject,
            name,
            clause,
            (stream(*chunks, **options), GONE),
            (OPEN, *events, LOST, CLOSED),
            (Request(), Request(last.encode() or None)),
        )
    )


# Lines.

LINES = "Lines"


def lines(name: str, body: bytes | tuple[bytes | float, ...], *events: Entry) -> None:
    parse(LINES, name, body, *events, clause=PARSING)


def one_by_one(body: bytes) -> tuple[bytes | float, ...]:
    """Each byte by itself, as far as the network leaves it so."""
    return tuple(part for byte in body for part in (bytes([byte]), 0.02))


lines("LF", b"data: 1\ndata: 2\n\n", event("1\n2"))
lines("CR", b"data: 1\rdata: 2\r\r", event("1\n2"))
lines("CRLF", b"data: 1\r\ndata: 2\r\n\r\n", event("1\n2"))
lines(
    "LF, CR and CRLF mixed",
    b"data: 1\r\ndata: 2\rdata: 3\n\r\ndata: 4\r\rdata: 5\n\n",
    event("1\n2\n3"),
    event("4"),
    event("5"),
)
lines("LF and then CR are two", b"data: 1\n\rdata: 2\n\r", event("1"), event("2"))
lines("CR and LF in two chunks", (b"data: 1\r", 0.1, b"\ndata: 2\r", 0.1, b"\n\r\n"), event("1\n2"))
lines(
    "an event that ends with CR comes at once",
    (b"data: 1\r\r", 0.2, b"data: 2\r\r"),
    event("1"),
    event("2"),
)
lines(
    "split after each byte",
    one_by_one(b"id: \xe2\x98\x83\r\nevent: a\rdata: \xf0\x9f\x8e\x89\n\r\n"),
    event("\U0001f389", "\u2603", "a"),
)
lines(
    "a field split in its name, its colon and its value",
    (b"da", 0.1, b"ta", 0.1, b":", 0.1, b" ", 0.1, b"1", 0.1, b"2\n", 0.1, b"\n"),
    event("12"),
)
lines(
    "VT, FF, NEL, LS and PS end no line",
    "data: 1\v2\f3\x854\u20285\u20296\x1c\n\n".encode(),
    event("1\v2\f3\x854\u20285\u20296\x1c"),
)
lines("blank lines at the start", b"\n\r\n\rdata: 1\n\n", event("1"))
lines("many blank lines between events", b"data: 1\n\n\n\n\n\ndata: 2\n\n", event("1"), event("2"))
lines("the end within the last line", b"data: 1\n\ndata: 2", event("1"))
lines("the end without a blank line", b"data: 1\n\ndata: 2\n", event("1"))
lines("the end after CR", b"data: 1\n\ndata: 2\r", event("1"))
lines("the end after CRLF", b"data: 1\n\ndata: 2\r\n", event("1"))
lines("the end after a blank line and no more", b"data: 1\r\n\r", event("1"))
lines("an empty stream", b"")

# Encoding.

ENCODING = "Encoding"


def encoding(name: str, body: bytes | tuple[bytes | float, ...], *events: Entry) -> None:
    parse(ENCODING, name, body, *events, clause=PARSING)


encoding("a BOM at the start is left out", BOM + b"data: 1\n\n", event("1"))
encoding("of two BOMs only one", BOM * 2 + b"data: 1\n\ndata: 2\n\n", event("2"))
encoding(
    "a BOM split over chunks", (BOM[:1], 0.1, BOM[1:2], 0.1, BOM[2:] + b"data: 1\n\n"), event("1")
)
encoding("a BOM and nothing else", BOM)
encoding("a BOM later belongs to the field's name", b"data: 1\n" + BOM + b"data: 2\n\n", event("1"))
encoding("a BOM in a value stays", b"data: " + BOM + b"1\n\n", event("\ufeff1"))
encoding(
    "a BOM decoded as ISO 8859-1 is none", "\xef\xbb\xbfdata: 1\n\ndata: 2\n\n".encode(), event("2")
)
encoding("half a BOM at the start", BOM[:2] + b"data: 1\n\ndata: 2\n\n", event("2"))
encoding(
    "UTF-8 in data, type and id",
    "event: gr\xfc\xdfe\nid: \u6f22\ndata: \U0001f389\n\nevent: gr\xfc\xdfe\ndata: 2\n\n".encode(),
    event("\U0001f389", "\u6f22", "gr\xfc\xdfe"),
    event("2", "\u6f22", "gr\xfc\xdfe"),
)
encoding(
    "a character split over chunks",
    (b"data: \xf0", 0.1, b"\x9f\x8e", 0.1, b"\x89\n\n"),
    event("\U0001f389"),
)
encoding(
    "bytes that are not UTF-8",
    b"data: \xff \xfe \x80 \xc3( \xc0\xaf\n\n",
    event("\ufffd \ufffd \ufffd \ufffd( \ufffd\ufffd"),
)
encoding(
    "half a character before the line ends",
    b"data: \xe2\x98\ndata: \xf0\x9f\x8e\n\n",
    event("\ufffd\n\ufffd"),
)
encoding(
    "a surrogate, and more than U+10FFFF",
    b"data: \xed\xa0\x80 \xf4\x90\x80\x80\n\n",
    event("\ufffd\ufffd\ufffd \ufffd\ufffd\ufffd\ufffd"),
)
encoding("half a character in the name of a field", b"data\xe2\x98: 1\ndata: 2\n\n", event("2"))

# Fields.

FIELDS = "Fields"


def fields(name: str, body: bytes, *events: Entry, last: str | None = None) -> None:
    parse(FIELDS, name, body, *events, last=last)


fields(
    "one space after the colon is left out", b"data:  1\ndata:2\ndata:\t3\n\n", event(" 1\n2\n\t3")
)
fields("spaces at the end stay", b"data: 1  \nevent: a \nid: 7\n\n", event("1  ", "7", "a "))
fields("a colon in the value", b"data::1:2\ndata: :3\n\n", event(":1:2\n:3"))
fields("a comment", b": data: 1\n:\n::\ndata: 2\n:data: 3\n\n: 4\n\n", event("2"))
fields("a long comment", b":" + b"x" * 4096 + b"\ndata: 1\n\n", event("1"))
fields(
    "unknown fields",
    b"x: 1\ndata: 2\nDATA: 3\n data: 4\ndata : 5\ndat: 6\ndatas: 7\n\n",
    event("2"),
)
fields("unknown fields without a colon", b"xyz\ndata: 1\nabc\n\n", event("1"))
fields("NUL in the name of a field", b"da\0ta: 1\ndata\0: 2\n\0data: 3\ndata: 4\n\n", event("4"))
fields("NUL in data", b"data: 1\0 2\ndata:\0\n\n", event("1\0 2\n\0"))
fields("data without a value", b"data:\n\n", event(""))
fields("data without a colon", b"data\n\n", event(""))
fields("data twice without a value", b"data\ndata\n\ndata:\ndata\n\n", event("\n"), event("\n"))
fields("empty lines of data at both ends", b"data:\ndata: 1\ndata:\n\n", event("\n1\n"))
fields("no data, no event", b"event: a\nid: 1\n\ndata: 2\n\n", event("2", "1"))
fields("blocks without data", b"\n: x\n\nretry: 10\n\nevent: a\n\ndata: 1\n\n", event("1"))
fields("an event type", b"event: a\ndata: 1\n\ndata: 2\n\n", event("1", type="a"), event("2"))
fields("an event type after the data", b"data: 1\nevent: a\n\n", event("1", type="a"))
fields("the last of two event types", b"event: a\ndata: 1\nevent: b\n\n", event("1", type="b"))
fields(
    "an empty event type",
    b"event:\ndata: 1\n\nevent: \ndata: 2\n\nevent\ndata: 3\n\n",
    event("1"),
    event("2"),
    event("3"),
)
fields("an empty event type after another", b"event: a\nevent:\ndata: 1\n\n", event("1"))
fields("an event type of one space", b"event:  \ndata: 1\n\n", event("1", type=" "))
fields("an event type does not outlive a block", b"event: a\n\ndata: 1\n\n", event("1"))
fields(
    "an event type that is the name of another event",
    b"event: open\ndata: 1\n\nevent: error\ndata: 2\n\nevent: message\ndata: 3\n\n",
    event("1", type="open"),
    event("2", type="error"),
    event("3"),
)
fields(
    "event types that objects have",
    b"event: constructor\ndata: 1\n\nevent: __proto__\ndata\n\n",
    event("1", type="constructor"),
    event("", type="__proto__"),
)

# Ids.

IDS = "Ids"


def ids(name: str, body: bytes, *events: Entry, last: str | None = None) -> None:
    parse(IDS, name, body, *events, last=last)


ids(
    "an id stays until there is another",
    b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n",
    event("a", "1"),
    event("b", "1"),
    event("c", "2"),
)
ids("an id after the data", b"data: a\nid: 1\n\n", event("a", "1"))
ids("the last of two ids", b"id: 1\nid: 2\ndata: a\n\n", event("a", "2"))
ids("an empty id resets it", b"id: 1\ndata: a\n\nid:\ndata: b\n\n", event("a", "1"), event("b"))
ids(
    "an id without a colon resets it",
    b"id: 1\ndata: a\n\nid\ndata: b\n\ndata: c\n\n",
    event("a", "1"),
    event("b"),
    event("c"),
)
ids(
    "an id with NUL is ignored",
    b"id: 1\ndata: a\n\nid: 2\0 3\ndata: b\n\nid: \0\ndata: c\n\n",
    event("a", "1"),
    event("b", "1"),
    event("c", "1"),
)
ids("an id with NUL leaves that before it", b"id: 1\nid: 2\0\ndata: a\n\n", event("a", "1"))
ids("an id without data counts", b"id: 1\n\n", last="1")
ids("an id without data is of the next event", b"id: 1\n\ndata: a\n\n", event("a", "1"))
ids(
    "an id of an unfinished event does not count",
    b"id: 1\ndata: a\n\nid: 2\ndata: b\n",
    event("a", "1"),
)
ids("an id without data or blank line does not count", b"id: 1\n")
ids("an empty id without data resets it", b"id: 1\ndata: a\n\nid:\n\n", event("a", "1"), last="")
ids(
    "an id in UTF-8",
    "id: \xfc\u2603 \U0001f389\ndata: a\n\n".encode(),
    event("a", "\xfc\u2603 \U0001f389"),
)
ids("an id in ISO 8859-1's range", "id: \xfc\xff\ndata: a\n\n".encode(), event("a", "\xfc\xff"))
ids("an id of broken UTF-8", b"id: a\xffb\ndata: a\n\n", event("a", "a\ufffdb"))
ids("spaces at an id's ends", b"id:  1 \t\ndata: a\n\n", event("a", " 1 \t"), last="1")
ids(
    "an id that looks like more", b'id: 1, "2"; data: 3\ndata: a\n\n', event("a", '1, "2"; data: 3')
)
ids("a long id", b"id: " + b"x" * 4000 + b"\ndata: a\n\n", event("a", "x" * 4000))

# Retry.

RETRY = "Reconnection time"


def retry(name: str, body: bytes, after: float, *events: Entry) -> None:
    """Add a stream after which the next attempt must not begin too early."""
    CASES.append(
        Case(
            RETRY,
            name,
            INTERPRETING,
            (stream(body), GONE),
            (OPEN, *events, LOST, CLOSED),
            (Request(), Request(after=after)),
            one_response=False,
        )
    )


# The reconnection time is much longer than the usual 3 seconds, so that it is seen if it does not
# count, on a busy machine, too.
KEPT = 6.0
retry("a number of milliseconds", b"retry: 6000\n\ndata: 1\n\n", KEPT, event("1"))
retry("without a blank line", b"retry: 6000\n", KEPT)
retry("the last of two", b"retry: 1\nretry: 6000\n\n", KEPT)
retry("zeros in front", b"retry: 0006000\n\n", KEPT)
retry("an empty value is ignored", b"retry: 6000\nretry:\n\n", KEPT)
retry("no value is ignored", b"retry: 6000\nretry\n\n", KEPT)
for kind, bogus in {
    "letters after digits": b"1x",
    "a minus": b"-1",
    "a plus": b"+1",
    "a fraction": b"1.5",
    "an exponent": b"1e1",
    "hexadecimal digits": b"0x1",
    "a space before": b" 1",
    "a space after": b"1 ",
    "a tab": b"\t1",
    "an underscore": b"1_0",
    "digits of other scripts": "\u0661".encode(),
    "a NUL": b"1\0",
}.items():
    retry(f"{kind}: ignored", b"retry: 6000\nretry: " + bogus + b"\n\n", KEPT)

# Content type.

TYPE = "Content type"


def content_type(name: str, *values: str, right: bool) -> None:
    headers = tuple(("Content-Type", value) for value in values)
    body = "data: \u2603\n\n".encode()
    good = (OPEN, event("\u2603"), LOST, CLOSED), (Request(), Request())
    log, requests = good if right else ((CLOSED,), (Request(),))
    answers = (stream(body, headers=headers), GONE)
    CASES.append(Case(TYPE, name, CONNECTING, answers, log, requests))


content_type("as it should be", STREAM, right=True)
content_type("with charset=utf-8", f"{STREAM}; charset=utf-8", right=True)
content_type("another charset does not count", f"{STREAM};charset=windows-1252", right=True)
content_type("an unknown charset", f"{STREAM};charset=nothing", right=True)
content_type("in capitals", "TEXT/Event-Stream", right=True)
content_type("a semicolon and nothing more", f"{STREAM};", right=True)
content_type("a space before the semicolon", f"{STREAM} ; a=b", right=True)
content_type("a parameter that is none", f"{STREAM};bogus", right=True)
content_type("missing", right=False)
content_type("empty", "", right=False)
content_type("text/plain", "text/plain", right=False)
content_type("application/json", "application/json", right=False)
content_type("a longer name", "text/event-streams", right=False)
content_type("a suffix", f"{STREAM}+bogus", right=False)
content_type("another subtype", "text/x-bogus", right=False)
content_type("only the subtype", "event-stream", right=False)
content_type("a space within", "text/ event-stream", right=False)
content_type("in a parameter", f"text/plain; a={STREAM}", right=False)
content_type("the last of two fields", "text/plain", STREAM, right=True)
content_type("not the last of two fields", STREAM, "text/plain", right=False)
content_type("the last in a list", f"text/plain, {STREAM}", right=True)
content_type("not the last in a list", f"{STREAM}, text/plain", right=False)
content_type("a comma within quotes", f'{STREAM}; a="b, text/plain"', right=True)

# Status.

STATUS = "Status"

for number in (
    201,
    202,
    205,
    206,
    210,
    226,
    299,
    300,
    304,
    400,
    401,
    403,
    404,
    410,
    418,
    429,
    500,
    501,
    502,
    503,
    504,
    599,
):
    empty = number in (205, 304)
    CASES.append(
        Case(
            STATUS,
            f"{number} fails, even with a stream",
            CONNECTING,
            (stream(*(() if empty else (b"data: 1\n\n",)), status=number),),
            (CLOSED,),
            (Request(),),
        )
    )
CASES += [
    Case(STATUS, "204 is the end", CONNECTING, (GONE,), (CLOSED,), (Request(),)),
    Case(
        STATUS,
        "200 opens before there is a byte of the body",
        CONNECTING,
        (stream(0.3, b"data: 1\n\n"), GONE),
        (OPEN, event("1"), LOST, CLOSED),
        (Request(), Request()),
    ),
    *(
        Case(
            STATUS,
            f"{answer.status} when it connects again",
            CONNECTING,
            (stream(b"retry: 10\nid: 1\ndata: 1\n\n"), answer),
            (OPEN, event("1", "1"), LOST, CLOSED),
            (Request(), Request(b"1")),
            one_response=False,
        )
        for answer in (GONE, stream(status=404), stream(status=500))
    ),
    Case(
        STATUS,
        "the wrong content type when it connects again",
        CONNECTING,
        (stream(b"retry: 10\n\n"), stream(headers=(("Content-Type", "text/html"),))),
        (OPEN, LOST, CLOSED),
        (Request(), Request()),
        one_response=False,
    ),
]

# Redirects.

REDIRECTS = "Redirects"


def redirect(status: int, to: str = "next") -> Answer:
    return Answer(status=status, headers=(("Location", to),))


for number in (301, 302, 303, 307, 308):
    CASES.append(
        Case(
            REDIRECTS,
            f"{number} is followed",
            CONNECTING,
            (redirect(number), stream(b"id: 1\ndata: 1\n\n", end="hold")),
            (OPEN, event("1", "1")),
            (Request(), Request(target="/next", fields={"Accept": STREAM})),
            close_after=2,
        )
    )
CASES += [
    Case(
        REDIRECTS,
        "one after another",
        CONNECTING,
        (redirect(302, "a"), redirect(307, "b"), redirect(301, "c"), stream(end="hold")),
        (OPEN,),
        (Request(), *(Request(target=f"/{name}") for name in "abc")),
        close_after=1,
        one_response=False,
    ),
    Case(
        REDIRECTS,
        "to the wrong content type",
        CONNECTING,
        (redirect(302), stream(b"data: 1\n\n", headers=(("Content-Type", "text/plain"),))),
        (CLOSED,),
        (Request(), Request(target="/next")),
    ),
    *(
        Case(
            REDIRECTS,
            f"to {answer.status}",
            CONNECTING,
            (redirect(307), answer),
            (CLOSED,),
            (Request(), Request(target="/next")),
        )
        for answer in (stream(b"data: 1\n\n", status=404), GONE)
    ),
    Case(
        REDIRECTS,
        "the content type of the redirect does not count",
        CONNECTING,
        (
            stream(
                b"data: no\n\n",
                status=302,
                headers=(("Content-Type", STREAM), ("Location", "next")),
            ),
            stream(b"data: 1\n\n", end="hold"),
        ),
        (OPEN, event("1")),
        (Request(), Request(target="/next")),
        close_after=2,
    ),
    Case(
        REDIRECTS,
        "302 without a Location fails",
        CONNECTING,
        (stream(b"data: 1\n\n", status=302),),
        (CLOSED,),
        (Request(),),
    ),
    Case(
        REDIRECTS,
        "Last-Event-ID is sent on",
        HEADER,
        (stream(b"retry: 10\nid: 1\ndata: 1\n\n"), redirect(307), GONE),
        (OPEN, event("1", "1"), LOST, CLOSED),
        (Request(), Request(b"1"), Request(b"1", target="/next")),
        one_response=False,
    ),
]

# Requests.

REQUESTS = "Requests"
HELD = stream(end="hold")
CASES += [
    Case(
        REQUESTS,
        f"{name}: {value}",
        CONNECTING,
        (HELD,),
        (OPEN,),
        (Request(fields={name: value}),),
        close_after=1,
    )
    for name, value in (("Accept", STREAM), ("Cache-Control", "no-cache"))
]
CASES += [
    Case(
        REQUESTS,
        "the same header fields again",
        CONNECTING,
        (stream(b"retry: 10\n\n"), GONE),
        (OPEN, LOST, CLOSED),
        (Request(), Request(fields={"Accept": STREAM, "Cache-Control": "no-cache"})),
        one_response=False,
    ),
    Case(
        REQUESTS,
        "the query is sent, the fragment is not",
        "9.2.2",
        (HELD,),
        (OPEN,),
        (Request(target="/a%20b?c=%C3%BC&d"),),
        close_after=1,
        suffix="/a%20b?c=%C3%BC&d#e",
    ),
]

# Connections.

CONNECTIONS = "Connections"


def connections(
    name: str,
    answers: tuple[Answer, ...],
    log: tuple[Entry, ...],
    *ids: bytes | None,
    clause: str = CONNECTING,
    close_after: int | None = None,
) -> None:
    """Add what needs more than one response. `ids` are those of the requests after the first."""
    requests = (Request(), *(Request(id) for id in ids))
    CASES.append(
        Case(
            CONNECTIONS,
            name,
            clause,
            answers,
            log,
            requests,
            close_after=close_after,
            one_response=False,
        )
    )


SOON = b"retry: 10\n"
FIRST = SOON + b"id: 1\ndata: a\n\n"
A, B = event("a", "1"), event("b", "2")
SECOND = stream(b"id: 2\ndata: b\n\n")

connections(
    "the end, and again",
    (stream(FIRST), SECOND, GONE),
    (OPEN, A, LOST, OPEN, B, LOST, CLOSED),
    b"1",
    b"2",
)
connections(
    "the end of a chunked body",
    (stream(FIRST, end="chunked"), SECOND, GONE),
    (OPEN, A, LOST, OPEN, B, LOST, CLOSED),
    b"1",
    b"2",
)
connections(
    "a chunked body that breaks off",
    (stream(FIRST, end="cut"), SECOND, GONE),
    (OPEN, A, LOST, OPEN, B, LOST, CLOSED),
    b"1",
    b"2",
)
connections(
    "a reset",
    (stream(FIRST, end="reset"), SECOND, GONE),
    (OPEN, A, LOST, OPEN, B, LOST, CLOSED),
    b"1",
    b"2",
)
connections(
    "no response when it connects again",
    (stream(FIRST), Answer(end="silent"), Answer(end="silent"), GONE),
    (OPEN, A, LOST, LOST, LOST, CLOSED),
    b"1",
    b"1",
    b"1",
)
connections(
    "no response to the first request",
    (Answer(end="silent"), stream(b"data: a\n\n"), GONE),
    (LOST, OPEN, event("a"), LOST, CLOSED),
    None,
    None,
)
connections("five times", (*[stream(SOON)] * 5, GONE), (*[OPEN, LOST] * 5, CLOSED), *[None] * 5)
connections(
    "an unfinished event is forgotten",
    (stream(FIRST + b"id: 9\nevent: x\ndata: x\nda"), stream(b"ta: y\nid: 2\ndata: b\n\n"), GONE),
    (OPEN, A, LOST, OPEN, B, LOST, CLOSED),
    b"1",
    b"2",
    clause=INTERPRETING,
)
connections(
    "half a character is forgotten",
    (stream(FIRST + b"data: \xe2\x98"), stream(b"\x83: y\nid: 2\ndata: b\n\n"), GONE),
    (OPEN, A, LOST, OPEN, B, LOST, CLOSED),
    b"1",
    b"2",
    clause=PARSING,
)
connections(
    "CR at the end, LF at the start",
    (stream(SOON + b"data: a\r\r"), stream(b"\ndata: b\r\n\r\n"), GONE),
    (OPEN, event("a"), LOST, OPEN, event("b"), LOST, CLOSED),
    None,
    None,
    clause=PARSING,
)
connections(
    "a BOM at the start of each",
    (stream(BOM + FIRST), stream(BOM + b"id: 2\ndata: b\n\n"), GONE),
    (OPEN, A, LOST, OPEN, B, LOST, CLOSED),
    b"1",
    b"2",
    clause=PARSING,
)
connections(
    "an id stays though the next response has none",
    (stream(FIRST), stream(b": x\n\n"), GONE),
    (OPEN, A, LOST, OPEN, LOST, CLOSED),
    b"1",
    b"1",
    clause=HEADER,
)
connections(
    "an empty id is not sent",
    (stream(FIRST), stream(b"id\ndata: b\n\n"), GONE),
    (OPEN, A, LOST, OPEN, event("b"), LOST, CLOSED),
    b"1",
    None,
    clause=HEADER,
)
connections(
    "the reconnection time stays",
    (stream(FIRST), stream(b"id: 2\ndata: b\n\n"), *[stream()] * 3, GONE),
    (OPEN, A, LOST, OPEN, B, LOST, *[OPEN, LOST] * 3, CLOSED),
    b"1",
    b"2",
    b"2",
    b"2",
    b"2",
    clause=INTERPRETING,
)

# Closing.

CLOSING = "close()"
TWO = b"data: a\n\ndata: b\n\n"
CASES += [
    Case(
        CLOSING,
        name,
        "9.2.2",
        answers,
        log,
        (Request(),),
        close_after=len(log),
        one_response=LOST not in log,
    )
    for name, answers, log in (
        # Not all clients can close in the handler itself, so there is time to.
        ("when it opens", (stream(3.0, TWO), GONE), (OPEN,)),
        ("at an event, with others in the same chunk", (stream(TWO), GONE), (OPEN, event("a"))),
        (
            "at an event, with the end behind it",
            (stream(TWO), GONE),
            (OPEN, event("a"), event("b")),
        ),
        (
            "while it waits to connect again",
            (stream(b"retry: 3000\n" + TWO), GONE),
            (OPEN, event("a"), event("b"), LOST),
        ),
        ("in an open stream", (stream(TWO, end="hold"), GONE), (OPEN, event("a"), event("b"))),
    )
]

# Size.

SIZE = "Much at once"
MANY = 3000
parse(
    SIZE,
    "many events in a chunk",
    b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(MANY)),
    *(event(str(n), str(n)) for n in range(MANY)),
)
parse(
    SIZE,
    "many chunks",
    tuple(b"data: %d\n\n" % n for n in range(MANY)),
    *(event(str(n)) for n in range(MANY)),
    end="chunked",
)
parse(SIZE, "an event of many lines", b"data: x\n" * MANY + b"\n", event("\n".join("x" * MANY)))
parse(SIZE, "a value of 300,000 bytes", b"data: " + b"x" * 300_000 + b"\n\n", event("x" * 300_000))
parse(SIZE, "many comments", b": x\n\n" * MANY + b"data: 1\n\n", event("1"))
parse(SIZE, "an unknown field of 300,000 bytes", b"x" * 300_000 + b"\ndata: 1\n\n", event("1"))

# Where the letter of the standard is not what clients need.

LETTER = "By the letter"
CASES += [
    Case(
        LETTER,
        "each response begins without a last event ID",
        INTERPRETING,
        (stream(FIRST), stream(b"data: b\n\n"), GONE),
        (OPEN, A, LOST, OPEN, event("b"), LOST, CLOSED),
        (Request(), Request(b"1"), Request()),
        one_response=False,
        ours=(
            (OPEN, A, LOST, OPEN, event("b", "1"), LOST, CLOSED),
            (Request(), Request(b"1"), Request(b"1")),
            "keeps the last event ID, since it would forget its position otherwise",
        ),
    ),
    Case(
        LETTER,
        "after a redirect it connects again where that led",
        CONNECTING,
        (redirect(307), stream(SOON), GONE),
        (OPEN, LOST, CLOSED),
        (Request(), Request(target="/next"), Request(target="/next")),
        one_response=False,
        ours=(
            (OPEN, LOST, CLOSED),
            (Request(), Request(target="/next"), Request()),
            "connects again at the URL that it was given, since that of the redirect may be gone",
        ),
    ),
    *(
        Case(
            LETTER,
            f"{number} with Retry-After fails",
            CONNECTING,
            (stream(status=number, headers=(("Retry-After", "0"),)), GONE),
            (CLOSED,),
            (Request(),),
            one_response=False,
            ours=(
                (LOST, CLOSED),
                (Request(), Request()),
                "connects again when the server says, since the server has asked for that",
            ),
        )
        for number in (429, 503)
    ),
    Case(
        LETTER,
        "an id with a control character is sent",
        HEADER,
        (stream(b"retry: 10\nid: a\x01b\ndata: a\n\n"), GONE),
        (OPEN, event("a", "a\x01b"), LOST, CLOSED),
        (Request(), Request(b"a\x01b")),
        close_after=4,  # some try for ever
        one_response=False,
        ours=(
            (OPEN, event("a", "a\x01b"), LOST, CLOSED),
            (Request(),),
            "raises an error, since RFC 9110 (5.5) allows no such character in a header field",
        ),
    ),
]
