"""Posteriors of eight problems against reference posteriors, and what they cost.

    python -m benchmarks.sbi [--only two_moons slcp] [--budgets 1000 10000] [--seeds 1 2 3]
                             [--hours 3] [--peers] [--rounds 2]
    python -m benchmarks.sbi --only slcp --told "four points" "five statistics"

Five have published references; those of a neuron, an epidemic and of predators and prey are made
by `benchmarks.exact`. One set of defaults for all, which was chosen with seed 0. Every observation
adds its row to `results/sbi.csv` as soon as its draws are judged; a row that is there is not
measured again unless `--fresh`, so a run that was stopped goes on. `--hours` starts no fit after
that time. `--rounds 2` shares the simulations out over two rounds, for each observation anew.
`--told` says of slcp's eight numbers that they are four points of a plane, or gives their mean and
covariance, which are all that the posterior needs: what the best of networks would find.
`--peers` runs the package `sbi` too, in an environment of its own under `build/peers`,
on the same simulations and with the same C2ST. Where only CPU wheels of torch are wanted, tell pip
so by its own settings, `PIP_EXTRA_INDEX_URL`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import sklearn
from jaxtyping import Array
from tqdm import tqdm

from benchmarks import exact
from benchmarks.environments import BUILD, TORCH, Missing, python_with, run
from benchmarks.timing import machine, name_of, put, read
from edm_tutorial.sbi import Posterior, SetEmbedding, fit_posterior, fit_rounds, tasks
from edm_tutorial.sbi.calibration import c2st

BUDGETS = (1_000, 10_000, 100_000)
# The mean C2ST that we hold ourselves to, at each budget.
TARGETS = {
    "two_moons": (0.58, 0.525, 0.51),
    "gaussian_mixture": (0.60, 0.53, 0.51),
    "slcp": (0.92, 0.75, 0.60),
    "gaussian_linear": (0.60, 0.52, 0.505),
    "gaussian_linear_uniform": (0.60, 0.53, 0.51),
    "bernoulli_glm": (None, None, None),
    "sir": (None, 0.54, None),
    "lotka_volterra": (None, 0.83, None),
}
# The same in rounds, at 10,000 simulations in all for one observation.
ROUND_TARGETS = {("sir", 2): 0.52, ("lotka_volterra", 3): 0.62}
OURS, PEERS = "EDM", ("sbi NPE", "sbi NPSE")
POINT_SIZE, SIZE = 2, 48  # numbers of a point of slcp, and of its embedding
SEEDS = (1, 2, 3)
OBSERVATIONS, DRAWS, POINTS, FRESH = 5, 10_000, 1_000, 2_000
HERE = Path(__file__).parent
PEER_PACKAGES = ("sbi==0.27.0", TORCH)
COLUMNS = ("task", "budget", "method", "seed", "observation", "c2st", "nats")
COLUMNS += ("train_cpu_s", "sample_cpu_s", "log_prob_cpu_s", "note", "machine")
NAME = COLUMNS[:5]
Fit = tuple[str, int, str, int]  # task, budget, method, seed
T = TypeVar("T", bound=tuple)


class Told(NamedTuple):
    """What a fit is told of x, and by what network it reads that; None is the default."""

    of: Callable[[Any], Any]
    embedding: Callable[[Array], Any] = lambda key: None


def points(x: Any) -> Any:
    """Eight numbers of slcp as four points."""
    return x.reshape(*x.shape[:-1], -1, POINT_SIZE)


def statistics(x: Any) -> Any:
    """Mean, logarithms of both widths, and artanh of the correlation of four points."""
    rows = points(jnp.asarray(x))
    away = rows - rows.mean(axis=-2, keepdims=True)
    width = jnp.sqrt(jnp.mean(away**2, axis=-2))
    tilt = jnp.arctanh(jnp.mean(jnp.prod(away, axis=-1), axis=-1) / jnp.prod(width, axis=-1))
    return jnp.concatenate([rows.mean(axis=-2), jnp.log(width), tilt[..., None]], axis=-1)


EVERYTHING = Told(lambda x: x)
TOLD = {
    "four points": Told(points, lambda key: SetEmbedding(POINT_SIZE, SIZE, key=key)),
    "five statistics": Told(statistics),
}


def reference(task: str) -> dict[str, np.ndarray]:
    """Observations (5, dim x) and draws of their posteriors (5, 10000, dim theta)."""
    if task in exact.TASKS:
        return exact.reference(task)
    with np.load(HERE / "sbi_reference" / f"{task}.npz") as file:
        return {key: file[key] for key in file.files}


def simulations(task: str, budget: int, seed: int) -> tuple[jax.Array, jax.Array]:
    key = jr.fold_in(jr.key(seed), budget)
    return tasks.draw(key, getattr(tasks, task)(), budget)


def fitted(
    task: str, seed: int, simulated: tuple[jax.Array, jax.Array], told: Told = EVERYTHING
) -> Posterior:
    (theta, x), support = simulated, getattr(tasks, task)().prior_support
    embed = told.embedding(jr.key(300 + seed))
    key = jr.key(100 + seed)
    return fit_posterior(key, theta, told.of(x), prior_support=support, embedding=embed)


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and CPU seconds of this process, all threads together."""
    start = time.process_time()
    value = jax.block_until_ready(call())
    return value, time.process_time() - start


