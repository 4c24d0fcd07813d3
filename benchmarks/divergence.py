"""Standard errors of log-densities by five estimates of the trace, at equal products.

    python -m benchmarks.divergence

The exact Jacobians J of D at 40 levels along the flow of one point are kept; every estimate is then
a sum over levels of products with them, repeated 200 times. Digits: d = 64, a network trained for
a minute; and a correlated Gaussian, d = 256, whose exact denoiser is used. Each row of
`results/divergence.csv` is the standard deviation of the log-density in nats, the mean over points.

- probes: Rademacher vectors, drawn once for all levels, as `log_likelihood(probes=...)` does.
- orthogonal: the same, but each at a right angle to the others, of a random direction.
- Hutch++ (Meyer et al., 2021): a third of the products finds the range of J at each level, a third
  gives the trace there exactly, and a third are probes of what is left.
- control: probes of J less the Jacobian C (C + sigma^2)^-1 of the Gaussian with the covariance C of
  the training data, whose trace is known. For the Gaussian, C is that of 1,000 draws.
- control, Hutch++: both.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from sklearn.datasets import load_digits

import edm_tutorial as edm
from benchmarks.timing import machine, write

LEVELS, POINTS, REPEATS = 40, 4, 200
PRODUCTS = (3, 12, 48)
SIGMA_MIN, SIGMA_MAX = 0.02, 80.0


def digits() -> tuple[Any, np.ndarray, np.ndarray]:
    """A trained denoiser of the digits, points it has not seen, and the covariance it has."""
    rows = np.random.default_rng(0).permutation(load_digits().data / 8 - 1)
    noise_key, net_key, train_key = jr.split(jr.key(0), 3)
    cell = 0.125 * np.asarray(jr.uniform(noise_key, rows.shape, minval=-0.5, maxval=0.5))
    rows = (rows - rows[:1500].mean(axis=0) + cell).astype(np.float32)
    known, new = rows[:1500], rows[1500:]
    network = edm.MLP(64, width=256, depth=3, key=net_key)
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning.from_data(known))
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, 3000))
    ((state, _),) = edm.train(
        denoiser, loss, known, optimizer, steps=3000, batch_size=128, every=3000, key=train_key
    )
    return state.ema, new[:POINTS], np.cov(known.T)


def gaussian() -> tuple[Any, np.ndarray, np.ndarray]:
    """The denoiser of a Gaussian whose neighbours correlate by 0.9, points, a covariance."""
    near = np.abs(np.subtract.outer(np.arange(256), np.arange(256)))
    covariance = 0.25 * 0.9**near
    law = edm.GaussianMixture([1.0], np.zeros((1, 256)), covariance[None])
    rows = np.random.default_rng(0).multivariate_normal(np.zeros(256), covariance, 1000 + POINTS)
    return law.denoise, rows[:POINTS].astype(np.float32), np.cov(rows[POINTS:].T)


def jacobians(denoiser: Any, x: jax.Array, sigmas: np.ndarray) -> np.ndarray:
    """dD/dx at each level along the flow that starts at x, by Heun's steps."""

    @eqx.filter_jit
    def along(x: jax.Array) -> jax.Array:
        slope = lambda x, sigma: (x - denoiser(x, sigma)) / sigma

        def step(x: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            sigma, higher = ends
            first = slope(x, sigma)
            second = slope(x + (higher - sigma) * first, higher)
            jacobian = jax.jacfwd(lambda x: denoiser(x, sigma))(x)
            return x + (higher - sigma) * (first + second) / 2, jacobian

        levels = jnp.asarray(sigmas, x.dtype)
        return jax.lax.scan(step, x, (levels[:-1], levels[1:]))[1]

    return np.asarray(along(x), float)


def probes(random: np.random.Generator, parts: np.ndarray, products: int) -> np.ndarray:
    """Estimates of the trace at each level, the same Rademacher vectors at all."""
    return _mean_over(random.choice([-1.0, 1.0], (parts.shape[-1], products)), parts)


def orthogonal(random: np.random.Generator, parts: np.ndarray, products: int) -> np.ndarray:
    """The same with vectors of length sqrt(d) at right angles."""
    d = parts.shape[-1]
    q, _ = np.linalg.qr(random.normal(size=(d, products)))
    return _mean_over(d**0.5 * q, parts)


def _mean_over(v: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The mean of v^T J v over the columns of v, for each J."""
    return np.einsum("ip,kij,jp->k", v, parts, v, optimize=True) / v.shape[1]


def hutch_pp(random: np.random.Generator, parts: np.ndarray, products: int) -> np.ndarray:
    """A third of the products for the range of each matrix, one for its trace, one for the rest."""
    third, d = products // 3, parts.shape[-1]
    sketch, v = random.choice([-1.0, 1.0], (2, d, third))
    q, _ = np.linalg.qr(parts @ sketch)
    within = np.einsum("kij,kil,klj->k", q, parts, q, optimize=True)
    rest = v - q @ (np.swapaxes(q, 1, 2) @ v)
    return within + np.einsum("kij,kil,klj->k", rest, parts, rest, optimize=True) / third


def spread(
    estimate: Callable[..., np.ndarray], parts: np.ndarray, weights: np.ndarray, products: int
) -> float:
    """The standard deviation of the integrated estimate, nats."""
    random = np.random.default_rng(1)
    sums = [weights @ estimate(random, parts, products) for _ in range(REPEATS)]
    return float(np.std(sums, ddof=1))


def rows() -> Iterator[dict[str, Any]]:
    sigmas = np.geomspace(SIGMA_MIN, SIGMA_MAX, LEVELS + 1)
    weights = np.diff(np.log(sigmas))
    for name, make in (("digits, d = 64", digits), ("Gaussian, d = 256", gaussian)):
        denoiser, points, covariance = make()
        variances, axes = np.linalg.eigh(covariance)
        shares = variances / (variances + sigmas[:-1, None] ** 2)
        control = (axes * shares[:, None]) @ axes.T
        all_parts = [jacobians(denoiser, jnp.asarray(x), sigmas) for x in points]
        for products in PRODUCTS:
            ways = {"probes": (probes, 0.0), "orthogonal": (orthogonal, 0.0)}
            ways |= {"Hutch++": (hutch_pp, 0.0)}
            ways |= {"control": (probes, control), "control, Hutch++": (hutch_pp, control)}
            errors = {
                way: np.mean([spread(f, parts - less, weights, products) for parts in all_parts])
                for way, (f, less) in ways.items()
            }
            for way, error in errors.items():
                ratio = error / errors["probes"]
                cells = {"nats": f"{error:.3f}", "over probes": f"{ratio:.2f}"}
                row = {"problem": name, "products": products, "estimate": way}
                yield row | cells | {"machine": machine()}


if __name__ == "__main__":
    write("divergence", rows())
