"""Inverse problems with exact answers: `Measured` beside what azula has, and what it costs.

    python -m benchmarks.inverse [--only mixtures repair digits cost] [--dimensions 2 4 16]

Mixtures of four Gaussians: three in 2 and in 4 dimensions, and one in 16, where it takes minutes to
tell draws apart; half as many random numbers are measured. A row stays until its dimension is
measured anew. The posterior is a mixture, known exactly. Digits: half a picture, the ideal denoiser
of the training set, for which the posterior is a weight for each scan.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from sklearn.datasets import load_digits

import edm_tutorial as edm
from benchmarks.environments import TORCH, Missing, Peer
from benchmarks.timing import read, write
from edm_tutorial.sbi import c2st

SIGMAS = edm.edm_sigmas(40, 0.01, 40.0)
DRAWS, PROBLEMS = 1000, {2: 3, 4: 3, 16: 1}  # problems of each dimension
ITERATIONS = (1, 2, 3, 4, 5, 7, 10)


class Problem(NamedTuple):
    """A mixture, what was measured of it, and the posterior."""

    prior: edm.GaussianMixture
    matrix: np.ndarray
    y: np.ndarray
    noise_std: float
    posterior: edm.GaussianMixture
    log_evidence: float

    def measured(self, **options: Any) -> edm.Measured:
        matrix, y = jnp.asarray(self.matrix, jnp.float32), jnp.asarray(self.y, jnp.float32)
        return edm.Measured(self.prior.denoise, lambda x: matrix @ x, y, self.noise_std, **options)

    def share(self, draws: Any) -> np.ndarray:
        """How the draws are shared among the components of the posterior."""
        log_joint = lambda x: self.posterior._log_joint(*self.posterior._local(x, 0.0))
        return np.asarray(jax.vmap(lambda x: jax.nn.softmax(log_joint(x)))(draws).mean(axis=0))


class Score(NamedTuple):
    """C2ST, the largest error of a component's share, and the width in a measured direction."""

    c2st: float
    share_error: float
    width: float
    cpu_s: float


