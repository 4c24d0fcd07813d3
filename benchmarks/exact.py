"""Draws of posteriors whose likelihood is known, by tempered sequential Monte Carlo.

python -m benchmarks.exact [TASK ...]    # make the references, and print how far two runs are apart
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from benchmarks.environments import BUILD
from edm_tutorial.sbi import tasks

MOVES = 12
IMPOSSIBLE = -1e30  # in place of a log-likelihood of -inf
# Of the references of `TASKS`: how many observations, draws of each posterior, and the seed.
OBSERVATIONS, DRAWS, SEED = 5, 10_000, 2024
TASKS = ("bernoulli_glm", "sir", "lotka_volterra")
LogDensity = Callable[[Array], Array]


def tempered(
    key: Array, start: Array, log_likelihood: LogDensity, log_prior: LogDensity
) -> tuple[Array, Array]:
    """Draws of the posterior and ln p(x), from `start`, draws of the prior.

    Each temperature is where half of the particles are worth as much as all; then each moves
    twelve times by Metropolis steps of many lengths in the covariance of all: for one mode, since
    of several narrow ones the shares are lost.
    """
    n, d = start.shape
    # Infinite, it would be NaN at a temperature of zero.
    fit = jax.vmap(lambda theta: jnp.maximum(log_likelihood(theta), IMPOSSIBLE))

    def temper(carry: Any) -> Any:
        beta, (theta, fits, laws), key, evidence = carry
        key, choose_key, move_key = jr.split(key, 3)
        step = _half_worth(fits, beta)
        evidence = evidence + jax.nn.logsumexp(step * fits) - np.log(n)
        beta = jnp.where(step == 1 - beta, 1.0, beta + step)
        rows = jr.choice(choose_key, n, (n,), p=jax.nn.softmax(step * fits))
        theta = theta[rows]
        root = jnp.linalg.cholesky(jnp.cov(theta.T) + 1e-12 * jnp.eye(d))
        state = theta, fits[rows], laws[rows]
        move = partial(_move, fit, jax.vmap(log_prior), beta, root)
        state, _ = jax.lax.scan(move, state, jr.split(move_key, MOVES))
        return beta, state, key, evidence

    state = start, fit(start), jax.vmap(log_prior)(start)
    first = (jnp.zeros(()), state, key, jnp.zeros(()))
    _, (theta, *_), _, evidence = jax.lax.while_loop(lambda carry: carry[0] < 1, temper, first)
    return theta, evidence


def _half_worth(fits: Array, beta: Array) -> Array:
    """The step of the inverse temperature that leaves half of the particles, 1 - beta at most."""
    share = lambda step: 1 / jnp.sum(jax.nn.softmax(step * fits) ** 2) / len(fits)

    def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        few = share(middle) < 0.5
        return jnp.where(few, low, middle), jnp.where(few, middle, high)

    low, high = jax.lax.fori_loop(0, 40, bisect, (jnp.zeros_like(beta), 1 - beta))
    step = jnp.where(low > 0, low, high)  # the impossible may be more than half
    return jnp.where(share(1 - beta) >= 0.5, 1 - beta, step)


def _move(
    fit: LogDensity, law: LogDensity, beta: Array, root: Array, state: Any, key: Array
) -> tuple[Any, None]:
    """One Metropolis step of all particles."""
    theta, fits, laws = state
    n, step_key, length_key, accept_key = len(theta), *jr.split(key, 3)
    lengths = jnp.exp(jr.uniform(length_key, (n, 1), minval=-2.5, maxval=0.4))
    new = theta + lengths * (jr.normal(step_key, theta.shape) @ root.T)
    new_fits, new_laws = fit(new), law(new)
    gain = beta * (new_fits - fits) + new_laws - laws
    take = jnp.log(jr.uniform(accept_key, (n,))) < gain
    both = ((new, theta), (new_fits, fits), (new_laws, laws))
    pick = lambda a, b: jnp.where(take[:, None] if a.ndim == 2 else take, a, b)
    return tuple(pick(a, b) for a, b in both), None


@partial(jax.jit, static_argnames="n")
def posterior_draws(key: Array, task: Any, x_o: Array, n: int = DRAWS) -> tuple[Array, Array]:
    """`n` draws of a task's posterior and ln p(x_o).

    Particles move in the logarithms of parameters that are positive, where their posterior is
    closer to a Gaussian.
    """
    prior_key, run_key = jr.split(key)
    positive = isinstance(task.prior, tasks.LogNormalPrior)
    to_theta = jnp.exp if positive else lambda z: z
    start = jax.vmap(task.sample_prior)(jr.split(prior_key, n))

    def law(z: Array) -> Array:
        return task.log_prior(to_theta(z)) + (jnp.sum(z) if positive else 0.0)

    def fit(z: Array) -> Array:
        value = task.log_likelihood(x_o, to_theta(z))
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    z, evidence = tempered(run_key, jnp.log(start) if positive else start, fit, law)
    return to_theta(z), evidence


def reference(name: str) -> dict[str, np.ndarray]:
    """Observations (5, dim x) and draws of their posteriors (5, 10000, dim theta), kept once made.

    The observations are simulated from the prior with a stated seed.
    """
    path = BUILD / "references" / f"{name}.npz"
    if not path.exists():
        task = getattr(tasks, name)()
        _, x = tasks.draw(jr.key(SEED), task, OBSERVATIONS)
        found = [posterior_draws(jr.key(i), task, x_o) for i, x_o in enumerate(x)]
        path.parent.mkdir(parents=True, exist_ok=True)
        samples, evidence = map(np.stack, zip(*found, strict=True))
        np.savez(path, observation=x, reference_samples=samples, log_evidence=evidence)
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def check(name: str) -> None:
    """Print, for each observation, how far a second run is from the reference, in its widths."""
    known, task = reference(name), getattr(tasks, name)()
    for i, x_o in enumerate(jnp.asarray(known["observation"])):
        again, evidence = posterior_draws(jr.key(100 + i), task, x_o)
        truth = known["reference_samples"][i]
        width = truth.std(axis=0)
        shift = np.abs(np.mean(again, axis=0) - truth.mean(axis=0)) / width
        wide = np.std(again, axis=0) / width
        distinct = len(np.unique(truth, axis=0)) / len(truth)
        further = float(evidence) - known["log_evidence"][i]
        print(
            f"{name} {i + 1}: shift at most {shift.max():.3f}, widths {wide.min():.3f} to "
            f"{wide.max():.3f}, ln evidence {further:+.2f}, {distinct:.1%} distinct"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="References of posteriors.")
    parser.add_argument("tasks", nargs="*", choices=TASKS, default=list(TASKS))
    for name in parser.parse_args().tasks:
        check(name)


if __name__ == "__main__":
    main()
