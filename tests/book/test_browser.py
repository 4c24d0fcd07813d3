"""The built book, as a reader meets it: every page, wide and narrow, in Chromium."""

import gzip
import importlib.resources
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sphinx_external_toc.parsing import parse_toc_yaml

browser_tools = pytest.importorskip("browser")
pdf = pytest.importorskip("pdf")
ROOT = browser_tools.ROOT
HTML = browser_tools.HTML
PAGES = [f"{name}.html" for name in parse_toc_yaml(ROOT / "_toc.yml")]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
WINDOWS = {"wide": (1280, "light"), "narrow": (375, "dark")}
HEAVIEST = 1_500_000  # bytes of a page and all that it loads, compressed

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


@pytest.fixture(scope="module", params=WINDOWS)
def window(browser, request):
    width, theme = WINDOWS[request.param]
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
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
    assert not seen["missing_icons"]
    assert not seen["untypeset"], "mathematics is shown as it was typed"
    assert not seen["math_errors"]
    assert not seen["cut_formulas"], "a formula in a line is longer than the line"
    assert not seen["too_wide"], "the page scrolls sideways"
    assert not seen["open_solutions"], "a solution is not folded"
    assert not seen["duplicate_ids"]


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core (MPL 2.0), the script that finds barriers for readers with disabilities."""
    return importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()


BARRIERS = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  const grave = found.violations.filter((v) => ["serious", "critical"].includes(v.impact));
  return grave.map((v) => [v.id, v.nodes.map((n) => `${n.target}: ${n.html.slice(0, 120)}`)]);
}"""


@pytest.mark.parametrize("name", PAGES)
def test_no_grave_barrier(window, site, axe, name):
    browser_tools.settle(window, f"{site}/{name}")
    window.evaluate(axe)
    assert window.evaluate(BARRIERS) == []


def test_a_barrier_is_found(browser, axe):
    page = browser.new_page()
    page.set_content("<html lang=en><title>t</title><main><img src=data:,></main></html>")
    page.evaluate(axe)
    assert [name for name, _ in page.evaluate(BARRIERS)] == ["image-alt"]
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_light(browser, site, name):
    """All that the page loads, scrolled to its end, as a server that compresses sends it."""
    asked: set[str] = set()
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("request", lambda request: asked.add(request.url))
    browser_tools.settle(page, f"{site}/{name}")
    page.evaluate(LOOK)  # asks for the videos
    page.close()
    files = {HTML / url.removeprefix(f"{site}/").split("?")[0].split("#")[0] for url in asked}
    sizes = {f.name: len(gzip.compress(f.read_bytes())) for f in files if f.is_file()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert len(sizes) > 5 and sum(sizes.values()) < HEAVIEST, largest


@pytest.mark.parametrize("name", PAGES)
def test_images_below_the_fold_wait(site, name):
    """Images are lazy, and those of ours have their size, so that nothing jumps."""
    assert site
    article = (HTML / name).read_text().partition("<article")[2]
    for image in re.findall(r"<img[^>]*>", article):
        assert 'loading="lazy"' in image, image
        if "_images/" in image and ".png" in image:
            assert re.search(r'width="\d+" height="\d+"', image), image


@pytest.mark.parametrize("name", PAGES)
def test_the_keyboard_reaches_the_text(browser, site, name):
    """Tab goes to the text past the navigation, and what has the focus shows it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    browser_tools.settle(page, f"{site}/{name}")
    page.keyboard.press("Tab")
    skip = page.evaluate("document.activeElement.getAttribute('href')")
    assert skip == "#main-content"
    page.keyboard.press("Enter")
    outlines = []
    for _ in range(12):
        page.keyboard.press("Tab")
        outlines.append(page.evaluate(FOCUS))
    page.close()
    inside = [shown for inside, shown in outlines if inside]
    assert inside, "the text holds nothing to focus, or the skip link leads elsewhere"
    assert all(inside), "the focus is not to be seen"


FOCUS = """() => {
  const here = document.activeElement;
  const drawn = (style) => style.outlineStyle !== "none" || style.boxShadow !== "none";
  const ring = (e) => e && drawn(getComputedStyle(e));
  // The browser itself draws a ring around the buttons of a film.
  const shown = here.tagName === "VIDEO" || ring(here) || ring(here.nextElementSibling);
  return [here.closest("main") !== null, shown];
}"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_solutions_open_by_keyboard(browser, site, name):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    browser_tools.settle(page, f"{site}/{name}")
    buttons = page.locator("article .solution button.toggle-button")
    solutions = page.locator("article .solution")
    assert buttons.count() == solutions.count() > 0
    for i in (0, solutions.count() - 1):
        body = solutions.nth(i).locator("> :not(.admonition-title):not(button)").first
        for folded in (True, False, True):
            assert body.is_visible() is not folded
            buttons.nth(i).focus()
            page.keyboard.press("Enter")
    page.close()


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


def test_a_page_is_printed_with_its_heading_and_links_within(browser):
    """The outline of a PDF is plain text in it; what the page folds is not in print."""
    pages = ["notebooks/02_design_space", "book/bibliography"]
    assert set(pages) <= set(pdf.names())
    html = pdf.combined(HTML, pages)
    targets = set(re.findall(r'href="#([^"]+)"', html))
    assert targets and targets <= set(re.findall(r'\bid="([^"]+)"', html))
    assert "How this figure is drawn" not in html and "Solution to" in html
    data = pdf.printed(browser, HTML, pages)
    assert data.startswith(b"%PDF") and b"/Title (Build, check, import)" in data
    assert not (HTML / pdf.ONE).exists()
