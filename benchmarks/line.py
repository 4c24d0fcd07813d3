r"""Posteriors of a spectral line in 100 channels, some a hundred times narrower than others.

    python -m benchmarks.line [--methods vector series rounds] [--seeds 1 2 3] [--hours 3]

    A exp(-((g - mu) / w)^2 / 2) + b + 0.3 n, with log-uniform A and w, uniform mu, exponential b

Parameters are ln A, mu, ln w, b. 5,000 simulations: told the 100 channels as a vector; told them as
a series, through `SeriesEmbedding`; and three rounds of 5,000, told the series, for each of the
six observations of `sbi_reference/line.npz`. One fit is judged on 16 observations drawn from the
prior with a stated seed. Their exact posteriors are drawn by tempered sequential Monte Carlo; it is
checked on the six whose draws and evidence are in that file. Each row of `results/line.csv` is one
observation: the shift of each posterior mean in exact widths, and each width over the exact one.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from benchmarks.exact import tempered
from benchmarks.timing import machine, read, save
from edm_tutorial.sbi import Posterior, SeriesEmbedding, fit_posterior, fit_rounds

REFERENCE = Path(__file__).parent / "sbi_reference" / "line.npz"
G, NOISE = np.linspace(-5, 5, 100), 0.3
LOW = np.array([np.log(0.1), -3.0, np.log(0.1), 0.0])
HIGH = np.array([np.log(10.0), 3.0, np.log(2.0), np.inf])
SIMULATIONS, ROUNDS, DRAWS, SIZE = 5_000, 3, 10_000, 48
OBSERVATIONS, OBSERVED = 16, 2024  # how many, and their seed
PARTICLES = 4_000
FRESH = 1_000  # simulations that measure -ln q
METHODS = ("vector", "series", "rounds")
# Of the largest shift, in exact widths, the median over observations; of each median width, its
# least and its largest over the exact one.
TARGETS = {"series": (0.4, 0.85, 1.25), "rounds": (0.15, 0.9, 1.15)}


def prior(random: np.random.Generator, n: int) -> np.ndarray:
    box = random.uniform(LOW[:3], HIGH[:3], (n, 3))
    return np.concatenate([box, random.exponential(1.0, (n, 1))], axis=1).astype(np.float32)


def mean(theta: Array) -> Array:
    """The spectrum of one theta without noise."""
    log_a, mu, log_w, b = theta
    return b + jnp.exp(log_a) * jnp.exp(-(((G - mu) / jnp.exp(log_w)) ** 2) / 2)


def simulate(random: np.random.Generator, theta: Any) -> np.ndarray:
    clean = np.asarray(jax.vmap(mean)(jnp.asarray(theta)))
    return (clean + NOISE * random.normal(size=clean.shape)).astype(np.float32)


def log_likelihood(theta: Array, x: Array) -> Array:
    constant = len(G) * np.log(NOISE * np.sqrt(2 * np.pi))
    return -jnp.sum((x - mean(theta)) ** 2) / (2 * NOISE**2) - constant


def log_prior(theta: Array) -> Array:
    inside = jnp.all((theta > jnp.asarray(LOW)) & (theta < jnp.asarray(HIGH)))
    return jnp.where(inside, -theta[3] - np.sum(np.log(HIGH[:3] - LOW[:3])), -jnp.inf)


@jax.jit
def exact(key: Array, start: Array, x: Array) -> tuple[Array, Array]:
    """Draws of the posterior and ln p(x), from draws of the prior."""
    return tempered(key, start, partial(log_likelihood, x=x), log_prior)


def posterior_draws(seed: int, x: np.ndarray) -> tuple[np.ndarray, float]:
    start = prior(np.random.default_rng(seed), PARTICLES)
    theta, evidence = exact(jr.key(seed), jnp.asarray(start), jnp.asarray(x))
    return np.asarray(theta), float(evidence)


def check_exact() -> None:
    """Print how far the sequential Monte Carlo here is from the reference draws."""
    with np.load(REFERENCE) as file:
        known = {name: file[name] for name in file.files}
    for i, x in enumerate(known["observation"]):
        draws, evidence = posterior_draws(i, x)
        shift, width = compared(in_logarithms(known["reference_samples"][i]), draws)
        further = evidence - known["log_evidence"][i]
        print(f"reference {i + 1}: shifts {shift}, widths {width}, ln evidence {further:+.2f}")


def in_logarithms(rows: np.ndarray) -> np.ndarray:
    a, mu, w, b = rows.T
    return np.stack([np.log(a), mu, np.log(w), b], axis=1)


def compared(truth: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts of the mean in widths of the truth, and widths over those of the truth."""
    width = truth.std(axis=0)
    shift = (draws.mean(axis=0) - truth.mean(axis=0)) / width
    return shift.round(3), (draws.std(axis=0) / width).round(3)


