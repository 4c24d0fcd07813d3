"""A page loads what it shows, and no more.

After the build: the theme's script of all icons (540 kB, compressed) goes, since its fonts
draw the same icons; the fonts keep only the icons that occur; images load when they come
near, in a box of their size. A formula keeps its point or bracket on its line. For readers
without a mouse or with a screen reader, tables, which scroll, can have the focus, the
bibliography's items the role that lists ask for, and the sidebar's arrows a name.
"""

import re
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from PIL import Image

ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*fontawesome[^"]*all\.min\.js[^"]*"></script>')
ICON_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*fontawesome[^>]*/>\s*')
NAMED = '<summary aria-label="Show or hide its pages">'
IMAGE = re.compile(r'<img(?![^>]*\bloading=)(?=[^>]*\ssrc="([^"]+)")')
ICON_RULE = re.compile(r"((?:\.fa-[\w-]+:(?::)?before,?)+)\{content:\"\\([0-9a-f]+)\"")
ESCAPE = re.compile(r"\\(f[0-9a-f]{3})\b")
INLINE = '<span class="math notranslate nohighlight">[^<]*</span>'
FORMULA = re.compile(rf"\({INLINE}[),.;:?!]*|{INLINE}[),.;:?!]+")
LETTER = re.compile("[\ue000-\uf8ff]")  # of the range that fonts use as they like


def lighter(html: str, folder: Path) -> str:
    """A page without the icons' script, with its images lazy; `folder` is the page's."""
    html = ICON_PRELOAD.sub("", ICON_SCRIPT.sub("", html))
    html = html.replace('role="doc-biblioentry"', 'role="listitem"')
    html = html.replace(
        '<summary><span class="toctree-toggle"', f'{NAMED}<span class="toctree-toggle"'
    )
    html = html.replace('<table class="table"', '<table tabindex="0" class="table"')
    html = FORMULA.sub(r'<span class="with-point">\g<0></span>', html)
    return IMAGE.sub(lambda match: f'<img loading="lazy"{_size(folder, match[1])}', html)


def _size(folder: Path, source: str) -> str:
    """Width and height of a picture of ours, so that the page does not jump as it loads."""
    path = folder / source.partition("?")[0]
    if path.suffix not in (".png", ".jpg") or not path.is_file():
        return ""
    with Image.open(path) as picture:
        return f' width="{picture.width}" height="{picture.height}"'


def icons(pages: list[str], style: str, others: list[str]) -> set[int]:
    """Code points of the icons that pages name or that style sheets draw."""
    named = set(re.findall(r"\bfa-[a-z0-9-]+", " ".join(pages + others)))
    found = {int(code, 16) for text in others for code in ESCAPE.findall(text)}
    found |= {ord(letter) for text in others for letter in LETTER.findall(text)}
    for selectors, code in ICON_RULE.findall(style):
        if named & set(re.findall(r"fa-[\w-]+", selectors)):
            found.add(int(code, 16))
    return found


def _lighten(app, exception) -> None:
    if exception or app.builder.name != "html":
        return
    root = Path(app.outdir)
    pages = sorted(root.rglob("*.html"))
    texts = []
    for page in pages:
        text = page.read_text()
        new = lighter(text, page.parent)
        if new != text:
            page.write_text(new)
        texts.append(new)
    (style,) = root.glob("_static/vendor/fontawesome/*/css/all.min.css")
    others = [path.read_text() for path in root.glob("_static/s*/*.*s")]
    keep = icons(texts, style.read_text(), others)
    for path in style.parents[1].glob("webfonts/*.woff2"):
        _subset(path, keep)


def _subset(path: Path, keep: set[int]) -> None:
    font = TTFont(path)
    options = Options(flavor="woff2", layout_features=[], notdef_outline=True)
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=keep)
    subsetter.subset(font)
    font.flavor = "woff2"
    font.save(path)


def setup(app) -> dict:
    app.connect("build-finished", _lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
