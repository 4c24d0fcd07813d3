r"""A learned posterior $q(\theta \mid x)$: draws, log-densities, its mode.

The denoiser works on a vector z that is centred and scaled. Parameters become z by a chain of
transforms, each of which adds its log-determinant:

$$\ln q(\theta \mid x) = \ln q(z \mid x) + \ln|\det \partial z / \partial\theta| .$$
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import check_key, concrete, whole
from .._types import PRNGKey, as_traced
from ..denoiser import Denoiser, Pinned
from ..grids import edm_sigmas
from ..networks.mlp import Embedded
from ..sampling import Churn
from ..schedules import AbstractSchedule, Linear
from ..solvers import AbstractSolver
from . import files
from .early_stopping import History
from .flow import SOLVER, draws, log_densities
from .simulations import check_observed, less_offset, with_offset
from .surprise import ObservationDensity, Surprise, look_at, surprise
from .transforms.chain import Chain
from .transforms.standardize import Standardizer

STEPS_PER_E_FOLD = 5.5  # of the noise level, when sampling
CANDIDATES = 64  # draws among which the search for a mode begins
MODE_STEPS, FLAT = 50, 1e-3  # of that search at most; where the slope ends it, nats a width


class Weights(NamedTuple):
    """Importance weights of draws, as `Posterior.reweigh` gives them, and the evidence.

    Arguments:
        weights: of the draws, with sum 1.
        share: the effective share of the draws, (sum w)^2 / (n sum w^2). Below about 0.01 the
            weights describe a few draws, not the posterior.
        log_evidence: ln p(x_o), nats; its standard error is about sqrt((1 / share - 1) / n).
    """

    weights: Float[Array, " n"]
    share: Float[Array, ""]
    log_evidence: Float[Array, ""]


@final
class Posterior(eqx.Module):
    """The posterior q(theta given x) for every x, as `fit_posterior` learns it.

    Works under `jax.vmap`, over observations too, and `eqx.filter_jit(posterior.mode)` compiles a
    method (`jax.jit` takes functions only: a module has no hash). It can be pickled where your own
    network or embedding can: `eqx.nn.MLP` needs `final_activation=jax.nn.identity` for it.

    Arguments:
        denoiser: of z, given the standardised observation.
        transform: between theta and z.
        x_scale: of the observation.
        sigma_min, sigma_max: the noise levels between which to sample, in units of z.
        history: of the training.
        theta_offset, x_offset: what is subtracted in float64 before anything else, one number a
            feature; empty where the working dtype holds parameters and observations as they are.
        density: of observations, by which `surprise` judges; None where it is not known.
    """

    denoiser: Denoiser
    transform: Chain
    x_scale: Standardizer
    sigma_min: float = eqx.field(static=True)
    sigma_max: float = eqx.field(static=True)
    history: History = eqx.field(static=True, default=History())
    theta_offset: tuple[float, ...] = eqx.field(static=True, default=())
    x_offset: tuple[float, ...] = eqx.field(static=True, default=())
    density: ObservationDensity | None = None

    @property
    def steps(self) -> int:
        """The number of noise levels of sampling, unless told otherwise."""
        return round(STEPS_PER_E_FOLD * float(np.log(self.sigma_max / self.sigma_min)))

    def sample(
        self,
        key: PRNGKey,
        x_o: Real[ArrayLike, "*shape"] | Sequence[Any],
        n: int,
        *,
        solver: AbstractSolver = SOLVER,
        schedule: AbstractSchedule = Linear(),
        churn: Churn | None = None,
        steps: int | None = None,
    ) -> Float[Array | np.ndarray, "n d"]:
        """`n` independent draws, all inside the support.

        Arguments:
            x_o: one observation, data units.
            solver, schedule, churn: as for `edm_tutorial.sample`; noise levels are in units of z.
            steps: noise levels; as many as the posterior's width asked for unless given.

        Returns:
            The draws; a NumPy array in float64 where parameters have an offset that the working
            dtype cannot hold.

        Warns:
            UnlikelyObservation: `x_o` is far beyond all held-out simulations (see
                `ObservationDensity.extreme`), outside of `jit`.

        Raises:
            ValueError: `n` or `steps` below 1, or `x_o` of another shape or not finite.
            TypeError: `n` or `steps` is not a whole number, `key` no random key, or `churn` none.
        """
        check_key("key", key)
        n, steps = whole("n", n), self.steps if steps is None else whole("steps", steps)
        sigmas = edm_sigmas(steps, self.sigma_min, self.sigma_max)
        how = {"solver": solver, "schedule": schedule, "churn": traced(churn)}
        found = _draw(self._bare, key, self._looked_at(x_o), n, sigmas=sigmas, **how)
        return with_offset(found, self.theta_offset)

    def log_prob(
        self,
        theta: Real[ArrayLike, "*n d"] | Sequence[Any],
        x_o: Real[ArrayLike, "*shape"] | Sequence[Any],
        *,
        steps: int | None = None,
    ) -> Float[Array, "*n"]:
        """Log-density ln q(theta given x_o), in nats; -inf outside the support.

        It is -inf, too, where it is too low for a float. By the exact trace along the
        probability-flow ODE, on a fixed grid of noise levels that all points share.
        Differentiable in `theta`.

        Arguments:
            theta: one vector of parameters, or one a row.
            x_o: one observation, data units.
            steps: noise levels; half of those for sampling unless given, since the solver is of
                third order. For a Gaussian posterior the solver's error is then up to 0.01 nats
                at one width from the middle of each of two parameters, 0.04 at two, 0.08 at three.

        Warns:
            UnlikelyObservation: as `sample`.

        Raises:
            ValueError: a wrong shape, a `theta` that is NaN, or an `x_o` that is not finite.
            RuntimeError: the log-density is not finite.
        """
        theta = self.parameters(theta)
        steps = self.steps // 2 if steps is None else whole("steps", steps)
        sigmas = edm_sigmas(max(steps, 2), self.sigma_min, self.sigma_max)
        return _log_prob(self._bare, theta, self._looked_at(x_o), sigmas)

    def mode(
        self, x_o: Real[ArrayLike, "*shape"] | Sequence[Any]
    ) -> Float[Array | np.ndarray, " d"]:
        """The parameters of highest density given `x_o`: the MAP estimate under this posterior.

        The best of 64 draws, improved by L-BFGS in the coordinates z, in which widths are 1.

        Warns:
            UnlikelyObservation: as `sample`.

        Raises:
            ValueError: `x_o` of another shape or not finite.
        """
        sigmas = edm_sigmas(self.steps, self.sigma_min, self.sigma_max)
        fewer = sigmas[:: max(len(sigmas) // (self.steps // 2), 1)]
        found = _mode(self._bare, self._looked_at(x_o), sigmas, fewer)
        return with_offset(found, self.theta_offset)

    def reweigh(
        self,
        theta: Real[ArrayLike, "n d"],
        x_o: Real[ArrayLike, "*shape"] | Sequence[Any],
        log_joint: Callable[[Any], Any] | Real[ArrayLike, " n"],
    ) -> Weights:
        """Importance weights of draws, where the likelihood is known, and the evidence of `x_o`.

        Weighted, they are draws of the exact posterior, as far as this one reaches.

        Arguments:
            theta: draws of this posterior, as `sample(key, x_o, n)` returned them.
            log_joint: ln p(theta) + ln p(x_o given theta): its values at the draws, or a function
                of one theta, in JAX or NumPy. With an offset, theta is a NumPy array in float64.

        Raises:
            ValueError: `log_joint` does not give a number a draw, is NaN, or is -inf throughout.
        """
        # As many levels as for sampling: what the solver loses would be taken for weight.
        log_q = self.log_prob(theta, x_o, steps=self.steps)
        values = _values(log_joint, theta, at_once=not self.theta_offset)
        ratio = jnp.asarray(values, log_q.dtype) - log_q
        if not np.any(np.isfinite(ratio)) or np.any(np.isnan(ratio) | (ratio == np.inf)):
            raise ValueError(
                "log_joint must be finite or -inf for draws of the posterior, and not -inf for "
                "all: pass ln p(theta) + ln p(x_o given theta), and theta as `sample` returned it"
            )
        total, n = jax.nn.logsumexp(ratio), len(ratio)
        weights = jnp.exp(ratio - total)
        return Weights(weights, 1 / (n * jnp.sum(weights**2)), total - np.log(n))

    def surprise(self, x_o: Real[ArrayLike, "*shape"] | Sequence[Any]) -> Surprise:
        """The surprise of `x_o`: its unlikeness to the simulations, and the oddest feature.

        The p-value of fresh simulations is uniform, in steps of one in as many as were held out.

        Raises:
            ValueError: `x_o` of another shape or not finite, or a posterior that was saved by
                version 0.1.0, which did not keep what is needed.
        """
        if self.density is None:
            raise ValueError(
                "the surprise is not known: this posterior comes without the density of its "
                "simulated observations, as all do that version 0.1.0 saved. Fit it anew"
            )
        return surprise(self.density, self.denoiser, self.x_scale.forward(self.observation(x_o)))

    def save(self, path: str | Path) -> None:
        """Storage of everything in one file: a line of JSON, then the numbers. No pickle."""
        files.save(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        network: Callable[..., Array] | None = None,
        embedding: Callable[[Any], Array] | None = None,
    ) -> "Posterior":
        """The posterior in a file that `save` wrote.

        Files of version 0.1.0 are read too, with a DeprecationWarning: `save` what they give.

        Arguments:
            network, embedding: those given to `fit_posterior`, if any were: their structure
                is used, their weights are replaced.

        Raises:
            ValueError: the file is not a posterior, is damaged, needs a network or an embedding
                that is not given, or holds arrays of other shapes.
        """
        return cls(**files.load(path, network, embedding))

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which this posterior computes."""
        return self.x_scale.mean.dtype

    @property
    def _bare(self) -> "Posterior":
        """The part that is computed with: posteriors that differ elsewhere share a compilation."""
        none = {"history": History(), "theta_offset": (), "x_offset": (), "density": None}
        return dataclasses.replace(self, sigma_min=0.0, sigma_max=0.0, **none)

    def _looked_at(self, x_o: Any) -> Array:
        """One observation as `observation` gives it, with a warning if it is unlike all others."""
        x_o = self.observation(x_o)
        look_at(self.density, self.denoiser, self.x_scale.forward(x_o))
        return x_o

    def observation(self, x_o: Real[ArrayLike, "*shape"] | Sequence[Any]) -> Float[Array, "*shape"]:
        """One observation, less its offset, in the working dtype.

        Raises:
            ValueError: another shape, not finite, or too large for that dtype.
        """
        try:
            self.x_scale.check("x_o", x_o)
        except ValueError:
            raise ValueError(
                f"x_o must be one observation of shape {self.x_scale.mean.shape}, got "
                f"{np.shape(x_o)}: use jax.vmap for more"
            ) from None
        check_observed(x_o)
        return less_offset("x_o", x_o, self.x_offset, self.dtype)

    def parameters(self, theta: Real[ArrayLike, "*n d"] | Sequence[Any]) -> Float[Array, "*n d"]:
        """Parameters, less their offset, in the working dtype.

        Raises:
            ValueError: another shape, NaN, or too large for that dtype.
        """
        d = len(self.transform.bounds.low)
        if np.ndim(theta) not in (1, 2) or np.shape(theta)[-1] != d:
            raise ValueError(
                f"theta must be one vector of shape ({d},) or one a row, (n, {d}), got "
                f"{np.shape(theta)}"
            )
        if concrete(theta) and np.any(np.isnan(np.asarray(theta, float))):
            raise ValueError(f"theta must not be NaN, got {theta}")
        return less_offset("theta", theta, self.theta_offset, self.dtype)

    def given(self, x_o: Float[Array, "*shape"]) -> tuple[Pinned, Array]:
        """The denoiser of z at an observation, embedded once, and the scaled observation."""
        x = self.x_scale.forward(x_o)
        network, preconditioning = self.denoiser.network, self.denoiser.preconditioning
        if isinstance(network, Embedded):
            return Pinned(Denoiser(network.network, preconditioning), network.embedding(x)), x
        return Pinned(self.denoiser, x), x


