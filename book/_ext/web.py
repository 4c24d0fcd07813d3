"""What other sites read of a page: its description, a card for links to it, a map of all pages.

The address is `html.baseurl` in `_config.yml`. The description is a page's first paragraph, up to
the end of a sentence or a word.
"""

from html import escape
from pathlib import Path

from docutils import nodes

CARD = "_static/card.png"
LONGEST = 200  # letters of a description: what search engines show of it


def description(doctree: nodes.document) -> str:
    """The beginning of the text of a page: its first paragraph that is longer than a label."""
    found = (paragraph.astext() for paragraph in doctree.findall(nodes.paragraph))
    text = next((" ".join(text.split()) for text in found if len(text) > 60), "")
    if len(text) <= LONGEST:
        return text
    short = text[: LONGEST + 1]
    sentence = short.rfind(". ")
    return short[: sentence + 1] if sentence > 60 else short.rpartition(" ")[0] + " …"


def tags(base: str, page: str, title: str, text: str) -> str:
    """Open Graph's names, which all sites that show cards know, and the plain description."""
    properties = {
        "og:type": "article",
        "og:title": title,
        "og:description": text,
        "og:url": f"{base}{page}.html",
        "og:image": f"{base}{CARD}",
        "og:image:alt": "EDM diffusion models: five handwritten digits form out of noise.",
    }
    lines = [
        f'<meta property="{name}" content="{escape(value)}">' for name, value in properties.items()
    ]
    lines.append('<meta name="twitter:card" content="summary_large_image">')
    if text:
        lines.append(f'<meta name="description" content="{escape(text)}">')
    return "\n".join(lines)


def _describe(app, pagename, templatename, context, doctree) -> None:
    if doctree is not None:
        title = nodes.Element.astext(app.env.titles[pagename])
        text = description(doctree)
        context["metatags"] = context.get("metatags", "") + tags(
            app.config.html_baseurl, pagename, title, text
        )


def sitemap(base: str, pages: list[str]) -> str:
    """The addresses of all pages, in the format of sitemaps.org."""
    urls = "".join(f"<url><loc>{escape(base + page)}</loc></url>\n" for page in pages)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}</urlset>\n'
    )


def _map(app, exception) -> None:
    if exception is None and app.builder.name == "html":
        pages = [f"{name}.html" for name in sorted(app.env.found_docs)]
        (Path(app.outdir) / "sitemap.xml").write_text(sitemap(app.config.html_baseurl, pages))


def setup(app) -> dict:
    app.connect("html-page-context", _describe)
    app.connect("build-finished", _map)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
