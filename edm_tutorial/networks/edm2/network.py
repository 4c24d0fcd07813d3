r"""EDM2's U-Net in configuration G: magnitudes of 1 from the image to the output, by design.

No group norms, no biases; only the image gets one channel of ones. The encoder keeps every output,
and each block of the decoder but a level's first takes one of them back, by `mp_cat`. The last
convolution has a gain that starts at 0: untrained, the network returns exactly 0, and its loss is
1.

    network = edm2_unet((1, 8, 8), label_dim=10, model_channels=32,
                        channel_mult=(1, 2), key=key)
    cond = ImageCondition(class_labels=3)
    network(x, c_noise, cond)                    # x and the result: (1, 8, 8)

Train it with `forced_norms()` at the end of the optimizer.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple, final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import check_floating, check_key, whole
from ..._types import PRNGKey, as_float
from ..unet.embedding import ImageCondition, check_condition, one_hot
from .blocks import CHANNELS_PER_HEAD, Block, double, halve
from .layers import MPConv, MPFourier, MPLinear, mp_cat, mp_silu, mp_sum


@final
class EDM2Embedding(eqx.Module):
    """The embedding of noise level and class; without a class the latter adds nothing."""

    fourier: MPFourier
    map_noise: MPLinear
    map_label: MPLinear | None
    label_dim: int = eqx.field(static=True)

    def __init__(self, noise_channels: int, emb_channels: int, label_dim: int, *, key: PRNGKey):
        keys = jr.split(key, 3)
        self.fourier = MPFourier(noise_channels, key=keys[0])
        self.map_noise = MPLinear(noise_channels, emb_channels, key=keys[1])
        self.map_label, self.label_dim = None, label_dim
        if label_dim:
            self.map_label = MPLinear(label_dim, emb_channels, key=keys[2])

    def __call__(self, c_noise: Float[Array, ""], labels: Any) -> Float[Array, " emb"]:
        emb = self.map_noise(self.fourier(c_noise))
        if self.map_label is not None:
            label = one_hot(labels, self.label_dim).astype(emb.dtype)
            label = label * math.sqrt(self.label_dim)  # of magnitude 1
            emb = mp_sum(emb, self.map_label(label), 0.5)
        return mp_silu(emb)


class DecoderLevel(NamedTuple):
    """One resolution of the decoder: its entry, then blocks that take the encoder's outputs."""

    entry: list[Block]
    blocks: list[Block]


@final
class EDM2UNet(eqx.Module):
    """F(x, c_noise, cond) for one image, made by `edm2_unet`.

    Computes the image in the dtype of `x` and the embedding in the dtype of `c_noise`.
    """

    embedding: EDM2Embedding
    first: MPConv
    encoder: list[Block]  # from the full resolution down
    decoder: list[DecoderLevel]  # from the lowest resolution up
    last: MPConv
    gain: Float[Array, ""]
    shape: tuple[int, int, int] = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, "channels height width"],
        c_noise: Float[Array, ""],
        cond: ImageCondition | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "channels height width"]:
        """The raw network output for one image; `key` is accepted, as by all networks, not used.

        Raises: ValueError for `x` of another shape or not floating, or labels that do not fit.
        """
        check_floating("x", x)
        if x.shape != self.shape:
            got = f"got {x.shape}; use jax.vmap for a batch"
            raise ValueError(f"x must have shape {self.shape}, {got}")
        cond = check_condition(cond, (self.embedding.label_dim, 0, 0))
        emb = self.embedding(as_float(c_noise), cond.class_labels)
        image = jnp.moveaxis(x, 0, -1)
        h = self.first(jnp.concatenate([image, jnp.ones_like(image[..., :1])], axis=-1))
        skips = [h]
        for block in self.encoder:
            h = block(h, emb)
            skips.append(h)
        for level in self.decoder:
            for block in level.entry:
                h = block(h, emb)
            for block in level.blocks:
                h = block(mp_cat(h, skips.pop()), emb)
        return jnp.moveaxis(self.gain.astype(x.dtype) * self.last(h), -1, 0)


