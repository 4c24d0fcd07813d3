"""Draw the map of the book: one small picture a chapter, made by the package.

    python book/_tools/map_pictures.py

Everything drawn is exact (no network, no training), so the pictures never change unless
the package does. Writes book/_static/map/NN.png.
"""

import io
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

import edm_tutorial as edm
from edm_tutorial.book.plotting import COLORS, HEAT
from edm_tutorial.images.augmentation import Augmentation
from edm_tutorial.sbi import tasks

FOLDER = Path(__file__).resolve().parents[1] / "_static" / "map"
LABEL = 11


def mixture() -> edm.GaussianMixture:
    """The running example in one dimension: two bumps of unequal weight."""
    means, covs = jnp.array([[-1.05], [0.45]]), jnp.full((2, 1, 1), 0.04)
    return edm.GaussianMixture(jnp.array([0.3, 0.7]), means, covs)


def digits(ax: Axes) -> None:
    """Chapter 0: four digits as they form, the exact denoiser of the data set."""
    scans, _ = load_digits(return_X_y=True)
    pixels = jnp.asarray(scans.reshape(-1, 8, 8) / 8 - 1, jnp.float32)
    mean = pixels.mean(0)
    denoiser, sigmas = edm.EmpiricalDenoiser(pixels - mean), edm.edm_sigmas(18)
    noise = jr.normal(jr.key(4), (4, 8, 8))
    paths = jax.vmap(lambda z: edm.sample_path(denoiser, z, sigmas))(noise)
    stages = np.array([0, 8, 10, 11, 12, 18])
    levels = np.append(sigmas, 0.0)[stages][:, None, None]
    tiles = np.asarray(paths)[:, stages] + np.asarray(mean)
    tiles = tiles * 0.6 / np.hypot(levels, 0.6)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    image = np.concatenate(np.concatenate(tiles, axis=1), axis=1)
    ax.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
    ax.set_axis_off()


def river(ax: Axes) -> None:
    """Chapter 1: the density of noisy data, a path of the ODE and one of an SDE."""
    truth, n = mixture(), 300
    sigmas = edm.edm_sigmas(n, 0.02, 4.0, 3.0)
    churn = edm.Churn(s_churn=12.0)
    start, ends = jnp.array([0.35, -0.4, 1.1, -1.2]), jr.split(jr.key(3), 4)
    draw = lambda z, key, churn: edm.sample_path(truth.denoise, z, sigmas, churn=churn, key=key)
    smooth = jax.vmap(lambda z, key: draw(z, key, None))(start[:, None], ends)
    rough = jax.vmap(lambda z, key: draw(z, key, churn))(start[:2, None], ends[:2])
    width = np.sqrt(np.append(sigmas, 0.02) ** 2 + 0.5)  # the spread of all noisy data
    y = np.linspace(-2.2, 2.2, 160)
    at_level = lambda s, w: jax.vmap(lambda v: truth.log_prob(v[None] * w, s))(y)
    heat = np.exp(jax.vmap(at_level)(sigmas, jnp.asarray(width[:n]))) * width[:n, None]
    ax.imshow(heat.T, cmap=HEAT, aspect="auto", origin="lower", extent=(0, n, -2.2, 2.2))
    for paths, line in ((rough, 0.7), (smooth, 1.8)):
        ax.plot((np.asarray(paths)[..., 0] / width).T, color="white", lw=line)
    # The noise level rises to the right, as in the chapters.
    ax.set(xlim=(n, 0), ylim=(-2.2, 2.2), xticks=[], yticks=[])
    ax.set_xlabel("data ← noise", fontsize=LABEL)


def recipes(ax: Axes) -> None:
    """Chapter 2: where the four designs of Table 1 stop on the way down."""
    columns = {"VP": edm.designs.vp, "VE": edm.designs.ve}
    columns |= {"iDDPM": edm.designs.iddpm, "EDM": edm.designs.edm}
    for row, (name, design) in enumerate(columns.items()):
        sigmas = np.asarray(design().grid(18))
        ax.plot(sigmas, np.full(18, -row), "|", color=COLORS[name], ms=22, mew=2)
    ax.set(xscale="log", ylim=(-3.6, 0.6), yticks=range(0, -4, -1), xlim=(1e-3, 200))
    ax.set_yticklabels(columns, fontsize=LABEL)
    ax.set_xlabel(r"noise level $\sigma$ of 18 steps", fontsize=LABEL)


