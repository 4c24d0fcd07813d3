"""Film the first page: noise becomes three letters along the probability-flow ODE, and back.

    python book/_tools/film.py

The data are points inside the letters E, D and M; their ideal denoiser is a formula, so no
network is involved. Each axis is shown divided by the spread of the noisy points along it.
Writes book/_static/film/letters.mp4 and its poster.
"""

from pathlib import Path

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from PIL import Image

import edm_tutorial as edm
from edm_tutorial.book.plotting import HEAT

FOLDER = Path(__file__).resolve().parents[1] / "_static" / "film"
POINTS, STEPS, SIZE, FPS = 2500, 90, (720, 320), 24
SIGMA_MIN, SIGMA_MAX = 0.01, 40.0


def letters() -> np.ndarray:
    """Points inside the letters, centred, about 1 high, shape (POINTS, 2)."""
    path = TextPath((0, 0), "EDM", size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    low, high = np.asarray(path.get_extents())
    draws = np.asarray(jr.uniform(jr.key(0), (8 * POINTS, 2))) * (high - low) + low
    inside = draws[path.contains_points(draws)][:POINTS]
    return (inside - inside.mean(0)) / (high - low)[1]


def paths(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels (STEPS + 1,) down to 0, and the points there, (POINTS, STEPS + 1, 2)."""
    denoiser = edm.EmpiricalDenoiser(jnp.asarray(data, jnp.float32))
    sigmas = edm.edm_sigmas(STEPS, SIGMA_MIN, SIGMA_MAX)
    draw = lambda z: edm.sample_path(denoiser, z, sigmas)
    states = jax.lax.map(draw, jr.normal(jr.key(1), (POINTS, 2)), batch_size=250)
    return np.append(sigmas, 0.0), np.asarray(states)


def frames() -> list[np.ndarray]:
    """Pictures of the points on their way down, as RGB."""
    data = letters()
    sigmas, states = paths(data)
    spread = data.std(0)
    shown = states * spread / np.hypot(sigmas[:, None], spread)
    figure = Figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-2.1, 2.1), ylim=(-0.934, 0.934))
    ax.set_axis_off()
    order = np.argsort(np.argsort(states[:, 0, 0]))  # left to right in the noise
    dots = ax.scatter(*shown[:, 0].T, c=order, cmap=HEAT, s=9, lw=0)
    # Above the controls, and large enough on a phone, which shows it at half this size.
    level = ax.text(-2.0, 0.78, "", fontsize=16, family="monospace")
    pictures = []
    for sigma, points in zip(sigmas, shown.swapaxes(0, 1), strict=True):
        dots.set_offsets(points)
        level.set_text(f"σ = {sigma:5.2f}")
        canvas.draw()
        pictures.append(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return pictures


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    down = frames()
    loop = [down[0]] * 12 + down + [down[-1]] * 36 + down[:0:-2]
    parameters = ["-crf", "30", "-preset", "veryslow", "-movflags", "+faststart"]
    writer = imageio_ffmpeg.write_frames(
        str(FOLDER / "letters.mp4"), SIZE, fps=FPS, output_params=parameters
    )
    writer.send(None)
    for picture in loop:
        writer.send(picture)
    writer.close()
    poster = down[STEPS * 3 // 5]
    Image.fromarray(poster).save(FOLDER / "letters.jpg", quality=80, optimize=True)
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
