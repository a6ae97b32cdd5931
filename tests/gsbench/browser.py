"""A headless Chromium for tests of the page, by Playwright's Python client and the browser that the machine has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; skips the test, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'gsbench[browser]'")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, file: Path, width: int = 1440, scheme: str = "light") -> Iterator[tuple[Any, list[str], list[str]]]:
    """(page, what went wrong in it, what it asked for besides itself)."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        context.set_default_timeout(10_000)
        page = context.new_page()
        faults: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        yield page, faults, requests
    finally:
        context.close()
