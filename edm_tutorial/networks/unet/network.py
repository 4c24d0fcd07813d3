r"""U-Nets for series, images and volumes: an encoder halves the resolution, a decoder doubles it.

The encoder keeps every output (a *skip*). Each block of the decoder takes one of them back, the
last one first, beside its input; it has one block more a level, for the output with which the
encoder entered the level. `song_unet`, `dhariwal_unet` and `small_unet` choose the numbers:

    network = small_unet((1, 8, 8), label_dim=10, width=32, key=jax.random.key(0))
    cond = ImageCondition(3)                               # class 3 of 10
    network(x, c_noise, cond)                              # x and the result: (1, 8, 8)

Seen from outside, images are (channels, height, width), series (channels, length) and volumes
(channels, depth, height, width); inside, channels come last, the layout in which the convolutions
were measured to be fastest. Untrained, a network returns exactly 0, so its loss is 1.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import check_floating
from ..._types import PRNGKey, as_float
from .blocks import AuxResidual, AuxSkip, Block, NoAux, Output, Style
from .embedding import DhariwalEmbedding, ImageCondition, SongEmbedding, check_condition, lengths
from .layers import Conv, Down, Filter, Up, crop_image, pad_image


@final
class EncoderLevel(eqx.Module):
    """One resolution of the encoder: its entry, the image's own way in, then blocks."""

    entry: Conv | Block
    aux: NoAux | AuxResidual | AuxSkip
    blocks: list[Block]


@final
class DecoderLevel(eqx.Module):
    """One resolution of the decoder: its entry, blocks that take skips, then an image."""

    entry: list[Block]
    blocks: list[Block]
    output: Output | None


@final
class UNet(eqx.Module):
    """F(x, c_noise, cond) for one series, image or volume.

    Made by `small_unet`, for `x` of shape (channels, length), (channels, height, width) or
    (channels, depth, height, width), and by `song_unet` and `dhariwal_unet`, for square images.
    Computes the image in the dtype of `x` and the embedding in the dtype of `c_noise`.

    Any size will do. One that cannot be halved often enough is padded inside, by reflection (by
    its edge where a margin is too wide for that), and the result is cropped. No official network
    needs this.
    """

    embedding: SongEmbedding | DhariwalEmbedding
    encoder: list[EncoderLevel]  # from the full resolution down
    decoder: list[DecoderLevel]  # from the lowest resolution up
    enlarge: Up  # doubles the image of a level for the next
    shape: tuple[int, ...] = eqx.field(static=True)  # of x: channels, then the size

    def __call__(
        self,
        x: Float[Array, " channels *size"],
        c_noise: Float[Array, ""],
        cond: ImageCondition | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, " out *size"]:
        """The raw network output for one image; with a key, dropout is on.

        Raises: ValueError for `x` of another shape or not floating, or labels of another length.
        """
        check_floating("x", x)
        if x.shape != self.shape:
            got = f"got {x.shape}; use jax.vmap for a batch"
            raise ValueError(f"x must have shape {self.shape}, {got}")
        cond = check_condition(cond, lengths(self.embedding))
        emb = self.embedding(as_float(c_noise), cond)
        keys = _block_keys(self, key)
        h, skips = self._encode(pad_image(jnp.moveaxis(x, 0, -1), self._multiple), emb, keys)
        image = crop_image(self._decode(h, skips, emb, keys), x.shape[1:])
        return jnp.moveaxis(image, -1, 0)

    @property
    def _multiple(self) -> int:
        return 2 ** (len(self.encoder) - 1)

    @property
    def resolutions(self) -> list[tuple[int, ...]]:
        """Size at each level, that of the padded image first."""
        padded = [length + -length % self._multiple for length in self.shape[1:]]
        return [tuple(length >> i for length in padded) for i in range(len(self.encoder))]

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