def edm2_unet(
    shape: Sequence[int],
    *,
    label_dim: int = 0,
    model_channels: int = 192,
    channel_mult: Sequence[int] = (1, 2, 3, 4),
    num_blocks: int = 3,
    attention_points: int = 256,
    key: PRNGKey,
) -> EDM2UNet:
    """EDM2's U-Net in configuration G for images of `shape` = (channels, height, width).

    The defaults are those of size S, for 64 x 64 latents or pixels. XXS, XS, S, M, L, XL and XXL
    have 64, 128, 192, 256, 320, 384 and 448 `model_channels`. There is no dropout, with which M and
    the larger ones were trained.

    Arguments:
        shape: of an image; height and width can be halved once a level but the first.
        label_dim: the number of classes; 0 for none.
        model_channels: the number of channels that every `channel_mult` multiplies.
        channel_mult: one factor a level, the full resolution first.
        num_blocks: blocks a level in the encoder; the decoder has one more.
        attention_points: blocks attend at levels of at most this many points, height times width.
            The lowest level does in any case, once.

    Raises: ValueError for a size that does not fit; TypeError for one that is not a whole number.
    """
    shape, channels = _checked_sizes(shape, model_channels, channel_mult)
    num_blocks = whole("num_blocks", num_blocks)
    label_dim = whole("label_dim", label_dim, least=0)
    most = whole("attention_points", attention_points, least=0)
    check_key("key", key)
    keys = (jr.fold_in(key, i) for i in count())
    attends = [shape[1] * shape[2] // 4**i <= most for i in range(len(channels))]
    embedding = EDM2Embedding(channels[0], max(channels), label_dim, key=next(keys))
    first = MPConv(shape[0] + 1, channels[0], key=next(keys))
    encoder = _encoder(channels, num_blocks, attends, keys)
    skips = [channels[0], *(_out_channels(block) for block in encoder)]
    decoder = _decoder(channels, num_blocks, attends, skips=skips, keys=keys)
    return EDM2UNet(
        embedding=embedding,
        first=first,
        encoder=encoder,
        decoder=decoder,
        last=MPConv(channels[0], shape[0], key=next(keys)),
        gain=jnp.zeros(()),
        shape=shape,
    )


def _checked_sizes(
    shape: Any, model_channels: Any, channel_mult: Any
) -> tuple[tuple[int, int, int], list[int]]:
    """The shape and the channels of each level, or a refusal by name."""
    if len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width), got {tuple(shape)}")
    names = ("channels", "height", "width")
    sizes = [whole(f"the {name} of shape", n) for name, n in zip(names, shape, strict=True)]
    whole("the length of channel_mult", len(channel_mult))
    base = whole("model_channels", model_channels)
    channels = [base * whole("channel_mult", factor) for factor in channel_mult]
    multiple = 2 ** (len(channels) - 1)
    if sizes[1] % multiple or sizes[2] % multiple:
        raise ValueError(
            f"height and width must be multiples of {multiple}, to be halved for each further "
            f"entry of channel_mult, got shape {tuple(shape)}: pad the images, or give "
            "channel_mult fewer entries"
        )
    for width in channels:
        if width % max(1, width // CHANNELS_PER_HEAD):
            raise ValueError(
                f"model_channels times channel_mult must fall into {width // CHANNELS_PER_HEAD} "
                f"equal heads of attention, got {width}: take a multiple of {CHANNELS_PER_HEAD}"
            )
    return (sizes[0], sizes[1], sizes[2]), channels


def _out_channels(block: Block) -> int:
    return block.branch.conv1.weight.array.shape[-1]


def _encoder(
    channels: list[int], num_blocks: int, attends: list[bool], keys: Iterator[PRNGKey]
) -> list[Block]:
    make = partial(Block, emb_channels=max(channels), encodes=True)
    blocks, here = [], channels[0]
    for level, width in enumerate(channels):
        if level > 0:
            blocks.append(make(here, here, resample=halve, key=next(keys)))
        for _ in range(num_blocks):
            blocks.append(make(here, width, attends=attends[level], key=next(keys)))
            here = width
    return blocks


def _decoder(
    channels: list[int],
    num_blocks: int,
    attends: list[bool],
    *,
    skips: list[int],
    keys: Iterator[PRNGKey],
) -> list[DecoderLevel]:
    """The levels of the decoder; `skips` are the channels of the encoder's outputs."""
    make = partial(Block, emb_channels=max(channels), encodes=False)
    levels, here, lowest = [], channels[-1], len(channels) - 1
    for i in reversed(range(len(channels))):
        if i == lowest:
            entry = [make(here, here, attends=True, key=next(keys))]
            entry.append(make(here, here, key=next(keys)))
        else:
            entry = [make(here, here, resample=double, key=next(keys))]
        blocks, width = [], channels[i]
        for _ in range(num_blocks + 1):
            joined = here + skips.pop()
            blocks.append(make(joined, width, attends=attends[i], key=next(keys)))
            here = width
        levels.append(DecoderLevel(entry, blocks))
    return levels
