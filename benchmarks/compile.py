"""CPU seconds that a fit and a U-Net's training step take to compile, now and before.

    python -m benchmarks.compile [--before COMMIT]

A fit of ten steps, and two steps of a U-Net, each in a process that has compiled nothing yet:
nearly all of their time is compilation, with the tracing before it. The package of the older
commit is taken from the repository's history. Medians of three starts, in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEFORE = "a5889fc"  # the first ten chapters
STARTS = 3


def fit() -> None:
    """`fit_posterior` with its defaults, but for ten steps."""
    import jax.random as jr

    from edm_tutorial import sbi

    theta = jr.uniform(jr.key(0), (4000, 2), minval=-1.0, maxval=1.0)
    x = theta + 0.1 * jr.normal(jr.key(1), (4000, 2))
    sbi.fit_posterior(jr.key(2), theta, x, prior_support=([-1.0, -1.0], [1.0, 1.0]), steps=10)


def unet() -> None:
    """Two steps of a DDPM++ on 16x16 images, with a loss that every version understands."""
    import jax.numpy as jnp
    import jax.random as jr
    import optax

    import edm_tutorial as edm
    from edm_tutorial.networks import song_unet

    def loss(denoiser: Any, x: Any, cond: Any, *, key: Any) -> Any:
        sigma_key, noise_key = jr.split(key)
        sigma = jnp.exp(1.2 * jr.normal(sigma_key) - 1.2)
        error = denoiser(x + sigma * jr.normal(noise_key, x.shape), sigma) - x
        return jnp.mean(denoiser.preconditioning.loss_weight(sigma) * error**2)

    sizes: dict = {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 2}
    network = song_unet(16, 1, 1, **sizes, attn_resolutions=(8,), key=jr.key(0))
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(0.5))
    images = jr.normal(jr.key(1), (64, 1, 16, 16))
    options: dict = {"steps": 2, "batch_size": 16, "every": 2, "key": jr.key(2)}
    for _, losses in edm.train(denoiser, loss, images, optax.adam(1e-3), **options):
        losses.block_until_ready()


CASES = {"a fit of two parameters": fit, "a training step of a U-Net": unet}


def cpu_seconds(what: str, package: Path) -> float:
    """Of one start of this file, with the package that lies in a folder."""
    run = [sys.executable, str(Path(__file__).resolve()), "--one", what]
    answer = subprocess.run(
        run, env=os.environ | {"PYTHONPATH": str(package)}, stdout=subprocess.PIPE, check=True
    )
    return float(answer.stdout)


def rows(commit: str) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", folder, commit], check=True, capture_output=True)
        try:
            for what in CASES:
                pairs = [
                    [cpu_seconds(what, path) for path in (Path(folder), ROOT)]
                    for _ in range(STARTS)
                ]
                before, now = (statistics.median(column) for column in zip(*pairs, strict=True))
                yield {
                    "what": what,
                    "before": commit,
                    "before_cpu_s": round(before, 1),
                    "now_cpu_s": round(now, 1),
                    "ratio": round(now / before, 2),
                }
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="the older commit")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        import edm_tutorial  # noqa: F401  # importing is not compiling

        start = time.process_time()
        CASES[options.one]()
        print(time.process_time() - start)
    else:
        from benchmarks.timing import write

        write("compile", rows(options.before))
