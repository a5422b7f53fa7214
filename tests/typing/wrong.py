"""What type checkers have to find: something in each line that says `wrong`, and nowhere else."""

from collections.abc import AsyncIterator

from pydantic import BaseModel

from sse_asgi import ServerSentEvent, SSERequest, sse_app
from sse_asgi.starlette import EventSourceResponse


class Item(BaseModel):
    name: str


async def good(request: SSERequest) -> AsyncIterator[str]:
    yield "text"


async def integers() -> AsyncIterator[int]:
    yield 1


async def no_generator() -> None: ...


def decorate() -> None:
    @sse_app(pings=5)  # wrong: no such option
    async def decorated() -> AsyncIterator[str]:
        yield "text"


async def items() -> AsyncIterator[ServerSentEvent[Item]]:
    yield ServerSentEvent("text")  # wrong: no Item
    yield ServerSentEvent(Item(name="n"))


async def reads(request: SSERequest) -> AsyncIterator[str]:
    request.path = "/"  # wrong: a request is read-only
    yield request.last_event_id  # wrong: it may be None


sse_app(3)  # wrong: no function
sse_app(integers)  # wrong: an int is no event
sse_app(no_generator)  # wrong: nothing to iterate over
sse_app(good, 5)  # wrong: options are keyword-only
sse_app(good, pings=5)  # wrong: no such option
sse_app(good, ping="often")  # wrong: seconds
sse_app(good, sep=None)  # wrong: a separator
sse_app(good, retry=1.5)  # wrong: milliseconds are whole
sse_app(good, methods=None)  # wrong: an iterable
sse_app(good, on_close=lambda: None)  # wrong: it is called with the report
sse_app(good, shutdown=True)  # wrong: a Shutdown
sse_app(good, headers={"X-A": 1})  # wrong: text

ServerSentEvent("text", "event")  # wrong: keyword-only
ServerSentEvent("text", retry="1000")  # wrong: an int
ServerSentEvent("text").data = "other"  # wrong: immutable
ServerSentEvent[Item]("text")  # wrong: no Item

EventSourceResponse(good)  # wrong: not called
EventSourceResponse([], pings=5)  # wrong: no such option
EventSourceResponse([], ping="often")  # wrong: seconds
EventSourceResponse([], data_sender_callable=print)  # wrong: a coroutine function
EventSourceResponse([], lifespan=good)  # wrong: that of the application
