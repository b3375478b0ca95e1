"""A real browser for the tests of the page: the system's own Chromium, without a window."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str:
    """Return the path of a browser; the test skips where there is none."""
    found = os.environ.get("TILEWISE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(
            "no browser: install chromium (apt-get install chromium), or set TILEWISE_CHROMIUM to its path"
        )
    return found


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A browser for the length of the block; it keeps nothing, and asks its maker nothing."""
    # Chromium's own sandbox does not work for root, in containers; it opens nothing here but our own page.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=options)
        try:
            yield browser
        finally:
            browser.close()
