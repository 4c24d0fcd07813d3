"""Posteriors of five problems against reference posteriors, and what they cost.

    python -m benchmarks.sbi [--tasks two_moons slcp] [--budgets 1000 10000 100000] [--peers]

One set of defaults for all. Every run adds its row to `results/sbi.csv` as soon as it has it; a row
that is there is not measured again unless `--fresh`. `--peers` runs the package `sbi` too, in an
environment of its own under `build/peers`, on the same simulations and with the same C2ST. Where
only CPU wheels of torch are wanted, tell pip so by its own settings, `PIP_EXTRA_INDEX_URL`.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import sklearn
from tqdm import tqdm

from benchmarks.environments import BUILD, TORCH, Missing, python_with, run
from benchmarks.timing import RESULTS, machine
from edm_tutorial.sbi import fit_posterior, tasks
from edm_tutorial.sbi.calibration import c2st

BUDGETS = (1_000, 10_000, 100_000)
# The mean C2ST that we hold ourselves to, at each budget.
TARGETS = {
    "two_moons": (0.58, 0.525, 0.51),
    "gaussian_mixture": (0.60, 0.53, 0.51),
    "slcp": (0.92, 0.75, 0.60),
    "gaussian_linear": (0.60, 0.52, 0.505),
    "gaussian_linear_uniform": (0.60, 0.53, 0.51),
}
OURS, PEERS = "EDM", ("sbi NPE", "sbi NPSE")
SEED, DRAWS, POINTS = 0, 10_000, 1_000
HERE = Path(__file__).parent
TABLE = RESULTS / "sbi.csv"
PEER_PACKAGES = ("sbi==0.27.0", TORCH)
COLUMNS = ("task", "budget", "method", "seed", *(f"c2st_{i}" for i in range(1, 6)), "mean")
COLUMNS += ("target", "train_cpu_s", "sample_cpu_s", "log_prob_cpu_s", "heldout_loss")
COLUMNS += ("note", "machine")


def reference(task: str) -> dict[str, np.ndarray]:
    """Observations (5, dim x) and draws of their posteriors (5, 10000, dim theta)."""
    with np.load(HERE / "sbi_reference" / f"{task}.npz") as file:
        return {key: file[key] for key in file.files}


def simulations(task: str, budget: int) -> tuple[jax.Array, jax.Array]:
    key = jr.fold_in(jr.key(SEED), budget)
    return tasks.draw(key, getattr(tasks, task)(), budget)


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and CPU seconds of this process, all threads together."""
    start = time.process_time()
    value = jax.block_until_ready(call())
    return value, time.process_time() - start


def run_ours(task: str, budget: int) -> dict[str, Any]:
    """Train, draw and evaluate. Compilation counts in training; later, medians leave it out."""
    theta, x = simulations(task, budget)
    support = getattr(tasks, task)().prior_support
    posterior, train = cpu(lambda: fit_posterior(jr.key(SEED + 1), theta, x, prior_support=support))
    log_prob = jax.jit(jax.vmap(posterior.log_prob, (0, None)))
    known, draws, seconds = reference(task), [], []
    for i, x_o in enumerate(known["observation"]):
        key, x_o = jr.fold_in(jr.key(SEED + 2), i), jnp.asarray(x_o)
        value, drawing = cpu(lambda key=key, x_o=x_o: posterior.sample(key, x_o, DRAWS))
        points = jnp.asarray(known["reference_samples"][i, :POINTS])
        _, evaluating = cpu(lambda points=points, x_o=x_o: log_prob(points, x_o))
        draws.append(np.asarray(value))
        seconds.append((drawing, evaluating))
    sample, density = np.median(seconds, axis=0)
    return {
        "draws": np.stack(draws),
        "train_cpu_s": train,
        "sample_cpu_s": sample,
        "log_prob_cpu_s": density,
        "heldout_loss": min(posterior.history.held_out),
        "machine": f"{machine()}, scikit-learn {sklearn.__version__}",
    }


def run_peer(method: str, task: str, budget: int) -> dict[str, Any]:
    """The same for a method of `sbi`: files in, files out. Its own failure is the note."""
    theta, x = simulations(task, budget)
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
        run([python, runner, method, str(SEED), source, target])
    except Missing as error:
        return {"note": f"failed: {error}", "machine": machine()}
    with np.load(target) as result:
        return {
            "draws": result["draws"],
            "train_cpu_s": float(result["train"]),
            "sample_cpu_s": float(result["sample"]),
            "log_prob_cpu_s": float(result["log_prob"]),
            "heldout_loss": float(result["held_out"]),
            "machine": f"{machine()}, {result['versions']}",
        }


def scores(task: str, draws: np.ndarray) -> dict[str, float]:
    """C2ST at each observation, and its mean."""
    pairs = zip(reference(task)["reference_samples"], draws, strict=True)
    values = [c2st(truth, sample) for truth, sample in tqdm(pairs, "C2ST", 5, leave=False)]
    named = {f"c2st_{i}": value for i, value in enumerate(values, 1)}
    return named | {"mean": float(np.mean(values))}


def measure(task: str, budget: int, method: str) -> dict[str, Any]:
    """One row of the table."""
    start = {"task": task, "budget": budget, "method": method, "seed": SEED}
    result = run_ours(task, budget) if method == OURS else run_peer(method, task, budget)
    if "draws" in result:
        result |= scores(task, result.pop("draws"))
    if method == OURS and budget in BUDGETS:
        result["target"] = TARGETS[task][BUDGETS.index(budget)]
    row = dict.fromkeys(COLUMNS, "") | start | result
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}


def name_of(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("task", "budget", "method"))


def read() -> list[dict[str, Any]]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def store(row: dict[str, Any]) -> None:
    """Put the row in the table, in the place of an older one of its name; never half a file."""
    kept = [old for old in read() if name_of(old) != name_of(row)]
    order = {name: i for i, name in enumerate(TARGETS)}
    rows = sorted([*kept, row], key=lambda r: (order[r["task"]], int(r["budget"]), r["method"]))
    RESULTS.mkdir(exist_ok=True)
    draft = TABLE.with_suffix(".tmp")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(TABLE)


def plan(options: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """What is still to be measured, cheap budgets first. A row without a mean is tried again."""
    rows = [] if options.fresh else read()
    done = {name_of(row) for row in rows if row["mean"]}
    for budget in sorted(options.budgets):
        for task in options.tasks:
            for method in (OURS, *(PEERS if options.peers else ())):
                if (task, str(budget), method) not in done:
                    yield task, budget, method


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Posteriors against reference posteriors.")
    parser.add_argument("--tasks", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--peers", action="store_true", help="run the package sbi as well")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    return parser.parse_args()


def main() -> None:
    runs = tqdm(list(plan(arguments())))
    for task, budget, method in runs:
        runs.set_description(f"{method} on {task}, {budget}")
        row = measure(task, budget, method)
        store(row)
        shown = ("mean", "target", "train_cpu_s", "sample_cpu_s", "log_prob_cpu_s", "note")
        values = "  ".join(f"{key}={row[key]}" for key in shown if row[key] != "")
        tqdm.write(f"{task} {budget} {method}: {values}", file=sys.stdout)


if __name__ == "__main__":
    main()
