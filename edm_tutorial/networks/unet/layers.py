r"""Layers of image networks, for one example with channels last: (L, C), (H, W, C), (D, H, W, C).

A convolution of an image is $y_{ijo} = \sum_{abc} w_{abco}\, x_{i+a-p,\,j+b-p,\,c} + \beta_o$, zero
outside, and likewise along one or three axes; `*size` below stands for these axes.
Resampling applies a filter $f$ along each axis: `Down` keeps every second entry of the
correlation with $f/\sum f$; `Up` puts zeros between the entries and convolves with
$2f/\sum f$. So the filter (1, 1) averages pairs on the way down and repeats entries on the
way up.

A layer casts its parameters to the dtype of `x`. Sums over many entries are kept in float32 or
better.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._types import PRNGKey
from .convolution import convolve

Filter = tuple[int | float, ...]
"""The weights of a resampling filter along one axis, an even number of them."""

Init = Callable[[int, int], tuple[float, float]]
"""Bounds of the uniform initial weights and biases, given fan_in and fan_out."""


def xavier(fan_in: int, fan_out: int) -> tuple[float, float]:
    """Bounds of Xavier's initial weights, which keep the variance both ways, and no bias."""
    return math.sqrt(6 / (fan_in + fan_out)), 0.0


def kaiming(fan_in: int, fan_out: int) -> tuple[float, float]:
    """Bounds of initial weights of variance 1 / (3 fan_in), and of biases of the same size."""
    return math.sqrt(1 / fan_in), math.sqrt(1 / fan_in)


