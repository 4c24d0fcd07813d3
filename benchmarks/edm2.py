"""EDM2's network beside DDPM++ at equal CPU seconds on digits, and what guidance buys and costs.

    python -m benchmarks.edm2

Both networks have 170,000 parameters or a little less and are trained for as many CPU seconds,
each by its own recipe: EDM2 with forced norms and a learned loss weight. The class is dropped one
time in ten. Then EDM2's is guided away from no class, at all noise levels or in an interval, and
away from what it was at a third of its training. A run that was stopped goes on where it was.
"""

import time
from functools import cache, partial
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from scipy.special import ndtri
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

import edm_tutorial as edm
from benchmarks.timing import machine, put, read
from edm_tutorial.networks import ImageCondition, edm2_unet, forced_norms, song_unet
from edm_tutorial.networks.edm2 import blocks as edm2_blocks
from edm_tutorial.networks.edm2.loss import LossWeight, Weighted, weighted_loss
from edm_tutorial.networks.unet import blocks as unet_blocks

SEEDS = (0, 1, 2)
MARKS = (0, 8, 16, 24)  # CPU seconds of training; the guide is the average at the first but one
DRAWS, WEIGHTS, INTERVAL = 200, (1.5, 2.5, 4.0), (0.2, 2.0)
SIZES = {"label_dim": 10, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
SIGMAS = edm.edm_sigmas(18)
LEVELS = jnp.exp(1.2 * jnp.asarray(ndtri((np.arange(8) + 0.5) / 8), jnp.float32) - 1.2)

PICTURES, LABELS = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(PICTURES))
PICTURES = (PICTURES[ORDER].reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32)
PICTURES, LABELS = PICTURES - PICTURES.mean(), LABELS[ORDER]
TRAIN, HELD_OUT = slice(0, 1297), slice(1297, None)


def conditions(labels: Any) -> ImageCondition:
    return ImageCondition(class_labels=jax.nn.one_hot(jnp.asarray(labels), 10))


NO_CLASS = ImageCondition(jnp.zeros(10))
PRECONDITIONING = edm.EDMPreconditioning.from_data(PICTURES[TRAIN])
LAW = edm.LogNormal()
# The network, its blocks, its optimizer and its loss. The learning rates were the best of 1e-3,
# 3e-3 and 1e-2, for EDM2 also 3e-2, in a short training of another seed.
NETWORKS = {
    "EDM2": (
        partial(edm2_unet, (1, 8, 8), attention_points=0, **SIZES),
        edm2_blocks.Block,
        optax.chain(optax.adam(3e-2), forced_norms()),
        partial(weighted_loss, sigma_dist=LAW, null=NO_CLASS),
    ),
    "DDPM++": (
        partial(song_unet, 8, 1, 1, attn_resolutions=(), **SIZES),
        unet_blocks.Block,
        optax.adam(3e-3),
        partial(edm.denoising_loss, sigma_dist=LAW, null=NO_CLASS),
    ),
}


def trained(name: str, seed: int):
    """The mark, steps, denoiser and its average at each mark of one training."""
    make, _, optimizer, loss = NETWORKS[name]
    net_key, u_key, train_key = jr.split(jr.key(seed), 3)
    denoiser = edm.Denoiser(make(key=net_key), PRECONDITIONING)
    plain = name != "EDM2"
    model = denoiser if plain else Weighted(denoiser, LossWeight(key=u_key))
    yield 0, 0, denoiser, denoiser
    data = PICTURES[TRAIN], conditions(LABELS[TRAIN])
    options: dict = dict(steps=10**6, batch_size=32, key=train_key, every=10)
    run = edm.train(model, loss, data, optimizer, **options)
    next(run)  # compiles
    start, marks = time.process_time(), list(MARKS[1:])
    for state, losses in run:
        jax.block_until_ready(losses)
        spent = time.process_time() - start
        if spent > marks[0]:
            pair = state.denoiser, state.ema
            yield marks.pop(0), int(state.step), *(pair if plain else (m.denoiser for m in pair))
            start = time.process_time() - spent  # measuring is not training
        if not marks:
            return


@eqx.filter_jit
def held_out_loss(denoiser: Any) -> Any:
    x, cond = jnp.asarray(PICTURES[HELD_OUT]), conditions(LABELS[HELD_OUT])
    return edm.loss_by_sigma(denoiser, x, LEVELS, cond, key=jr.key(7)).mean()


@cache
def watched(kind: Any) -> Any:
    """A compiled function of a denoiser and inputs: what each of its blocks of a kind returns."""
    original = kind.__call__

    def run(denoiser: Any, *inputs: Any) -> list:
        found = []

        def recorded(self: Any, *args: Any) -> Any:
            found.append(original(self, *args))
            return found[-1]

        with mock.patch.object(kind, "__call__", recorded):
            denoiser(*inputs)
        return found

    return eqx.filter_jit(lambda denoiser, *inputs: jax.vmap(partial(run, denoiser))(*inputs))


