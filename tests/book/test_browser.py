"""The built book, as a reader meets it: every page, wide and narrow, in Chromium."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from numbering import toc_pages

browser_tools = pytest.importorskip("browser")
ROOT = browser_tools.ROOT
HTML = browser_tools.HTML
PAGES = [f"{name}.html" for name, _ in toc_pages(ROOT)]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
WIDTHS = (1280, 375)

pytestmark = pytest.mark.browser

LOOK = Path(__file__).with_name("look.js").read_text()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    assert (HTML / "index.html").is_file(), "no built book: run `make book` first"
    with browser_tools.served() as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    # Under CI every skipped test is a failure (conftest.py at the root).
    if browser_tools.chromium() is None:
        pytest.skip("no Chromium: set $CHROMIUM or run `make browser`")
    with browser_tools.launched() as found:
        yield found


@pytest.fixture(scope="module", params=WIDTHS)
def window(browser, request):
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    yield page
    page.close()


def visit(window, site: str, name: str) -> tuple[dict, list[str], list[str]]:
    """Open a page: what it holds, its complaints, and what it asked of others."""
    complaints: list[str] = []
    outside: list[str] = []

    def on_console(message) -> None:
        if message.type == "error":
            complaints.append(message.text)

    def on_error(error) -> None:
        complaints.append(str(error))

    def on_request(request) -> None:
        if not request.url.startswith((site, "data:", "blob:")):
            outside.append(request.url)

    listeners = [
        ("console", on_console),
        ("pageerror", on_error),
        ("request", on_request),
    ]
    for event, listener in listeners:
        window.on(event, listener)
    browser_tools.settle(window, f"{site}/{name}")
    seen = window.evaluate(LOOK)
    for event, listener in listeners:
        window.remove_listener(event, listener)
    return seen, complaints, outside


@pytest.mark.parametrize("name", PAGES)
def test_page(window, site, name):
    seen, complaints, outside = visit(window, site, name)
    assert not complaints
    assert not outside, "a page asks another host for something"
    assert not seen["broken_images"]
    assert not seen["images_without_alt"]
    assert not seen["broken_videos"]
    assert not seen["videos_without_poster"]
    assert not seen["untypeset"], "mathematics is shown as it was typed"
    assert not seen["math_errors"]
    assert not seen["too_wide"], "the page scrolls sideways"
    assert not seen["open_solutions"], "a solution is not folded"
    assert not seen["duplicate_ids"]


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(site, name):
    assert site
    missing = []
    for url in links(HTML / name):
        if re.match(r"[a-z]+:", url):
            continue
        path, _, anchor = url.partition("#")
        target = ((HTML / name).parent / path).resolve() if path else HTML / name
        if not target.is_file():
            missing.append(url)
        elif anchor and target.suffix == ".html" and anchor not in ids(target):
            missing.append(url)
    assert not missing


def links(path: Path) -> list[str]:
    return re.findall(r"<a\b[^>]*\bhref=\"([^\"]*)\"", path.read_text())


def ids(path: Path) -> set[str]:
    return {"", *re.findall(r"\b(?:id|name)=\"([^\"]+)\"", path.read_text())}


@pytest.mark.parametrize("name", CHAPTERS)
def test_colab_link_names_the_notebook(site, name):
    assert site
    colab = [url for url in links(HTML / name) if "colab.research.google.com" in url]
    notebook = name.replace(".html", ".ipynb")
    assert (ROOT / notebook).is_file()
    assert colab and all(url.endswith(f"/blob/main/{notebook}") for url in colab)


@pytest.mark.parametrize("name", CHAPTERS)
def test_page_and_notebook_have_the_same_numbers(site, name):
    """Equations, figures, theorems and exercises: as in Colab, so on the page."""
    from bs4 import BeautifulSoup

    assert site
    page = BeautifulSoup((HTML / name).read_text(), "html.parser")
    equations = [tag.get_text(" ").split(")")[0] + ")" for tag in page.select(".eqno")]
    cells = json.loads((ROOT / name.replace(".html", ".ipynb")).read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    tags = [f"({number})" for number in re.findall(r"\\tag\{([\d.]+)\}", text)]
    assert equations == tags
    captions = " ".join(tag.get_text() for tag in page.select(".caption-number"))
    for thing in ("Figure", "Theorem", "Exercise", "Definition"):
        shown = re.findall(rf"{thing} ([\d.]*\d)", captions)
        ours = re.findall(rf"^(?:> )?\*\*{thing} ([\d.]*\d)", text, re.MULTILINE)
        assert shown == ours, thing


def test_search_answers(browser, site):
    page = browser.new_page()
    page.goto(f"{site}/search.html?q=denoiser")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    first = page.locator("#search-results li a").first.get_attribute("href")
    assert first and "html" in first
    page.close()


def test_the_title_page_opens(browser, site):
    page = browser.new_page()
    page.goto(f"{site}/index.html")
    page.wait_for_url(f"{site}/{PAGES[0]}")
    page.close()
