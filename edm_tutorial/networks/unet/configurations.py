r"""The U-Nets of the paper, and small ones, as lists of levels.

The keywords are those of the reference implementation, so that a configuration published
for it builds the same network here. A keyword nobody knows is a TypeError.

- DDPM++: `song_unet`, as it is.
- NCSN++: `song_unet` with `embedding_type="fourier"`, `encoder_type="residual"`,
  `resample_filter=(1, 3, 3, 1)` and `channel_mult_noise=2`.
- ADM: `dhariwal_unet`.

At 32 x 32 the paper uses `channel_mult=(2, 2, 2)` for the first two (Table 7).
"""

from collections.abc import Sequence

from ..._types import PRNGKey
from .assembly import Plan, assemble, fresh_keys
from .embedding import DhariwalEmbedding, Fourier, Positional, SongEmbedding
from .layers import DHARIWAL, SONG
from .network import UNet


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
        img_resolution: height and width.
        label_dim, augment_dim: lengths of the class and augmentation labels; 0 for none.
        model_channels: the channels that `channel_mult` multiplies, once a resolution.
        channel_mult_emb, channel_mult_noise: sizes of the embeddings, likewise.
        num_blocks: a resolution, on the way down; one more on the way up.
        attn_resolutions: where blocks attend. The lowest resolution always does.
        dropout: the probability; the paper trains with 0.13 on CIFAR-10.
        embedding_type: "positional" or "fourier".
        encoder_type: "standard", "residual" or "skip": how the image enters again below.
        decoder_type: "standard", or "skip": every resolution adds to the image.
        resample_filter: taps; an even number of them.

    Raises:
        ValueError: a size that does not fit, or another name of a type.
    """
    _check("embedding_type", embedding_type, ("positional", "fourier"))
    _check("encoder_type", encoder_type, ("standard", "residual", "skip"))
    _check("decoder_type", decoder_type, ("standard", "skip"))
    keys = fresh_keys(key)
    noise_size = model_channels * channel_mult_noise
    plan = Plan(
        img_resolution,
        in_channels,
        out_channels,
        model_channels,
        tuple(model_channels * mult for mult in channel_mult),
        num_blocks,
        tuple(attn_resolutions),
        model_channels * channel_mult_emb,
        tuple(resample_filter),
        dropout,
        SONG,
    )
    plan.check()
    fourier = embedding_type == "fourier"
    noise = Fourier(noise_size, next(keys)) if fourier else Positional(noise_size, endpoint=True)
    embedding = SongEmbedding(
        noise, noise_size, plan.emb_size, label_dim, augment_dim, key=next(keys)
    )
    return assemble(plan, embedding, encoder_type, decoder_type == "skip", keys)


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

    Arguments as in `song_unet`, and

        channels_per_head: of attention. A level with fewer channels does not attend at
            all, not even the lowest: so does the reference.
    """
    keys = fresh_keys(key)
    plan = Plan(
        img_resolution,
        in_channels,
        out_channels,
        model_channels * channel_mult[0] if channel_mult else 0,
        tuple(model_channels * mult for mult in channel_mult),
        num_blocks,
        tuple(attn_resolutions),
        model_channels * channel_mult_emb,
        (1, 1),
        dropout,
        DHARIWAL._replace(channels_per_head=channels_per_head),
    )
    plan.check()
    embedding = DhariwalEmbedding(
        model_channels, plan.emb_size, label_dim, augment_dim, key=next(keys)
    )
    return assemble(plan, embedding, "standard", False, keys)


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
    """A DDPM++ for images of `shape` (channels, n, n), n from 4 to 64 or so.

    Halves the resolution while it is even and above 4, at most 3 times, with `width`
    channels at the full resolution and twice as many below: 8 to 4, 28 to 7, 32 to 4.

    Raises:
        ValueError: an image that is not square, or a width that is not a multiple of 4.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"shape must be (channels, n, n), got {tuple(shape)}")
    channels, resolution, _ = shape
    halvings = 0
    while halvings < 3 and resolution >> halvings > 4 and (resolution >> halvings) % 2 == 0:
        halvings += 1
    return song_unet(
        resolution,
        channels,
        channels,
        label_dim=label_dim,
        augment_dim=augment_dim,
        model_channels=width,
        channel_mult=(1, 2, 2, 2)[: halvings + 1],
        num_blocks=num_blocks,
        attn_resolutions=(),
        dropout=dropout,
        key=key,
    )


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
