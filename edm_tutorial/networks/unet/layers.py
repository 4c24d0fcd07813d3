r"""The layers of image networks, for one example with channels last: (H, W, C).

A convolution is $y_{ijo} = \sum_{abc} w_{abco}\, x_{i+a-p,\,j+b-p,\,c} + \beta_o$, zero outside.
Resampling multiplies by a filter $f$ along each axis: `Down` keeps every second entry of the
correlation with $f/\sum f$; `Up` puts zeros between the entries and convolves with
$2f/\sum f$, so that (1, 1) averages pairs and repeats entries.

Parameters are cast to the dtype of `x` where they are used: whoever casts `x` chooses the
precision of the arithmetic. Sums over many entries are kept in float32 or better.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._types import PRNGKey
from .convolution import convolve


def xavier(fan_in: int, fan_out: int) -> float:
    """Bound of uniform weights that keep the variance both forwards and backwards."""
    return math.sqrt(6 / (fan_in + fan_out))


def kaiming(fan_in: int, fan_out: int) -> float:
    """Bound of uniform weights of variance 1/3 over `fan_in`."""
    return math.sqrt(1 / fan_in)


class Style(NamedTuple):
    """What the two families of networks do differently inside their blocks.

    Arguments:
        eps: added to the variance in every `GroupNorm`.
        skip_scale: multiplies every sum of a branch and its skip.
        adaptive: the embedding scales and shifts the second norm; else it is added before.
        project: a skip that changes the resolution passes through a 1x1 convolution.
        attend_all: every decoder block of a level attends, not only the last.
        channels_per_head: of attention; None for one head. Fewer channels: no attention.
        bound: of uniform initial weights, called with fan_in and fan_out.
        bias: initial biases are uniform within this times the weights' bound.
        quiet: scale of the initial weights that end a branch.
        attention: scale of the initial weights of queries, keys and values.
    """

    eps: float
    skip_scale: float
    adaptive: bool
    project: bool
    attend_all: bool
    channels_per_head: int | None
    bound: Callable[[int, int], float]
    bias: float
    quiet: float
    attention: float

    def heads(self, channels: int) -> int:
        """The number of attention heads; 0 is no attention."""
        return 1 if self.channels_per_head is None else channels // self.channels_per_head


SONG = Style(1e-6, math.sqrt(0.5), False, True, False, None, xavier, 0.0, 1e-5, math.sqrt(0.2))
DHARIWAL = Style(1e-5, 1.0, True, False, True, 64, kaiming, 1.0, 0.0, 1.0)


def to_bias(style: Style, size: int, bound: float, key: PRNGKey) -> Array:
    """The initial bias of a layer with weights within `bound`."""
    return uniform(key, (size,), style.bias * bound)


def uniform(key: PRNGKey, shape: tuple[int, ...], bound: float) -> Array:
    """Uniform numbers within +-`bound`: the first of 2^n, as XLA compiles each length anew."""
    size = math.prod(shape)
    numbers = jr.uniform(key, (2 ** max(16, (size - 1).bit_length()),), minval=-1.0)
    return _cut(numbers, bound, shape)


@partial(jax.jit, static_argnames="shape")
def _cut(numbers: Array, bound: Any, shape: tuple[int, ...]) -> Array:
    return bound * numbers[: math.prod(shape)].reshape(shape)


@final
class Linear(eqx.Module):
    """y = W x + b, with W of shape (out, in)."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __init__(
        self,
        in_size: int,
        out_size: int,
        style: Style,
        key: PRNGKey,
        *,
        scale: float = 1.0,
        use_bias: bool = True,
    ):
        weight_key, bias_key = jr.split(key)
        bound = scale * style.bound(in_size, out_size)
        self.weight = uniform(weight_key, (out_size, in_size), bound)
        self.bias = to_bias(style, out_size, bound, bias_key) if use_bias else None

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        y = self.weight.astype(x.dtype) @ x
        return y if self.bias is None else y + self.bias.astype(x.dtype)