def run_ours(
    task: str, budget: int, seed: int, told: Told = EVERYTHING
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The draws for each observation, and the other cells of its row.

    Compilation counts in training; drawing and densities are done twice, and the second is timed.
    """
    simulated = simulations(task, budget, seed)
    posterior, train = cpu(lambda: fitted(task, seed, simulated, told))
    theta, x = tasks.draw(jr.key(999), getattr(tasks, task)(), FRESH)
    cells = {
        "nats": -float(jnp.mean(jax.jit(jax.vmap(posterior.log_prob))(theta, told.of(x)))),
        "train_cpu_s": train,
        "machine": f"{machine()}, scikit-learn {sklearn.__version__}",
    }
    for i in range(OBSERVATIONS):
        draws, costs = answered(posterior, task, seed, i, told)
        yield draws, cells | costs


def answered(
    posterior: Posterior, task: str, seed: int, i: int, told: Told = EVERYTHING
) -> tuple[np.ndarray, dict]:
    """Draws for one observation, and CPU seconds of drawing and of densities."""
    known = reference(task)
    x_o, theta = told.of(known["observation"][i]), jnp.asarray(known["reference_samples"][i])
    draw = lambda: posterior.sample(jr.fold_in(jr.key(seed), i), x_o, DRAWS)
    (_, (draws, drawing)), (_, (_, evaluating)) = [
        (cpu(f), cpu(f)) for f in (draw, lambda: posterior.log_prob(theta[:POINTS], x_o))
    ]
    return np.asarray(draws), {"sample_cpu_s": drawing, "log_prob_cpu_s": evaluating}


def run_rounds(
    task: str, budget: int, seed: int, rounds: int
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The same from several rounds for each observation, `budget` simulations in all."""
    problem = getattr(tasks, task)()
    prior = jax.jit(jax.vmap(problem.sample_prior))
    simulate = jax.jit(jax.vmap(problem.simulate))
    for i, x_o in enumerate(reference(task)["observation"]):
        fit = lambda i=i, x_o=x_o: fit_rounds(
            jr.fold_in(jr.key(200 + seed), i),
            lambda key, n: prior(jr.split(key, n)),
            lambda key, theta: simulate(jr.split(key, len(theta)), jnp.asarray(theta)),
            x_o,
            rounds=rounds,
            simulations=budget // rounds,
            prior_support=problem.prior_support,
        )
        posterior, train = cpu(fit)
        draws, costs = answered(posterior, task, seed, i)
        told = f"{machine()}, scikit-learn {sklearn.__version__}"
        yield draws, {"train_cpu_s": train, "machine": told} | costs


def run_peer(method: str, task: str, budget: int, seed: int) -> list[tuple[Any, dict[str, Any]]]:
    """The same for a method of `sbi`: files in, files out. Its own failure is the note."""
    theta, x = simulations(task, budget, seed)
    problem, known = getattr(tasks, task)(), reference(task)
    low, high = problem.prior_support
    moments = {
        name: getattr(problem.prior, name) for name in ("mean", "std") if not np.isfinite(low[0])
    }
    source, target = BUILD / "sbi_runner-in.npz", BUILD / "sbi_runner-out.npz"
    try:
        python = python_with("sbi", PEER_PACKAGES)
        np.savez(
            source,
            theta=theta,
            x=x,
            low=low,
            high=high,
            observation=known["observation"],
            points=known["reference_samples"][:, :POINTS],
            **moments,
        )
        runner = HERE / "peers" / "sbi_runner.py"
        run([python, runner, method, str(seed), source, target])
    except Missing as error:
        return [(None, {"note": f"failed: {error}", "machine": machine()})]
    with np.load(target) as result:
        cells = {
            "train_cpu_s": float(result["train"]),
            "sample_cpu_s": float(result["sample"]),
            "log_prob_cpu_s": float(result["log_prob"]),
            "machine": f"{machine()}, {result['versions']}",
        }
        return [(draws, cells) for draws in result["draws"]]


def measure(fit: Fit) -> Iterator[dict[str, Any]]:
    """The rows of one fit, each as soon as it is known."""
    task, budget, method, seed = fit
    truth = reference(task)["reference_samples"]
    simulated, rounds = (task, budget, seed), rounds_of(method)
    if method in PEERS:
        parts = run_peer(method, *simulated)
    elif rounds > 1:
        parts = run_rounds(*simulated, rounds)
    else:
        parts = run_ours(*simulated, told_in(method))
    for i, (draws, cells) in enumerate(parts):
        row = dict(zip(NAME, (*fit, i + 1), strict=True)) | cells
        if draws is not None:
            row["c2st"] = c2st(truth[i], draws)
        row = dict.fromkeys(COLUMNS, "") | row
        yield {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}


def in_rounds(count: int) -> str:
    """The name of our method with so many rounds."""
    return OURS if count == 1 else f"{OURS}, {count} rounds"


def rounds_of(method: str) -> int:
    """The number of rounds of one of our methods; 0 where its name says none, and of a peer."""
    return next((count for count in range(1, 10) if in_rounds(count) == method), 0)


def told_in(method: str) -> Told:
    """What one of our methods is told of x."""
    return TOLD.get(method.removeprefix(f"{OURS}, "), EVERYTHING)


def store(row: dict[str, Any]) -> None:
    """Put the row in the table, beside its kind."""
    order = {name: i for i, name in enumerate(TARGETS)}
    numbers = lambda r: (int(r["seed"]), int(r["observation"]))
    put("sbi", row, NAME, lambda r: (order[r["task"]], int(r["budget"]), r["method"], *numbers(r)))


def plan(options: argparse.Namespace) -> Iterator[Fit]:
    """The fits still to be made: cheap budgets first, then seed by seed."""
    ours = [f"{OURS}, {told}" for told in options.told] or [in_rounds(options.rounds)]
    methods = (*ours, *(PEERS if options.peers else ()))
    wanted = (
        (task, budget, method, seed)
        for budget in sorted(options.budgets)
        for seed in options.seeds
        for task in options.only
        for method in methods
    )
    rows = [] if options.fresh else read("sbi")
    return unmeasured(wanted, {name_of(row, NAME) for row in rows if row["c2st"]})


def unmeasured(fits: Iterable[T], done: set[tuple[str, ...]]) -> Iterator[T]:
    """Those of which some observation is not among the names of rows that are `done`."""
    for fit in fits:
        if not {(*map(str, fit), str(i)) for i in range(1, OBSERVATIONS + 1)} <= done:
            yield fit


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Posteriors against reference posteriors.")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no fit after them")
    parser.add_argument("--peers", action="store_true", help="run the package sbi as well")
    parser.add_argument("--rounds", type=int, choices=range(1, 10), default=1)
    parser.add_argument("--told", nargs="+", choices=TOLD, default=(), help="of slcp's x")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    options = parser.parse_args()
    if options.told and (options.only != ["slcp"] or options.rounds > 1):
        parser.error("--told is of slcp alone, in one round: --only slcp")
    return options


def main() -> None:
    options, start = arguments(), time.monotonic()
    for fit in tqdm(list(plan(options))):
        if time.monotonic() - start > 3600 * options.hours:
            break
        for row in measure(fit):
            store(row)
            shown = ("observation", "c2st", *COLUMNS[6:-1])
            values = "  ".join(f"{key}={row[key]}" for key in shown if row[key] != "")
            tqdm.write(f"{' '.join(map(str, fit))}: {values}", file=sys.stdout)


if __name__ == "__main__":
    main()
