r"""The U-Nets of the paper, and small ones, by their configuration.

The keywords are those of the reference implementation, so that a configuration published
for it builds the same network here. An unknown keyword is a TypeError.

- DDPM++: `song_unet`, as it is.
- NCSN++: `song_unet` with `embedding_type="fourier"`, `encoder_type="residual"`,
  `resample_filter=(1, 3, 3, 1)` and `channel_mult_noise=2`.
- ADM: `dhariwal_unet`.

At 32 x 32 the paper uses `channel_mult=(2, 2, 2)` for the first two (Table 7).
"""

import math
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

ATTENDED = 1024  # the most points of a lowest level over which a small network attends


def song_unet(
    img_resolution: int,
    in_channels: int,
    out_channels: int,
    *,
    label_dim: int = 0,
    augment_dim: int = 0,
    vector_dim: int = 0,
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
        label_dim, augment_dim, vector_dim: lengths of what `ImageCondition` holds; 0 for none.
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
    not a whole number, or a number for a tuple.
    """
    _check_name("embedding_type", embedding_type, ("positional", "fourier"))
    _check_name("encoder_type", encoder_type, ("standard", "residual", "skip"))
    _check_name("decoder_type", decoder_type, ("standard", "skip"))
    labels = _lengths(label_dim, augment_dim, vector_dim)
    sizes = _square(
        img_resolution,
        in_channels,
        _tuple("attn_resolutions", attn_resolutions),
        out_channels=out_channels,
        first_channels=model_channels,
        channels=tuple(model_channels * mult for mult in _tuple("channel_mult", channel_mult)),
        emb_channels=model_channels * channel_mult_emb,
        num_blocks=num_blocks,
        resample_filter=_tuple("resample_filter", resample_filter),
        dropout=dropout,
    )
    keys = _fresh_keys(key)
    noise_channels = int(model_channels * channel_mult_noise)
    if embedding_type == "fourier":
        map_noise = Fourier(noise_channels, next(keys))
    else:
        map_noise = Positional(noise_channels, endpoint=True)
    lengths = {"noise_channels": noise_channels, "emb_channels": sizes.emb_channels}
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
    vector_dim: int = 0,
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

    Raises: ValueError for a size that does not fit, or channels that do not fall into equal heads;
    TypeError for a size that is not a whole number, or a number for a tuple.
    """
    channels = tuple(model_channels * mult for mult in _tuple("channel_mult", channel_mult))
    labels = _lengths(label_dim, augment_dim, vector_dim)
    sizes = _square(
        img_resolution,
        in_channels,
        _tuple("attn_resolutions", attn_resolutions),
        out_channels=out_channels,
        first_channels=channels[0] if channels else 0,
        channels=channels,
        emb_channels=model_channels * channel_mult_emb,
        num_blocks=num_blocks,
        resample_filter=(1, 1),
        dropout=dropout,
    )
    _check_heads(sizes, whole("channels_per_head", channels_per_head))
    keys = _fresh_keys(key)
    lengths = {"noise_channels": int(model_channels), "emb_channels": sizes.emb_channels}
    embedding = DhariwalEmbedding(**lengths, **labels, key=next(keys))
    style = DHARIWAL._replace(channels_per_head=int(channels_per_head))
    types = {"encoder_type": "standard", "decoder_type": "standard"}
    return make_unet(sizes, style, embedding, **types, keys=keys)


def small_unet(
    shape: Sequence[int],
    *,
    label_dim: int = 0,
    augment_dim: int = 0,
    vector_dim: int = 0,
    width: int = 32,
    num_blocks: int = 1,
    dropout: float = 0.0,
    key: PRNGKey,
) -> UNet:
    """A small DDPM++ for data of any size: series, images that need not be square, volumes.

    `shape` is (channels, length), (channels, height, width) or (channels, depth, height, width).
    All axes are halved together, until the longest is 8 or less (and one is odd) or the shortest
    4 or less, at most 3 times; more often only to bring the longest down to 16. A size that cannot
    be halved so often is padded inside (see `UNet`): 28 and 27, padded to 28, become 7; 24 x 40
    becomes 3 x 5; a series of 100, padded to 104, becomes 13; 16 x 16 x 16 becomes 4 x 4 x 4.
    Only the lowest resolution attends, and only if it has at most 1,024 points. (A long strip has
    more, since it is not halved beyond its short axis: give that as channels of a series.)

    `width` is the number of channels at the full resolution, a multiple of 4; there are twice as
    many below. The other arguments are those of `song_unet`.

    Raises: ValueError for another number of axes, or a width that is not a multiple of 4;
    TypeError for a size that is not a whole number, or a number for a tuple.
    """
    forms = "(channels, length), (channels, height, width) or (channels, depth, height, width)"
    given = _tuple("shape", shape, write=forms)
    if not 2 <= len(given) <= 4:
        raise ValueError(f"shape must be {forms}, got {given}")
    channels, *size = shape = tuple(whole("every number in shape", n) for n in given)
    width, lowest, halvings = whole("width", width), size, 0
    while _is_halved(lowest, halvings):
        lowest, halvings = [-(-length // 2) for length in lowest], halvings + 1
    sizes = _checked(
        shape=shape,
        out_channels=channels,
        first_channels=width,
        channels=(width,) + halvings * (2 * width,),
        emb_channels=4 * width,
        num_blocks=num_blocks,
        attends=(False,) * (1 + halvings),
        attends_first=math.prod(lowest) <= ATTENDED,
        resample_filter=(1, 1),
        dropout=dropout,
    )
    keys = _fresh_keys(key)
    labels = _lengths(label_dim, augment_dim, vector_dim)
    lengths = {"noise_channels": width, "emb_channels": sizes.emb_channels}
    map_noise = Positional(width, endpoint=True)
    embedding = SongEmbedding(map_noise, **lengths, **labels, key=next(keys))
    types = {"encoder_type": "standard", "decoder_type": "standard"}
    return make_unet(sizes, SONG._replace(axes=len(size)), embedding, **types, keys=keys)


def _is_halved(size: list[int], halvings: int) -> bool:
    """Whether a small network has another level below this size."""
    longest, even = max(size), all(length % 2 == 0 for length in size)
    return min(size) > 4 and (longest > 16 or (halvings < 3 and (longest > 8 or even)))


def _fresh_keys(key: PRNGKey) -> Iterator[PRNGKey]:
    check_key("key", key)
    return (jr.fold_in(key, i) for i in count())


def _check_name(argument: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}")


def _tuple(name: str, numbers: Any, *, write: str = "") -> tuple[Any, ...]:
    """Numbers as a tuple; a number alone is refused."""
    try:
        return tuple(numbers)
    except TypeError:
        write = write or f"({numbers!r},)"
        needed = f"{name} must be a tuple of numbers"
        raise TypeError(f"{needed}, got {numbers!r}: write {write}") from None


def _check_heads(sizes: UNetSizes, channels_per_head: int) -> None:
    """Refuse attention whose heads would not share its channels equally."""
    attending = [n for n, attends in zip(sizes.channels, sizes.attends, strict=True) if attends]
    for channels in (*attending, sizes.channels[-1]):
        heads = channels // channels_per_head
        if heads and channels % heads:
            raise ValueError(
                f"channels_per_head={channels_per_head} makes {heads} heads of {channels} "
                f"channels, which are not equal: give a divisor of {channels}, or more than that"
            )


def _lengths(label_dim: Any, augment_dim: Any, vector_dim: Any) -> dict[str, int]:
    """The lengths of labels by their names, as Python's numbers."""
    given = {"label_dim": label_dim, "augment_dim": augment_dim, "vector_dim": vector_dim}
    return {name: whole(name, length, least=0) for name, length in given.items()}


def _square(
    resolution: Any, in_channels: Any, attn_resolutions: tuple[int, ...], **sizes: Any
) -> UNetSizes:
    """The sizes of a network for square images, by the public names of what is refused."""
    if np.ndim(resolution) > 0:
        raise TypeError(
            f"img_resolution must be one whole number: images are square, got {resolution}"
        )
    resolution = whole("img_resolution", resolution)
    shape = whole("in_channels", in_channels), resolution, resolution
    resolutions = [resolution >> i for i in range(len(sizes["channels"]))]
    attends = tuple(level in attn_resolutions for level in resolutions)
    square = _checked(shape=shape, attends=attends, attends_first=True, **sizes)
    if resolution % (multiple := 2 ** (len(resolutions) - 1)):
        raise ValueError(
            f"img_resolution must be a multiple of {multiple}, to be halved for each further "
            f"entry of channel_mult, got {resolution}: pad the images, or give "
            "channel_mult fewer entries"
        )
    if not set(attn_resolutions) <= set(resolutions):
        got = list(attn_resolutions)
        raise ValueError(f"attn_resolutions must be among {resolutions}, got {got}")
    return square


def _checked(**sizes: Any) -> UNetSizes:
    """The sizes as Python's numbers; what makes no network is refused by its public name."""
    whole("the length of channel_mult", len(sizes["channels"]))
    for channels in sizes["channels"]:
        whole("model_channels times channel_mult", channels)
    whole("model_channels times channel_mult_emb", sizes["emb_channels"])
    for name in ("out_channels", "num_blocks"):
        whole(name, sizes[name])
    taps = sizes["resample_filter"]
    if len(taps) % 2 or sum(taps) == 0:
        raise ValueError(
            f"resample_filter needs an even number of taps with a sum other than 0, got {taps}"
        )
    if not 0 <= sizes["dropout"] < 1:
        raise ValueError(f"dropout must be in [0, 1), got {sizes['dropout']}")
    numbers = jax.tree.map(lambda n: n.item() if isinstance(n, np.generic) else n, sizes)
    return UNetSizes(**numbers)
