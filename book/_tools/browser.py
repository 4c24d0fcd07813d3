"""A browser looking at the built book: what the browser test and `shots.py` share."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from repository import ROOT

HTML = ROOT / "_build" / "html"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()
TYPESET = "() => window.MathJax?.startup?.promise?.then(() => true) ?? true"
IMAGES = """() => Promise.all([...document.images].map(image => {
    image.loading = "eager";  // those below the window too
    return image.decode().catch(() => null);  // a missing one is a failed request
})).then(() => true)"""


def chromium() -> str | None:
    """The browser: `$CHROMIUM`, or the first one on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def built_pages(html: Path = HTML) -> list[str]:
    """Every page of the book, without the redirect and the index pages."""
    pages = [path.relative_to(html).as_posix() for path in html.rglob("*.html")]
    return sorted(page for page in pages if page.startswith(("book/", "notebooks/")))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args) -> None:
        """Say nothing: the test looks at failed requests itself."""


@contextmanager
def served(html: Path = HTML) -> Iterator[str]:
    """Serve the book on this machine; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def settle(page: Page, url: str) -> None:
    """Open `url` and wait until fonts, images and mathematics are there."""
    page.goto(url, wait_until="load")
    page.evaluate(IMAGES)
    page.evaluate(TYPESET)
    page.evaluate("() => document.fonts.ready.then(() => true)")
