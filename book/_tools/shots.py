"""Pictures of every page of the built book, to look at: `_build/shots/*.png`.

python book/_tools/shots.py [PAGE ...]     # such as notebooks/04_sampling.html
"""

import argparse

from browser import HTML, built_pages, launched, served, settle
from repository import ROOT

SHOTS = ROOT / "_build" / "shots"
WIDTHS = (1280, 375)


def main() -> None:
    parser = argparse.ArgumentParser(description="Take pictures of every page.")
    parser.add_argument("pages", nargs="*", help="all of them if none is named")
    names = parser.parse_args().pages or built_pages(HTML)
    SHOTS.mkdir(parents=True, exist_ok=True)
    with served() as site, launched() as browser:
        for theme in ("light", "dark"):
            for width in WIDTHS:
                page = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=theme
                )
                for name in names:
                    settle(page, f"{site}/{name}")
                    stem = name.removesuffix(".html").replace("/", "-")
                    path = SHOTS / f"{stem}-{width}-{theme}.png"
                    page.screenshot(path=path, full_page=True)
                    print(path.relative_to(ROOT))
                page.close()


if __name__ == "__main__":
    main()
