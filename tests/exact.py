"""Denoisers whose every trajectory is known, and where the trajectories end.

For N(mean, c^2) the denoiser is linear and x(sigma) - mean is proportional to
sqrt(c^2 + sigma^2) along the ODE. All parameters are arrays, so that one compiled
sampler serves them all.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

import edm_tutorial as edm


@contextmanager
def single_precision() -> Iterator[None]:
    """JAX as it is unless it is told otherwise. (The oldest one has no `jax.enable_x64`.)"""
    jax.config.update("jax_enable_x64", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", True)


class Gaussian(eqx.Module):
    """The denoiser of N(mean, std^2), entry by entry."""

    std: Array
    mean: Array

    def __init__(self, std: ArrayLike = 1.0, mean: ArrayLike = 0.0):
        self.std, self.mean = jnp.asarray(std, float), jnp.asarray(mean, float)

    def __call__(self, x, sigma, cond=None, *, key=None):
        std, mean = self.std.astype(x.dtype), self.mean.astype(x.dtype)
        return mean + (x - mean) * (std**2 / (std**2 + sigma**2))

    def end(self, noise: ArrayLike, sigma_max: ArrayLike) -> np.ndarray:
        """Where the ODE takes `noise`, from sigma_max all the way to 0."""
        std, mean = np.asarray(self.std), np.asarray(self.mean)
        start = np.asarray(noise) * np.asarray(sigma_max)
        return mean + (start - mean) * std / np.sqrt(std**2 + np.asarray(sigma_max) ** 2)


class Correlated(eqx.Module):
    """The denoiser of N(0, cov)."""

    variances: Array
    axes: Array

    def __init__(self, cov: ArrayLike):
        variances, axes = np.linalg.eigh(np.asarray(cov))
        self.variances, self.axes = jnp.asarray(variances), jnp.asarray(axes)

    def __call__(self, x, sigma, cond=None, *, key=None):
        gain = self.variances / (self.variances + sigma**2)
        return self.axes @ (gain * (self.axes.T @ x))

    def end(self, noise: ArrayLike, sigma_max: float) -> np.ndarray:
        variances, axes = np.asarray(self.variances), np.asarray(self.axes)
        gain = sigma_max * np.sqrt(variances / (variances + sigma_max**2))
        return axes @ (gain * (axes.T @ np.asarray(noise)))


class Constant(eqx.Module):
    """The denoiser of a single point."""

    point: Array

    def __call__(self, x, sigma, cond=None, *, key=None):
        return jnp.broadcast_to(self.point, x.shape)


def rms(error: ArrayLike) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(error)))))


def orders(errors: ArrayLike) -> np.ndarray:
    """The order of convergence between neighbours, each with twice the steps."""
    errors = np.asarray(errors)
    return np.log2(errors[:-1] / errors[1:])


def samples(denoiser, noise: Array, sigmas: Array, **options) -> np.ndarray:
    """`edm.sample` for a batch of noise."""
    one = lambda z: edm.sample(denoiser, z, sigmas, **options)
    return np.asarray(jax.vmap(one)(noise))