def coefficients(ax: Axes) -> None:
    """Chapter 3: what EDM puts around the network."""
    sigmas = np.geomspace(0.01, 20, 100)
    c = jax.vmap(edm.EDMPreconditioning(0.5))(jnp.asarray(sigmas, jnp.float32))
    curves = {r"$c_{in}$": c.c_in, r"$c_{skip}$": c.c_skip, r"$c_{out}$": c.c_out}
    colors = (COLORS["EDM"], COLORS["VE"], COLORS["network"])
    for (name, values), color in zip(curves.items(), colors, strict=True):
        ax.plot(sigmas, values, label=name, color=color, lw=2)
    ax.set(xscale="log", ylim=(0, 2.1))
    ax.set_xlabel(r"noise level $\sigma$", fontsize=LABEL)
    ax.legend(frameon=False, fontsize=LABEL)


def filters(ax: Axes) -> None:
    """Chapter 4: the variance that a sampler makes of each scale of the data."""
    scales, sigmas = jnp.geomspace(0.01, 2, 60), edm.edm_sigmas(18)
    for name, solver in {"Heun": edm.Heun(), "Euler": edm.Euler()}.items():

        def gain(c, solver=solver):
            ideal = lambda x, sigma, cond=None, *, key=None: x * c**2 / (c**2 + sigma**2)
            return edm.sample(ideal, jnp.array(1.0), sigmas, solver=solver) / c

        ax.plot(scales, jax.vmap(gain)(scales) ** 2, label=name, color=COLORS[name], lw=2)
    ax.axhline(1, color="black", lw=1)
    ax.set(xscale="log", ylim=(0, 1.6))
    ax.set_xlabel("scale of the data", fontsize=LABEL)
    ax.set_ylabel("variance out / in", fontsize=LABEL)
    ax.legend(frameon=False, fontsize=LABEL)


def area(ax: Axes) -> None:
    r"""Chapter 5: $1 - mmse/\sigma^2$; its area over $\ln\sigma$ is an entropy."""
    truth, sigmas = mixture(), np.geomspace(0.01, 20, 120)
    second = float(truth.weights @ (truth.means[:, 0] ** 2 + truth.covs[:, 0, 0]))

    def share(sigma):
        x = jnp.linspace(-2.5, 2.5, 801)[:, None] * jnp.hypot(1.0, 4 * sigma)
        density = jnp.exp(jax.vmap(lambda v: truth.log_prob(v, sigma))(x))
        guess = jax.vmap(lambda v: truth.denoise(v, sigma))(x)[:, 0]
        # E (y - D)^2 = E y^2 - E D^2, since D is a conditional mean
        mmse = second - jnp.trapezoid(density * guess**2, x[:, 0])
        return 1 - mmse / sigma**2

    values = jax.vmap(share)(jnp.asarray(sigmas, jnp.float32))
    ax.fill_between(sigmas, values, color=COLORS["EDM"], alpha=0.3, lw=0)
    ax.plot(sigmas, values, color="black", lw=2)
    ax.set(xscale="log", ylim=(0, 1.05), xlim=(0.01, 20))
    ax.set_xlabel(r"noise level $\sigma$", fontsize=LABEL)
    ax.set_ylabel(r"$1 - \mathrm{mmse}/\sigma^2$", fontsize=LABEL)


def moons(ax: Axes) -> None:
    """Chapter 6: draws of the exact posterior of two moons."""
    draw = jax.jit(jax.vmap(tasks.two_moons().sample_posterior, (0, None)))
    points = np.asarray(draw(jr.split(jr.key(0), 2000), jnp.zeros(2)))
    ax.plot(*points.T, ".", color=COLORS["truth"], ms=1.5, alpha=0.4)
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.set_xlabel("parameter 1", fontsize=LABEL)
    ax.set_ylabel("parameter 2", fontsize=LABEL)


