r"""The residual block of all U-Nets here, its attention, and how the image enters and leaves.

    h = conv0(resample(silu(norm0(x))))
    h = conv1(dropout(silu(modulated norm1(h))))
    y = (h + skip(resample(x))) * skip_scale
    y = (y + proj(attention(norm2(y)))) * skip_scale         where the block attends

The embedding of noise level and labels modulates norm1: it is added before the norm (Song et
al.), or scales and shifts what comes out of it (Dhariwal and Nichol). Each branch ends in
weights near zero, so that an untrained block is close to its skip.
"""

import math
from functools import partial
from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._types import PRNGKey
from .layers import (
    Conv,
    Dense,
    Down,
    GroupNorm,
    Init,
    Up,
    attention_weights,
    everywhere,
    kaiming,
    xavier,
)


class Style(NamedTuple):
    """Differences between the blocks of the two families of networks."""

    eps: float  # added to the variance in every `GroupNorm`
    skip_scale: float  # multiplies every sum of a branch and its skip
    adaptive_scale: bool  # the embedding scales and shifts norm1, or is added before it
    resample_proj: bool  # a skip that changes the resolution has a 1x1 convolution
    attend_all: bool  # every decoder block of an attending level attends, not only the last
    channels_per_head: int | None  # with fewer channels no attention; None: one head for all
    init: Init  # bounds of the initial weights and biases
    init_zero: float  # scale of the initial weights that end a branch
    init_attn: float  # scale of the initial weights of queries, keys and values
    axes: int = 2  # of an image besides its channels: 1 for a series, 3 for a volume

    def heads(self, channels: int) -> int:
        """The number of attention heads; 0 is no attention."""
        return 1 if self.channels_per_head is None else channels // self.channels_per_head


SONG = Style(
    eps=1e-6,
    skip_scale=math.sqrt(0.5),
    adaptive_scale=False,
    resample_proj=True,
    attend_all=False,
    channels_per_head=None,
    init=xavier,
    init_zero=1e-5,
    init_attn=math.sqrt(0.2),
)
DHARIWAL = Style(
    eps=1e-5,
    skip_scale=1.0,
    adaptive_scale=True,
    resample_proj=False,
    attend_all=True,
    channels_per_head=64,
    init=kaiming,
    init_zero=0.0,
    init_attn=1.0,
)