@final
class Conv(eqx.Module):
    """A convolution with a `size` x `size` kernel (size, size, in, out) and zero padding."""

    weight: Float[Array, "size size in out"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        style: Style,
        key: PRNGKey,
        *,
        scale: float = 1.0,
    ):
        weight_key, bias_key = jr.split(key)
        bound = scale * style.bound(size**2 * in_channels, size**2 * out_channels)
        self.weight = uniform(weight_key, (size, size, in_channels, out_channels), bound)
        self.bias = to_bias(style, out_channels, bound, bias_key)

    def __call__(self, x: Float[Array, "h w in"], extra: int = 0) -> Float[Array, "h2 w2 out"]:
        """Convolve; `extra` zeros beyond those that keep the size widen the result."""
        weight, pad = self.weight.astype(x.dtype), len(self.weight) // 2 + extra
        y = x @ weight[0, 0] if len(weight) == 1 and pad == 0 else convolve(x, weight, pad)
        return y + self.bias.astype(x.dtype)[None, None]


@final
class GroupNorm(eqx.Module):
    """Zero mean and unit variance over each of min(32, C // 4) groups of channels.

    Raises:
        ValueError: the channels do not fall into equal groups.
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

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        wide = _wide(x.dtype)
        centred = x.astype(wide)
        centred = centred - self._group_mean(centred)[None, None]
        gain = jax.lax.rsqrt(self._group_mean(centred**2) + self.eps) * self.weight.astype(wide)
        return (centred * gain[None, None] + self.bias.astype(wide)[None, None]).astype(x.dtype)

    def _group_mean(self, x: Float[Array, "h w c"]) -> Float[Array, " c"]:
        """The mean over pixels and group, for each channel: pixels first is three times faster."""
        groups = min(32, x.shape[-1] // 4)
        grouped = jnp.mean(x, axis=(0, 1)).reshape(groups, -1)
        means = jnp.mean(grouped, axis=1, keepdims=True)
        return jnp.broadcast_to(means, grouped.shape).reshape(-1)


@final
class Down(eqx.Module):
    """Half the resolution: the mean of neighbours, weighted by `taps`."""

    taps: tuple[int | float, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "h w c"], pad: int | None = None) -> Float[Array, "h2 w2 c"]:
        """Filter and keep every second entry; `pad` zeros a side, by default to halve the size."""
        pad = (len(self.taps) - 1) // 2 if pad is None else pad
        for axis in (0, 1):
            x = self._along(x, pad, axis)
        return x

    def _along(self, x: Array, pad: int, axis: int) -> Array:
        x = _pad(x, pad, axis)
        last = 2 * ((x.shape[axis] - len(self.taps)) // 2)
        total = sum(self.taps)
        entries = lambda k: jax.lax.slice_in_dim(x, k, k + last + 1, 2, axis)
        return sum((tap / total) * entries(k) for k, tap in enumerate(self.taps))  # type: ignore


@final
class Up(eqx.Module):
    """Twice the resolution: zeros between the entries, then the filter `taps`."""

    taps: tuple[int | float, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 c"]:
        for axis in (0, 1):
            x = self._along(x, axis)
        return x

    def _along(self, x: Array, axis: int) -> Array:
        length, size = x.shape[axis], len(self.taps)
        x = _pad(x, size // 2, axis)
        total = sum(self.taps)

        def phase(parity: int) -> Any:
            """Every second entry of the result, by the taps that meet an entry and no zero."""
            offset = parity + (size - 1) // 2
            starts = {k: size // 2 + (offset - k) // 2 for k in range(offset % 2, size, 2)}
            entries = lambda at: jax.lax.slice_in_dim(x, at, at + length, 1, axis)
            return sum((2 * self.taps[k] / total) * entries(at) for k, at in starts.items())

        pairs = jnp.stack([phase(0), phase(1)], axis + 1)
        return pairs.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])


def _wide(dtype: Any) -> Any:
    """The dtype for sums over many entries: float32, or what is longer."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _pad(x: Array, pad: int, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (pad, pad)
    return jnp.pad(x, widths)


def attention_weights(
    q: Float[Array, "positions heads c"], k: Float[Array, "positions heads c"]
) -> Float[Array, "heads positions positions"]:
    r"""$\mathrm{softmax}_k(q^T k / \sqrt{c})$ for every query, in float32 or better."""
    wide = _wide(q.dtype)
    products = jnp.einsum("qhc,khc->hqk", q.astype(wide), k.astype(wide))
    return jax.nn.softmax(products / math.sqrt(q.shape[-1]), axis=-1)
