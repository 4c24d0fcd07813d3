"""Conditionals of one joint fit: draws and log-densities of the unknown, given the known."""

from pathlib import Path
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from ..._checks import check_key, concrete, whole
from ..._types import PRNGKey
from ...denoiser import Denoiser, Pinned
from ...grids import edm_sigmas
from ...sampling import Churn
from ...schedules import AbstractSchedule, Linear
from ...solvers import AbstractSolver, Heun
from ..early_stopping import History
from ..flow import draws, log_densities
from ..posterior import STEPS_PER_E_FOLD, traced
from ..settings import SHARES
from ..simulations import less_offset, with_offset
from ..surprise import ObservationDensity, UntrainedQuestion, look_at, warn
from ..transforms.chain import Chain
from . import files
from .hidden import is_asked
from .network import Told, Unknown

# The network of all conditionals is no exact denoiser of any one of them. Noise that is added and
# taken away again lets its errors average out: as much as Algorithm 2 allows.
SOLVER, CHURN = Heun(), Churn(float("inf"))


@final
class Joint(eqx.Module):
    """q of any numbers of (theta, x) given all others, as `fit_joint` learns it.

    Warns:
        UntrainedQuestion: whatever is asked, where training never hid just those numbers.

    Arguments:
        denoiser: of z of all numbers, given `Told`.
        transform: between the numbers and z, each by itself.
        sigma_min, sigma_max: the noise levels between which to sample, in units of z.
        count: of parameters.
        x_shape: of one observation.
        history: of the training; its losses are of what was hidden, nats a simulation.
        offset: of every number, subtracted in float64 before anything else; empty where the
            working dtype holds them as they are.
        density: of observations, by which an odd one is noticed; None where hardly any is whole.
        shares: of what was hidden in training, as in `JointSettings`.
    """

    denoiser: Denoiser
    transform: Chain
    sigma_min: float = eqx.field(static=True)
    sigma_max: float = eqx.field(static=True)
    count: int = eqx.field(static=True)
    x_shape: tuple[int, ...] = eqx.field(static=True)
    history: History = eqx.field(static=True, default=History())
    offset: tuple[float, ...] = eqx.field(static=True, default=())
    density: ObservationDensity | None = None
    shares: tuple[float, ...] = eqx.field(static=True, default=SHARES)

    def posterior(self, x_o: Real[ArrayLike, "*shape"]) -> "Conditional":
        """q(theta given x_o). A NaN in `x_o` is a missing number: it is drawn too, after theta.

        Warns:
            UnlikelyObservation: nothing is missing, and `x_o` is far beyond all held-out
                simulations.

        Raises:
            ValueError: `x_o` of another shape, infinite, or NaN throughout.
        """
        x_o = _shaped("x_o", x_o, self.x_shape)
        missing = np.isnan(x_o) if concrete(x_o) else np.zeros(self.x_shape, bool)
        if missing.all():
            raise ValueError("x_o is NaN throughout: nothing is observed")
        known = np.concatenate([np.zeros(self.count, bool), ~missing.ravel()])
        given = self._given(_joined(np.zeros(self.count), x_o), known)
        if not missing.any():
            look_at(self.density, self.denoiser, given.denoiser.cond.values[self.count :])
        return given

    def likelihood(self, theta: Real[ArrayLike, " d"]) -> "Conditional":
        """q(x given theta), whose draws have the shape of x.

        Raises:
            ValueError: `theta` of another shape, not finite, or outside `prior_support`.
        """
        theta = _shaped("theta", theta, (self.count,))
        known = np.arange(self._numbers) < self.count
        return self._given(_joined(theta, np.zeros(self.x_shape)), known, self.x_shape)

    def given(
        self, values: Real[ArrayLike, " numbers"], known: Bool[ArrayLike, " numbers"]
    ) -> "Conditional":
        """q of the numbers that are not known, given those that are.

            joint.given([0.3, 0.0, 1.2], [True, False, True])  # of the second of three

        Arguments:
            values: parameters first, then x, flattened; ignored where they are not known.
            known: which are; to be known outside of `jit`.

        Raises:
            ValueError: a wrong shape, no number left to draw, or known values that are not finite
                or outside `prior_support`.
            TypeError: `known` is not made of True and False.
        """
        known = np.asarray(known)
        if known.dtype != bool:
            raise TypeError(f"known must be made of True and False, got {known}")
        if known.shape != (self._numbers,):
            raise ValueError(
                f"known needs an entry for each of {self._numbers} numbers, got {known.shape}"
            )
        if known.all():
            raise ValueError("all numbers are known: leave at least one to draw")
        return self._given(_shaped("values", values, (self._numbers,)), known)

    def save(self, path: str | Path) -> None:
        """Storage of everything in one file: a line of JSON, then the numbers. No pickle."""
        files.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Joint":
        """The joint fit in a file that `save` wrote.

        Raises:
            ValueError: the file is no joint fit, or is damaged.
        """
        return cls(**files.load(path))

    @property
    def _numbers(self) -> int:
        return self.count + int(np.prod(self.x_shape))

    def _given(
        self, values: Any, known: np.ndarray, shape: tuple[int, ...] | None = None
    ) -> "Conditional":
        """The conditional of the numbers that are not known, in their order."""
        if concrete(values):
            values = np.where(known, values, self.offset or 0.0)  # NaN, where nothing is known
            if not np.isfinite(values).all():
                raise ValueError(f"what is known must be finite, got {values[known]}")
        box = self.transform.bounds
        values = less_offset("values", values, self.offset, box.low.dtype)
        if concrete(values) and np.any(known & ((values < box.low) | (values > box.high))):
            raise ValueError(f"theta must be inside prior_support, got {values[: self.count]}")
        if not is_asked(known, self.count, self.shares):
            warn(
                UntrainedQuestion,
                "no game with these numbers hidden was played in training, whose shares "
                f"(posterior, likelihood, everything, any) are {self.shares}: fit again with more "
                "of it",
            )
        z = self.transform.forward(values)
        part = np.flatnonzero(~known)
        network: Any = self.denoiser.network
        unknown = Unknown(network, jnp.asarray(part))
        told = Told(z, jnp.asarray(known), jnp.ones(len(known), bool))
        return Conditional(
            denoiser=Pinned(Denoiser(unknown, self.denoiser.preconditioning), told),
            transform=jax.tree.map(lambda leaf: leaf[part], self.transform),
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            offset=tuple(self.offset[i] for i in part) if self.offset else (),
            shape=(len(part),) if shape is None else shape,
        )


