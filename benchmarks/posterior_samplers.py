"""Samplers of a posterior at equal calls of its network: ODE, churn, SDE.

    python -m benchmarks.posterior_samplers [--only sir slcp] [--seeds 1 2 3] [--hours 3]

Five problems, a fit of 10,000 simulations a seed, kept under `build`, and ten observations from the
prior (of slcp the five that have references), with exact draws: by the task, or by sequential Monte
Carlo. Every sampler calls the network as often as the default does, from and to the same noise
levels. Where noise is added, it is as much as in the reverse SDE: before each step the noise level
is raised by as much as the step lowers it. So Euler steps with churn are a solver of that SDE, of
first order. *Most churn* adds as much as Algorithm 2 allows, several times that. Each row of
`results/posterior_samplers.csv` is the C2ST of 2,000 draws; none is measured twice.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import sklearn
from tqdm import tqdm

from benchmarks import exact
from benchmarks.environments import BUILD
from benchmarks.sbi import fitted, reference, simulations
from benchmarks.timing import machine, name_of, put, read
from edm_tutorial import Churn, Euler, Heun, edm_sigmas
from edm_tutorial.sbi import Posterior, tasks
from edm_tutorial.sbi.calibration import c2st

TASKS = ("two_moons", "gaussian_mixture", "slcp", "sir", "lotka_volterra")
SEEDS, BUDGET = (1, 2, 3), 10_000
OBSERVATIONS, OBSERVED, ROWS = 10, 77, 2_000  # how many, their seed, and draws for each
DEFAULT = "default"
NAME = ("task", "seed", "observation", "sampler")


def samplers(posterior: Posterior) -> dict[str, dict[str, Any]]:
    """The arguments of `sample` of each sampler: as many calls as the default, one more or less."""
    steps = posterior.steps
    half = (steps + 1) // 2  # Heun calls the network twice a step, but for the last

    def churn(steps: int) -> Churn:
        """As much as lifts each level to the one above it, in the middle of the grid."""
        sigmas = edm_sigmas(steps, posterior.sigma_min, posterior.sigma_max)
        middle = steps // 2
        return Churn(steps * float(sigmas[middle - 1] / sigmas[middle] - 1))

    return {
        DEFAULT: {},
        "Heun": {"solver": Heun(), "steps": half},
        "Heun, churn": {"solver": Heun(), "steps": half, "churn": churn(half)},
        "Heun, most churn": {"solver": Heun(), "steps": half, "churn": Churn(np.inf)},
        "Euler, churn (SDE)": {"solver": Euler(), "churn": churn(steps)},
    }


def kept(task: str, seed: int) -> Posterior:
    """The fit, from its file once it was made."""
    path = BUILD / "posteriors" / f"{task}-{seed}.eqx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fitted(task, seed, simulations(task, BUDGET, seed)).save(path)
    return Posterior.load(path)


def truth(task: str, observation: int) -> tuple[jax.Array, np.ndarray]:
    """An observation, and exact draws of its posterior.

    Made by the task itself, if it knows how; for slcp, whose modes are narrow, those in its file.
    """
    problem, key = getattr(tasks, task)(), jr.key(1000 + observation)
    rows = np.random.default_rng(observation).permutation(exact.DRAWS)[:ROWS]
    if task == "slcp":
        known = reference(task)
        i = observation - 1
        return jnp.asarray(known["observation"][i]), known["reference_samples"][i][rows]
    _, x = tasks.draw(jr.key(OBSERVED), problem, OBSERVATIONS)
    x_o = x[observation - 1]
    if hasattr(problem, "sample_posterior"):
        draw = jax.jit(jax.vmap(problem.sample_posterior, (0, None)))
        return x_o, np.asarray(draw(jr.split(key, ROWS), x_o))
    draws, _ = exact.posterior_draws(key, problem, x_o)
    return x_o, np.asarray(draws)[rows]


def measure(task: str, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The rows of a task that are not there yet, observation by observation."""
    there = {name_of(row, NAME) for row in read("posterior_samplers")}
    told = f"{machine()}, scikit-learn {sklearn.__version__}"
    count = len(reference(task)["observation"]) if task == "slcp" else OBSERVATIONS
    posteriors = {seed: kept(task, seed) for seed in seeds}
    for observation in range(1, count + 1):
        known = None
        for seed, posterior in posteriors.items():
            for name, how in samplers(posterior).items():
                row = dict(zip(NAME, (task, seed, observation, name), strict=True))
                if name_of(row, NAME) in there:
                    continue
                known = truth(task, observation) if known is None else known
                x_o, exact_draws = known
                key = jr.fold_in(jr.key(seed), observation)
                draws = np.asarray(posterior.sample(key, jnp.asarray(x_o), ROWS, **how))
                score = round(c2st(exact_draws, draws), 4)
                yield row | {"calls": calls(posterior, how), "c2st": score, "machine": told}


def calls(posterior: Posterior, how: dict[str, Any]) -> int:
    """Of the network, for one draw."""
    steps = how.get("steps", posterior.steps)
    return 2 * steps - 1 if isinstance(how.get("solver"), Heun) else steps


def gains(rows: list[dict[str, str]], sampler: str) -> np.ndarray:
    """C2ST of the default less that of a sampler, for each observation of each fit with both."""
    scores = {name_of(row, NAME): float(row["c2st"]) for row in rows}
    pairs = [
        (scores.get((*name[:-1], DEFAULT)), s) for name, s in scores.items() if name[-1] == sampler
    ]
    return np.array([default - score for default, score in pairs if default is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description="Samplers of posteriors at equal calls.")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after them")
    options, start = parser.parse_args(), time.monotonic()
    place = lambda row: (TASKS.index(row["task"]), int(row["observation"]), int(row["seed"]))
    for task in options.only:
        for row in tqdm(measure(task, options.seeds)):
            put("posterior_samplers", row, NAME, place)
            if time.monotonic() - start > 3600 * options.hours:
                return


if __name__ == "__main__":
    main()
