"""What two parts of a posterior's fit bring, on problems that chose none of its defaults.

    python -m benchmarks.sbi_choices

Three problems in a box, 2,000 simulations, three seeds each: a ring, a wave with several peaks, and
a straight line in eight dimensions. Beside the defaults stand a fit whose bounds bend within all of
the spread that a linear fit leaves (`narrowness` is 1), and one whose network is an `MLP` alone,
without a Gaussian set by x. Each row of `results/sbi_choices.csv` is the mean of -ln q over 2,000
fresh simulations, in nats; it is kept as soon as it is there.
"""

from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tqdm import tqdm

from benchmarks.timing import machine, read, save
from edm_tutorial import MLP
from edm_tutorial.networks.mlp import OCTAVES
from edm_tutorial.sbi import Posterior, default_settings, fit_posterior
from edm_tutorial.sbi.transforms import chain

SIMULATIONS, FRESH, SEEDS = 2_000, 2_000, (1, 2, 3)


def ring(theta, n):
    return jnp.stack([jnp.hypot(*theta) + 0.05 * n[0], theta[0] + 0.5 * n[1]])


def wave(theta, n):
    return jnp.stack([jnp.sin(4 * theta[0]) + 0.1 * n[0], theta[1] - theta[0] ** 2 + 0.1 * n[1]])


def line(theta, n):
    return theta + 0.5 * n


PROBLEMS = {"ring": (ring, 2), "wave": (wave, 2), "line": (line, 8)}  # and numbers of parameters


def draw(problem: str, key: jax.Array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters, uniform between -1 and 1, and what is simulated with them."""
    simulate, d = PROBLEMS[problem]
    theta_key, noise_key = jr.split(key)
    theta = jr.uniform(theta_key, (count, d), minval=-1.0, maxval=1.0)
    return np.asarray(theta), np.asarray(
        jax.vmap(simulate)(theta, jr.normal(noise_key, (count, d)))
    )


def defaults(key, theta, x, support) -> Posterior:
    return fit_posterior(key, theta, x, prior_support=support)


def within_the_spread(key, theta, x, support) -> Posterior:
    with mock.patch.object(chain, "narrowness", lambda theta, x, spread: np.ones_like(spread)):
        return fit_posterior(key, theta, x, prior_support=support)


def mlp_alone(key, theta, x, support) -> Posterior:
    settings = default_settings(len(theta) * 9 // 10)
    sizes = {"width": settings.width, "depth": settings.depth, "dropout": settings.dropout}
    network = MLP(theta.shape[1], x.shape[1], octaves=OCTAVES, **sizes, key=jr.fold_in(key, 1))
    return fit_posterior(key, theta, x, prior_support=support, network=network)


FITS: dict[str, Callable[..., Posterior]] = {  # and the columns of the table
    "defaults": defaults,
    "bounds bend within the spread": within_the_spread,
    "one network for all": mlp_alone,
}


def measure(problem: str, seed: int) -> dict[str, object]:
    """One row: the same simulations for every fit."""
    theta, x = draw(problem, jr.key(seed), SIMULATIONS)
    fresh = draw(problem, jr.key(999), FRESH)
    d = theta.shape[1]
    row = {"problem": problem, "seed": seed}
    for name, fit in FITS.items():
        posterior = fit(jr.key(100 + seed), theta, x, (-np.ones(d), np.ones(d)))
        row[name] = round(-float(np.mean(jax.jit(jax.vmap(posterior.log_prob))(*fresh))), 3)
    return row | {"machine": machine()}


def main() -> None:
    rows = read("sbi_choices")
    done = {(row["problem"], row["seed"]) for row in rows}
    for problem, seed in tqdm([(p, s) for p in PROBLEMS for s in SEEDS if (p, str(s)) not in done]):
        rows.append(measure(problem, seed))
        save("sbi_choices", rows)


if __name__ == "__main__":
    main()
