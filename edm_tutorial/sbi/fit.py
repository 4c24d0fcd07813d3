r"""From simulations $(\theta_i, x_i) \sim p(\theta)\,p(x \mid \theta)$ to the posterior of any x.

A denoiser of the parameters that is told the observation, trained on such pairs, is the
denoiser of the posterior: no likelihood is evaluated, no prior density is needed.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_floating
from .._types import PRNGKey
from ..denoiser import Denoiser
from ..networks import Embedded
from ..noise_levels import AbstractNoiseDistribution
from ..preconditioning import EDMPreconditioning
from ..training.state import init_state
from .early_stopping import FitState, optimise, optimizer_of
from .history import History
from .neighbours import width_by_neighbours
from .network import build_network
from .noise_levels import LikelihoodNoise, PosteriorNoise
from .posterior import Posterior
from .settings import Plan, default_plan
from .transforms.bounds import Support
from .transforms.chain import Coordinates
from .transforms.linear import LinearRegression
from .transforms.standardize import Standardizer
from .validation import HeldOut

NOISE = PosteriorNoise()
AT_ONCE = 65_536  # simulations on the device while they are standardised
FEWEST = 50  # simulations
FEWEST_HELD_OUT, MOST_HELD_OUT = 100, 10_000
SIGMA_MIN, SIGMA_MAX = 1e-3, 20.0
NARROWEST = 0.1  # width that neighbours see over that a line leaves: 1 for a Gaussian posterior
LARGEST_SIGMA_MIN = 0.02  # where sampling may end for the widest posterior
LOST_VARIANCE = 0.005  # (1/14)^2: at a fourteenth of the width, 0.25 % of it is lost
STEPS_PER_E_FOLD = 5.5


def fit_posterior(
    key: PRNGKey,
    theta: Float[ArrayLike, "n d"],
    x: Float[ArrayLike, " n *shape"],
    *,
    prior_support: tuple[Any, Any] | None = None,
    network: Callable[..., Array] | None = None,
    embedding: Callable[[Any], Array] | None = None,
    steps: int | None = None,
    plan: Plan | None = None,
    noise: AbstractNoiseDistribution = NOISE,
    callback: Callable[[FitState], Any] | None = None,
    state: FitState | None = None,
) -> Posterior:
    """Learn the posterior of `theta` given `x` from simulations.

        posterior = fit_posterior(key, theta, x, prior_support=(low, high))
        draws = posterior.sample(key, x_o, 10_000)

    A tenth is held out of training. Training stops when the held-out loss of the averaged
    weights has not fallen for long, and the best of them are kept.

    Arguments:
        theta: parameters drawn from the prior, one row a simulation.
        x: what was simulated with them, one vector a row; with `embedding`, any shape.
        prior_support: (low, high), each of shape (d,), -inf or inf where there is no bound.
        network: your own `F(z, c_noise, x, *, key=None)`, in place of the default one.
        embedding: turns one x into the vector that the network is told, and is trained with
            it: for time series, images, or sets.
        steps: optimiser steps at most; a smooth function of n unless given.
        plan: all numbers of the training, `default_plan(n)` unless given.
        noise: the law of the training noise level, in units of standardised parameters.
        callback: called after every chunk of steps with a `FitState`, which it may keep, and
            whose history it may show: `lambda s: bar.update(s.history.step[-1] - bar.n)`.
        state: a `FitState` to go on from; the other arguments must be what they were.

    Raises:
        ValueError: fewer than 50 simulations, `theta` and `x` of unequal length, columns that
            are constant or not finite, or parameters outside `prior_support`.
    """
    theta, x = _checked(theta, x, embedding is not None)
    split_key, network_key, held_key, train_key = jr.split(key, 4)
    kept, held = _split(split_key, len(theta))
    plan = default_plan(len(kept)) if plan is None else plan
    plan = plan if steps is None else plan.lasting(steps)
    coordinates = _measure(theta[kept], x[kept], prior_support, theta, embedding is None)
    data = _seen(coordinates, theta[kept], x[kept])
    log_det = float(jnp.mean(_map(coordinates.log_det, theta[held])))
    law = LikelihoodNoise(SIGMA_MIN, SIGMA_MAX)
    z, seen = (jnp.asarray(part) for part in _seen(coordinates, theta[held], x[held]))
    held_out = HeldOut.draw(held_key, z, seen, log_det, law)
    denoiser = Denoiser(
        _network(network_key, data, coordinates, plan, network, embedding), EDMPreconditioning(1.0)
    )
    if state is None:
        state = FitState(init_state(denoiser, optimizer_of(plan)), denoiser, History())
    state = optimise(train_key, state, data, held_out, plan, noise, callback)
    sigma_min = smallest_sigma(held_out, state.best)
    steps = round(STEPS_PER_E_FOLD * np.log(SIGMA_MAX / sigma_min))
    return Posterior(state.best, coordinates, sigma_min, SIGMA_MAX, steps, state.history)


def smallest_sigma(held_out: HeldOut, denoiser: Any) -> float:
    """The noise level at which sampling may end: its last step loses 0.5 % of the variance.

    At most, and of the feature that loses most; never below the levels of training.
    """
    levels = np.geomspace(SIGMA_MIN, LARGEST_SIGMA_MIN, 10)
    too_much = np.array([held_out.gain(denoiser, level) > LOST_VARIANCE for level in levels])
    return float(levels[max(int(np.argmax(too_much)) - 1, 0) if too_much.any() else -1])


def _measure(
    theta: np.ndarray, x: np.ndarray, prior_support: Any, everything: np.ndarray, vectors: bool
) -> Coordinates:
    """Standardisers, from the simulations to train on."""
    theta_scale = Standardizer.fit(theta, "theta")
    x_scale = Standardizer.fit(x, "x") if vectors else _one_scale(x)
    support = Support.of(prior_support, everything)
    seen = _scaled(x_scale, x) if vectors else None
    if seen is not None:
        softness = _softness(_scaled(theta_scale, theta), seen)
        support = Support(support.low, support.high, softness * theta_scale.std)
    u = np.asarray(_map(support.forward, theta))
    u_scale = Standardizer.fit(u, "theta")
    line = None if seen is None else LinearRegression.fit(_scaled(u_scale, u), seen)
    return Coordinates(support, u_scale, x_scale, line)


def _scaled(scale: Standardizer, rows: np.ndarray) -> np.ndarray:
    return (rows - np.asarray(scale.mean)) / np.asarray(scale.std)


def _softness(theta: np.ndarray, x: np.ndarray) -> Array:
    """How far from two bounds to bend, given scaled parameters and observations.

    The spread that a straight line leaves, times the square of how much narrower the posterior
    is than that: all of it if the posterior is Gaussian, which makes a tail of an edge; little
    around narrow or many peaks, which keep their shape.
    """
    spread = np.linalg.norm(np.asarray(LinearRegression.fit(theta, x).scale), axis=1)
    narrower = np.clip(width_by_neighbours(theta, x) / spread, NARROWEST, 1)
    return jnp.asarray(spread * narrower**2, theta.dtype)


def _network(
    key: PRNGKey,
    data: tuple[np.ndarray, np.ndarray],
    coordinates: Coordinates,
    plan: Plan,
    network: Callable[..., Array] | None,
    embedding: Callable[[Any], Array] | None,
) -> Callable[..., Array]:
    """The user's network, or the default one, its predictions those of the linear fit, scaled."""
    if network is not None:
        return network if embedding is None else Embedded(network, embedding)
    z, x = data
    built: Any = build_network(key, z.shape[1], x[0], embedding, **plan.network())
    if coordinates.regression is None:
        return built
    scale, slope = map(np.asarray, (coordinates.regression.scale, coordinates.regression.slope))
    slope = np.linalg.solve(scale, slope)
    spread = np.std(x @ slope.T, axis=0)
    slope = slope / np.maximum(spread, 1e-6)[:, None]  # 0: x says nothing about a parameter
    dtype = built.predictor.weight.dtype
    start = jnp.asarray(slope, dtype), jnp.zeros(len(slope), dtype)
    return eqx.tree_at(lambda net: (net.predictor.weight, net.predictor.bias), built, start)


