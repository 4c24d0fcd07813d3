"""Parts of a run of the command line: a network, its loss and its optimizer."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array

from .._types import PRNGKey
from ..denoiser import Denoiser
from ..losses import denoising_loss
from ..networks import Cast, ImageCondition, UNet, small_unet
from ..noise_levels import LogNormal
from ..preconditioning import EDMPreconditioning
from ..training.optimizers import clean_gradients, ramp_up
from .augmentation import LABELS, Augmentation, AugmentedLoss

NO_CLASS = ImageCondition(-1)


class About(NamedTuple):
    """The facts about its data that a run needs."""

    shape: tuple[int, ...]  # of an image
    classes: int
    total: int  # images in it


class Setup(NamedTuple):
    """Denoiser, loss and optimizer of a run."""

    denoiser: Denoiser
    loss: Callable[..., Array]
    optimizer: optax.GradientTransformation


def describe(args: Namespace, about: About) -> str:
    """Description of a run and its cost in a few lines; nothing is downloaded for it."""
    size = " x ".join(map(str, about.shape))
    network = eqx.filter_eval_shape(_network, args, about, jr.key(0))
    arrays = eqx.filter(network, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    weights = sum(leaf.size for leaf in jax.tree.leaves(arrays))
    devices = jax.devices()
    dtype = "bfloat16, weights in float32" if args.bfloat16 else "float32"
    passes = args.steps * args.batch_size / about.total
    return f"""\
data      {args.data}: {about.total:,} images of {size}, {about.classes} classes
network   U-Net of width {args.width}: {weights:,} parameters, {dtype}
training  {args.steps:,} steps of {args.batch_size} images, {passes:.1f} passes over the data
device    {len(devices)} x {devices[0].device_kind}
output    {args.out}: a checkpoint every {args.every} steps, samples every {args.sample_every}"""


def build(args: Namespace, about: About, sigma_data: float) -> Setup:
    """Untrained denoiser of centred images, its loss and its optimizer."""
    network: UNet | Cast = _network(args, about, jr.key(args.seed))
    network = Cast(network, jnp.bfloat16) if args.bfloat16 else network
    loss: Callable[..., Array] = partial(denoising_loss, sigma_dist=LogNormal())
    if args.label_dropout > 0:
        loss = partial(loss, null=NO_CLASS, p_null=args.label_dropout)
    if args.augment > 0:
        loss = AugmentedLoss(loss, Augmentation(args.augment, min(args.augment, 0.5)))
    rate = ramp_up(args.learning_rate, args.ramp_up, batch_size=args.batch_size)
    optimizer = optax.chain(clean_gradients(), optax.adam(rate))
    return Setup(Denoiser(network, EDMPreconditioning(sigma_data)), loss, optimizer)


def _network(args: Namespace, about: About, key: PRNGKey) -> UNet:
    return small_unet(
        about.shape,
        label_dim=about.classes,
        augment_dim=LABELS if args.augment > 0 else 0,
        width=args.width,
        dropout=args.dropout,
        key=key,
    )
