r"""The one block of which all U-Nets here are made, and its attention.

    h = conv0(resample(silu(norm0(x))))
    h = conv1(dropout(silu(modulated norm1(h))))
    y = (h + skip(resample(x))) * skip_scale
    y = (y + proj(attention(norm2(y)))) * skip_scale         where the block attends

The embedding of noise level and labels modulates norm1: added before it (Song et al.), or as
scale and shift after it (Dhariwal and Nichol). Each branch ends in weights near zero.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._types import PRNGKey
from .layers import Conv, Down, GroupNorm, Linear, Style, Up, attention_weights


@final
class Block(eqx.Module):
    """A residual block: (H, W, in) to (H', W', out), told the embedding.

    Arguments:
        emb_size: length of the embedding.
        resample: `Down(taps)`, `Up(taps)`, or None to keep the resolution.
        attends: followed by attention, if `style` has heads for so few channels.
        dropout: the probability that an entry is dropped, where a key is given.
    """

    norm0: GroupNorm
    conv0: Conv
    affine: Linear
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
        emb_size: int,
        style: Style,
        *,
        resample: Down | Up | None = None,
        attends: bool = False,
        dropout: float = 0.0,
        key: PRNGKey,
    ):
        keys = jr.split(key, 6)
        self.resample, self.style, self.dropout = resample, style, dropout
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = Conv(in_channels, out_channels, 3, style, keys[0])
        modulation = 2 * out_channels if style.adaptive else out_channels
        self.affine = Linear(emb_size, modulation, style, keys[1])
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = Conv(out_channels, out_channels, 3, style, keys[2], scale=style.quiet)
        project = in_channels != out_channels
        project |= style.project and resample is not None
        self.skip = Conv(in_channels, out_channels, 1, style, keys[3]) if project else None
        self.norm2, self.qkv, self.proj = None, None, None
        if attends and style.heads(out_channels) > 0:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = Conv(
                out_channels, 3 * out_channels, 1, style, keys[4], scale=style.attention
            )
            self.proj = Conv(out_channels, out_channels, 1, style, keys[5], scale=style.quiet)

    def __call__(
        self,
        x: Float[Array, "h w in"],
        emb: Float[Array, " emb"],
        key: PRNGKey | None = None,
    ) -> Float[Array, "h2 w2 out"]:
        """The block's output; without a key nothing is dropped."""
        silu = jax.nn.silu
        h = self.conv0(self._resample(silu(self.norm0(x))))
        modulation = self.affine(emb).astype(x.dtype)[None, None]
        if self.style.adaptive:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = silu(self.norm1(h + modulation))
        h = self.conv1(self._drop(h, key))
        x = self._resample(x)
        y = (h + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        return self._attend(y)

    def _resample(self, x: Array) -> Array:
        return x if self.resample is None else self.resample(x)

    def _drop(self, h: Array, key: PRNGKey | None) -> Array:
        if key is None or self.dropout == 0:
            return h
        kept = jr.bernoulli(key, 1 - self.dropout, h.shape)
        return jnp.where(kept, h / (1 - self.dropout), jnp.zeros_like(h))

    def _attend(self, y: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        if self.norm2 is None or self.qkv is None or self.proj is None:
            return y
        heads = self.style.heads(y.shape[-1])
        # Columns come as (head, channel, q/k/v). Sorted here, where there are few, q, k and v are
        # whole: sorted in the image, their gradients take longer than all of attention.
        sort = lambda a: jnp.moveaxis(a.reshape(*a.shape[:-1], -1, 3), -1, -2).reshape(a.shape)
        parts = jnp.split(jax.tree.map(sort, self.qkv)(self.norm2(y)), 3, axis=-1)
        q, k, v = (part.reshape(y.shape[0] * y.shape[1], heads, -1) for part in parts)
        weights = attention_weights(q, k).astype(y.dtype)
        mixed = jnp.einsum("hqk,khc->qhc", weights, v).reshape(y.shape)
        return (self.proj(mixed) + y) * self.style.skip_scale