def problem(d: int, noise_std: float, seed: int = 0) -> Problem:
    """Four Gaussians of widths about 0.3 with means of size 1; d / 2 random numbers of them."""
    rng, k = np.random.default_rng([d, seed]), 4
    root = rng.standard_normal((k, d, d)) * 0.3 / np.sqrt(d)
    means, weights = rng.standard_normal((k, d)), np.array([0.1, 0.2, 0.3, 0.4])
    covs = root @ root.swapaxes(1, 2) + 0.1**2 * np.eye(d)
    matrix = rng.standard_normal((d // 2, d)) / np.sqrt(d)
    x = means[2] + root[2] @ rng.standard_normal(d)
    y = matrix @ x + noise_std * rng.standard_normal(d // 2)
    posterior, log_evidence = exact(weights, means, covs, matrix=matrix, y=y, noise_std=noise_std)
    return Problem(
        prior=edm.GaussianMixture(weights, means, covs),
        matrix=matrix,
        y=y,
        noise_std=noise_std,
        posterior=posterior,
        log_evidence=log_evidence,
    )


def exact(
    weights: Any, means: Any, covs: Any, *, matrix: Any, y: Any, noise_std: float
) -> tuple[edm.GaussianMixture, float]:
    """The posterior, component by component, and ln p(y)."""
    spread = noise_std**2 * np.eye(len(y)) + matrix @ covs @ matrix.T
    gain = np.linalg.solve(spread, matrix @ covs).swapaxes(1, 2)
    gap = y - means @ matrix.T
    left = np.eye(matrix.shape[1]) - gain @ matrix
    new = left @ covs @ left.swapaxes(1, 2) + noise_std**2 * gain @ gain.swapaxes(1, 2)
    square = np.einsum("ki,kij,kj->k", gap, np.linalg.inv(spread), gap)
    log_joint = np.log(weights) - (square + np.linalg.slogdet(2 * np.pi * spread)[1]) / 2
    total = np.logaddexp.reduce(log_joint)
    shares = np.maximum(np.exp(log_joint - total), 1e-30)
    new_means = means + np.einsum("kij,kj->ki", gain, gap)
    return edm.GaussianMixture(shares / shares.sum(), new_means, new), float(total)


def mixtures(dimensions: list[int]) -> Iterator[dict[str, Any]]:
    """A row for each dimension, noise and method: means over problems, with standard errors."""
    for d in PROBLEMS:
        if d not in dimensions:
            yield from (row for row in read("inverse") if int(row["dimensions"]) == d)
            continue
        for noise_std in (0.1, 1.0):
            found: dict[str, list[Score]] = {}
            for seed in range(PROBLEMS[d]):
                one = problem(d, noise_std, seed)
                truth = jax.vmap(one.posterior.sample)(jr.split(jr.key(seed), DRAWS))
                noise = jr.normal(jr.key(100 + seed), (DRAWS, d))
                for method, draws, seconds in methods(one, noise):
                    score = scored(one, np.asarray(truth), draws, seconds)
                    found.setdefault(method, []).append(score)
            for method, scores in found.items():
                yield {"dimensions": d, "noise": noise_std, "method": method} | cells(scores)


def cells(scores: list[Score]) -> dict[str, str]:
    shown, several = Score(*np.mean(scores, axis=0)), len(scores) > 1
    error = np.std(scores, axis=0, ddof=1)[0] / len(scores) ** 0.5 if several else np.nan
    return {
        "problems": str(len(scores)),
        "c2st": f"{shown.c2st:.3f}",
        "standard_error": f"{error:.3f}" if several else "-",
        "share_error": f"{shown.share_error:.3f}",
        "width": f"{shown.width:.2f}",
        "cpu_s": f"{shown.cpu_s:.2g}",
    }


def methods(one: Problem, noise: Any):
    """The name, draws and CPU seconds of each method; ours are compiled first."""
    draw = jax.jit(jax.vmap(lambda z: edm.sample(one.measured(), z, SIGMAS)))
    jax.block_until_ready(draw(noise))
    start = time.process_time()
    draws = np.asarray(draw(noise))
    yield "Measured", draws, time.process_time() - start
    inputs = {"weights": one.prior.weights, "means": one.prior.means, "covs": one.prior.covs}
    inputs |= {"matrix": one.matrix, "y": one.y, "noise_std": one.noise_std}
    try:
        packages = [TORCH, "numpy", "azula"]
        peer = Peer("azula", packages, "inverse_azula", inputs | {"noise": noise, "sigmas": SIGMAS})
    except Missing as missing:
        print(f"azula: {missing}")
        return
    for name in (name for name in peer.outputs if f"{name} seconds" in peer.outputs):
        yield name, peer.outputs[name], float(peer.outputs[f"{name} seconds"])
    peer.close()


def scored(one: Problem, truth: np.ndarray, draws: np.ndarray, seconds: float) -> Score:
    """How far the draws are from exact ones; a method that diverged scores 1."""
    _, _, rows = np.linalg.svd(one.matrix)
    width = float(np.std(draws @ rows[0]) / np.std(truth @ rows[0]))
    if not np.all(np.isfinite(draws)) or np.abs(draws).max() > 1e3:
        return Score(1.0, 1.0, width, seconds)
    share_error = np.abs(one.share(jnp.asarray(draws)) - np.asarray(one.posterior.weights)).max()
    return Score(c2st(truth, draws), float(share_error), width, seconds)


def repair():
    """Importance weights by `log_likelihood`, in two dimensions."""
    for noise_std in (0.1, 1.0):
        one = problem(2, noise_std)
        told, noise = one.measured(), jr.normal(jr.key(2), (500, 2))
        draws = jax.vmap(lambda z, d=told: edm.sample(d, z, edm.edm_sigmas(64)))(noise)
        log_q = log_density(told, draws)
        gap = (jnp.asarray(one.y) - draws @ jnp.asarray(one.matrix.T)) / noise_std
        law = -jnp.sum(gap**2 + jnp.log(2 * jnp.pi * noise_std**2), axis=1) / 2
        log_w = jax.vmap(one.prior.log_prob, (0, None))(draws, 0.002) + law - log_q
        weights = np.asarray(jax.nn.softmax(log_w), float)
        evidence = float(jax.nn.logsumexp(log_w)) - np.log(len(draws))
        each = np.stack([one.share(x[None]) for x in draws])
        share = np.asarray(one.posterior.weights)
        yield {
            "noise": noise_std,
            "ln_evidence": f"{evidence:.3f}",
            "exactly": f"{one.log_evidence:.3f}",
            "error": f"{abs(evidence - one.log_evidence):.3f}",
            "share_error": f"{np.abs(each.mean(0) - share).max():.3f}",
            "share_error_weighted": f"{np.abs(weights @ each - share).max():.3f}",
            "effective_draws": f"{1 / np.sum(weights**2):.0f} of {len(draws)}",
        }


def log_density(denoiser: Any, x: Any) -> Any:
    density = lambda x: edm.log_likelihood(denoiser, x, sigmas=edm.edm_sigmas(80)).log_prob
    return jax.lax.map(density, x, batch_size=100)


LIBRARY = (load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 8 - 1).astype(np.float32)
SEEN = np.arange(64).reshape(8, 8) < 32


def half(seed: int, noise_std: float) -> tuple[Any, np.ndarray]:
    """The upper half of a random scan with noise, and the exact weight of every scan."""
    rng = np.random.default_rng(seed)
    y = LIBRARY[rng.integers(len(LIBRARY))][SEEN] + noise_std * rng.standard_normal(32)
    log_weight = -np.sum((LIBRARY[:, SEEN] - y) ** 2, axis=1) / (2 * noise_std**2)
    weight = np.exp(log_weight - log_weight.max())
    return jnp.asarray(y, jnp.float32), weight / weight.sum()


def dps(denoiser: Any, operator: Any, y: Any, noise_std: float) -> Any:
    """y given x taken as N(A D, s^2): no covariance of the clean picture."""

    def told(x, sigma, cond=None, *, key=None):
        predicted, pull = jax.vjp(lambda x: operator(denoiser(x, sigma)), x)
        return denoiser(x, sigma) + sigma**2 * pull((y - predicted) / noise_std**2)[0]

    return told


def digits(halves: int = 20, draws: int = 100):
    """Total variation between exact weights and shares of draws, mean over halves."""
    prior, operator = edm.EmpiricalDenoiser(LIBRARY), edm.inpaint(SEEN)
    noise = jr.normal(jr.key(3), (draws, 8, 8))
    for noise_std in (0.5, 1.0):
        asked = [half(seed, noise_std) for seed in range(halves)]
        rng = np.random.default_rng(0)
        floor = [np.abs(rng.multinomial(draws, w) / draws - w).sum() / 2 for _, w in asked]
        for name, make in {"Measured": edm.Measured, "DPS": dps}.items():

            @jax.jit
            def nearest(y, make=make, noise_std=noise_std):
                told, solver = make(prior, operator, y, noise_std), edm.DPMSolverPP2M()
                draw = lambda z: edm.sample(told, z, edm.edm_sigmas(18), solver=solver)
                x = jax.vmap(draw)(noise).reshape(draws, 64)
                square = jnp.sum(LIBRARY.reshape(-1, 64) ** 2, axis=1)
                return jnp.argmin(square - 2 * x @ LIBRARY.reshape(-1, 64).T, axis=1)

            variation = []
            for y, weight in asked:
                share = np.bincount(np.asarray(nearest(y)), minlength=len(LIBRARY)) / draws
                variation.append(np.abs(share - weight).sum() / 2)
            yield {
                "noise": noise_std,
                "method": name,
                "total_variation": f"{np.mean(variation):.3f}",
                "standard_error": f"{np.std(variation, ddof=1) / halves**0.5:.3f}",
                "exact_draws": f"{np.mean(floor):.3f}",
            }


def cost():
    """Error of the denoiser after k iterations, beside 32, in widths of the posterior.

    Root mean square over 32 states on the way to draws, at the level where it is largest.
    """
    y, weight = half(0, 0.5)
    prior, operator = edm.EmpiricalDenoiser(LIBRARY), edm.inpaint(SEEN)
    mean = np.tensordot(weight, LIBRARY, 1)
    spread = np.tensordot(weight, (LIBRARY - mean) ** 2, 1).mean() ** 0.5
    pictures = lambda k: edm.Measured(prior, operator, y, 0.5, iterations=k)
    one = problem(16, 0.2)
    truth = np.asarray(jax.vmap(one.posterior.sample)(jr.split(jr.key(0), DRAWS)))
    width = np.std(truth, axis=0).mean()
    digits_error = errors(pictures, (8, 8), spread)
    mixture_error = errors(lambda k: one.measured(iterations=k), (16,), width)
    for k, a, b in zip(ITERATIONS, digits_error, mixture_error, strict=True):
        calls = 2 * k + 4  # D, its linearisation, and k + 1 products of about two calls each
        yield {"iterations": k, "calls": calls, "digits": f"{a:.3g}", "mixture": f"{b:.3g}"}


def errors(told: Any, shape: tuple[int, ...], width: float) -> list[float]:
    levels, noise = edm.edm_sigmas(18), jr.normal(jr.key(4), (32, *shape))
    best = told(32)
    paths = jax.vmap(lambda z: edm.sample_path(best, z, levels))(noise)[:, :-1]
    at = lambda d: jax.jit(jax.vmap(lambda path: jax.vmap(d)(path, levels)))(paths)
    reference, found = at(best), []
    for k in ITERATIONS:
        error = at(told(k)) - reference
        rms = jnp.sqrt(jnp.mean(error**2, axis=(0, *range(2, error.ndim))))
        found.append(float(rms.max() / width))
    return found


PARTS = ("repair", "mixtures", "digits", "cost")


def main() -> None:
    parser = argparse.ArgumentParser(description="Inverse problems with exact answers.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--dimensions", nargs="+", type=int, choices=PROBLEMS, default=[*PROBLEMS])
    options = parser.parse_args()
    if "repair" in options.only:
        write("inverse_repair", repair())
    if "mixtures" in options.only:
        write("inverse", mixtures(options.dimensions))
    if "digits" in options.only:
        write("inverse_digits", digits())
    if "cost" in options.only:
        write("inverse_cost", cost())


if __name__ == "__main__":
    main()
