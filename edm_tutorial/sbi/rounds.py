r"""Sequential inference for one observation: rounds of simulations under a truncated prior.

Each round simulates where the fit so far puts the posterior of that observation, x_o.
The prior, cut off outside a region R, gives the same posterior at x_o as long as R holds all of it:

$$p(\theta \mid x_o) \propto p(\theta)\,1[\theta \in R]\;p(x_o \mid \theta) .$$

So no importance weights are needed: only prior draws that lie in R are simulated, and the next fit
spends all its simulations there. R is where the *widened* fit has density: its draws, in the
coordinates in which it is unbounded, are blurred by a normal of their own covariance, and R is all
but the $10^{-4}$ of lowest density of what results. A fit that is off by less than its width, or
too narrow by less than a factor of 1.4, then cuts nothing off.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import check_callable, check_key, whole
from .._types import PRNGKey
from ..noise_levels import AbstractNoiseDistribution
from .early_stopping import FitState, watched
from .fit import fit_posterior
from .noise_levels import PosteriorNoise
from .posterior import Posterior
from .settings import Settings
from .simulations import check_observed
from .surprise import NarrowTruncation, warn
from .transforms.standardize import AbstractEmbedding

DRAWS, KERNELS = 10_000, 256  # of the fit; those of them at which kernels stand
TAIL = 1e-4  # of the widened fit, left out
LEAST_SHARE = 1e-4  # of prior draws that a truncation keeps
PROPOSALS_AT_ONCE = 50_000  # draws of the prior
JITTER = 0.01  # of a feature that is constant in the truncation, in its spread under the prior


class Region(NamedTuple):
    """The region of highest density of a widened fit.

    Arguments:
        posterior: the fit.
        x: the scaled observation.
        mean, root: of its draws in the coordinates z, the Cholesky factor of their covariance.
        centers: some of the draws, whitened.
        least: the log-density at the edge.
    """

    posterior: Posterior
    x: Array
    mean: Float[Array, " d"]
    root: Float[Array, "d d"]
    centers: Float[Array, "c d"]
    least: Float[Array, ""]

    @classmethod
    def around(cls, posterior: Posterior, key: PRNGKey, x_o: Any) -> "Region":
        """The region of all of the widened fit at `x_o` but its `TAIL` of lowest density."""
        draw_key, blur_key = jr.split(key)
        theta = posterior.parameters(posterior.sample(draw_key, x_o, DRAWS))
        x = posterior.x_scale.forward(posterior.observation(x_o))
        z = jax.vmap(lambda row: posterior.transform.forward(row, x))(theta)
        mean, root = jnp.mean(z, axis=0), jnp.linalg.cholesky(jnp.cov(z.T).reshape(z.shape[1:] * 2))
        white = solve_triangular(root, (z - mean[None]).T, lower=True).T
        region = cls(
            posterior, x, mean, root, centers=white[:KERNELS], least=jnp.zeros((), z.dtype)
        )
        blurred = white + jr.normal(blur_key, white.shape, white.dtype)
        return region._replace(least=jnp.quantile(_log_kernels(region.centers, blurred), TAIL))

    def depth(self, theta: Any) -> np.ndarray:
        """ln of the widened fit's density at each row over that at the edge; negative outside."""
        return np.asarray(_depth(self, self.posterior.parameters(theta)))


@eqx.filter_jit
def _depth(region: Region, theta: Float[Array, "n d"]) -> Float[Array, " n"]:
    z = jax.vmap(lambda row: region.posterior.transform.forward(row, region.x))(theta)
    white = solve_triangular(region.root, (z - region.mean[None]).T, lower=True).T
    return _log_kernels(region.centers, white) - region.least


def _log_kernels(centers: Float[Array, "c d"], rows: Float[Array, "n d"]) -> Float[Array, " n"]:
    """ln of the mean of unit normals around the centers, up to a constant."""
    squares = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(centers**2, axis=1)[None]
    return jax.nn.logsumexp(rows @ centers.T - squares / 2, axis=1)


