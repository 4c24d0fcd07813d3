r"""Linear measurements $A$ of an image: what `Measured` needs besides the data y.

Any linear function of one example will do; these are the usual ones. `Measured` takes the
transpose from JAX, so none is written here. Each is a pytree whose arrays are its leaves: the
sampler compiles once for all masks with as many entries.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ._checks import check_finite, whole
from ._types import as_float


def inpaint(mask: Bool[ArrayLike, "*shape"] | Sequence[Any]) -> Callable[[Array], Array]:
    """The entries of x where `mask` is True, as x[mask]: those that were seen.

    Arguments:
        mask: True where x is known; shaped like x.

    Raises:
        ValueError: `mask` is not boolean, or True nowhere.
    """
    return _Known(_indices(mask), np.shape(mask))


def blur(kernel: Float[ArrayLike, "..."] | Sequence[Any]) -> Callable[[Array], Array]:
    """The convolution of x with `kernel` along its last axes, zeros outside, in the shape of x.

    Arguments:
        kernel: shape (k,) for a series, (k, l) for an image; sums to 1 where means are kept.

    Raises:
        ValueError: `kernel` is not finite.
    """
    kernel = as_float(kernel)
    check_finite("kernel", kernel)
    return _Blurred(kernel)


def downsample(k: int) -> Callable[[Array], Array]:
    """The means of blocks of k x k pixels, over the last two axes.

    Raises:
        TypeError: k is not a whole number.
        ValueError: k < 1, or (when it is used) a side of x is no multiple of k.
    """
    return _Downsampled(whole("k", k))


def partial_fourier(
    mask: Bool[ArrayLike, "height width"] | Sequence[Any],
) -> Callable[[Array], Array]:
    """Some coefficients of the Fourier transform over the last two axes, each as two numbers.

    `jnp.fft.fft2(x, norm="ortho")[..., mask]`, real parts, then imaginary ones: shape
    (2, ..., n). White noise of x stays so, but a coefficient and its mirror image (k and -k) are
    one measurement, not two: ask for one of them.

    Arguments:
        mask: True where a frequency is measured; shape (height, width), frequency 0 first.

    Raises:
        ValueError: `mask` is not boolean, or True nowhere.
    """
    return _Fourier(_indices(mask), np.shape(mask))


class _Known(eqx.Module):
    indices: Array
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        _check_sides("mask", self.shape, x.shape)
        return x.ravel()[self.indices]


class _Blurred(eqx.Module):
    kernel: Array

    def __call__(self, x: Array) -> Array:
        more = (1,) * (x.ndim - self.kernel.ndim)
        kernel = self.kernel.astype(x.dtype).reshape(more + self.kernel.shape)
        return jax.scipy.signal.convolve(x, kernel, mode="same", method="direct")


class _Downsampled(eqx.Module):
    k: int = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        *more, height, width = x.shape
        if height % self.k or width % self.k:
            raise ValueError(f"the sides of x must be multiples of {self.k}, got shape {x.shape}")
        blocks = x.reshape(*more, height // self.k, self.k, width // self.k, self.k)
        return blocks.mean(axis=(-3, -1))


class _Fourier(eqx.Module):
    indices: Array
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        _check_sides("mask", self.shape, x.shape[-2:])
        transform = jnp.fft.fft2(x, norm="ortho").reshape(*x.shape[:-2], -1)
        some = transform[..., self.indices]
        return jnp.stack([some.real, some.imag])


def _indices(mask: Any) -> Array:
    """The places where a mask is True, counted along all of its entries."""
    mask = np.asarray(mask)
    if mask.dtype != bool or not mask.any():
        raise ValueError(f"mask must be boolean and True somewhere, got {mask}")
    return jnp.asarray(np.flatnonzero(mask))


def _check_sides(name: str, needed: tuple[int, ...], got: tuple[int, ...]) -> None:
    if needed != got:
        raise ValueError(f"{name} has shape {needed}, which does not fit x: {got}")
