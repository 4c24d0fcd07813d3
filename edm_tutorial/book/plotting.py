"""The figures of the book: a few kinds of picture, one style, one meaning for every colour.

Nothing else in the package imports matplotlib, and nothing imports this file. A function
draws into `ax` (the current axes unless given) and returns it; a chapter composes them.
"""

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {  # Okabe and Ito's palette, safe for colour-blind readers
    "data": "#7f7f7f",
    "truth": "#000000",
    "network": "#009e73",
    "error": "#d55e00",
    "VP": "#56b4e9",
    "VE": "#e69f00",
    "iDDPM": "#cc79a7",
    "EDM": "#0072b2",
    "Euler": "#e69f00",
    "Heun": "#0072b2",
    "DPM++(2M)": "#cc79a7",
}
OTHERS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f"]
HEAT = "cividis"
STRIP = 0.5  # inches below a film, where a browser shows its controls


def use_style() -> None:
    """Set matplotlib up for the book: sizes readable at 375 px, opaque, twice the pixels."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.0, 3.6),
            "figure.dpi": 110,
            "savefig.dpi": 220,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "axes.titlesize": 12,
            "axes.labelsize": 12,
            "axes.formatter.min_exponent": 4,  # 0.01, not a power with a small exponent
            "legend.fontsize": 12,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": f"cycler('color', {OTHERS})",
            "image.cmap": HEAT,
        }
    )


def color(label: str) -> str | None:
    """The colour of the book for `label`: by its first word, or None for the next in turn."""
    return COLORS.get(label, COLORS.get(label.split(",")[0].split(" ")[0]))


def panels(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (3.2, 3.2), **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """A grid of axes, each `size` inches; the array of axes is flat."""
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(columns * size[0], rows * size[1]),
        squeeze=False,
        layout="constrained",
        **kwargs,
    )
    return figure, axes.ravel()


def plot_curves(
    x: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    styles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
    **axes: Any,
) -> Axes:
    """Lines over a common `x`, one a legend entry; further keywords go to `ax.set`.

    `styles` maps an entry to a matplotlib format such as "--" or "o-"; an entry that
    starts with "_" is drawn without a legend entry.
    """
    ax = plt.gca() if ax is None else ax
    for label, values in curves.items():
        style = (styles or {}).get(label, "-")
        ax.plot(x, values, style, label=label, color=color(label.lstrip("_")))
    ax.set(**axes)
    if any(not label.startswith("_") for label in curves):
        ax.legend()
    return ax


def plot_points(
    clouds: Mapping[str, np.ndarray],
    *,
    limit: float | None = None,
    size: float = 4.0,
    ax: Axes | None = None,
    **axes: Any,
) -> Axes:
    """Clouds of points in the plane, each (n, 2), the first at the back, on equal axes."""
    ax = plt.gca() if ax is None else ax
    for label, points in clouds.items():
        points = np.asarray(points)
        ax.scatter(
            points[:, 0], points[:, 1], s=size, lw=0, alpha=0.6, label=label, color=color(label)
        )
    ax.set(aspect="equal", **axes)
    if limit is not None:
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    if any(not label.startswith("_") for label in clouds):
        ax.legend(markerscale=3, loc="upper right")
    return ax


def plot_images(
    images: np.ndarray,
    *,
    titles: Sequence[str] = (),
    labels: Sequence[str] = (),
    limit: float = 1.0,
    scale: float = 0.75,
) -> Figure:
    """A table of images with values in +-`limit`.

    Their shape is (rows, columns, height, width), or (rows, columns, channels, height, width)
    with 1 channel for grey or 3 for RGB; a batch of such images is one row as `batch[None]`.
    `titles` names the columns and `labels` the rows.

    Raises:
        ValueError: another shape.
    """
    images = np.asarray(images)
    if images.ndim not in (4, 5) or images.ndim == 5 and images.shape[2] not in (1, 3):
        raise ValueError(
            "images must have shape (rows, columns, height, width) or (rows, columns, 1 or 3 "
            f"channels, height, width), got {images.shape}"
        )
    if images.ndim == 5:  # matplotlib wants channels last, and colours in [0, 1]
        colours = np.moveaxis(np.clip((images / limit + 1) / 2, 0, 1), 2, -1)
        images = images[:, :, 0] if images.shape[2] == 1 else colours
    rows, columns = images.shape[:2]
    figure, axes = panels(rows, columns, size=(scale, scale))
    for index, ax in enumerate(axes):
        row, column = divmod(index, columns)
        ax.imshow(images[row, column], cmap="gray_r", vmin=-limit, vmax=limit)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if row == 0 and column < len(titles):
            ax.set_title(titles[column])
        if column == 0 and row < len(labels):
            ax.set_ylabel(labels[row], rotation=0, ha="right", va="center")
    return figure


def plot_heat(
    values: np.ndarray,
    extent: tuple[float, float, float, float],
    *,
    bar: str | None = None,
    ax: Axes | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    **axes: Any,
) -> Axes:
    """A function of two variables; `values[i, j]` at the j-th x and the i-th y of `extent`.

    `bar` labels a colour bar, with units; None draws none.
    """
    ax = plt.gca() if ax is None else ax
    image = ax.imshow(
        values, origin="lower", extent=extent, aspect="auto", cmap=HEAT, vmin=vmin, vmax=vmax
    )
    if bar is not None:
        plt.colorbar(image, ax=ax, label=bar)
    ax.set(**axes)
    return ax


def plot_paths(
    t: np.ndarray,
    paths: np.ndarray,
    *,
    label: str = "_paths",
    ax: Axes | None = None,
    width: float = 1.0,
    alpha: float = 0.8,
    **axes: Any,
) -> Axes:
    """Trajectories of one coordinate against time: `paths` has shape (how many, len(t))."""
    ax = plt.gca() if ax is None else ax
    lines = ax.plot(t, np.asarray(paths).T, lw=width, alpha=alpha, color=color(label) or OTHERS[0])
    if not label.startswith("_"):
        lines[0].set_label(label)
        ax.legend()
    ax.set(**axes)
    return ax


def plot_histogram(
    samples: Mapping[str, np.ndarray],
    *,
    bins: Any = 60,
    ax: Axes | None = None,
    **axes: Any,
) -> Axes:
    """Densities of one variable as outlined histograms, one a legend entry."""
    ax = plt.gca() if ax is None else ax
    for label, values in samples.items():
        ax.hist(
            np.asarray(values),
            bins=bins,
            density=True,
            histtype="step",
            lw=2,
            label=label,
            color=color(label),
        )
    ax.set(**axes)
    ax.legend()
    return ax


def film(
    figure: Figure,
    draw: Callable[[int], None],
    frames: int,
    *,
    alt: str,
    caption: str,
    fps: int = 15,
) -> str:
    """`draw(i)` for each frame, as HTML: a video with a poster, a description and a caption.

    Display it with `IPython.display.HTML`. The poster is the last frame. Below the figure there is
    a strip for the controls.
    """
    import imageio_ffmpeg

    height = figure.get_figheight()
    figure.set_figheight(height + STRIP)
    strip = STRIP / (height + STRIP)
    figure.set_layout_engine("constrained", rect=(0, strip, 1, 1 - strip))
    rc: Any = {"animation.ffmpeg_path": imageio_ffmpeg.get_ffmpeg_exe(), "savefig.bbox": None}
    with tempfile.TemporaryDirectory() as folder, plt.rc_context(rc):
        video, poster = Path(folder) / "film.mp4", Path(folder) / "poster.jpg"
        writer = FFMpegWriter(fps=fps, codec="libx264", extra_args=["-pix_fmt", "yuv420p"])
        with writer.saving(figure, str(video), dpi=100):
            for frame in range(frames):
                draw(frame)
                writer.grab_frame()
        figure.savefig(poster, dpi=100)
        plt.close(figure)
        encode = lambda path: base64.b64encode(path.read_bytes()).decode()
        return (
            '<figure><video controls muted playsinline style="width:100%;height:auto" '
            f'aria-label="{escape(alt)}" poster="data:image/jpeg;base64,{encode(poster)}" '
            f'src="data:video/mp4;base64,{encode(video)}"></video>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