def traced(churn: Churn | None) -> Churn | None:
    """Churn whose amounts share one compilation. Raises: TypeError for all else."""
    if not isinstance(churn, Churn | None):
        raise TypeError(f"churn must be one, such as Churn(s_churn=40.0), got {churn!r}")
    return as_traced(churn)


def _values(log_joint: Any, theta: Any, *, at_once: bool) -> Float[np.ndarray, " n"]:
    """The joint log-density at every row, from a function of one or from its values."""
    found = log_joint
    if callable(log_joint):
        one_by_one = lambda: [log_joint(row) for row in np.asarray(theta)]
        try:
            found = jax.vmap(log_joint)(jnp.asarray(theta)) if at_once else one_by_one()
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # a likelihood in NumPy
            found = one_by_one()
    found = np.asarray(found, float)
    if found.shape != (len(theta),):
        raise ValueError(
            f"log_joint must give one number for each of {len(theta)} draws, got {found.shape}"
        )
    return found


@eqx.filter_jit
def _draw(
    posterior: Posterior, key: PRNGKey, x_o: Array, n: int, *, sigmas: Array, **how: Any
) -> Array:
    denoiser, x = posterior.given(x_o)
    sigmas = sigmas.astype(posterior.dtype)
    return draws(denoiser, posterior.transform, x, key, n=n, sigmas=sigmas, **how)


