"""One network for every conditional: its posteriors against reference posteriors, and its truth.

    python -m benchmarks.joint [--only "slcp graph" two_moons] [--budgets 10000] [--seeds 1 2 3]
                               [--hours 3]
    python -m benchmarks.joint --gaussian

The column `ode` is the C2ST of draws without churn, by the solver of `fit_posterior`, from the same
fit and at as many calls. Two moons' likelihood, and the linear Gaussian's posterior with half of x
missing, add a row a seed to `results/joint_truth.csv`. Every observation adds its row to
`results/joint.csv` as soon as its draws are judged; a row that is there is not measured again, so a
run that was stopped goes on. Settings were chosen with seed 0, by held-out posterior loss.
`--gaussian` measures conditionals of a joint Gaussian against the truth.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np
import sklearn
from scipy import stats
from tqdm import tqdm

from benchmarks.sbi import DRAWS, FRESH, cpu, reference, simulations, unmeasured
from benchmarks.timing import machine, name_of, put, read, write
from edm_tutorial.sbi import Joint, JointSettings, default_settings, fit_joint, tasks
from edm_tutorial.sbi.calibration import c2st
from edm_tutorial.sbi.flow import SOLVER
from edm_tutorial.sbi.joint.conditionals import Conditional
from edm_tutorial.sbi.joint.fit import transformed
from edm_tutorial.sbi.joint.hidden import held_out
from edm_tutorial.sbi.settings import JOINT_ROWS

BUDGETS, SEEDS = (10_000,), (1, 2, 3)
POSTERIOR = (1.0, 0.0, 0.0, 0.0)
COLUMNS = ("variant", "budget", "seed", "observation", "c2st", "ode", "nats", "train_cpu_s")
COLUMNS += ("sample_cpu_s", "machine")
NAME = COLUMNS[:4]


class Variant(NamedTuple):
    """A task, what the network is told of its simulator, and what is hidden in training."""

    task: str
    points: tuple[int, int] | None = None  # the shape of x, where it is a set of points
    graph: bool = False
    shares: tuple[float, float, float, float] | None = None
    steps: float = 1.0  # times the default

    def settings(self, budget: int) -> JointSettings:
        settings = default_settings(budget * 9 // 10, JOINT_ROWS)
        settings = settings._replace(steps=round(settings.steps * self.steps))
        given = JointSettings(settings)
        return given if self.shares is None else given._replace(shares=self.shares)

    def observed(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x if self.points is None else x.reshape(*x.shape[:-1], *self.points)

    def depends(self, parameters: int) -> np.ndarray | None:
        """Every point is simulated from all parameters, and from no other point."""
        if not self.graph or self.points is None:
            return None
        tokens = parameters + self.points[0]
        depends = np.zeros((tokens, tokens), bool)
        depends[parameters:, :parameters] = True
        return depends


VARIANTS = {
    "slcp graph": Variant("slcp", (4, 2), graph=True),
    "slcp dense": Variant("slcp"),
    "two_moons": Variant("two_moons"),
    "gaussian_mixture": Variant("gaussian_mixture"),
    "gaussian_linear": Variant("gaussian_linear"),
    "bernoulli_glm": Variant("bernoulli_glm"),
    "slcp points, no graph": Variant("slcp", (4, 2)),
    "slcp graph, posterior only": Variant("slcp", (4, 2), graph=True, shares=POSTERIOR),
    "slcp graph, half the steps": Variant("slcp", (4, 2), graph=True, steps=0.5),
}
# The mean C2ST of posteriors that we hold ourselves to, at 10,000 simulations.
TARGETS = {
    "slcp graph": 0.68,
    "slcp dense": 0.77,
    "two_moons": 0.53,
    "gaussian_mixture": 0.53,
    "gaussian_linear": 0.51,
    "bernoulli_glm": 0.61,
}


def fitted(variant: Variant, budget: int, seed: int) -> tuple[Joint, float]:
    """The fit, and CPU seconds of it, compilation included."""
    theta, x = simulations(variant.task, budget, seed)
    support = getattr(tasks, variant.task)().prior_support
    return cpu(
        lambda: fit_joint(
            jr.key(100 + seed),
            np.asarray(theta),
            variant.observed(x),
            prior_support=support,
            depends=variant.depends(theta.shape[1]),
            settings=variant.settings(budget),
        )
    )


def posterior_nats(joint: Joint, variant: Variant) -> float:
    """Upper bound on the mean of -ln q(theta given x) over fresh simulations."""
    theta, x = tasks.draw(jr.key(999), getattr(tasks, variant.task)(), FRESH)
    rows = transformed(joint.transform, np.asarray(theta), variant.observed(x))
    return held_out(jr.key(998), *rows, joint.count, POSTERIOR)(joint.denoiser)


def measure(name: str, budget: int, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one fit, each as soon as it is known."""
    variant = VARIANTS[name]
    joint, train = fitted(variant, budget, seed)
    for row in truths(name, joint, budget, seed):
        put("joint_truth", row, NAME)
    nats, known = posterior_nats(joint, variant), reference(variant.task)
    for i, x_o in enumerate(variant.observed(known["observation"])):
        given, key = joint.posterior(x_o), jr.fold_in(jr.key(seed), i)
        drawn, drawing = cpu(partial(given.sample, key, DRAWS))
        exact = known["reference_samples"][i]
        scores = [c2st(exact, np.asarray(draws)) for draws in (drawn, ode(given, key))]
        values = (name, budget, seed, i + 1, *scores, nats, train, drawing)
        told = f"{machine()}, scikit-learn {sklearn.__version__}"
        row = dict(zip(COLUMNS, (*values, told), strict=True))
        yield {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}