@final
class UNetSizes(eqx.Module):
    """Sizes of a U-Net, from which `make_unet` makes its levels."""

    shape: tuple[int, ...]  # of x: its channels, then the size
    out_channels: int
    first_channels: int  # after the first convolution
    channels: tuple[int, ...]  # of each level, the full resolution first
    emb_channels: int
    num_blocks: int  # of a level of the encoder; the decoder has one more
    attends: tuple[bool, ...]  # whether the blocks of each level do
    attends_first: bool  # whether the first block of the decoder does
    resample_filter: Filter
    dropout: float  # the probability, in every block


def make_unet(
    sizes: UNetSizes,
    style: Style,
    embedding: SongEmbedding | DhariwalEmbedding,
    *,
    encoder_type: str,
    decoder_type: str,
    keys: Iterator[PRNGKey],
) -> UNet:
    """The untrained network of these sizes; its decoder mirrors its encoder."""
    encoder, skips = _encoder(sizes, style, encoder_type, keys)
    decoder = _decoder(sizes, style, decoder_type, skips=skips, keys=keys)
    return UNet(
        embedding=embedding,
        encoder=encoder,
        decoder=decoder,
        enlarge=Up(sizes.resample_filter),
        shape=sizes.shape,
    )


def _encoder(
    sizes: UNetSizes, style: Style, encoder_type: str, keys: Iterator[PRNGKey]
) -> tuple[list[EncoderLevel], list[int]]:
    """The levels of the encoder, and how many channels each of its outputs has."""
    make = partial(Block, emb_channels=sizes.emb_channels, style=style, dropout=sizes.dropout)
    conv = partial(Conv, init=style.init, axes=style.axes)
    down, channels = Down(sizes.resample_filter), sizes.first_channels
    aux_channels = sizes.shape[0]
    levels, skips = [], []
    for i, (attends, width) in enumerate(zip(sizes.attends, sizes.channels, strict=True)):
        aux = NoAux()
        if i == 0:
            entry = conv(aux_channels, channels, 3, key=next(keys))
        else:
            entry = make(channels, channels, resample=down, key=next(keys))
            aux_key = next(keys)
            if encoder_type == "residual":
                strided = conv(aux_channels, channels, 3, key=aux_key)
                aux = AuxResidual(strided, down, style.skip_scale)
                aux_channels = channels
            elif encoder_type == "skip":
                aux = AuxSkip(conv(aux_channels, channels, 1, key=aux_key), down)
        skips.append(channels)
        blocks = []
        for _ in range(sizes.num_blocks):
            blocks.append(make(channels, width, attends=attends, key=next(keys)))
            channels = width
            skips.append(channels)
        levels.append(EncoderLevel(entry, aux, blocks))
    return levels, skips


def _decoder(
    sizes: UNetSizes, style: Style, decoder_type: str, *, skips: list[int], keys: Iterator[PRNGKey]
) -> list[DecoderLevel]:
    """The levels of the decoder; `skips` are the channels of the encoder's outputs."""
    make = partial(Block, emb_channels=sizes.emb_channels, style=style, dropout=sizes.dropout)
    up, channels = Up(sizes.resample_filter), sizes.channels[-1]
    levels, lowest = [], len(sizes.channels) - 1
    for i in reversed(range(len(sizes.channels))):
        width = sizes.channels[i]
        if i == lowest:
            first = make(channels, channels, attends=sizes.attends_first, key=next(keys))
            entry = [first, make(channels, channels, key=next(keys))]
        else:
            entry = [make(channels, channels, resample=up, key=next(keys))]
        blocks = []
        for j in range(sizes.num_blocks + 1):
            attends = sizes.attends[i] and (style.attend_all or j == sizes.num_blocks)
            joined = channels + skips.pop()
            blocks.append(make(joined, width, attends=attends, key=next(keys)))
            channels = width
        output = None
        if i == 0 or decoder_type == "skip":
            output = Output(channels, sizes.out_channels, style, next(keys))
        levels.append(DecoderLevel(entry, blocks, output))
    return levels
