r"""Compute the design-space explorer: what each choice of a sampler does on one 2-D problem.

    python book/_tools/explorer.py          # or `make explorer`; three minutes

The data are three thin strokes, a mixture whose denoiser is a formula, so every error shown
is the sampler's alone, or that of a fault we put into the denoiser on purpose. For each
combination of denoiser, churn, noise levels, number of steps, clock and solver, the package
draws 2,048 samples; kept are eight paths, eighty samples, a histogram and two numbers:

- `path`: the root mean square distance, in data units, between where a path ends and where
  the exact ODE (2,000 steps of Heun with the exact denoiser) takes the same noise;
- `law`: the sliced Wasserstein-1 distance, in data units, between the samples and the truth
  (quantiles of the exact density), the mean over 16 directions. Samples of the truth itself
  score `floor` on it.

Paths, samples and histograms are rounded to 1/256 of their range. Writes the scripts
book/_static/explorer/data*.js: scripts, not JSON, so that the page also works from a disk.
"""

import base64
import itertools
import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array

import edm_tutorial as edm
from edm_tutorial.solvers import AbstractSolver

FOLDER = Path(__file__).resolve().parents[1] / "_static" / "explorer"
LOW, HIGH = 0.002, 80.0  # one range of noise levels for all grids
STEPS = (4, 9, 18, 36, 72, 144)
SAMPLES, SHOWN, PATHS, CORNERS, BINS, DIRECTIONS = 2048, 80, 8, 18, 32, 16
LIMIT, TALL = 1.25, 3.2  # of the plane, data units; of a path, standard deviations
NOISE_SEED, CHURN_SEED, TRUTH_SEED = 0, 1, 2

VP_CLOCK = edm.VariancePreserving.from_range(LOW, HIGH)
CLOCKS = {"edm": edm.Linear(), "ve": edm.VarianceExploding(), "vp": VP_CLOCK}
SOLVERS = {"euler": edm.Euler(), "heun": edm.Heun(), "dpm": edm.DPMSolverPP2M()}
# DPM-Solver++(2M) steps in ln(sigma), whatever the clock.
MOVERS = [*itertools.product(CLOCKS, ("euler", "heun")), ("edm", "dpm")]
RHOS = (1, 3, 5, 7, 10)
GRIDS = {
    **{f"edm-{rho}": partial(edm.edm_sigmas, rho=float(rho)) for rho in RHOS},
    "ve": partial(edm.ve_sigmas, sigma_min=LOW, sigma_max=HIGH),
    "vp": partial(edm.vp_sigmas, beta_d=VP_CLOCK.beta_d, beta_min=VP_CLOCK.beta_min),
    "iddpm": partial(edm.iddpm_sigmas, sigma_min=LOW, sigma_max=HIGH),
}
CHURNS = (0, 40)
CHURN_LOW = 0.05  # noise level below which no noise is added
FAULTS = {  # from, to (noise levels), shift of D along x_1 (data units)
    "exact": (1.0, 80.0, 0.0),
    "high": (1.0, 1e4, 0.2),
    "low": (0.05, 0.3, 0.05),
}


@final
class Faulty(eqx.Module):
    """A denoiser that is off by `shift` along the first axis for low <= sigma <= high."""

    denoiser: Any
    low: Array
    high: Array
    shift: Array

    def __call__(self, x: Array, sigma: Any, cond: Any = None, *, key: Any = None) -> Array:
        wrong = (self.low <= sigma) & (sigma <= self.high)
        shift = jnp.where(wrong, self.shift, 0).astype(x.dtype)
        return self.denoiser(x, sigma, cond) + shift * jnp.eye(2, dtype=x.dtype)[0]


class Choice(NamedTuple):
    """One combination; `clock` is "edm" with the solver "dpm"."""

    denoiser: str
    churn: int
    grid: str
    n: int
    clock: str
    solver: str