@final
class Dense(eqx.Module):
    """An affine map y = W x + b, with W of shape (out, in)."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        init: Init,
        *,
        scale: float = 1.0,
        use_bias: bool = True,
        key: PRNGKey,
    ):
        weight_key, bias_key = jr.split(key)
        weights, biases = init(in_features, out_features)
        self.weight = _uniform(weight_key, (out_features, in_features), scale * weights)
        self.bias = _uniform(bias_key, (out_features,), scale * biases) if use_bias else None

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        y = self.weight.astype(x.dtype) @ x
        return y if self.bias is None else y + self.bias.astype(x.dtype)


@final
class Conv(eqx.Module):
    """A convolution with zero padding; its weights have shape (kernel, kernel, in, out).

    That is for images, of two axes; along one or three, `kernel` stands as often.
    """

    weight: Float[Array, "*kernel in out"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init,
        *,
        axes: int = 2,
        scale: float = 1.0,
        key: PRNGKey,
    ):
        weight_key, bias_key = jr.split(key)
        weights, biases = init(kernel**axes * in_channels, kernel**axes * out_channels)
        shape = (*[kernel] * axes, in_channels, out_channels)
        self.weight = _uniform(weight_key, shape, scale * weights)
        self.bias = _uniform(bias_key, (out_channels,), scale * biases)

    def __call__(self, x: Float[Array, "*size in"], extra: int = 0) -> Float[Array, "*size2 out"]:
        """The convolution of `x`; `extra` zeros on each side widen the result by as many."""
        y = convolve(x, self.weight.astype(x.dtype), len(self.weight) // 2 + extra)
        return y + everywhere(self.bias.astype(x.dtype), x)


@final
class GroupNorm(eqx.Module):
    """Group normalisation over min(32, C // 4) groups of channels.

    Raises: ValueError if the channels do not fall into equal groups.
    """

    weight: Float[Array, " c"]
    bias: Float[Array, " c"]
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, eps: float):
        groups = min(32, channels // 4)
        if groups < 1 or channels % groups:
            raise ValueError(
                f"{channels} channels do not fall into min(32, {channels} // 4) equal groups: "
                "choose widths that are multiples of 4, and of 32 from 128 on"
            )
        self.weight, self.bias, self.eps = jnp.ones(channels), jnp.zeros(channels), eps

    def __call__(self, x: Float[Array, "*size c"]) -> Float[Array, "*size c"]:
        wide = _wide(x.dtype)
        centred = x.astype(wide)
        centred = centred - everywhere(self._group_mean(centred), x)
        gain = jax.lax.rsqrt(self._group_mean(centred**2) + self.eps) * self.weight.astype(wide)
        normal = centred * everywhere(gain, x) + everywhere(self.bias.astype(wide), x)
        return normal.astype(x.dtype)

    def _group_mean(self, x: Float[Array, "*size c"]) -> Float[Array, " c"]:
        """The mean over pixels and group, for each channel."""
        # Pixels first, then the channels of a group: three times faster than both at once.
        groups = min(32, x.shape[-1] // 4)
        grouped = jnp.mean(x, axis=range(x.ndim - 1)).reshape(groups, -1)
        means = jnp.mean(grouped, axis=1, keepdims=True)
        return jnp.broadcast_to(means, grouped.shape).reshape(-1)


@final
class Down(eqx.Module):
    """Downsampling by two: the mean of neighbours, weighted by the filter."""

    resample_filter: Filter = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "*size c"], pad: int | None = None
    ) -> Float[Array, "*size2 c"]:
        """The image at half its size, or, with another `pad` of zeros a side, nearly so."""
        pad = (len(self.resample_filter) - 1) // 2 if pad is None else pad
        for axis in range(x.ndim - 1):
            x = self._along(x, pad, axis)
        return x

    def _along(self, x: Array, pad: int, axis: int) -> Array:
        taps, total = self.resample_filter, sum(self.resample_filter)
        x = _pad(x, pad, axis)
        last = 2 * ((x.shape[axis] - len(taps)) // 2)
        entries = lambda k: jax.lax.slice_in_dim(x, k, k + last + 1, 2, axis)
        return sum((tap / total) * entries(k) for k, tap in enumerate(taps))  # type: ignore  # sum starts at the int 0


@final
class Up(eqx.Module):
    """Upsampling by two: zeros between the entries, then the filter."""

    resample_filter: Filter = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*size c"]) -> Float[Array, "*size2 c"]:
        for axis in range(x.ndim - 1):
            x = self._along(x, axis)
        return x

    def _along(self, x: Array, axis: int) -> Array:
        taps, total = self.resample_filter, sum(self.resample_filter)
        length, size = x.shape[axis], len(taps)
        x = _pad(x, size // 2, axis)

        # Even and odd entries of the result separately (polyphase): the taps that would meet
        # one of the zeros between the entries are never multiplied.
        def phase(parity: int) -> Any:
            offset = parity + (size - 1) // 2
            starts = {k: size // 2 + (offset - k) // 2 for k in range(offset % 2, size, 2)}
            entries = lambda at: jax.lax.slice_in_dim(x, at, at + length, 1, axis)
            return sum((2 * taps[k] / total) * entries(at) for k, at in starts.items())

        pairs = jnp.stack([phase(0), phase(1)], axis + 1)
        return pairs.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])


def attention_weights(
    q: Float[Array, "positions heads c"], k: Float[Array, "positions heads c"]
) -> Float[Array, "heads positions positions"]:
    r"""Attention weights $\mathrm{softmax}_k(q^T k / \sqrt{c})$, in float32 or better."""
    wide = _wide(q.dtype)
    products = jnp.einsum("qhc,khc->hqk", q.astype(wide), k.astype(wide))
    return jax.nn.softmax(products / math.sqrt(q.shape[-1]), axis=-1)


def everywhere(v: Float[Array, " c"], x: Float[Array, "*size c2"]) -> Float[Array, "*ones c"]:
    """A number for each channel, with an axis of length 1 for each of the size of `x`."""
    return jnp.expand_dims(v, range(x.ndim - 1))


def pad_image(x: Float[Array, "*size c"], multiple: int) -> Float[Array, "*size2 c"]:
    """The image with a margin that makes its size a multiple of `multiple` along each axis.

    The margin reflects the image or, where it is too wide for that, repeats its outermost pixels.
    It is the same on both sides, or one pixel wider on the far side.
    """
    for axis in range(x.ndim - 1):
        missing = -x.shape[axis] % multiple
        if missing:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (missing // 2, missing - missing // 2)
            fits = max(widths[axis]) < x.shape[axis]
            x = jnp.pad(x, widths, mode="reflect" if fits else "edge")
    return x


def crop_image(x: Float[Array, "*size2 c"], size: Sequence[int]) -> Float[Array, "*size c"]:
    """The middle of an image, without the margin of `pad_image`."""
    starts = [(padded - length) // 2 for padded, length in zip(x.shape, size, strict=False)]
    return x[tuple(slice(at, at + length) for at, length in zip(starts, size, strict=True))]


def _wide(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """The dtype for sums over many entries: float32, or what is longer."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _pad(x: Array, pad: int, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (pad, pad)
    return jnp.pad(x, widths)


def _uniform(key: PRNGKey, shape: tuple[int, ...], bound: float) -> Array:
    """Uniform numbers within +-`bound`: the first of 2^n, so that XLA compiles few generators."""
    size = int(math.prod(shape))
    numbers = jr.uniform(key, (2 ** max(16, (size - 1).bit_length()),), minval=-1.0)
    return _cut(numbers, bound, shape)


@partial(jax.jit, static_argnames="shape")
def _cut(numbers: Array, bound: Any, shape: tuple[int, ...]) -> Array:
    return bound * numbers[: math.prod(shape)].reshape(shape)
