"""Draw the README's picture: digits as they form, by the exact denoiser of their data.

    python book/_tools/readme_picture.py

No network is involved: `EmpiricalDenoiser` is the formula for the mean of the 1,797
digits of scikit-learn given a noisy one. Writes book/_static/readme.png, and beside it
card.png, which other sites show with a link to the book: the same picture below its title.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.datasets import load_digits

import edm_tutorial as edm

PICTURE = Path(__file__).resolve().parents[1] / "_static" / "readme.png"
CARD = PICTURE.with_name("card.png")
SAMPLES, SEED = 5, 4
STAGES = (0, 5, 7, 8, 9, 10, 11, 12, 18)  # of 18 steps, those where things happen
STD = 0.6  # of the data, roughly: keeps the noisy images within the grey scale


def digit_paths() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise levels (n+1,), states and denoised states (m, n+1, 8, 8) of m samples."""
    pixels, _ = load_digits(return_X_y=True)
    digits = jnp.asarray(pixels / 8 - 1, jnp.float32).reshape(-1, 8, 8)  # in [-1, 1]
    mean = digits.mean(0)
    denoiser = edm.EmpiricalDenoiser(digits - mean)
    sigmas = edm.edm_sigmas(18)
    noise = jax.random.normal(jax.random.key(SEED), (SAMPLES, 8, 8))
    paths = jax.vmap(lambda z: edm.sample_path(denoiser, z, sigmas))(noise)
    levels = jnp.append(sigmas, 1e-3)  # the finished sample, looked at just above 0
    seen = jax.vmap(jax.vmap(denoiser), in_axes=(0, None))(paths, levels)
    return np.asarray(levels), np.asarray(paths + mean), np.asarray(seen + mean)


def draw() -> Figure:
    levels, paths, seen = digit_paths()
    shrink = STD / np.sqrt(levels**2 + STD**2)
    halves = {
        "the sample $x$, rescaled, from noise to data": paths * shrink[:, None, None],
        r"the mean of the digits it may come from, $D(x; \sigma)$": seen,
    }
    figure = Figure(figsize=(12, 3.9), dpi=160, facecolor="white")
    edges = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 0.83}
    gaps = {"wspace": 0.06, "hspace": 0.06}
    places = figure.add_gridspec(1, 2)
    for column, (title, images) in enumerate(halves.items()):
        half = figure.add_subfigure(places[0, column])
        half.suptitle(title, fontsize=12, y=0.97)
        axes = half.subplots(SAMPLES, len(STAGES), gridspec_kw=edges | gaps)
        flat = images[:, STAGES].reshape(-1, 8, 8)
        for ax, image in zip(axes.flat, flat, strict=True):
            ax.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(color="0.8", linewidth=0.5)
        for ax, i in zip(axes[0], STAGES, strict=True):
            level = 0.0 if i == len(levels) - 1 else levels[i]
            text = f"{level:.0f}" if level >= 10 or level == 0 else f"{level:.2g}"
            ax.set_title(rf"$\sigma$ = {text}", fontsize=7.5, pad=3)
    return figure


def card(picture: Path) -> Figure:
    """1200 by 630 pixels, the size that sites ask for."""
    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    figure.text(0.5, 0.85, "EDM diffusion models", fontsize=48, weight="bold", ha="center")
    figure.text(0.5, 0.75, "from scratch in JAX, and exact", fontsize=28, ha="center")
    ax = figure.add_axes((0.02, 0.05, 0.96, 0.62))
    ax.imshow(imread(picture))
    ax.axis("off")
    return figure


if __name__ == "__main__":
    draw().savefig(PICTURE)
    card(PICTURE).savefig(CARD)