class Result(NamedTuple):
    """What the page shows of a combination; `path` is NaN where churn makes it random."""

    corners: np.ndarray  # (PATHS, vertices), standard deviations of the noisy x_1
    samples: np.ndarray  # (SHOWN, 2), data units
    density: np.ndarray  # (BINS,), of x_1 over its bins, per data unit
    path: float
    law: float


def truth() -> edm.GaussianMixture:
    """Three strokes of length about 1 and width about 0.1, around the origin."""
    around = jnp.pi * jnp.array([1 / 2, 7 / 6, 11 / 6])
    means = 0.55 * jnp.stack([jnp.cos(around), jnp.sin(around)], axis=1)
    covs = 0.28**2 * _squares(around + 0.96) + 0.045**2 * _squares(around + 0.96 + jnp.pi / 2)
    return edm.GaussianMixture(jnp.full(3, 1 / 3), means, covs)


def _squares(angles: Array) -> Array:
    """The projections on the directions at `angles`, (len(angles), 2, 2)."""
    e = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return e[:, :, None] * e[:, None, :]


def noise() -> Array:
    """Unit noise, (SAMPLES, 2): the first PATHS are spread out along x_1."""
    z = jr.normal(jr.key(NOISE_SEED), (SAMPLES, 2))
    even = norm.ppf((np.arange(PATHS) + 0.5) / PATHS)
    return z.at[:PATHS].set(jnp.stack([even, even[jnp.array([3, 6, 1, 4, 7, 2, 5, 0])]], axis=1))


def levels(grid: str, n: int) -> np.ndarray:
    return np.asarray(GRIDS[grid](n), float)