def one_fit(method: str, seed: int, there: set[int]) -> Iterator[tuple[int, Any, Any, dict]]:
    """One posterior for all x: for each observation not `there` the exact draws and the fit's."""
    if len(there) == OBSERVATIONS:
        return
    random = np.random.default_rng([seed, 77])
    theta = prior(random, SIMULATIONS)
    x = simulate(random, theta)
    told = (lambda x: x[..., None, :]) if method == "series" else (lambda x: x)
    embed = SeriesEmbedding(1, SIZE, key=jr.key(200 + seed)) if method == "series" else None
    start = time.process_time()
    posterior = fit_posterior(
        jr.key(100 + seed), theta, told(x), prior_support=(LOW, HIGH), embedding=embed
    )
    cells = {"train_cpu_s": round(time.process_time() - start, 1)}
    cells["nats"] = round(nats(posterior, told), 3)
    observed = np.random.default_rng(OBSERVED)
    for i, x_o in enumerate(simulate(observed, prior(observed, OBSERVATIONS))):
        if i + 1 not in there:
            truth, _ = posterior_draws(i, x_o)
            yield i + 1, truth, np.asarray(posterior.sample(jr.key(i), told(x_o), DRAWS)), cells


def nats(posterior: Posterior, told: Any) -> float:
    random = np.random.default_rng([999, 77])
    theta = prior(random, FRESH)
    x = told(simulate(random, theta))
    density = jax.jit(jax.vmap(posterior.log_prob))
    parts = [density(theta[i : i + 250], x[i : i + 250]) for i in range(0, FRESH, 250)]
    return -float(np.mean(np.concatenate(parts)))


def rounds(seed: int, there: set[int]) -> Iterator[tuple[int, Any, Any, dict]]:
    """Three rounds for each observation of the reference file that is not `there`."""
    with np.load(REFERENCE) as file:
        known = {name: file[name] for name in file.files}
    for i, x_o in enumerate(known["observation"]):
        if i + 1 in there:
            continue
        random, start = np.random.default_rng([seed, 78, i]), time.process_time()
        posterior = fit_rounds(
            jr.fold_in(jr.key(seed), i),
            lambda key, n, random=random: prior(random, n),
            lambda key, theta, random=random: simulate(random, theta)[:, None],
            x_o[None],
            rounds=ROUNDS,
            simulations=SIMULATIONS,
            prior_support=(LOW, HIGH),
            embedding=SeriesEmbedding(1, SIZE, key=jr.key(200 + seed)),
        )
        cells = {"train_cpu_s": round(time.process_time() - start, 1)}
        truth = in_logarithms(known["reference_samples"][i])
        yield i + 1, truth, np.asarray(posterior.sample(jr.key(i), x_o[None], DRAWS)), cells


def main() -> None:
    parser = argparse.ArgumentParser(description="Posteriors of a spectral line.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no fit after them")
    options, start = parser.parse_args(), time.monotonic()
    check_exact()
    for seed in options.seeds:
        for method in options.methods:
            late = time.monotonic() - start > 3600 * options.hours
            if not late:
                measure(method, seed)


def measure(method: str, seed: int) -> None:
    """The rows of one seed that are not there yet, each saved as soon as it is measured."""
    there = {int(row["observation"]) for row in rows_of(method, seed)}
    parts = rounds(seed, there) if method == "rounds" else one_fit(method, seed, there)
    for i, truth, draws, cells in parts:
        shift, width = compared(truth, draws)
        numbers = {f"shift_{j + 1}": s for j, s in enumerate(shift)}
        numbers |= {f"width_{j + 1}": w for j, w in enumerate(width)}
        row = {"method": method, "seed": seed, "observation": i, **numbers, "nats": "", **cells}
        save("line", [*read("line"), row | {"machine": machine()}])
    worst, widths = medians(rows_of(method, seed))
    print(f"{method}, seed {seed}: worst shift {worst:.2f}, widths {widths} (medians)")


def rows_of(method: str, seed: Any) -> list[dict[str, str]]:
    return [row for row in read("line") if (row["method"], row["seed"]) == (method, str(seed))]


def medians(rows: list[dict[str, str]]) -> tuple[float, np.ndarray]:
    """Over observations: of the largest shift, and of each width over the exact one."""
    shifts, widths = (
        np.array([[float(row[f"{name}_{j}"]) for j in range(1, 5)] for row in rows])
        for name in ("shift", "width")
    )
    return float(np.median(np.abs(shifts).max(axis=1))), np.median(widths, axis=0)


if __name__ == "__main__":
    main()