@final
class Conditional(eqx.Module):
    """q(what is unknown given what is known): draws and log-densities.

    Arguments:
        denoiser: of z of the unknown numbers; the known ones are its fixed condition. Any sampler,
            likelihood or guidance takes it.
        transform: between the unknown numbers and z, each by itself.
        sigma_min, sigma_max: the noise levels between which to sample, in units of z.
        offset: what is subtracted in float64 before anything else; empty where nothing is.
        shape: of one draw.
    """

    denoiser: Pinned
    transform: Chain
    sigma_min: float = eqx.field(static=True)
    sigma_max: float = eqx.field(static=True)
    offset: tuple[float, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """The calls of the network for one draw, or the noise levels of a log-density."""
        return round(STEPS_PER_E_FOLD * float(np.log(self.sigma_max / self.sigma_min)))

    def sample(
        self,
        key: PRNGKey,
        n: int,
        *,
        solver: AbstractSolver = SOLVER,
        schedule: AbstractSchedule = Linear(),
        churn: Churn | None = CHURN,
        steps: int | None = None,
    ) -> Float[Array | np.ndarray, " n *shape"]:
        """`n` independent draws of the unknown numbers, in data units, by Heun steps with churn.

        Arguments:
            solver, schedule, churn: as for `edm_tutorial.sample`; noise levels are in units of z.
                Without churn (None) draws follow the ODE that `log_prob` follows.
            steps: noise levels; half of `self.steps` unless given, for two calls a step.

        Raises:
            ValueError: `n` or `steps` below 1.
            TypeError: `n` or `steps` is not a whole number, `key` no random key, or `churn` none.
        """
        check_key("key", key)
        half = (self.steps + 1) // 2
        n, sigmas = whole("n", n), self._sigmas(half if steps is None else steps)
        how = {"solver": solver, "schedule": schedule, "churn": traced(churn)}
        found = _draw(self.denoiser, self.transform, key, n, sigmas=sigmas, **how)
        return with_offset(found, self.offset).reshape(n, *self.shape)

    def log_prob(
        self, v: Real[ArrayLike, "*n_and_shape"], *, steps: int | None = None
    ) -> Float[Array, "*n"]:
        """Log-density ln q of the unknown numbers, in nats; -inf outside their bounds.

        By the exact trace along the probability-flow ODE, on a fixed grid of noise levels.

        Arguments:
            v: the unknown numbers, shaped like one draw, or one such a row.
            steps: noise levels; `self.steps` unless given.

        Raises:
            ValueError: a wrong shape, or NaN.
        """
        array: Any = np.asarray(v) if concrete(v) else v
        rows = array.shape[: array.ndim - len(self.shape)]
        if array.shape != (*rows, *self.shape) or len(rows) > 1:
            raise ValueError(
                f"v must hold the unknown numbers, shaped {self.shape}, or one such a row, got "
                f"{array.shape}"
            )
        if concrete(v) and np.any(np.isnan(array)):
            raise ValueError(f"v must not be NaN, got {v}")
        low = self.transform.bounds.low
        flat = less_offset("v", array.reshape(*rows, len(low)), self.offset, low.dtype)
        return _log_prob(self.denoiser, self.transform, flat, self._sigmas(steps))

    def _sigmas(self, steps: int | None) -> Array:
        steps = self.steps if steps is None else whole("steps", steps)
        return edm_sigmas(max(steps, 2), self.sigma_min, self.sigma_max)


def _shaped(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """An array of that shape: in float64 on the host, if it can be looked at."""
    value = np.asarray(value, float) if concrete(value) else value
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    return value


def _joined(theta: Any, x: Any) -> Any:
    """All numbers of one simulation: parameters first, then x, flattened."""
    join = np if concrete(theta, x) else jnp
    return join.concatenate([theta, x.reshape(-1)])


@eqx.filter_jit
def _draw(
    denoiser: Pinned, transform: Chain, key: PRNGKey, n: int, *, sigmas: Array, **how: Any
) -> Array:
    sigmas = sigmas.astype(transform.bounds.low.dtype)
    return draws(denoiser, transform, None, key, n=n, sigmas=sigmas, **how)


@eqx.filter_jit
def _log_prob(denoiser: Pinned, transform: Chain, v: Array, sigmas: Array) -> Array:
    return log_densities(denoiser, transform, x=None, theta=v, sigmas=sigmas)
