r"""The block of EDM2's configuration G, which changes channels early to encode, late to decode.

    x = resample(x)                              # in the encoder: pixel_norm(skip(resample(x)))
    y = conv1(mp_silu(m * conv0(mp_silu(x))))
    x = mp_sum(x, y, 0.3)                        # in the decoder: mp_sum(skip(x), y, 0.3)
    x = mp_sum(x, attention(x), 0.3)             # where the block attends

The embedding modulates by $m = 1 + g \cdot \mathrm{linear}(\mathrm{emb})$, with a gain $g$ for each
block that starts at 0. Queries, keys and values are normalised at each point, so that the weights
of attention follow cosines.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._types import PRNGKey
from ..unet.layers import attention_weights
from .layers import MPConv, MPLinear, mp_silu, mp_sum, pixel_norm

BRANCH = 0.3  # the share of a residual branch, and of attention, in the sum with what it adds to
CHANNELS_PER_HEAD = 64


def keep(x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """The image at its resolution."""
    return x


def halve(x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 c"]:
    """The image at half the resolution, the mean of 2x2 pixels."""
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).mean(axis=(1, 3))


def double(x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 c"]:
    """The image at twice the resolution, each pixel repeated."""
    return jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)


@final
class Branch(eqx.Module):
    """The residual branch of a block: two convolutions, modulated by the embedding between."""

    conv0: MPConv
    map_emb: MPLinear
    gain: Float[Array, ""]
    conv1: MPConv

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, *, key: PRNGKey):
        keys = jr.split(key, 3)
        self.conv0 = MPConv(in_channels, out_channels, key=keys[0])
        self.map_emb = MPLinear(emb_channels, out_channels, key=keys[1])
        self.gain = jnp.zeros(())
        self.conv1 = MPConv(out_channels, out_channels, key=keys[2])

    def __call__(
        self, x: Float[Array, "h w in"], emb: Float[Array, " emb"]
    ) -> Float[Array, "h w out"]:
        modulation = 1 + self.gain.astype(emb.dtype) * self.map_emb(emb)
        h = self.conv0(mp_silu(x)) * modulation.astype(x.dtype)[None, None]
        return self.conv1(mp_silu(h))


@final
class Attention(eqx.Module):
    """Cosine attention among all points of an image, in heads of about 64 channels."""

    qkv: MPLinear
    proj: MPLinear

    def __init__(self, channels: int, *, key: PRNGKey):
        qkv_key, proj_key = jr.split(key)
        self.qkv = MPLinear(channels, 3 * channels, key=qkv_key)
        self.proj = MPLinear(channels, channels, key=proj_key)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        points, heads = x.shape[0] * x.shape[1], max(1, x.shape[-1] // CHANNELS_PER_HEAD)
        q, k, v = pixel_norm(jnp.moveaxis(self.qkv(x).reshape(points, 3, heads, -1), 1, 0))
        weights = attention_weights(q, k).astype(x.dtype)
        mixed = jnp.einsum("hqk,khc->qhc", weights, v).reshape(x.shape)
        return mp_sum(x, self.proj(mixed), BRANCH)


@final
class Block(eqx.Module):
    """A block of configuration G, from (h, w, in) to (h', w', out), given the embedding.

    Arguments:
        resample: `keep`, `halve` or `double`.
        encodes: a block of the encoder, which changes the channels and normalises each pixel
            before its branch.
        attends: followed by attention.
    """

    skip: MPLinear | None
    branch: Branch
    attention: Attention | None
    resample: Callable[[Array], Array] = eqx.field(static=True)
    encodes: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample: Callable[[Array], Array] = keep,
        encodes: bool,
        attends: bool = False,
        key: PRNGKey,
    ):
        skip_key, branch_key, attention_key = jr.split(key, 3)
        change = in_channels != out_channels
        self.skip = MPLinear(in_channels, out_channels, key=skip_key) if change else None
        branch_in = out_channels if encodes else in_channels
        self.branch = Branch(branch_in, out_channels, emb_channels, key=branch_key)
        self.attention = Attention(out_channels, key=attention_key) if attends else None
        self.resample, self.encodes = resample, encodes

    def __call__(
        self, x: Float[Array, "h w in"], emb: Float[Array, " emb"]
    ) -> Float[Array, "h2 w2 out"]:
        x = self.resample(x)
        if self.encodes:
            x = pixel_norm(self._project(x))
            x = mp_sum(x, self.branch(x, emb), BRANCH)
        else:
            x = mp_sum(self._project(x), self.branch(x, emb), BRANCH)
        return x if self.attention is None else self.attention(x)

    def _project(self, x: Array) -> Array:
        return x if self.skip is None else self.skip(x)
