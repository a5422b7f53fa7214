"""Every program of the page on frameworks, served by uvicorn to clients that leave."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.peers import missing
from tests.test_docs import PAGES

from .recipes import FILES, PAGE, RECIPES, RecipeServer, first_event, start

StartRecipe = Callable[..., RecipeServer]

every_recipe = pytest.mark.parametrize("name", RECIPES)

#: In place of the stream of the page: it tells what it is told.
PROBE = """
from sse_asgi import sse_app


@sse_app
async def messages(request):
    yield {
        "data": {
            "path": request.path,
            "root_path": request.scope["root_path"],
            "path_params": dict(request.path_params),
        }
    }
"""


def require_framework(name: str) -> None:
    package = RECIPES[name].package
    if importlib.util.find_spec(package) is None:
        missing("frameworks", f"{package} is not installed")


@pytest.fixture(scope="module", params=RECIPES)
def shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RecipeServer]:
    require_framework(request.param)
    server = start(request.param, tmp_path_factory.mktemp(request.param))
    yield server
    server.kill()
    assert server.complaints() == []


@pytest.fixture
def server(shared_server: RecipeServer) -> Iterator[RecipeServer]:
    """A server for each program in turn; a test leaves it running, and without streams."""
    yield shared_server
    shared_server.wait_for_connections(0)


@pytest.fixture
def start_recipe(tmp_path: Path) -> Iterator[StartRecipe]:
    """A function that starts a server for this test alone."""
    servers: list[RecipeServer] = []

    def start_one(name: str, *options: str, files: Mapping[str, str] = FILES) -> RecipeServer:
        require_framework(name)
        servers.append(start(name, tmp_path, *options, files=files))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


def streams(server: RecipeServer, room: str) -> dict[str, str]:
    """The paths of the streams of a program, and the room that each says it is."""
    return {
        path.replace("{room}", quote(room)): room if "{room}" in path else "lobby"
        for path in server.recipe.streams
    }


def test_no_program_is_left_out() -> None:
    others = {"rooms.py", "front.py", "django_private.py"}
    assert {*FILES} == {f"{name}_app.py" for name in RECIPES} | others


def test_first_event_comes_at_once(server: RecipeServer) -> None:
    """With the headers of a stream. The next event would be a minute away."""
    for path, room in streams(server, "blüe room").items():
        headers = ((b"last-event-id", "7 ü".encode()),)
        with server.open(f"{path}?user=Ada%20L.", headers=headers) as response:
            event = first_event(response)
            assert response.status == 200
            assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
            assert response.header(b"x-accel-buffering") == [b"no"]
            assert response.header(b"content-length") == []
        assert event.event == "joined"
        assert json.loads(event.data) == {"room": room, "user": "Ada L.", "after": "7 ü"}


def test_routes_of_the_framework(server: RecipeServer) -> None:
    with ExitStack() as stack:
        for path in streams(server, "blue"):
            first_event(stack.enter_context(server.open(path)))
        with server.open("/") as response:
            assert response.status == 200
            assert response.read_to_end() == "complete"
            assert b"home" in response.body
        with server.open("/nowhere") as response:
            assert response.status == 404
        server.wait_for_connections(len(server.recipe.streams))


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_client_leaves(server: RecipeServer, how: str) -> None:
    """The source is closed, though it has nothing to say, and another stream stays."""
    for path, room in streams(server, "green").items():
        start_of_log = len(server.log_file.read_bytes())
        with server.open(path) as stays:
            first_event(stays)
            with server.open(path) as leaves:
                first_event(leaves)
                server.wait_for_connections(2)
                leaves.close() if how == "closes" else leaves.reset()
            server.wait_for_connections(1)
            assert server.log(start_of_log).count(f"left {room}\n") == 1
        server.wait_for_connections(0)
        assert server.log(start_of_log).count(f"left {room}\n") == 2


def test_head(server: RecipeServer) -> None:
    for path in streams(server, "red"):
        with server.open(path, method="HEAD") as response:
            assert response.status == 200
            assert response.header(b"content-type") == [b"text/event-stream; charset=utf-8"]
            assert response.read_to_end() == "complete"
            assert server.connections() == 0


def test_other_methods(server: RecipeServer) -> None:
    for path in streams(server, "red"):
        with server.open(path, method="POST") as response:
            assert response.status == 405
            assert b"GET" in response.header(b"allow")[0]
            response.read_to_end()


@every_recipe
def test_server_stops(start_recipe: StartRecipe, name: str) -> None:
    """Streams that are idle end as they should; the hooks of the framework are run around them."""
    server = start_recipe(name)
    with ExitStack() as stack:
        responses = [
            stack.enter_context(server.open(path)) for path in streams(server, "blue") for _ in "12"
        ]
        for response in responses:
            first_event(response)
        server.signal(signal.SIGTERM)
        for response in responses:
            assert response.read_to_end() == "complete"
            assert response.tail.endswith(b"0\r\n\r\n")
    assert server.wait() == -signal.SIGTERM  # uvicorn raises it again when it has stopped
    assert server.complaints() == []
    said = re.findall(r"^(started|left|stopped)\b", server.log(), re.MULTILINE)
    left = ["left"] * len(responses)
    assert said == (["started", *left, "stopped"] if server.recipe.lifespan else left)


def rows() -> Iterator[tuple[str, ...]]:
    """The table of the page: where, for which path, and what there is in the request."""
    for line in re.findall(r"^\| *(.*?) *\|$", PAGES[PAGE].read_text(), re.MULTILINE):
        where, *cells = line.split("|")
        if "`" in cells[0]:
            yield (where, *("".join(re.findall("`(.*?)`", cell)) for cell in cells))


@every_recipe
def test_what_the_request_knows(start_recipe: StartRecipe, name: str) -> None:
    server = start_recipe(name, files={**FILES, "rooms.py": PROBE})
    mine = [cells for where, *cells in rows() if name in where.casefold()]
    assert mine
    for requested, path, root_path, path_params in mine:
        with server.open(requested) as response:
            event = first_event(response)
        assert json.loads(event.data) == {
            "path": path,
            "root_path": root_path,
            "path_params": json.loads(path_params),
        }


@every_recipe
def test_root_path(start_recipe: StartRecipe, name: str) -> None:
    """Behind a proxy that takes a prefix off; what is lost there is what the page says."""
    server = start_recipe(name, "--root-path", "/api")
    lost = []
    for path in ("/", *server.recipe.streams):
        with server.open(path.replace("{room}", "blue")) as response:
            assert response.status in (200, 404)
            if response.status == 404:
                lost.append(path)
            elif path != "/":
                room = "blue" if "{room}" in path else "lobby"
                assert json.loads(first_event(response).data)["room"] == room
    assert lost == [*server.recipe.lost_with_root_path]


#: A site with users, for the private stream of the page.
DJANGO_SITE = """
import threading
from pathlib import Path

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(__file__).with_name("database"),
        }
    },
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not a secret",
)
site = get_asgi_application()

from django.contrib.auth import get_user_model, login
from django.db import connections

from django_private import private


def migrate():
    call_command("migrate", verbosity=0)
    connections.close_all()


# Not in the thread of the event loop.
migration = threading.Thread(target=migrate)
migration.start()
migration.join()


def log_in(request):
    user, _ = get_user_model().objects.get_or_create(username=request.GET["name"])
    login(request, user)
    return HttpResponse()


urlpatterns = [path("login", log_in)]


async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/private":
        await private(scope, receive, send)
    else:
        await site(scope, receive, send)
"""


def test_user_of_django(start_recipe: StartRecipe) -> None:
    server = start_recipe("django", files={**FILES, "django_app.py": DJANGO_SITE})
    for stranger in ((), ((b"cookie", b"sessionid=guess"),)):
        with server.open("/private", headers=stranger) as response:
            assert response.status == 401
    with server.open("/login?name=Ada") as response:
        assert response.status == 200
        (cookie,) = response.header(b"set-cookie")
    with server.open("/private", headers=((b"cookie", cookie.split(b";")[0]),)) as response:
        assert first_event(response).data == "Ada"
        assert response.read_to_end() == "complete"
    assert server.complaints() == []
