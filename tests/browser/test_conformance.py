"""The cases of tests/conformance, in a browser: all in one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conformance import drivers
from tests.conformance.cases import CASES
from tests.conformance.known import CHROMIUM, differences, surprises

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_chromium(browser: Browser) -> None:
    assert surprises(CHROMIUM, differences(CHROMIUM, drivers.browser(CASES, browser))) == []
