from __future__ import annotations

import pytest

from tests.servers.conftest import (  # noqa: F401  # they are fixtures
    _shared_servers,
    certificate,
    server,
    start_server,
    tag,
    usual_exit_code,
)

from .harness import Attacked


@pytest.fixture(scope="session")
def make_server() -> type[Attacked]:
    return Attacked
