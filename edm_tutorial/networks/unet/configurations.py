r"""The U-Nets of the paper, and small ones, by their configuration.

The keywords are those of the reference implementation, so that a configuration published
for it builds the same network here. An unknown keyword is a TypeError.

- DDPM++: `song_unet`, as it is.
- NCSN++: `song_unet` with `embedding_type="fourier"`, `encoder_type="residual"`,
  `resample_filter=(1, 3, 3, 1)` and `channel_mult_noise=2`.
- ADM: `dhariwal_unet`.

At 32 x 32 the paper uses `channel_mult=(2, 2, 2)` for the first two (Table 7).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import jax
import jax.random as jr
import numpy as np

from ..._checks import check_key, whole
from ..._types import PRNGKey
from .blocks import DHARIWAL, SONG
from .embedding import DhariwalEmbedding, Fourier, Positional, SongEmbedding
from .network import UNet, UNetSizes, make_unet


def song_unet(
    img_resolution: int,
    in_channels: int,
    out_channels: int,
    *,
    label_dim: int = 0,
    augment_dim: int = 0,
    model_channels: int = 128,
    channel_mult: Sequence[int] = (1, 2, 2, 2),
    channel_mult_emb: int = 4,
    num_blocks: int = 4,
    attn_resolutions: Sequence[int] = (16,),
    dropout: float = 0.0,
    embedding_type: str = "positional",
    channel_mult_noise: int = 1,
    encoder_type: str = "standard",
    decoder_type: str = "standard",
    resample_filter: Sequence[int | float] = (1, 1),
    key: PRNGKey,
) -> UNet:
    """DDPM++ (the defaults) and NCSN++, the networks of Song et al. (2021).

    Arguments:
        img_resolution: height and width of the images.
        in_channels, out_channels: of the image, and of what the network returns.
        label_dim, augment_dim: lengths of the class and augmentation labels; 0 for none.
        model_channels: the number of channels that every `channel_mult` multiplies.
        channel_mult: one factor a resolution, the full one first.
        channel_mult_emb, channel_mult_noise: factors for the embeddings of all labels and
            of the noise level.
        num_blocks: residual blocks a resolution in the encoder; the decoder has one more.
        attn_resolutions: where blocks attend. The lowest resolution always does, once.
        dropout: the probability; the paper trains with 0.13 on CIFAR-10.
        embedding_type: of the noise level, "positional" or "fourier".
        encoder_type: how the image enters the lower resolutions: "standard", not at all;
            "residual", by strided convolutions; "skip", downsampled.
        decoder_type: "standard", or "skip": every resolution adds to the image.
        resample_filter: the weights of the filter along an axis, an even number of them.

    Raises: ValueError for a size that does not fit or an unknown type; TypeError for a size that is
    not a whole number.
    """
    _check_name("embedding_type", embedding_type, ("positional", "fourier"))
    _check_name("encoder_type", encoder_type, ("standard", "residual", "skip"))
    _check_name("decoder_type", decoder_type, ("standard", "skip"))
    sizes = UNetSizes(
        img_resolution=img_resolution,
        in_channels=in_channels,
        out_channels=out_channels,
        first_channels=model_channels,
        channels=tuple(model_channels * mult for mult in channel_mult),
        emb_channels=model_channels * channel_mult_emb,
        num_blocks=num_blocks,
        attn_resolutions=tuple(attn_resolutions),
        resample_filter=tuple(resample_filter),
        dropout=dropout,
    )
    sizes = _checked(sizes, label_dim, augment_dim)
    keys = _fresh_keys(key)
    noise_channels = int(model_channels * channel_mult_noise)
    if embedding_type == "fourier":
        map_noise = Fourier(noise_channels, next(keys))
    else:
        map_noise = Positional(noise_channels, endpoint=True)
    lengths = {"noise_channels": noise_channels, "emb_channels": sizes.emb_channels}
    labels = {"label_dim": label_dim, "augment_dim": augment_dim}
    embedding = SongEmbedding(map_noise, **lengths, **labels, key=next(keys))
    types = {"encoder_type": encoder_type, "decoder_type": decoder_type}
    return make_unet(sizes, SONG, embedding, **types, keys=keys)


def dhariwal_unet(
    img_resolution: int,
    in_channels: int,
    out_channels: int,
    *,
    label_dim: int = 0,
    augment_dim: int = 0,
    model_channels: int = 192,
    channel_mult: Sequence[int] = (1, 2, 3, 4),
    channel_mult_emb: int = 4,
    num_blocks: int = 3,
    attn_resolutions: Sequence[int] = (32, 16, 8),
    dropout: float = 0.0,
    channels_per_head: int = 64,
    key: PRNGKey,
) -> UNet:
    """ADM, the network of Dhariwal and Nichol (2021); the defaults are ImageNet-64's.

    As in the reference, a level with fewer than `channels_per_head` channels does not attend at
    all, not even the lowest. The other arguments are those of `song_unet`.

    Raises: ValueError for a size that does not fit; TypeError for one that is not a whole number.
    """
    channels = tuple(model_channels * mult for mult in channel_mult)
    sizes = UNetSizes(
        img_resolution=img_resolution,
        in_channels=in_channels,
        out_channels=out_channels,
        first_channels=channels[0] if channels else 0,
        channels=channels,
        emb_channels=model_channels * channel_mult_emb,
        num_blocks=num_blocks,
        attn_resolutions=tuple(attn_resolutions),
        resample_filter=(1, 1),
        dropout=dropout,
    )
    sizes = _checked(sizes, label_dim, augment_dim)
    whole("channels_per_head", channels_per_head)
    keys = _fresh_keys(key)
    lengths = {"noise_channels": int(model_channels), "emb_channels": sizes.emb_channels}
    labels = {"label_dim": label_dim, "augment_dim": augment_dim}
    embedding = DhariwalEmbedding(**lengths, **labels, key=next(keys))
    style = DHARIWAL._replace(channels_per_head=int(channels_per_head))
    types = {"encoder_type": "standard", "decoder_type": "standard"}
    return make_unet(sizes, style, embedding, **types, keys=keys)


def small_unet(
    shape: Sequence[int],
    *,
    label_dim: int = 0,
    augment_dim: int = 0,
    width: int = 32,
    num_blocks: int = 1,
    dropout: float = 0.0,
    key: PRNGKey,
) -> UNet:
    """A small DDPM++ for square images of any size, `shape` = (channels, n, n).

    The network halves the resolution down to 4, at most 3 times, or as often as it takes to
    come to 16 or less; an odd resolution up to 8 is not halved. An image that cannot be halved
    so often is padded inside (see `UNet`): 8 becomes 4; 28 and 27, padded to 28, become 7; 100,
    padded to 104, becomes 13. Only the lowest resolution attends, so over at most 256 points.

    `width` is the number of channels at the full resolution, a multiple of 4; there are twice as
    many below. The other arguments are those of `song_unet`.

    Raises: ValueError for an image that is not square, or a width that is not a multiple of 4;
    TypeError for a size that is not a whole number.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"shape must be (channels, n, n), a square, got {tuple(shape)}")
    channels, side, _ = shape
    whole("height and width", side)
    lowest, halvings = side, 0
    while lowest > 16 or (halvings < 3 and (lowest > 8 or lowest > 4 and lowest % 2 == 0)):
        lowest, halvings = -(-lowest // 2), halvings + 1
    network = song_unet(
        lowest * 2**halvings,
        channels,
        channels,
        label_dim=label_dim,
        augment_dim=augment_dim,
        model_channels=width,
        channel_mult=(1,) + halvings * (2,),
        num_blocks=num_blocks,
        attn_resolutions=(),
        dropout=dropout,
        key=key,
    )
    return dataclasses.replace(network, shape=(int(channels), int(side), int(side)))


def _fresh_keys(key: PRNGKey) -> Iterator[PRNGKey]:
    check_key("key", key)
    return (jr.fold_in(key, i) for i in count())


def _check_name(argument: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}")


def _checked(sizes: UNetSizes, label_dim: Any, augment_dim: Any) -> UNetSizes:
    """The sizes as Python's numbers; what makes no network is refused by its public name."""
    whole("the length of channel_mult", len(sizes.channels))
    whole("model_channels times channel_mult", min(sizes.channels))
    whole("model_channels times channel_mult_emb", sizes.emb_channels)
    if np.ndim(sizes.img_resolution) > 0:
        got = sizes.img_resolution
        raise TypeError(f"img_resolution must be one whole number: images are square, got {got}")
    for name in ("img_resolution", "in_channels", "out_channels", "num_blocks"):
        whole(name, getattr(sizes, name))
    whole("label_dim", label_dim, least=0)
    whole("augment_dim", augment_dim, least=0)
    multiple = 2 ** (len(sizes.channels) - 1)
    if sizes.img_resolution % multiple:
        raise ValueError(
            f"img_resolution must be a multiple of {multiple}, to be halved for each further "
            f"entry of channel_mult, got {sizes.img_resolution}: pad the images, or give "
            "channel_mult fewer entries"
        )
    if not set(sizes.attn_resolutions) <= set(sizes.resolutions):
        got = list(sizes.attn_resolutions)
        raise ValueError(f"attn_resolutions must be among {sizes.resolutions}, got {got}")
    if len(sizes.resample_filter) % 2 or sum(sizes.resample_filter) == 0:
        raise ValueError(
            "resample_filter needs an even number of taps with a sum other than 0, "
            f"got {sizes.resample_filter}"
        )
    if not 0 <= sizes.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {sizes.dropout}")
    return jax.tree.map(lambda n: n.item() if isinstance(n, np.generic) else n, sizes)
