r"""One step of the probability-flow ODE, from time $t$ to the next.

A solver sees it as an `ODE`: `velocity(t, x)` is the right-hand side of Eq. 4 and
`denoise(t, x)` the denoiser under it. It may keep a state from step to step, which is how a
multistep method remembers. The last step goes to t = 0, where the velocity is not defined:
it is taken with one denoiser call, at the time before.
"""

from abc import abstractmethod
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import check_denoised, check_number
from ._types import Condition, DenoiserFn, Example
from .dynamics import probability_flow
from .schedules import AbstractSchedule


@final
class ODE(eqx.Module):
    """The probability-flow ODE of a denoiser and its condition, in the time of a schedule.

    Raises: ValueError if the denoiser changes the shape or the dtype of x.
    """

    denoiser: DenoiserFn
    schedule: AbstractSchedule
    cond: Condition

    def velocity(self, t: Float[Array, ""], x: Example) -> Example:
        """dx/dt (Eq. 4). One denoiser call."""
        denoiser, t = _tied(self.denoiser, t)
        return probability_flow(denoiser, self.schedule)(t, x, self.cond)

    def denoise(self, t: Float[Array, ""], x: Example) -> Example:
        """The denoised, unscaled D(x / s; sigma). One denoiser call."""
        denoiser, t = _tied(self.denoiser, t)
        sigma, s = self.schedule.sigma(t), self.schedule.scale(t)
        denoised = denoiser(x / s, sigma, self.cond)
        check_denoised(denoised, x)
        return denoised


def _tied(denoiser: DenoiserFn, t: Array) -> tuple[DenoiserFn, Array]:
    """The denoiser and the time behind a barrier that keeps XLA from merging two denoiser calls.

    XLA would spread each bias over the whole batch once for both, and each call would fetch that
    copy from memory: a quarter more time on a CPU.
    """
    weights, rest = eqx.partition(denoiser, eqx.is_inexact_array)
    weights, t = jax.lax.optimization_barrier((weights, t))
    return eqx.combine(weights, rest), t


class AbstractSolver(eqx.Module):
    """A rule for one step; its `formula`, if any, is for a printed design.

    Times descend, and `state` is whatever `init` returned.
    """

    @abstractmethod
    def init(self, x: Example) -> Any:
        """The solver's state before its first step, or None."""

    @abstractmethod
    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: Any
    ) -> tuple[Example, Any]:
        """`x` moved from `t` to `t_next`, and the next `state`; both times have positive noise."""

    @abstractmethod
    def last(self, ode: ODE, x: Example, t: Array, state: Any) -> Example:
        """`x` at time 0, by a last step from `t` with one denoiser call."""


@final
class Euler(AbstractSolver):
    """First order, one denoiser call a step (Algorithm 1 without its correction)."""

    formula: ClassVar = "Euler, N calls"

    def init(self, x: Example) -> None:
        return None

    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: None
    ) -> tuple[Example, None]:
        return x + (t_next - t) * ode.velocity(t, x), None

    def last(self, ode: ODE, x: Example, t: Array, state: None) -> Example:
        return _euler_to_zero(ode, x, t)


@final
class Heun(AbstractSolver):
    r"""Second order, two denoiser calls a step (Algorithm 1; Algorithm 3 for any alpha).

    The second call is at $t + \alpha h$: 1 is Heun's method, 1/2 the midpoint rule, 2/3 Ralston's.
    Raises: ValueError if `alpha` is not positive.
    """

    alpha: float = 1.0
    formula: ClassVar = "Heun, 2 N - 1 calls"

    def __check_init__(self):
        check_number("alpha", self.alpha)

    def init(self, x: Example) -> None:
        return None

    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: None
    ) -> tuple[Example, None]:
        h = t_next - t
        first = ode.velocity(t, x)
        # At alpha = 1 this is t_next to the last bit: t + h may round to 0, where sigma is.
        second = ode.velocity(t_next - (1 - self.alpha) * h, x + self.alpha * h * first)
        half = 1 / (2 * self.alpha)
        return x + h * ((1 - half) * first + half * second), None

    def last(self, ode: ODE, x: Example, t: Array, state: None) -> Example:
        return _euler_to_zero(ode, x, t)


@final
class DPMSolverPP2M(AbstractSolver):
    r"""DPM-Solver++(2M): second order with one denoiser call a step (Lu et al., 2022).

    In $\lambda = -\ln\sigma$ the ODE is linear in $x/s$ but for the denoiser, and that part
    is solved exactly: $x/s$ shrinks by $\sigma_{next}/\sigma$ towards $D$. The method
    extrapolates D along $\lambda$ through this call and the one before. The first step,
    and each step after churn, has no call before it and uses D itself. In the last step
    D is the sample.
    """

    formula: ClassVar = "DPM-Solver++(2M), N calls"

    def init(self, x: Example) -> tuple[Array, Array]:
        return jnp.zeros_like(x), jnp.array(jnp.inf, x.dtype)  # at infinite distance

    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: tuple[Array, Array]
    ) -> tuple[Example, tuple[Array, Array]]:
        old, old_log = state
        sigma, next_sigma = ode.schedule.sigma(t), ode.schedule.sigma(t_next)
        denoised, shrink, log = ode.denoise(t, x), next_sigma / sigma, jnp.log(sigma)
        ratio = (jnp.log(next_sigma) - log) / (log - old_log)  # 0 without a past
        ahead = denoised + ratio / 2 * (denoised - old)
        s, next_s = ode.schedule.scale(t), ode.schedule.scale(t_next)
        x_next = next_s * (shrink * (x / s) + (1 - shrink) * ahead)
        return x_next, (denoised, log)

    def last(self, ode: ODE, x: Example, t: Array, state: Any) -> Example:
        return ode.schedule.scale(jnp.zeros_like(t)) * ode.denoise(t, x)


def _euler_to_zero(ode: ODE, x: Array, t: Array) -> Array:
    return x - t * ode.velocity(t, x)
