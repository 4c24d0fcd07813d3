r"""Command line, `python -m edm_tutorial`: a class-conditional U-Net, trained and sampled.

    python -m edm_tutorial train --data digits --out runs/digits --steps 2000
    python -m edm_tutorial sample --run runs/digits --class 3 --out threes.png

`--data` may be your own: a folder of pictures, whose subfolders are their classes, or an `.npz`
file. Training minimises the denoising loss (Eq. 2) at EDM's noise levels (Table 1), averages the
weights, and writes checkpoints and pictures of samples as it goes. Killed at any moment, the same
command goes on from the last checkpoint, to the weights that it would have reached.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tqdm import tqdm

from ..denoiser import Guided, Pinned
from ..networks import ImageCondition
from ..preconditioning import EDMPreconditioning
from ..training import checkpoint
from ..training.loop import train
from ..training.memory import step_memory
from ..training.optimizers import cleaned
from ..training.sharding import data_parallel
from ..training.state import TrainState, init_state
from . import arguments, data
from .arguments import COUNTS, SHAPES, SOLVERS
from .drawing import draw, picture, write
from .recipe import NO_CLASS, About, Setup, build, describe

SETTINGS, DATA = "settings.json", "data.npz"  # of a run, in its folder
parser = partial(arguments.parser, __doc__ or "")


class Prepared(NamedTuple):
    """A run about to start, or to go on."""

    setup: Setup
    examples: tuple[Any, ImageCondition]
    state: TrainState
    mean: np.ndarray


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, or 2 where it cannot start, for a reason in one line."""
    args = parser().parse_args(arguments)
    try:
        if args.command == "sample":
            _sample(args)
            return 0
        prepared = _prepare(args)
    except (OSError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    if prepared is not None:
        state = _run(args, prepared)
        repaired = cleaned(state)
        if int(repaired.steps):
            told = f"{repaired.entries} gradients were not finite, in {repaired.steps} steps"
            print(f"warning   {told}")
        print(f"finished  {state.step} steps; samples and checkpoints are in {args.out}")
    return 0


def _prepare(args: Namespace) -> Prepared | None:
    """A run ready for its first step, with its folder written; None for a dry run."""
    folder = Path(args.out)
    images = None if args.data in SHAPES else _load(args)
    print(describe(args, _about(args, images)), flush=True)
    if args.dry_run:
        return None
    _check_folder(folder, args)
    images = _load(args) if images is None else images
    about, mean = _about(args, images), images.images.mean(axis=0)
    x, labels = jnp.asarray(images.images - mean), jnp.asarray(images.labels)
    sigma_data = float(EDMPreconditioning.from_data(x).sigma_data)  # type: ignore  # one number
    setup = build(args, about, sigma_data)
    template = init_state(setup.denoiser, setup.optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(_settings(args), indent=1) + "\n")
    np.savez(folder / DATA, mean=mean, sigma_data=sigma_data, classes=about.classes)
    state = checkpoint.restore(folder / "checkpoints", template, batch_size=args.batch_size)
    print(f"starts    {'afresh' if state is None else f'from step {state.step}'}", flush=True)
    examples = x, ImageCondition(labels)
    if jax.device_count() == 1 and args.steps >= args.every:
        print(
            f"memory    {_memory(args, setup, examples)} while it trains, by XLA's plan", flush=True
        )
    return Prepared(setup, examples, state or template, mean)


def _memory(args: Namespace, setup: Setup, examples: Any) -> str:
    sizes = {name: getattr(args, name) for name in ("batch_size", "every", "accumulate")}
    needed = step_memory(setup.denoiser, setup.loss, examples, setup.optimizer, **sizes)
    return f"{needed / 2**20:,.0f} MiB"


def _run(args: Namespace, prepared: Prepared) -> TrainState:
    setup, examples, state, mean = prepared
    runs = train(
        setup.denoiser,
        setup.loss,
        examples,
        setup.optimizer,
        steps=args.steps,
        batch_size=args.batch_size,
        key=jr.key(args.seed + 1),
        every=args.every,
        accumulate=args.accumulate,
        state=state,
        sharding=data_parallel() if jax.device_count() > 1 else None,
    )
    start, first = time.perf_counter(), int(state.step)
    classes = int(examples[1].class_labels.max()) + 1  # type: ignore  # an array here
    _draw_due(args, state, mean, classes, took=args.every)  # if the run was killed before it could
    with tqdm(total=args.steps, initial=first, unit="step") as bar:
        for state, losses in runs:
            bar.update(len(losses))
            bar.set_postfix(loss=f"{float(losses.mean()):.3f}")
            checkpoint.save(Path(args.out) / "checkpoints", state)
            if int(state.step) == first + len(losses):
                bar.write(_cost(time.perf_counter() - start, len(losses), args.steps - first))
            _draw_due(args, state, mean, classes, took=len(losses))
    return state


def _cost(seconds: float, steps: int, all_steps: int) -> str:
    """The time of the first steps, and an upper bound for that of all: compilation is paid once."""
    minutes = seconds / steps * all_steps / 60
    return f"time      {steps} steps and compiling took {seconds:.0f} s: {minutes:.1f} min at most"


def _draw_due(args: Namespace, state: TrainState, mean: Any, classes: int, took: int) -> None:
    """The picture of samples, if one fell due in the last `took` steps, written to the folder."""
    step = int(state.step)
    due = step in (args.every, args.steps) or step % args.sample_every < took
    file = Path(args.out) / f"samples-{step:07d}.png"
    if step == 0 or not due or file.exists():
        return
    rows, columns = 4, 10 if classes == 1 else min(classes, 10)
    labels = np.tile(np.arange(columns) % classes, rows)
    images = draw(state.ema, mean, labels, key=jr.key(0))  # always from the same noise
    part = file.with_suffix(".part")
    picture(images.reshape(rows, columns, *mean.shape)).save(part, "PNG")
    part.replace(file)  # a killed run leaves no half a picture


def _sample(args: Namespace) -> None:
    """Images drawn from the averaged weights of the last checkpoint of a run, written to a file."""
    out = Path(args.out)
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz, got {out}")
    options, about, mean, sigma_data = _kept(Path(args.run))
    if args.label is not None and not 0 <= args.label < about.classes:
        raise ValueError(f"--class must be from 0 to {about.classes - 1}, got {args.label}")
    if args.guidance != 1 and not options.label_dropout:
        raise ValueError("--guidance needs a run that was trained with --label-dropout")
    setup = build(options, about, sigma_data)
    template = init_state(setup.denoiser, setup.optimizer)
    folder = Path(args.run) / "checkpoints"
    state = checkpoint.restore(folder, template, batch_size=options.batch_size)
    if state is None:
        raise ValueError(f"{folder} has no checkpoint yet")
    denoiser: Any = state.ema
    if args.guidance != 1:
        denoiser = Guided(denoiser, Pinned(denoiser, NO_CLASS), args.guidance)
    in_turn = np.arange(args.count) % about.classes
    labels = in_turn if args.label is None else np.full(args.count, args.label)
    how = {"steps": args.steps, "solver": SOLVERS[args.solver], "key": jr.key(args.seed)}
    write(out, draw(denoiser, mean, labels, **how), labels)
    print(f"drawn     {args.count} images at step {state.step}: {out}")


def _kept(run: Path) -> tuple[Namespace, About, np.ndarray, float]:
    """Content of the folder of a run: its arguments, and its data's sizes, mean and width."""
    if not (run / SETTINGS).exists() or not (run / DATA).exists():
        raise ValueError(
            f"{run} holds no run: give the --out of a training (one of an earlier version writes "
            "what is missing when it is started once more)"
        )
    defaults = vars(parser().parse_args(["train", "--out", str(run)]))
    options = Namespace(**(defaults | json.loads((run / SETTINGS).read_text())))
    with np.load(run / DATA) as stored:
        mean, sigma_data, classes = stored["mean"], stored["sigma_data"], stored["classes"]
    return options, About(mean.shape, int(classes), 0), mean, float(sigma_data)


def _load(args: Namespace) -> data.Images:
    if args.data not in SHAPES:
        own = Path(args.data)
        return data.from_folder(own, args.size) if own.is_dir() else data.from_npz(own)
    if args.data == "digits":
        return data.digits()
    return {"fashion-mnist": data.fashion_mnist, "cifar10": data.cifar10}[args.data](args.cache)


def _about(args: Namespace, images: data.Images | None) -> About:
    if images is None:
        return About(SHAPES[args.data], 10, COUNTS[args.data])
    return About(images.images.shape[1:], int(images.labels.max()) + 1, len(images.labels))


def _settings(args: Namespace) -> dict[str, Any]:
    """Arguments that a run must share with the one it continues, by name."""
    free = {"command", "out", "steps", "every", "sample_every", "cache", "dry_run", "accumulate"}
    return {name: value for name, value in vars(args).items() if name not in free}


def _check_folder(folder: Path, args: Namespace) -> None:
    """Refuse a folder in which a run of these settings cannot begin or go on."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another --out")
    if not (folder / SETTINGS).exists():
        return
    settings, before = _settings(args), {"label_dropout": 0.0, "size": None}  # of older runs
    stored = before | json.loads((folder / SETTINGS).read_text())
    names = sorted(name for name in settings if stored.get(name) != settings[name])
    if names:
        told = ", ".join(f"{name} was {stored.get(name)}" for name in names)
        raise ValueError(f"{folder} holds another run ({told}): choose another --out")
