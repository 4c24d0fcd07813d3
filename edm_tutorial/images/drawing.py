"""Samples of an image denoiser, and a picture of many."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from .._types import DenoiserFn, PRNGKey
from ..grids import edm_sigmas
from ..networks import ImageCondition
from ..sampling import sample
from ..solvers import AbstractSolver, Heun


def draw(
    denoiser: DenoiserFn,
    mean: Float[np.ndarray, "c h w"],
    labels: Any,
    *,
    steps: int = 18,
    solver: AbstractSolver = Heun(),
    key: PRNGKey,
) -> Float[np.ndarray, "n c h w"]:
    """Samples around `mean`, one for each of n integer labels; a label of -1 tells no class.

    `mean` was taken off the data before training.
    """
    labels = jnp.asarray(labels)
    noise = jr.normal(key, (len(labels), *mean.shape))
    return np.asarray(_sample_all(denoiser, noise, labels, edm_sigmas(steps), solver=solver)) + mean


@eqx.filter_jit
def _sample_all(
    denoiser: DenoiserFn, noise: Array, labels: Array, sigmas: Array, *, solver: AbstractSolver
) -> Array:
    one = lambda z, k: sample(denoiser, z, sigmas, ImageCondition(k), solver=solver)
    return jax.vmap(one)(noise, labels)


def write(file: Path, images: Float[np.ndarray, "n c h w"], labels: Any) -> None:
    """A file of images in [-1, 1]: an `.npz` with their labels, or a picture, ten in a row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npz":
        np.savez(file, images=images, labels=labels)
        return
    columns = min(10, len(images))
    blank = np.full((-len(images) % columns, *images.shape[1:]), -1.0)
    rows = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    picture(rows).save(file)


def picture(images: Float[np.ndarray, "rows columns channels height width"]) -> Image.Image:
    """Picture, grey or RGB, of images in [-1, 1], each enlarged to at least 32 pixels."""
    zoom = max(1, 32 // images.shape[-1])
    grey = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    grey = grey.repeat(zoom, axis=3).repeat(zoom, axis=4)
    rows, columns, channels, height, width = grey.shape
    pixels = grey.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