def vertices(n: int) -> np.ndarray:
    """The steps at which a path is drawn: all up to 18, else every other, fourth, eighth."""
    return np.arange(0, n + 1, max(1, n // CORNERS))


@eqx.filter_jit
def draw(
    denoiser: Faulty,
    z: Array,
    sigmas: Array,
    clock: edm.AbstractSchedule,
    solver: AbstractSolver,
    churn: edm.Churn,
) -> Array:
    """The unscaled states of all paths, shape (len(z), n + 1, 2)."""
    path = lambda noise, key: edm.sample_path(
        denoiser, noise, sigmas, schedule=clock, solver=solver, churn=churn, key=key
    )
    states = jax.vmap(path)(z, jr.split(jr.key(CHURN_SEED), len(z)))
    scales = jax.vmap(lambda sigma: clock.scale(clock.time(sigma)))(sigmas)
    return states / jnp.append(scales, 1.0)[None, :, None]


def run(choice: Choice) -> Array:
    """The states of all paths of one combination, (SAMPLES, n + 1, 2), data units."""
    low, high, shift = map(jnp.asarray, FAULTS[choice.denoiser])
    churn = edm.Churn(jnp.asarray(float(choice.churn)), CHURN_LOW)  # 0 changes nothing
    clock, solver = CLOCKS[choice.clock], SOLVERS[choice.solver]
    denoiser = Faulty(truth().denoise, low, high, shift)
    return draw(denoiser, noise(), GRIDS[choice.grid](choice.n), clock, solver, churn)


def exact_ends(sigma_max: float) -> np.ndarray:
    """Where the exact ODE from `sigma_max` to 0 takes the noise, (SAMPLES, 2)."""
    sigmas = edm.edm_sigmas(2000, 1e-4, sigma_max)
    end = lambda z: edm.sample(truth().denoise, z, sigmas)
    return np.asarray(eqx.filter_jit(jax.vmap(end))(noise()))


def exact_paths() -> tuple[np.ndarray, np.ndarray]:
    """About sixty levels, down to 0, and the exact paths there, in standard deviations."""
    sigmas = edm.edm_sigmas(2000, 1e-4, HIGH)
    path = lambda z: edm.sample_path(truth().denoise, z, sigmas)[..., 0]
    states = np.asarray(eqx.filter_jit(jax.vmap(path))(noise()[:PATHS]))
    at = np.append(np.geomspace(HIGH, LOW, 60), 0.0)
    shown = np.append(np.searchsorted(-np.asarray(sigmas), -at[:-1]), 2000)
    found = np.append(sigmas, 0.0)[shown]
    return found, states[:, shown] / np.hypot(found, spread())


def _directions() -> np.ndarray:
    angles = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    return np.stack([np.cos(angles), np.sin(angles)])


def quantiles() -> np.ndarray:
    """Of the exact density along each direction, (DIRECTIONS, SAMPLES)."""
    mixture, grid = truth(), np.linspace(-2.5, 2.5, 5001)
    rows = []
    for direction in _directions().T:
        means = np.asarray(mixture.means) @ direction
        stds = np.sqrt(np.einsum("i,kij,j->k", direction, mixture.covs, direction))
        below = np.asarray(norm.cdf((grid[:, None] - means) / stds)) @ np.asarray(mixture.weights)
        rows.append(np.interp((np.arange(SAMPLES) + 0.5) / SAMPLES, below, grid))
    return np.array(rows)


def law_distance(ends: np.ndarray, exact: np.ndarray) -> float:
    """The sliced Wasserstein-1 distance of `ends` from the truth with quantiles `exact`."""
    return float(np.abs(np.sort(ends @ _directions(), axis=0).T - exact).mean())


def floor(exact: np.ndarray, repeats: int = 20) -> float:
    """What SAMPLES draws of the truth score on `law_distance`, on average."""
    draws = jax.jit(jax.vmap(truth().sample))
    keys = jr.split(jr.key(TRUTH_SEED), (repeats, SAMPLES))
    return float(np.mean([law_distance(np.asarray(draws(k)), exact) for k in keys]))


def spread() -> float:
    """The standard deviation of x_1 in the data."""
    mixture = truth()
    return float(jnp.sqrt(mixture.weights @ (mixture.means[:, 0] ** 2 + mixture.covs[:, 0, 0])))


def result(choice: Choice, ends: np.ndarray, exact: np.ndarray) -> Result:
    """Run one combination; `ends` and `exact` are of `exact_ends` and `quantiles`."""
    states, rows = np.asarray(run(choice)), vertices(choice.n)
    sigmas = np.append(levels(choice.grid, choice.n), 0.0)
    corners = states[:PATHS, rows, 0] / np.hypot(sigmas, spread())[rows]
    last = states[:, -1]
    counts, edges = np.histogram(last[:, 0], BINS, (-LIMIT, LIMIT))
    path = np.nan if choice.churn else float(np.sqrt(((last - ends) ** 2).sum(1).mean()))
    density = counts / SAMPLES / np.diff(edges)
    return Result(corners, last[:SHOWN], density, path, law_distance(last, exact))


# The bytes of the page


def as_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.round(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)


def as_text(picture: Array) -> str:
    return base64.b64encode(
        as_bytes(np.asarray(picture), 0, float(picture.max())).tobytes()
    ).decode()


def packed(shown: Result) -> np.ndarray:
    """Paths, samples and histogram of a combination, one after the other."""
    parts = [as_bytes(shown.corners, -TALL, TALL), as_bytes(shown.samples, -LIMIT, LIMIT)]
    return np.concatenate([p.ravel() for p in [*parts, as_bytes(shown.density, 0.0, 2.0)]])


def compress(rows: list[list[np.ndarray]]) -> str:
    """For each number of steps, differences from combination to combination."""
    blocks = [np.diff(np.stack(block), axis=0, prepend=np.uint8(0)).T for block in rows]
    return base64.b64encode(zlib.compress(b"".join(b.tobytes() for b in blocks), 9)).decode()


def decompress(text: str) -> list[np.ndarray]:
    """The inverse of `compress`, as the page does it: (combinations, bytes) for each n."""
    data, blocks, start = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8), [], 0
    for n in STEPS:
        size = PATHS * len(vertices(n)) + 2 * SHOWN + BINS
        stop = start + size * len(GRIDS) * len(MOVERS)
        blocks.append(np.cumsum(data[start:stop].reshape(size, -1).T, axis=0, dtype=np.uint8))
        start = stop
    return blocks


def rounded(values: Any) -> Any:
    """Nested lists of three significant digits; NaN becomes null."""
    if isinstance(values, list | tuple | np.ndarray):
        return [rounded(value) for value in values]
    return None if np.isnan(values) else float(f"{values:.3g}")


def backdrop(ends: np.ndarray) -> dict[str, Any]:
    """The truth: its density in the plane, its marginals at every level, and its paths."""
    mixture, c = truth(), spread()
    line = lambda count, reach: (jnp.arange(count) + 0.5) / count * 2 * reach - reach
    x = line(96, LIMIT)
    plane = jnp.exp(
        jax.vmap(lambda b: jax.vmap(lambda a: mixture.log_prob(jnp.stack([a, b])))(x))(x)
    )
    marginal = edm.GaussianMixture(mixture.weights, mixture.means[:, :1], mixture.covs[:, :1, :1])
    sigmas = np.geomspace(HIGH, LOW, 96)
    width = np.hypot(sigmas, c)
    y = line(96, TALL)
    at = lambda s, w: jax.vmap(lambda v: marginal.log_prob(v[None] * w, s))(y)
    heat = jnp.exp(jax.vmap(at)(jnp.asarray(sigmas), jnp.asarray(width))).T * width
    exact = jnp.exp(jax.vmap(lambda v: marginal.log_prob(v[None]))(line(BINS, LIMIT)))
    levels, paths = exact_paths()
    return {
        "spread": rounded(c),
        "plane": as_text(plane),
        "heat": as_text(heat),
        "density": rounded(np.asarray(exact)),
        "exact": {
            "levels": rounded(levels),
            "paths": rounded(paths),
            "ends": rounded(ends[:SHOWN]),
        },
    }


def choices(denoiser: str, churn: int, n: int) -> list[Choice]:
    combinations = itertools.product(GRIDS, MOVERS)
    return [Choice(denoiser, churn, grid, n, *mover) for grid, mover in combinations]


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time is compilation
    exact = quantiles()
    ends = {grid: exact_ends(float(levels(grid, 1)[0])) for grid in ("edm-7", "iddpm")}
    errors: dict[str, dict[str, list]] = {}
    for denoiser, churn in itertools.product(FAULTS, CHURNS):
        name, rows = f"{denoiser}-{churn}", []
        errors[name] = {"path": [], "law": []}
        for n in STEPS:
            found = [
                result(choice, ends["iddpm" if choice.grid == "iddpm" else "edm-7"], exact)
                for choice in choices(denoiser, churn, n)
            ]
            rows.append([packed(shown) for shown in found])
            errors[name]["path"].append(rounded([shown.path for shown in found]))
            errors[name]["law"].append(rounded([shown.law for shown in found]))
            print(name, n, flush=True)
        text = f'explorer.packed("{name}", "{compress(rows)}");\n'
        (FOLDER / f"data-{name}.js").write_text(text)
    index = {
        "range": [LOW, HIGH], "steps": STEPS, "movers": ["-".join(m) for m in MOVERS],
        "grids": list(GRIDS), "churns": CHURNS, "denoisers": FAULTS, "churnLow": CHURN_LOW,
        "paths": PATHS, "shown": SHOWN, "bins": BINS, "limit": LIMIT, "tall": TALL,
        "samples": SAMPLES, "floor": rounded(floor(exact)), "errors": errors,
        "levels": {g: [rounded(levels(g, n)[vertices(n)[:-1]]) for n in STEPS] for g in GRIDS},
        "vertices": [len(vertices(n)) for n in STEPS], **backdrop(ends["edm-7"]),
    }  # fmt: skip
    text = json.dumps(index, separators=(",", ":"))
    (FOLDER / "data.js").write_text(f"window.explorer = {{ data: {text} }};\n")
    print(sum(path.stat().st_size for path in FOLDER.glob("data*.js")) // 1000, "kB")


if __name__ == "__main__":
    main()