def ode(given: Conditional, key: jax.Array) -> jax.Array:
    """Draws without churn, by the solver of `fit_posterior`, at as many calls of the network."""
    return given.sample(key, DRAWS, solver=SOLVER, churn=None, steps=given.steps)


def truths(name: str, joint: Joint, budget: int, seed: int) -> Iterator[dict[str, Any]]:
    """What else is known exactly of a task; `observation` is what is asked."""
    row = {"variant": name, "budget": budget, "seed": seed}
    task = getattr(tasks, VARIANTS[name].task)()
    if name == "two_moons":
        gaps = []
        for theta in jax.vmap(task.sample_prior)(jr.split(jr.key(997), 20)):
            x = jax.vmap(task.simulate, (0, None))(jr.split(jr.key(996), 100), theta)
            truth = jax.vmap(task.log_likelihood, (0, None))(x, theta)
            gaps.append(np.abs(np.asarray(joint.likelihood(theta).log_prob(x)) - np.asarray(truth)))
        asked = "likelihood at its draws, nats off, median"
        yield row | {"observation": asked, "value": f"{np.median(gaps):.3f}", "target": "0.15"}
    if name == "gaussian_linear":
        x_o = reference(name)["observation"][0].astype(float)
        seen = np.arange(10) % 2 == 0
        given = joint.posterior(np.where(seen, x_o, np.nan))
        draws = np.asarray(given.sample(jr.key(995), DRAWS))[:, :10]
        mean, std = np.where(seen, x_o / 2, 0), np.sqrt(np.where(seen, 0.05, 0.1))
        off = np.abs(draws.mean(axis=0) - mean) / std
        wide = np.abs(draws.std(axis=0) / std - 1)
        for asked, errors in (("means, widths off", off), ("widths, relative error", wide)):
            asked = f"posterior with half of x missing, {asked}, largest of ten"
            yield row | {"observation": asked, "value": f"{errors.max():.3f}", "target": ""}


def store(row: dict[str, Any]) -> None:
    """Put the row in the table, beside its kind."""
    order = {name: i for i, name in enumerate(VARIANTS)}
    put("joint", row, NAME, lambda r: (order[r["variant"]], *(int(r[key]) for key in NAME[1:])))


