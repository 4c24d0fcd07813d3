"""The book as one PDF, `_build/html/book.pdf`, printed by Chromium from the built pages.

    python book/_tools/pdf.py

The articles of all pages are put into one, in the order of the table of contents, without the
explorer, which has nothing to click on paper, and the reference of the package. Code that is
folded on the page (set-up, drawing, checks) is left out; solutions and asides are open.
"""

import sys
from pathlib import Path
from typing import Any

import browser
from bs4 import BeautifulSoup
from playwright.sync_api import Browser
from repository import ROOT, read
from sphinx_external_toc.parsing import parse_toc_yaml

ONE = "print.html"
OUT = ("book/explorer", "book/api")
UNPRINTED = "details.hide, .headerlink, .copybtn, .opening-buttons, script"
STYLE = """
@page { size: A4; margin: 18mm 16mm; }
body { font-size: 10.5pt; background: white; }
article { break-before: page; }
article:first-of-type { break-before: auto; }
h1, h2, h3, .admonition-title { break-after: avoid; }
figure, .cell_output, .math, mjx-container, table, svg, .sd-card { break-inside: avoid; }
img, video { max-width: 100%; max-height: 230mm; }
pre { white-space: pre-wrap; overflow: visible !important; }
.bd-article div.math, .bd-article table { overflow: visible !important; }
.bd-article aside.margin { float: none; width: auto; max-width: none; }
"""


def names(root: Path = ROOT) -> list[str]:
    """The pages that are printed, in the order in which they are read."""
    return [name for name in parse_toc_yaml(root / "_toc.yml") if not name.startswith(OUT)]


def combined(html: Path, pages: list[str]) -> str:
    """One page of the articles of `pages`, for the folder `html`, with the first one's styles."""
    whole = parsed(html / f"{pages[0]}.html")
    body, articles = whole.body, [article(html, name, pages) for name in pages]
    for tag in whole.head.find_all(["link", "script"]):
        for key in ("href", "src"):
            if key in tag.attrs:
                tag[key] = rebased(tag[key], pages[0])
    body.clear()
    body.extend(articles)
    style = whole.new_tag("style")
    style.string = STYLE
    whole.head.append(style)
    return str(whole)


def parsed(page: Path) -> Any:
    """A page as a tree of tags."""
    return BeautifulSoup(page.read_text(), "html.parser")


def article(html: Path, name: str, pages: list[str]) -> Any:
    """The article of a page, whose links lead to its neighbours in print or to the web."""
    soup = parsed(html / f"{name}.html")
    found = soup.find("article", class_="bd-article")
    for tag in found.select(UNPRINTED):
        tag.decompose()
    for video in found.find_all("video"):
        still = soup.new_tag("img", src=video.get("poster", ""), alt=video.get("aria-label", ""))
        video.replace_with(still)
    for tag in found.find_all("details"):
        tag["open"] = ""
    for tag in found.find_all(True):
        if "id" in tag.attrs:
            tag["id"] = anchor(name, tag["id"])
        if "src" in tag.attrs:
            tag["src"] = rebased(tag["src"], name)
        if "href" in tag.attrs:
            tag["href"] = link(tag["href"], name, pages)
    found["id"] = anchor(name, "")
    return found


def anchor(name: str, part: str) -> str:
    """The place of a part of a page in the one page."""
    return f"{name.replace('/', '-')}--{part}"


def rebased(url: str, name: str) -> str:
    """An address as the page `name` writes it, as the folder of all pages has it."""
    if url.startswith(("http", "data:", "mailto:", "#")):
        return url
    path, mark, rest = url.partition("?")
    parts: list[str] = list(Path(name).parent.parts)
    for part in path.split("/"):
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(part for part in parts if part != ".") + mark + rest


def link(url: str, name: str, pages: list[str]) -> str:
    """Where a link of the page `name` leads in print: within, or to the book on the web."""
    if url.startswith(("http", "mailto:")):
        return url
    path, _, part = url.partition("#")
    target = rebased(path, name) if path else f"{name}.html"
    if target.removesuffix(".html") in pages:
        return f"#{anchor(target.removesuffix('.html'), part)}"
    return f"{read(ROOT).pages}/{target}" + (f"#{part}" if part else "")


def printed(chromium: Browser, html: Path, pages: list[str]) -> bytes:
    """The PDF of these pages of the book in `html`, with an outline of its headings."""
    one = html / ONE
    one.write_text(combined(html, pages))
    try:
        with browser.served(html) as address:
            page = chromium.new_page()
            page.set_default_timeout(600_000)
            page.emulate_media(media="print", color_scheme="light")
            browser.settle(page, f"{address}/{ONE}")
            page.evaluate("document.documentElement.dataset.theme = 'light'")
            return page.pdf(format="A4", prefer_css_page_size=True, outline=True, tagged=True)
    finally:
        one.unlink()


def main() -> None:
    if browser.chromium() is None:
        sys.exit("pdf: no Chromium: set $CHROMIUM or run `make browser`")
    with browser.launched() as chromium:
        data = printed(chromium, browser.HTML, names())
    path = browser.HTML / "book.pdf"
    path.write_bytes(data)
    print(f"{path.relative_to(ROOT)}: {len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