def _seen(
    coordinates: Coordinates, theta: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the denoiser sees of each simulation, in the host's memory."""
    starts = range(0, len(theta), AT_ONCE)
    parts = [_map(coordinates.forward, theta[i : i + AT_ONCE], x[i : i + AT_ONCE]) for i in starts]
    z, scaled = (np.concatenate(part) for part in zip(*parts, strict=True))
    return z, scaled


@eqx.filter_jit
def _map(f: Callable[..., Any], *rows: Any) -> Any:
    return jax.vmap(f)(*map(jnp.asarray, rows))


def _one_scale(x: np.ndarray) -> Standardizer:
    """One mean and one spread for all entries, which keeps sets exchangeable."""
    scale = Standardizer.fit(x.reshape(-1), "x")
    full = lambda value: jnp.full(x.shape[1:], value)
    return Standardizer(full(scale.mean), full(scale.std))


def _split(key: PRNGKey, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which simulations to train on, and which to hold out: a tenth, within limits."""
    held = min(max(count // 10, FEWEST_HELD_OUT), count // 4, MOST_HELD_OUT)
    order = np.asarray(jr.permutation(key, count))
    return order[held:], order[:held]


def _checked(theta: Any, x: Any, structured: bool) -> tuple[np.ndarray, np.ndarray]:
    theta, x = np.asarray(theta), np.asarray(x)
    check_floating("theta", theta)
    check_floating("x", x)
    if theta.ndim != 2 or x.ndim < 1 or len(theta) != len(x):
        raise ValueError(
            "theta must have shape (n, d) and x one entry for each of its rows, got "
            f"{theta.shape} and {x.shape}"
        )
    if x.ndim != 2 and not structured:
        raise ValueError(
            f"x must have shape (n, k), got {x.shape}: pass embedding= for structured x"
        )
    if len(theta) < FEWEST:
        raise ValueError(f"need at least {FEWEST} simulations, got {len(theta)}")
    return theta, x
