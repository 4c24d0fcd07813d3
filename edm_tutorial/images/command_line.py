r"""Command line, `python -m edm_tutorial train`: a class-conditional U-Net on a data set.

    python -m edm_tutorial train --data digits --out runs/digits --steps 2000

It minimises the denoising loss (Eq. 2) at EDM's noise levels (Table 1), averages the weights,
and writes checkpoints and pictures of samples as it goes. Killed at any moment, the same
command goes on from the last checkpoint, to the weights that it would have reached.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from ..denoiser import Denoiser
from ..grids import edm_sigmas
from ..losses import denoising_loss
from ..networks import Cast, ImageCondition, small_unet
from ..noise_levels import LogNormal
from ..preconditioning import EDMPreconditioning
from ..sampling import sample
from ..training import checkpoint
from ..training.loop import train
from ..training.optimizers import clean_gradients, cleaned, ramp_up
from ..training.sharding import data_parallel
from ..training.state import TrainState, init_state
from . import data
from .augmentation import LABELS, Augmentation, AugmentedLoss

CLASSES = 10
SETTINGS = "settings.json"  # of a run, in its folder
SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
COUNTS = {"digits": 1797, "fashion-mnist": 60_000, "cifar10": 50_000}


class Setup(NamedTuple):
    """Denoiser, loss and optimizer of a run."""

    denoiser: Denoiser
    loss: Any
    optimizer: optax.GradientTransformation


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, or 2 where `--out` holds another run."""
    args = parser().parse_args(arguments)
    folder = Path(args.out)
    print(describe(args), flush=True)
    if args.dry_run:
        return 0
    if problem := _other_run(folder, args):
        print(problem, file=sys.stderr)
        return 2
    images = _load(args)
    mean = images.images.mean(axis=0)
    x = jnp.asarray(images.images - mean)
    setup = build(args, x)
    template = init_state(setup.denoiser, setup.optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(_settings(args), indent=1) + "\n")
    state = checkpoint.restore(folder / "checkpoints", template, batch_size=args.batch_size)
    print(f"starts    {'afresh' if state is None else f'from step {state.step}'}", flush=True)
    cond = ImageCondition(jax.nn.one_hot(jnp.asarray(images.labels), CLASSES))
    state = _run(args, setup, (x, cond), state or template, folder, mean)
    repaired = cleaned(state)
    if int(repaired.steps):
        print(f"warning   {repaired.entries} gradients were not finite, in {repaired.steps} steps")
    print(f"finished  {state.step} steps; samples and checkpoints are in {folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Parser of the command line's arguments."""
    top = argparse.ArgumentParser(prog="python -m edm_tutorial", description=(__doc__ or ""))
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    command = top.add_subparsers(required=True, metavar="command").add_parser(
        "train",
        help="train a class-conditional U-Net on a data set",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add("--data", choices=SHAPES, default="digits", help="what to train on")
    add("--out", required=True, help="folder for checkpoints and samples; resumed if there")
    add("--steps", type=_count, default=2000, help="in all; a resumed run stops there too")
    add("--batch-size", type=_count, default=128, help="examples a step, over all devices")
    add("--width", type=_count, default=32, help="channels at full resolution, times 4")
    add("--learning-rate", type=_positive, default=1e-3, help="of Adam, after the ramp-up")
    add("--ramp-up", type=float, default=10_000, help="examples until the rate is reached")
    add("--dropout", type=_share, default=0.0, help="probability")
    add("--label-dropout", type=_share, default=0.0, help="share shown without class: guidance")
    add("--augment", type=_share, default=0.0, help="probability of each augmentation")
    add("--bfloat16", action="store_true", help="compute the network in bfloat16")
    add("--seed", type=int, default=0, help="of weights, batches and noise")
    add("--every", type=_count, default=100, help="steps from one checkpoint to the next")
    add("--sample-every", type=_count, default=500, help="steps from one picture to the next")
    add("--cache", default=None, help="folder of downloads; default: the user's cache")
    add("--dry-run", action="store_true", help="print what would be done, and stop")
    return top


def describe(args: argparse.Namespace) -> str:
    """Description of a run in a few lines; nothing is downloaded or computed for it."""
    channels, height, width = SHAPES[args.data]
    network = eqx.filter_eval_shape(_network, args, jr.key(0))
    arrays = eqx.filter(network, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    weights = sum(leaf.size for leaf in jax.tree.leaves(arrays))
    devices, count = jax.devices(), COUNTS[args.data]
    dtype = "bfloat16, weights in float32" if args.bfloat16 else "float32"
    passes = args.steps * args.batch_size / count
    return f"""\
data      {args.data}: {count:,} images of {channels} x {height} x {width}, {CLASSES} classes
network   U-Net of width {args.width}: {weights:,} parameters, {dtype}
training  {args.steps:,} steps of {args.batch_size} images, {passes:.1f} passes over the data
device    {len(devices)} x {devices[0].device_kind}
output    {args.out}: a checkpoint every {args.every} steps, samples every {args.sample_every}"""


def build(args: argparse.Namespace, x: Any) -> Setup:
    """Untrained denoiser of centred images `x`, its loss and its optimizer."""
    network: Any = _network(args, jr.key(args.seed))
    network = Cast(network, jnp.bfloat16) if args.bfloat16 else network
    loss: Any = partial(denoising_loss, sigma_dist=LogNormal())
    if args.label_dropout > 0:
        loss = partial(_without_some_labels, loss, args.label_dropout)
    if args.augment > 0:
        loss = AugmentedLoss(loss, Augmentation(args.augment, min(args.augment, 0.5)))
    rate = ramp_up(args.learning_rate, args.ramp_up, batch_size=args.batch_size)
    optimizer = optax.chain(clean_gradients(), optax.adam(rate))
    return Setup(Denoiser(network, EDMPreconditioning.from_data(x)), loss, optimizer)


def picture(images: Float[np.ndarray, "rows columns channels height width"]) -> Image.Image:
    """Picture, grey or RGB, of images in [-1, 1], each enlarged to at least 32 pixels."""
    zoom = max(1, 32 // images.shape[-1])
    grey = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    grey = grey.repeat(zoom, axis=3).repeat(zoom, axis=4)
    rows, columns, channels, height, width = grey.shape
    pixels = grey.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _run(
    args: Any, setup: Setup, examples: Any, state: TrainState, folder: Path, mean: np.ndarray
) -> TrainState:
    runs = train(
        setup.denoiser,
        setup.loss,
        examples,
        setup.optimizer,
        steps=args.steps,
        batch_size=args.batch_size,
        key=jr.key(args.seed + 1),
        every=args.every,
        state=state,
        sharding=data_parallel() if jax.device_count() > 1 else None,
    )
    with tqdm(total=args.steps, initial=int(state.step), unit="step") as bar:
        for state, losses in runs:
            bar.update(len(losses))
            bar.set_postfix(loss=f"{float(losses.mean()):.3f}")
            checkpoint.save(folder / "checkpoints", state)
            step = int(state.step)
            if step == args.steps or step % args.sample_every < len(losses):
                picture(draw(state.ema, mean)).save(folder / f"samples-{step:07d}.png")
    return state


@eqx.filter_jit
def _sample_all(denoiser: Any, noise: Any, labels: Any) -> Any:
    one = lambda z, c: sample(denoiser, z, edm_sigmas(18), ImageCondition(c))
    return jax.vmap(one)(noise, labels)


def draw(denoiser: Any, mean: np.ndarray, rows: int = 4) -> Float[np.ndarray, "rows 10 c h w"]:
    """Samples, `rows` of each class in a column of its own, always from the same noise."""
    noise = jr.normal(jr.key(0), (rows * CLASSES, *mean.shape))
    labels = jnp.tile(jnp.eye(CLASSES), (rows, 1))
    images = np.asarray(_sample_all(denoiser, noise, labels)) + mean
    return images.reshape(rows, CLASSES, *mean.shape)


def _network(args: argparse.Namespace, key: Any) -> Any:
    return small_unet(
        SHAPES[args.data],
        label_dim=CLASSES,
        augment_dim=LABELS if args.augment > 0 else 0,
        width=args.width,
        dropout=args.dropout,
        key=key,
    )


def _without_some_labels(
    loss: Any, share: float, denoiser: Any, x: Any, cond: Any, *, key: Any
) -> Any:
    """`loss` with label dropout: a `share` of the examples has zeros in place of its class."""
    drop_key, loss_key = jr.split(key)
    told = jr.bernoulli(drop_key, 1 - share).astype(cond.class_labels.dtype)
    cond = cond._replace(class_labels=told * cond.class_labels)
    return loss(denoiser, x, cond, key=loss_key)


def _load(args: argparse.Namespace) -> data.Images:
    if args.data == "digits":
        return data.digits()
    return {"fashion-mnist": data.fashion_mnist, "cifar10": data.cifar10}[args.data](args.cache)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a run that goes on must have been started with."""
    free = {"out", "steps", "every", "sample_every", "cache", "dry_run"}
    return {name: value for name, value in vars(args).items() if name not in free}


def _other_run(folder: Path, args: argparse.Namespace) -> str | None:
    """Reason why a run in this folder cannot go on."""
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file: choose another --out"
    if not (folder / SETTINGS).exists():
        return None
    settings, before = _settings(args), {"label_dropout": 0.0}  # of a run older than the flag
    stored = before | json.loads((folder / SETTINGS).read_text())
    names = sorted(name for name in settings if stored.get(name) != settings[name])
    told = ", ".join(f"{name} was {stored.get(name)}" for name in names)
    return f"{folder} holds another run ({told}): choose another --out" if names else None


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value
