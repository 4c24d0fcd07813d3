"""Arguments of the command line: `train` and `sample`."""

import argparse
from pathlib import Path

from ..solvers import DPMSolverPP2M, Euler, Heun

SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
COUNTS = {"digits": 1797, "fashion-mnist": 60_000, "cifar10": 50_000}
SOLVERS = {"heun": Heun(), "euler": Euler(), "dpm": DPMSolverPP2M()}


def parser(description: str = "") -> argparse.ArgumentParser:
    """Parser of the command line's arguments."""
    top = argparse.ArgumentParser(prog="python -m edm_tutorial", description=description)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    shown = argparse.ArgumentDefaultsHelpFormatter
    training = commands.add_parser("train", help="train a U-Net on pictures", formatter_class=shown)
    sampling = commands.add_parser("sample", help="draw what it learned", formatter_class=shown)
    _add_train(training)
    _add_sample(sampling)
    return top


def _add_train(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    names = "{" + ",".join(SHAPES) + "}"
    told = f"what to train on: {names}, or your own, a folder of pictures or an .npz file"
    add("--data", type=_source, default="digits", help=told)
    add("--size", type=_count, help="cut a folder's pictures to squares of so many pixels a side")
    add("--out", required=True, help="folder for checkpoints and samples; resumed if there")
    add("--steps", type=_count, default=2000, help="in all; a resumed run stops there too")
    add("--batch-size", type=_count, default=128, help="examples a step, over all devices")
    add("--accumulate", type=_count, default=1, help="parts of a batch, where memory is short")
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


def _add_sample(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--run", required=True, help="folder of a training, its --out")
    add("--out", required=True, help="file to write: .png, a picture, or .npz, the arrays")
    add("--count", type=_count, default=40, help="how many")
    add("--class", type=int, dest="label", help="class of all, from 0; without: each in turn")
    add("--guidance", type=float, default=1.0, help="weight of classifier-free guidance; 1: none")
    add("--steps", type=_count, default=18, help="noise levels N of the sampler")
    add("--solver", choices=SOLVERS, default="heun", help="of the probability-flow ODE")
    add("--seed", type=int, default=0, help="of the noise")


def _source(text: str) -> str:
    if not (text in SHAPES or Path(text).is_dir() or Path(text).suffix == ".npz"):
        raise argparse.ArgumentTypeError(
            f"must be {', '.join(SHAPES)}, a folder of pictures or an .npz file, got {text!r}"
        )
    return text


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
