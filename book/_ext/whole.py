"""The diagram of the whole: training, the denoiser, sampling.

    :::{whole} levels solver
    :::

draws it with these parts lit, the ones that a chapter is about. A notebook leaves it out.
"""

from docutils import nodes
from docutils.parsers.rst import Directive

# Where each part stands (x, y, width), and what is written on it.
PARTS = {
    "noise": ((1, 17, 100), "data + noise"),
    "network": ((1, 41, 100), "network"),
    "loss": ((1, 65, 100), "loss"),
    "denoiser": ((123, 37, 54), "D(x; σ)"),
    "clock": ((199, 17, 78), "clock"),
    "path": ((281, 17, 78), "ODE or SDE"),
    "levels": ((199, 41, 78), "noise levels"),
    "solver": ((281, 41, 78), "solver"),
    "sample": ((199, 65, 50), "sample"),
    "density": ((253, 65, 50), "density"),
    "posterior": ((307, 65, 52), "posterior"),
}
TITLES = {"training, once": 51, "sampling, each time": 279}
HEIGHT, TALL = 20, 28  # of a part, and of the denoiser


def drawing(lit: list[str]) -> str:
    """The diagram as SVG; its letters have the size of the text around it, on a phone too."""
    shapes = [_part(name, lit) for name in PARTS]
    shapes += [f'<text x="{x}" y="10" class="title">{title}</text>' for title, x in TITLES.items()]
    shapes += [_arrow(101, 121), _arrow(177, 197)]
    told = ", ".join(PARTS[name][1] for name in lit)
    label = (
        "Training makes the denoiser, which sampling asks."
        + f" In this chapter: {told}." * bool(lit)
    )
    return (
        f'<svg class="whole" viewBox="0 0 360 86" role="img" aria-label="{label}">'
        + "".join(shapes)
        + "</svg>"
    )


def _part(name: str, lit: list[str]) -> str:
    (x, y, width), text = PARTS[name]
    height = TALL if name == "denoiser" else HEIGHT
    box = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'
    middle = f'<text x="{x + width / 2}" y="{y + height / 2 + 3.3}">{text}</text>'
    return f'<g class="{"lit" if name in lit else "part"}">{box}{middle}</g>'


def _arrow(start: int, end: int) -> str:
    return f'<path d="M{start} 51H{end}m-4 -4l4 4l-4 4"/>'


class Whole(Directive):
    """The diagram; its arguments are the parts that are lit."""

    optional_arguments = len(PARTS)

    def run(self) -> list[nodes.Node]:
        if unknown := [name for name in self.arguments if name not in PARTS]:
            raise self.error(f"no part is called {unknown}: take some of {', '.join(PARTS)}")
        if self.state.document.settings.env.app.builder.format != "html":
            return []
        return [nodes.raw("", drawing(self.arguments), format="html")]


def setup(app) -> dict:
    app.add_directive("whole", Whole)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