@eqx.filter_jit
def _log_prob(posterior: Posterior, theta: Array, x_o: Array, sigmas: Array) -> Array:
    denoiser, x = posterior.given(x_o)
    return log_densities(denoiser, posterior.transform, x, theta, sigmas=sigmas)


@eqx.filter_jit
def _mode(posterior: Posterior, x_o: Array, sigmas: Array, fewer: Array) -> Array:
    transform, x = posterior.transform, posterior.x_scale.forward(x_o)
    density = lambda theta: _log_prob(posterior, theta, x_o, fewer)
    tried = _draw(posterior, jr.key(0), x_o, CANDIDATES, sigmas=sigmas)
    values = density(tried)
    start = transform.forward(tried[jnp.argmax(values)], x)
    found, least = _minimum(lambda z: -density(transform.inverse(z, x)), start)
    return transform.inverse(jnp.where(-least > jnp.max(values), found, start), x)


def _minimum(f: Callable[[Array], Array], start: Float[Array, " d"]) -> tuple[Array, Array]:
    """The place near `start` where f is least, and its value: L-BFGS compiles f fewer times."""
    line = optax.scale_by_backtracking_linesearch(20, decrease_factor=0.5, store_grad=True)
    search, value_and_grad = optax.lbfgs(linesearch=line), optax.value_and_grad_from_state(f)

    def improve(carry: Any) -> Any:
        i, z, state = carry
        value, grad = value_and_grad(z, state=state)
        known = {"value": value, "grad": grad, "value_fn": f}
        with jax.numpy_dtype_promotion("standard"):  # its counts are of two kinds of integers
            updates, state = search.update(grad, state, z, **known)
        return i + 1, optax.apply_updates(z, updates), state

    def goes_on(carry: Any) -> Array:
        i, _, state = carry
        slope = jnp.linalg.norm(optax.tree_utils.tree_get(state, "grad"))
        return (i == 0) | (i < MODE_STEPS) & (slope > FLAT)

    _, z, state = jax.lax.while_loop(goes_on, improve, (0, start, search.init(start)))
    return z, optax.tree_utils.tree_get(state, "value")
