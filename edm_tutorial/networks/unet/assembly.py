"""From the numbers of a configuration to the levels of a U-Net.

The encoder records how many channels each of its outputs has; the decoder takes them back,
the last first, and has one block more a level, for the output that entered the level.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import jax.random as jr

from ..._types import PRNGKey
from .blocks import Block
from .embedding import DhariwalEmbedding, SongEmbedding
from .layers import Conv, Down, Style, Up
from .network import AuxResidual, AuxSkip, DecoderLevel, EncoderLevel, NoAux, Output, UNet


class Plan(NamedTuple):
    """Every number that decides which blocks there are.

    Arguments:
        resolution: height and width of the image.
        first: channels after the first convolution.
        widths: channels at each resolution, the full one first.
        taps: of the resampling filter.
    """

    resolution: int
    in_channels: int
    out_channels: int
    first: int
    widths: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    emb_size: int
    taps: tuple[int | float, ...]
    dropout: float
    style: Style

    def block(self, channels: int, out: int, key: PRNGKey, **options) -> Block:
        size, style = self.emb_size, self.style
        return Block(channels, out, size, style, dropout=self.dropout, key=key, **options)

    def check(self) -> None:
        """Refuse numbers of which no network can be made.

        Raises:
            ValueError: a count below 1, a resolution that cannot be halved often enough,
                attention at a resolution that does not occur, or an odd number of taps.
        """
        counts = {
            "img_resolution": self.resolution,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_blocks": self.num_blocks,
            "the length of channel_mult": len(self.widths),
            "model_channels times channel_mult": min(self.widths, default=0),
        }
        for name, number in counts.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        steps = 2 ** (len(self.widths) - 1)
        if self.resolution % steps:
            raise ValueError(
                f"img_resolution must be a multiple of {steps}, to be halved for each further "
                f"entry of channel_mult, got {self.resolution}: pad the images, or give "
                "channel_mult fewer entries"
            )
        levels = [self.resolution >> i for i in range(len(self.widths))]
        if not set(self.attn_resolutions) <= set(levels):
            raise ValueError(
                f"attn_resolutions must be among {levels}, got {list(self.attn_resolutions)}"
            )
        if len(self.taps) % 2 or sum(self.taps) == 0:
            raise ValueError(f"resample_filter needs an even number of taps, got {self.taps}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def fresh_keys(key: PRNGKey) -> Iterator[PRNGKey]:
    """As many keys as anyone asks for."""
    return (jr.fold_in(key, i) for i in count())


def assemble(
    plan: Plan,
    embedding: SongEmbedding | DhariwalEmbedding,
    encoder_type: str,
    image_everywhere: bool,
    keys: Iterator[PRNGKey],
) -> UNet:
    """The network of a plan; its decoder mirrors its encoder."""
    encoder, skips = _encoder(plan, encoder_type, keys)
    decoder = _decoder(plan, skips, image_everywhere, keys)
    shape = (plan.in_channels, plan.resolution, plan.resolution)
    return UNet(embedding, encoder, decoder, Up(plan.taps), shape)


def _encoder(
    plan: Plan, encoder_type: str, keys: Iterator[PRNGKey]
) -> tuple[list[EncoderLevel], list[int]]:
    levels, skips = [], []
    channels = plan.first
    for i, width in enumerate(plan.widths):
        aux = NoAux()
        if i == 0:
            entry = Conv(plan.in_channels, plan.first, 3, plan.style, next(keys))
        else:
            entry = plan.block(channels, channels, next(keys), resample=Down(plan.taps))
            aux = _aux(plan, encoder_type, channels, first=i == 1, key=next(keys))
        skips.append(channels)
        attends = plan.resolution >> i in plan.attn_resolutions
        blocks = []
        for _ in range(plan.num_blocks):
            blocks.append(plan.block(channels, width, next(keys), attends=attends))
            channels = width
            skips.append(channels)
        levels.append(EncoderLevel(entry, aux, blocks))
    return levels, skips


def _aux(plan: Plan, encoder_type: str, channels: int, *, first: bool, key: PRNGKey) -> Any:
    """How the image joins a level: after the first time, a residual encoder has its own image."""
    down, style = Down(plan.taps), plan.style
    if encoder_type == "residual":
        images = plan.in_channels if first else channels
        return AuxResidual(Conv(images, channels, 3, style, key), down, style.skip_scale)
    if encoder_type == "skip":
        return AuxSkip(Conv(plan.in_channels, channels, 1, style, key), down)
    return NoAux()


def _decoder(
    plan: Plan, skips: list[int], image_everywhere: bool, keys: Iterator[PRNGKey]
) -> list[DecoderLevel]:
    levels, channels = [], plan.widths[-1]
    for i, width in reversed(list(enumerate(plan.widths))):
        if i == len(plan.widths) - 1:
            first = plan.block(channels, channels, next(keys), attends=True)
            entry = [first, plan.block(channels, channels, next(keys))]
        else:
            entry = [plan.block(channels, channels, next(keys), resample=Up(plan.taps))]
        attends = plan.resolution >> i in plan.attn_resolutions
        blocks = []
        for j in range(plan.num_blocks + 1):
            here = attends and (plan.style.attend_all or j == plan.num_blocks)
            joined = channels + skips.pop()
            blocks.append(plan.block(joined, width, next(keys), attends=here))
            channels = width
        last = i == 0 or image_everywhere
        output = Output(channels, plan.out_channels, plan.style, next(keys)) if last else None
        levels.append(DecoderLevel(entry, blocks, output))
    return levels