def fit_rounds(
    key: PRNGKey,
    prior_sample: Callable[[PRNGKey, int], Any],
    simulate: Callable[[PRNGKey, Any], Any],
    x_o: Real[ArrayLike, "*shape"] | Sequence[Any],
    *,
    rounds: int = 3,
    simulations: int = 5_000,
    prior_support: tuple[Any, Any] | None = None,
    network: Callable[..., Array] | None = None,
    embedding: Callable[[Any], Array] | None = None,
    steps: int | None = None,
    settings: Settings | None = None,
    sigma_dist: AbstractNoiseDistribution = PosteriorNoise(),
    invalid: str = "raise",
    progress: bool = True,
    callback: Callable[[FitState], Any] | None = None,
) -> Posterior:
    """The posterior at one observation, `x_o`, learned from several rounds of simulations.

    Truncated sequential inference (Deistler et al., 2022). The posterior under the full prior,
    right at `x_o` and nowhere else. Simulations of earlier rounds that lie in the truncation are
    kept. A feature of x that is constant there tells nothing, and gets a little noise.

    Arguments:
        prior_sample: called as `prior_sample(key, n)`, draws of shape (n, d).
        simulate: called as `simulate(key, theta)` with `theta` of shape (n, d); one observation
            a row. Both may be JAX or NumPy.
        rounds: at least 1, which is `fit_posterior` with draws from the prior.
        simulations: of each round.
        prior_support, network, embedding, steps, settings: as for `fit_posterior`.
        sigma_dist, invalid, progress, callback: as for `fit_posterior`.

    Warns:
        NarrowTruncation: less than 1 in 10,000 prior draws lie in the truncation; the densest of
            10,000 times as many are kept, which cuts off less than asked for.

    Raises:
        ValueError: a count below 1, functions that do not return a row for each draw, an `x_o`
            that is not finite or not shaped like what is simulated, or what `fit_posterior`
            refuses.
        TypeError: a count that is not a whole number, `key` is no random key, or no function.
    """
    check_key("key", key)
    check_callable("prior_sample", prior_sample)
    check_callable("simulate", simulate)
    rounds, simulations = whole("rounds", rounds), whole("simulations", simulations)
    check_observed(x_o)
    fit = functools.partial(
        fit_posterior,
        prior_support=prior_support,
        network=network,
        embedding=embedding,
        steps=steps,
        settings=settings,
        sigma_dist=sigma_dist,
        invalid=invalid,
        progress=progress,
        callback=callback,
    )
    keys = jr.split(key, (rounds, 4))
    theta = _rows("prior_sample(key, n)", prior_sample(keys[0, 0], simulations), simulations)
    x = _rows("simulate(key, theta)", simulate(keys[0, 1], theta), simulations)
    _check_observation(x_o, x, embedding)
    posterior, regions, first = fit(keys[0, 2], theta, x), [], x
    for prior_key, simulate_key, fit_key, region_key in keys[1:]:
        regions = [*regions, Region.around(posterior, region_key, x_o)]
        new, regions, share = _truncated(prior_sample, prior_key, simulations, regions)
        told = _rows("simulate(key, theta)", simulate(simulate_key, new), simulations)
        inside = _depth_in_all(regions, theta) >= 0
        theta, x = np.concatenate([theta[inside], new]), np.concatenate([x[inside], told])
        if progress and watched():
            sys.stderr.write(
                f"{share:.2g} of the prior is left: {len(new)} simulations there, "
                f"{len(theta)} in all\n"
            )
        posterior = fit(fit_key, theta, _varied(x, first) if embedding is None else x)
    return posterior


def _truncated(
    prior_sample: Callable[[PRNGKey, int], Any], key: PRNGKey, n: int, regions: list[Region]
) -> tuple[np.ndarray, list[Region], float]:
    """`n` prior draws inside all regions, the regions, and the share of the prior inside them.

    If too few draws lie inside, the nearest are taken, and the regions returned are wide enough
    to hold them.
    """
    kept, depths, proposed = [], [], 0
    while True:
        theta = _rows(
            "prior_sample(key, n)",
            prior_sample(jr.fold_in(key, proposed), PROPOSALS_AT_ONCE),
            PROPOSALS_AT_ONCE,
        )
        depth = _depth_in_all(regions, theta)
        # All that are inside, and of the others the nearest.
        best = np.sort(np.argsort(-depth)[: max(n, int(np.sum(depth >= 0)))])
        kept, depths = [*kept, theta[best]], [*depths, depth[best]]
        proposed += PROPOSALS_AT_ONCE
        inside = sum(int(np.sum(part >= 0)) for part in depths)
        if inside >= n or proposed >= n / LEAST_SHARE:
            break
    rows, depth = np.concatenate(kept), np.concatenate(depths)
    if inside >= n:
        return rows[depth >= 0][:n], regions, inside / proposed
    best = np.sort(np.argsort(-depth)[:n])
    lowest = depth[best].min()
    warn(
        NarrowTruncation,
        f"of {proposed} prior draws only {inside} lie where the fit so far puts the posterior: the "
        f"{n} nearest are simulated. A narrower prior, or parameters in which it is less narrow, "
        "would make more of the simulations",
    )
    wider = [region._replace(least=region.least + lowest) for region in regions]
    return rows[best], wider, n / proposed


def _varied(x: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Observations with a little noise added to the features that are constant in them.

    Its standard deviation is `JITTER` times that of the feature in the first round.
    """
    constant = np.nanmax(x, axis=0) == np.nanmin(x, axis=0)
    if not constant.any():
        return x
    jitter = np.random.default_rng(0).normal(size=x.shape) * np.nanstd(first, axis=0)
    return np.where(constant, x + JITTER * jitter, x).astype(np.result_type(x, np.float32))


def _depth_in_all(regions: list[Region], theta: np.ndarray) -> np.ndarray:
    return np.min([region.depth(theta) for region in regions], axis=0)


def _check_observation(x_o: Any, x: np.ndarray, embedding: Any) -> None:
    """Refuse an `x_o` that is not shaped like a simulation; an embedding may take other sizes."""
    shape, needed = np.shape(x_o), x.shape[1:]
    fits = shape == needed
    if isinstance(embedding, AbstractEmbedding) and len(shape) == len(needed):
        try:
            eqx.filter_eval_shape(embedding, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
            fits = True
        except ValueError:
            fits = False
    if not fits:
        raise ValueError(
            f"x_o must be one observation of shape {needed}, as simulate(key, theta) returns, got "
            f"{shape}"
        )


def _rows(name: str, value: Any, n: int) -> np.ndarray:
    rows = np.asarray(value)
    if rows.ndim < 2 or len(rows) != n:
        raise ValueError(
            f"{name} must return a row for each of n={n} draws, got shape {rows.shape}"
        )
    return rows