def copies(ax: Axes) -> None:
    """Chapter 7: one digit a row, as it is and as augmentation shows it to the network."""
    scans, _ = load_digits(return_X_y=True)
    pixels = jnp.asarray(scans[[3, 4, 5]].reshape(-1, 1, 8, 8) / 8 - 1, jnp.float32)
    keys = jr.split(jr.key(5), (3, 5))
    warped = lambda key, x: Augmentation(0.7)(x, key=key).image
    moved = jax.vmap(jax.vmap(warped, (0, None)))(keys, pixels)
    tiles = np.concatenate([np.asarray(pixels)[:, None], np.asarray(moved)], axis=1)[:, :, 0]
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    ax.imshow(np.concatenate(np.concatenate(tiles, axis=1), axis=1), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_axis_off()


def straight(ax: Axes) -> None:
    """Chapter 8: the same samples in the coordinates of flow matching, x (1 - t)."""
    truth, sigmas = mixture(), edm.edm_sigmas(60, 0.002, 80.0, 7.0)
    noise = jnp.linspace(-2, 2, 15)[:, None]
    paths = jax.vmap(lambda z: edm.sample_path(truth.denoise, z, sigmas))(noise)[..., 0]
    levels = np.append(sigmas, 0.0)
    ax.plot(levels / (1 + levels), (np.asarray(paths) / (1 + levels)).T, color=COLORS["EDM"], lw=1)
    ax.set(xlim=(1, 0), yticks=[])
    ax.set_xlabel("time t of flow matching", fontsize=LABEL)


def window(ax: Axes) -> None:
    """Chapter 9: the best loss for a Gaussian of ten widths, and where it can be learned."""
    widths = np.geomspace(0.015, 2.2, 10)
    squares, sigmas = widths**2 / np.mean(widths**2), np.geomspace(0.001, 40, 300)
    error = squares / (squares + sigmas[:, None] ** 2) * (1 + sigmas[:, None] ** 2)
    loss = error.mean(axis=1)
    inside = sigmas[loss < 0.95]
    ax.axvspan(inside.min(), inside.max(), color=COLORS["EDM"], alpha=0.3, lw=0)
    ax.plot(sigmas, loss, color="black", lw=2)
    ax.set(xscale="log", ylim=(0, 1.05), xlim=(0.001, 40))
    ax.set_xlabel(r"noise level $\sigma$", fontsize=LABEL)
    ax.set_ylabel("best loss", fontsize=LABEL)


def two_lines(ax: Axes) -> None:
    """Chapter 10: a Gaussian cloud, and the mean of each number given the other."""
    cov = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    pair = edm.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), cov[None])
    points = np.asarray(jax.vmap(pair.sample)(jr.split(jr.key(0), 600)))
    ax.plot(*points.T, ".", color=COLORS["data"], ms=3, alpha=0.6)
    line = np.array([-2.6, 2.6])
    ax.plot(line, 0.8 * line, color=COLORS["EDM"], lw=2.5, label="x given the parameter")
    ax.plot(0.8 * line, line, color=COLORS["error"], lw=2.5, label="the parameter given x")
    ax.set(xticks=[], yticks=[], xlim=(-3.9, 3.9), ylim=(-3, 4))
    ax.set_xlabel("parameter", fontsize=LABEL)
    ax.set_ylabel("x", fontsize=LABEL)
    ax.legend(frameon=False, fontsize=LABEL - 1, loc="upper left")


def halves(ax: Axes) -> None:
    """Chapter 11: the upper half of a digit, and what the whole could have been."""
    scans, labels = load_digits(return_X_y=True)
    groups = [scans[labels == k] / 8 - 1 for k in range(10)]
    covs = [np.cov(group.T) + 0.05**2 * np.eye(64) for group in groups]
    means = [np.mean(group, axis=0) for group in groups]
    prior = edm.GaussianMixture(np.full(10, 0.1), means, covs)
    digit = jnp.asarray(groups[7][3], jnp.float32)
    told = edm.Measured(prior.denoise, lambda x: x[:32], digit[:32], 0.1)
    draw = jax.vmap(lambda z: edm.sample(told, z, edm.edm_sigmas(18)))
    wholes = np.asarray(draw(jr.normal(jr.key(2), (5, 64))))
    seen = np.where(np.arange(64) < 32, np.asarray(digit), 0.0)
    tiles = np.pad(
        np.stack([seen, *wholes]).reshape(2, 3, 8, 8),
        ((0, 0), (0, 0), (1, 1), (1, 1)),
        constant_values=-1,
    )
    image = np.concatenate(np.concatenate(tiles, axis=1), axis=1)
    ax.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
    ax.set_axis_off()


PICTURES: dict[str, Callable[[Axes], None]] = {
    "00": digits,
    "01": river,
    "02": recipes,
    "03": coefficients,
    "04": filters,
    "05": area,
    "06": moons,
    "07": copies,
    "08": straight,
    "09": window,
    "10": two_lines,
    "11": halves,
}


def draw(picture: Callable[[Axes], None]) -> Figure:
    figure = Figure(figsize=(3.6, 2.4), dpi=160, facecolor="white", layout="constrained")
    ax = figure.add_subplot()
    picture(ax)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=10)
    return figure


def save(figure: Figure, path: Path) -> None:
    """With 96 colours: a quarter of the bytes, and no difference to see."""
    whole = io.BytesIO()
    figure.savefig(whole)
    Image.open(whole).convert("RGB").quantize(96).save(path, optimize=True)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        path = FOLDER / f"{name}.png"
        save(draw(picture), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
