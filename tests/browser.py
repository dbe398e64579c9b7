"""A real browser for tests of pages: playwright drives the Chromium that is installed here. Without one they skip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vramkit.results.readable import ReadableResult

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def running_chromium() -> Iterator[Any]:
    """A headless browser; skips where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are tested in a browser: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("pages are tested in a browser, and no Chromium is installed")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium refuses to start as root otherwise
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


class Page:
    """A page in a browser, with everything that it said or asked for.

    Args:
        browser: from `running_chromium`.
        write: writes the page to a path.
        folder: for it.
        options: of the browser's page.
    """

    def __init__(self, browser: Any, write: Callable[[Path], None], folder: Path, **options: Any) -> None:
        path = folder / "report.html"
        write(path)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        self.address = path.as_uri()

    def text(self, selector: str) -> str:
        found: str = self.page.locator(selector).inner_text()
        return found


class Opened(Page):
    """A result's page."""

    def __init__(
        self,
        browser: Any,
        result: ReadableResult,
        folder: Path,
        *,
        beside: ReadableResult | None = None,
        **options: Any,
    ) -> None:
        super().__init__(browser, lambda path: result.to_html(path, beside=beside), folder, **options)

    @property
    def event(self) -> int:
        """The pinned moment: after how many events it is."""
        return int(self.text("#when-more").split()[1].replace(",", ""))

    def bytes_of(self, name: str) -> int:
        """Exact bytes of a row of the sum."""
        row = self.page.locator(".sums tr").filter(has=self.page.get_by_text(name, exact=True))
        return int(row.locator(".exact").inner_text().removesuffix(" B").replace(",", ""))

    def click_timeline(self, share: float) -> None:
        """Click at a share of the width of what is shown."""
        box = self.page.locator("#timeline .u-over").bounding_box()
        self.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