@final
class Block(eqx.Module):
    """A residual block from (H, W, in) to (H', W', out), given the embedding.

    With other `axes` than 2 in its style, (H, W) is (L,) or (D, H, W), here and below.

    Arguments:
        emb_channels: length of the embedding.
        resample: `Down(filter)`, `Up(filter)`, or None to keep the resolution.
        attends: followed by attention, if `style` has heads for so few channels.
        dropout: the probability that an entry is dropped in a call with a key.
    """

    norm0: GroupNorm
    conv0: Conv
    affine: Dense
    norm1: GroupNorm
    conv1: Conv
    skip: Conv | None
    norm2: GroupNorm | None
    qkv: Conv | None
    proj: Conv | None
    resample: Down | Up | None
    style: Style = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        style: Style,
        *,
        resample: Down | Up | None = None,
        attends: bool = False,
        dropout: float = 0.0,
        key: PRNGKey,
    ):
        keys = jr.split(key, 6)
        zero, attn = style.init_zero, style.init_attn
        conv = partial(Conv, init=style.init, axes=style.axes)
        self.resample, self.style, self.dropout = resample, style, dropout
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = conv(in_channels, out_channels, 3, key=keys[0])
        modulation = 2 * out_channels if style.adaptive_scale else out_channels
        self.affine = Dense(emb_channels, modulation, style.init, key=keys[1])
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = conv(out_channels, out_channels, 3, scale=zero, key=keys[2])
        project = in_channels != out_channels or (style.resample_proj and resample is not None)
        self.skip = conv(in_channels, out_channels, 1, key=keys[3]) if project else None
        self.norm2, self.qkv, self.proj = None, None, None
        if attends and style.heads(out_channels) > 0:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = conv(out_channels, 3 * out_channels, 1, scale=attn, key=keys[4])
            self.proj = conv(out_channels, out_channels, 1, scale=zero, key=keys[5])

    def __call__(
        self, x: Float[Array, "*size in"], emb: Float[Array, " emb"], key: PRNGKey | None = None
    ) -> Float[Array, "*size2 out"]:
        """The block's output; without a key nothing is dropped."""
        silu = jax.nn.silu
        h = self.conv0(self._resample(silu(self.norm0(x))))
        modulation = everywhere(self.affine(emb).astype(x.dtype), h)
        if self.style.adaptive_scale:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = silu(self.norm1(h + modulation))
        h = self.conv1(self._drop(h, key))
        x = self._resample(x)
        x = x if self.skip is None else self.skip(x)
        return self._attend(_joined(h, x, self.style.skip_scale))

    def _resample(self, x: Array) -> Array:
        return x if self.resample is None else self.resample(x)

    def _drop(self, h: Array, key: PRNGKey | None) -> Array:
        if key is None or self.dropout == 0:
            return h
        kept = jr.bernoulli(key, 1 - self.dropout, h.shape)
        return jnp.where(kept, h / (1 - self.dropout), jnp.zeros_like(h))

    def _attend(self, y: Float[Array, "*size c"]) -> Float[Array, "*size c"]:
        if self.norm2 is None or self.qkv is None or self.proj is None:
            return y
        heads = self.style.heads(y.shape[-1])
        parts = jnp.split(_sorted_qkv(self.qkv)(self.norm2(y)), 3, axis=-1)
        q, k, v = (part.reshape(-1, heads, y.shape[-1] // heads) for part in parts)
        weights = attention_weights(q, k).astype(y.dtype)
        mixed = jnp.einsum("hqk,khc->qhc", weights, v).reshape(y.shape)
        return _joined(self.proj(mixed), y, self.style.skip_scale)


def _joined(branch: Array, skip: Array, scale: float) -> Array:
    """The sum of a branch and its skip, times `scale`, written to memory once.

    XLA on CPU repeats a sum in everything that takes it, and so along all the skips before. It
    does not repeat a division; behind a barrier the divisor is no constant, which would make a
    product of it.
    """
    return (branch + skip) / jax.lax.optimization_barrier(jnp.asarray(1 / scale, branch.dtype))


def _sorted_qkv(qkv: Conv) -> Conv:
    """The same convolution with its output in the order q, k, v, not (head, channel, q/k/v).

    To sort the image instead costs more than all of attention, in the gradient.
    """
    sort = lambda a: jnp.moveaxis(a.reshape(*a.shape[:-1], -1, 3), -1, -2).reshape(a.shape)
    return jax.tree.map(sort, qkv)


# How the image enters each level of the encoder: called with the level's input h and `aux`,
# what the level above made of the image.


@final
class NoAux(eqx.Module):
    """A level without an input of its own: the image enters at the top of the encoder only."""

    def __call__(self, h: Array, aux: Array) -> tuple[Array, Array]:
        return h, aux


@final
class AuxResidual(eqx.Module):
    """Residual input: the level above (for the first, the image) by a strided convolution."""

    conv: Conv
    down: Down
    scale: float = eqx.field(static=True)

    def __call__(self, h: Array, aux: Array) -> tuple[Array, Array]:
        margin = (len(self.down.resample_filter) - 1) // 2
        aux = self.down(self.conv(aux, extra=margin), pad=0)
        h = _joined(h, aux, self.scale)
        return h, h


@final
class AuxSkip(eqx.Module):
    """Input skip: the downsampled image by a 1x1 convolution."""

    conv: Conv
    down: Down

    def __call__(self, h: Array, aux: Array) -> tuple[Array, Array]:
        aux = self.down(aux)
        return h + self.conv(aux), aux


@final
class Output(eqx.Module):
    """The image of a decoder's level: a norm and a convolution that starts at zero."""

    norm: GroupNorm
    conv: Conv

    def __init__(self, in_channels: int, out_channels: int, style: Style, key: PRNGKey):
        self.norm = GroupNorm(in_channels, style.eps)
        conv = Conv(in_channels, out_channels, 3, style.init, axes=style.axes, key=key)
        self.conv = jax.tree.map(jnp.zeros_like, conv)

    def __call__(self, h: Float[Array, "*size in"]) -> Float[Array, "*size out"]:
        return self.conv(jax.nn.silu(self.norm(h)))