def block_magnitudes(kind: Any, denoiser: Any) -> np.ndarray:
    """The root mean square of what each block returns, over noisy pictures of the training set."""
    x, cond = PICTURES[:64], conditions(LABELS[:64])
    sigma, n = jax.vmap(LAW)(jr.split(jr.key(8), 64)), jr.normal(jr.key(9), x.shape)
    noisy = x + sigma[:, None, None, None] * n
    return np.array([jnp.sqrt(jnp.mean(y**2)) for y in watched(kind)(denoiser, noisy, sigma, cond)])


def training_rows(name: str, seed: int, kept: list[Any]):
    """A row for each mark; `kept` gets the averages."""
    for seconds, steps, live, average in trained(name, seed):
        found = block_magnitudes(NETWORKS[name][1], live)
        kept.append(average)
        yield {
            "network": name,
            "seed": seed,
            "cpu_s": seconds,
            "steps": steps,
            "parameters": sum(a.size for a in jax.tree.leaves(eqx.filter(live, eqx.is_array))),
            "held_out_loss": f"{float(held_out_loss(average)):.4f}",
            "least_magnitude": f"{found.min():.3f}",
            "largest_magnitude": f"{found.max():.3f}",
        }


JUDGE = SVC().fit(PICTURES[TRAIN].reshape(-1, 64), LABELS[TRAIN])
NEAREST = NearestNeighbors(n_neighbors=1).fit(PICTURES[TRAIN].reshape(-1, 64))


def judged(pictures: Any, labels: Any) -> dict[str, str]:
    """The share in which the classifier finds the class asked for, and that of pictures seen."""
    flat = np.asarray(pictures).reshape(-1, 64)
    nearest = NEAREST.kneighbors(flat, return_distance=False)
    return {
        "agreement": f"{np.mean(JUDGE.predict(flat) == np.asarray(labels)):.4f}",
        "seen": f"{len(np.unique(nearest)) / 1297:.4f}",
    }


@eqx.filter_jit
def drawn(denoiser: Any, noise: Any, labels: Any) -> Any:
    solver = edm.DPMSolverPP2M()
    draw = lambda z, cond: edm.sample(denoiser, z, SIGMAS, cond, solver=solver)
    return jax.vmap(draw)(noise, conditions(labels))


def guidance_rows(seed: int, main: Any, earlier: Any):
    """A row for each way to guide and weight."""
    no_class = edm.Pinned(main, NO_CLASS)
    ways = {
        "no class": (no_class, (0.0, np.inf)),
        "no class, interval": (no_class, INTERVAL),
        "earlier self": (earlier, (0.0, np.inf)),
    }
    labels = np.arange(DRAWS) % 10
    noise = jr.normal(jr.key(100 + seed), (DRAWS, 1, 8, 8))
    row = {"guide": "none", "seed": seed, "weight": 1.0}
    yield row | judged(drawn(main, noise, labels), labels)
    for name, (guide, interval) in ways.items():
        for weight in WEIGHTS:
            guided = edm.Guided(main, guide, weight, interval=interval)
            row = {"guide": name, "seed": seed, "weight": weight}
            yield row | judged(drawn(guided, noise, labels), labels)


def add(name: str, rows: Any, *, key: tuple[str, ...]) -> None:
    """Append rows to `results/name.csv` as they come, in place of earlier ones with their key."""
    for row in rows:
        row = {column: str(value) for column, value in row.items()} | {"machine": machine()}
        print(name, *row.values(), flush=True)
        put(name, row, key)


def measure(name: str, seed: int) -> None:
    """One training, with the guidance of what it made, unless all of it is there."""
    ours = lambda table: [row for row in read(table) if row["seed"] == str(seed)]
    rows = [row for row in ours("edm2_training") if row["network"] == name]
    expected = 1 + 3 * len(WEIGHTS) if name == "EDM2" else 0
    if len(rows) == len(MARKS) and (name != "EDM2" or len(ours("edm2_guidance")) == expected):
        return
    kept: list[Any] = []
    add("edm2_training", training_rows(name, seed, kept), key=("network", "seed", "cpu_s"))
    if name == "EDM2":
        add(
            "edm2_guidance", guidance_rows(seed, kept[-1], kept[1]), key=("guide", "seed", "weight")
        )


if __name__ == "__main__":
    rng, pictures = np.random.default_rng(1), PICTURES[HELD_OUT]
    some = rng.permutation(len(pictures))[:DRAWS]
    real = {"guide": "held-out pictures", "seed": "-", "weight": "-"}
    real |= judged(pictures[some], LABELS[HELD_OUT][some])
    add("edm2_guidance", [real], key=("guide",))
    for seed in SEEDS:
        for name in NETWORKS:
            measure(name, seed)
