"""Everything a page loads comes from the book itself.

MathJax is served from `_static/mathjax` (`mathjax_path` in `_config.yml`). The theme's
launch library (Thebe) is not used: its inline script, emitted twice, throws on every
page, so it is taken out.
"""

import re

THEBE = re.compile(r"THEBE_JS_URL|sphinx-thebe")


def _drop_thebe(app, pagename, templatename, context, doctree) -> None:
    for kind in ("script_files", "css_files"):
        files = context.get(kind, [])
        context[kind] = [file for file in files if not _is_thebe(file)]


def _is_thebe(file) -> bool:
    body = getattr(file, "attributes", {}).get("body") or ""
    return bool(THEBE.search(f"{getattr(file, 'filename', file)} {body}"))


def setup(app) -> dict:
    app.connect("html-page-context", _drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