def plan(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """The fits still to be made, seed by seed."""
    wanted = (
        (name, budget, seed)
        for budget in sorted(options.budgets)
        for seed in options.seeds
        for name in options.only
    )
    return unmeasured(wanted, {name_of(row, NAME) for row in read("joint")})


def gaussian(simulated: int = 50_000, questions: int = 20) -> Iterator[dict[str, Any]]:
    """Errors of random conditionals of a joint Gaussian; beside them the sample covariance's.

    In exact standard deviations (means), in shares of them (widths) and in nats (log-densities at
    exact draws): the largest over questions and numbers, and the median.
    """
    rng, d = np.random.default_rng(1), 6
    root = rng.standard_normal((d, d))
    cov = root @ root.T / d + 0.1 * np.eye(d)
    rows = rng.multivariate_normal(np.zeros(d), cov, simulated).astype(np.float32)
    settings = default_settings(simulated, JOINT_ROWS)
    fit = lambda: fit_joint(jr.key(1), rows[:, :3], rows[:, 3:], settings=settings)
    joint, train = cpu(fit)
    found: dict[str, list[tuple[float, float, float]]] = {"joint": [], "sample covariance": []}
    for i in range(questions):
        known = rng.random(d) < 0.5
        known[rng.integers(d)] = False
        values = rng.multivariate_normal(np.zeros(d), cov)
        truth = conditional(np.zeros(d), cov, values, known)
        points = rng.multivariate_normal(*truth, 200)
        exact = log_density(points, *truth)
        given = joint.given(values, known)
        draws = np.asarray(given.sample(jr.key(i), DRAWS))
        learned = draws.mean(axis=0), draws.std(axis=0), np.asarray(given.log_prob(points))
        found["joint"].append(off(truth, exact, *learned))
        mean, spread = conditional(rows.mean(axis=0), np.cov(rows.T), values, known)
        sampled = log_density(points, mean, spread)
        found["sample covariance"].append(
            off(truth, exact, mean=mean, std=np.sqrt(np.diag(spread)), log_prob=sampled)
        )
    for name, errors in found.items():
        worst, middle = np.max(errors, axis=0), np.median(errors, axis=0)
        columns = ("mean", "width", "log_density")
        cells = {f"{c}_worst": f"{v:.4f}" for c, v in zip(columns, worst, strict=True)}
        cells |= {f"{c}_median": f"{v:.4f}" for c, v in zip(columns, middle, strict=True)}
        seconds = f"{train:.0f}" if name == "joint" else "0"
        yield (
            {"method": name, "simulations": simulated, "questions": questions}
            | cells
            | {"train_cpu_s": seconds}
        )


def log_density(points: Any, mean: Any, cov: Any) -> Any:
    return stats.multivariate_normal(mean, cov).logpdf(points)


def conditional(mean: Any, cov: Any, values: Any, known: Any) -> tuple[np.ndarray, np.ndarray]:
    u, k = np.flatnonzero(~known), np.flatnonzero(known)
    gain = cov[np.ix_(u, k)] @ np.linalg.inv(cov[np.ix_(k, k)])
    return mean[u] + gain @ (values[k] - mean[k]), cov[np.ix_(u, u)] - gain @ cov[np.ix_(k, u)]


def off(truth: Any, exact: Any, mean: Any, std: Any, log_prob: Any) -> tuple[float, float, float]:
    """The largest error of a mean, of a width, of a log-density."""
    width = np.sqrt(np.diag(truth[1]))
    errors = np.abs(mean - truth[0]) / width, np.abs(std / width - 1), np.abs(log_prob - exact)
    return float(errors[0].max()), float(errors[1].max()), float(errors[2].max())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Joint fits against reference posteriors.")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no fit after them")
    parser.add_argument("--gaussian", action="store_true", help="a joint Gaussian, nothing else")
    return parser.parse_args()


def main() -> None:
    options, start = arguments(), time.monotonic()
    if options.gaussian:
        write("joint_gaussian", gaussian())
        return
    for fit in tqdm(list(plan(options))):
        if time.monotonic() - start > 3600 * options.hours:
            break
        for row in measure(*fit):
            store(row)
            values = "  ".join(f"{key}={row[key]}" for key in COLUMNS[3:-1])
            tqdm.write(f"{' '.join(map(str, fit))}: {values}", file=sys.stdout)


if __name__ == "__main__":
    main()
