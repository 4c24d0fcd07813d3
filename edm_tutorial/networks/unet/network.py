r"""U-Nets for square images: an encoder halves the resolution, a decoder doubles it again.

Going down, every output is remembered; going up, each block first gets one of them back,
the last remembered first. Three networks of the literature are made of the same blocks:

- DDPM++ and NCSN++ (Song et al. 2021), `song_unet`;
- ADM (Dhariwal and Nichol 2021), `dhariwal_unet`;

and `small_unet` chooses the numbers for images of 8 to 64 pixels:

    network = small_unet((1, 8, 8), label_dim=10, width=32, key=jax.random.key(0))
    cond = ImageCondition(class_labels=jax.nn.one_hot(3, 10))
    network(x, c_noise, cond)                              # x and the result: (1, 8, 8)

Seen from outside, images are (channels, height, width); inside, channels come last, the
layout in which the convolutions were measured to be fastest. Untrained, a network returns
exactly 0, so its loss is 1.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import check_floating
from ..._types import PRNGKey, as_float
from .blocks import Block
from .embedding import DhariwalEmbedding, ImageCondition, SongEmbedding, check_condition
from .layers import Conv, Down, GroupNorm, Style, Up


@final
class NoAux(eqx.Module):
    """The image enters the encoder at its top only."""

    def __call__(self, h: Array, aux: Array) -> tuple[Array, Array]:
        return h, aux


@final
class AuxResidual(eqx.Module):
    """The image, and then what became of it, joins each level through a strided convolution."""

    conv: Conv
    down: Down
    scale: float = eqx.field(static=True)

    def __call__(self, h: Array, aux: Array) -> tuple[Array, Array]:
        margin = (len(self.down.taps) - 1) // 2
        aux = self.down(self.conv(aux, extra=margin), pad=0)
        h = (h + aux) * self.scale
        return h, h


@final
class AuxSkip(eqx.Module):
    """The image itself, made smaller, joins each level through a 1x1 convolution."""

    conv: Conv
    down: Down

    def __call__(self, h: Array, aux: Array) -> tuple[Array, Array]:
        aux = self.down(aux)
        return h + self.conv(aux), aux


@final
class Output(eqx.Module):
    """From channels to the image: a norm and a convolution that starts at zero."""

    norm: GroupNorm
    conv: Conv

    def __init__(self, in_channels: int, out_channels: int, style: Style, key: PRNGKey):
        self.norm = GroupNorm(in_channels, style.eps)
        conv = Conv(in_channels, out_channels, 3, style, key)
        self.conv = jax.tree.map(jnp.zeros_like, conv)

    def __call__(self, h: Float[Array, "h w in"]) -> Float[Array, "h w out"]:
        return self.conv(jax.nn.silu(self.norm(h)))


@final
class EncoderLevel(eqx.Module):
    """One resolution on the way down: how it is entered, the image again, then blocks."""

    entry: Conv | Block
    aux: NoAux | AuxResidual | AuxSkip
    blocks: list[Block]


@final
class DecoderLevel(eqx.Module):
    """One resolution on the way up: how it is entered, blocks with skips, then an image."""

    entry: list[Block]
    blocks: list[Block]
    output: Output | None


@final
class UNet(eqx.Module):
    """F(x, c_noise, cond) for one image: made by `song_unet`, `dhariwal_unet`, `small_unet`.

    Computes the image in the dtype of `x` and the embedding in the dtype of `c_noise`.

    Arguments:
        embedding: of c_noise and the condition.
        encoder: levels from the full resolution down.
        decoder: levels from the lowest resolution up.
        enlarge: doubles the image from a level's output for the next.
        shape: of x, (channels, resolution, resolution).
    """

    embedding: SongEmbedding | DhariwalEmbedding
    encoder: list[EncoderLevel]
    decoder: list[DecoderLevel]
    enlarge: Up
    shape: tuple[int, int, int] = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, "channels height width"],
        c_noise: Float[Array, ""],
        cond: ImageCondition | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "out height width"]:
        """The raw network output for one image; with a key, dropout is on.

        Raises:
            ValueError: `x` of another shape or not floating, or labels of another length.
        """
        check_floating("x", x)
        if x.shape != self.shape:
            raise ValueError(f"x must have shape {self.shape}, got {x.shape}")
        cond = check_condition(cond, self.embedding.label_dim, self.embedding.augment_dim)
        emb = self.embedding(as_float(c_noise), cond)
        keys = _block_keys(self, key)
        h, skips = self._encode(jnp.moveaxis(x, 0, -1), emb, keys)
        return jnp.moveaxis(self._decode(h, skips, emb, keys), -1, 0)

    def _encode(self, x: Array, emb: Array, keys: Any) -> tuple[Array, list[Array]]:
        h, aux, skips = x, x, []
        for level in self.encoder:
            entry = level.entry
            h = entry(h, emb, next(keys)) if isinstance(entry, Block) else entry(h)
            h, aux = level.aux(h, aux)
            skips.append(h)
            for block in level.blocks:
                h = block(h, emb, next(keys))
                skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], emb: Array, keys: Any) -> Array:
        image: Any = None
        for level in self.decoder:
            for block in level.entry:
                h = block(h, emb, next(keys))
            for block in level.blocks:
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), emb, next(keys))
            if level.output is not None:
                output = level.output(h)
                image = output if image is None else output + self.enlarge(image)
        return image


def _block_keys(network: UNet, key: PRNGKey | None) -> Any:
    is_block = lambda node: isinstance(node, Block)
    levels = (network.encoder, network.decoder)
    count = sum(map(is_block, jax.tree.leaves(levels, is_leaf=is_block)))
    return iter([None] * count if key is None else jr.split(key, count))
