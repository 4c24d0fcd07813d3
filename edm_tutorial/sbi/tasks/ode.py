r"""Inference about differential equations: predators and prey, and an epidemic.

Both are solved by Diffrax in the *logarithms* of their populations, which stay positive
whatever the parameters, and each has a first integral, constant along the exact solution:

- Lotka-Volterra, $\dot u = \alpha u - \beta u v$, $\dot v = -\gamma v + \delta u v$:
  $\;\delta u - \gamma \ln u + \beta v - \alpha \ln v$;
- SIR, $\dot s = -\beta s i$, $\dot i = \beta s i - \gamma i$: $\;s + i + r$ with the recovered
  $r = -(\gamma/\beta) \ln(s/s_0)$.
"""

from collections.abc import Callable
from typing import Any, ClassVar, final

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ..._types import PRNGKey
from .base import AbstractTask, LogNormalPrior, check_vector, normal_log_prob


@final
class LotkaVolterra(AbstractTask[LogNormalPrior]):
    r"""Prey u and predators v from (30, 1), counted at times 2, 4, ..., 20.

    $\theta = (\alpha, \beta, \gamma, \delta)$: growth of the prey, predation, death of the
    predators, and growth by predation. x holds the *logarithms* of the ten counts of prey and
    then of the ten of predators, each with Gaussian noise of standard deviation 0.1: a
    relative error of 10 %. Prior: $\ln\alpha, \ln\gamma \sim N(-0.125, 0.5^2)$ and
    $\ln\beta, \ln\delta \sim N(-3, 0.5^2)$.
    """

    dim_x: ClassVar[int] = 20
    times: ClassVar[np.ndarray] = np.arange(2.0, 21.0, 2.0)

    def log_populations(
        self, theta: Float[Array, "4"], times: Float[Array, " n"]
    ) -> Float[Array, "n 2"]:
        """Logarithms of u and v at increasing, positive `times`.

        Raises:
            RuntimeError: the solver ran out of steps.
        """
        check_vector("theta", theta, 4)
        alpha, beta, gamma, delta = theta

        def rates(t: Any, logs: Array, args: Any) -> Array:
            u, v = _populations(logs)
            return jnp.stack([alpha - beta * v, delta * u - gamma])

        return _solve(rates, jnp.log(jnp.array([30.0, 1.0], theta.dtype)), times)

    def simulate(self, key: PRNGKey, theta: Float[Array, "4"]) -> Float[Array, "20"]:
        return self._mean(theta) + 0.1 * jr.normal(key, (20,), theta.dtype)

    def log_likelihood(self, x: Float[Array, "20"], theta: Float[Array, "4"]) -> Float[Array, ""]:
        """Log-likelihood ln p(x given theta), in nats."""
        check_vector("x", x, 20)
        return normal_log_prob(x, self._mean(theta), 0.1)

    def _mean(self, theta: Array) -> Array:
        return self.log_populations(theta, jnp.asarray(self.times, theta.dtype)).T.ravel()


@final
class SIR(AbstractTask[LogNormalPrior]):
    r"""An epidemic among a million, one infected at first, sampled every 16 days of 160.

    $\theta = (\beta, \gamma)$: contacts and recoveries per day. x holds ten counts: how many of
    1,000 people, drawn anew each time, are infected on that day (binomial).
    Prior: $\ln\beta \sim N(\ln 0.4, 0.5^2)$ and $\ln\gamma \sim N(\ln\frac18, 0.2^2)$.
    """

    dim_x: ClassVar[int] = 10
    times: ClassVar[np.ndarray] = np.arange(16.0, 161.0, 16.0)

    def log_fractions(
        self, theta: Float[Array, "2"], times: Float[Array, " n"]
    ) -> Float[Array, "n 2"]:
        """Logarithms of s and i, the susceptible and the infected, at increasing, positive `times`.

        Raises:
            RuntimeError: the solver ran out of steps.
        """
        check_vector("theta", theta, 2)
        beta, gamma = theta

        def rates(t: Any, logs: Array, args: Any) -> Array:
            s, i = _populations(logs)
            return jnp.stack([-beta * i, beta * s - gamma])

        start = jnp.stack([jnp.log1p(-1e-6), jnp.log(1e-6)]).astype(theta.dtype)
        return _solve(rates, start, times)

    def simulate(self, key: PRNGKey, theta: Float[Array, "2"]) -> Float[Array, "10"]:
        return jr.binomial(key, 1000.0, self._infected(theta), dtype=theta.dtype)

    def log_likelihood(self, x: Float[Array, "10"], theta: Float[Array, "2"]) -> Float[Array, ""]:
        """Log-likelihood ln P(x given theta), in nats, for whole numbers `x` from 0 to 1,000."""
        check_vector("x", x, 10)
        p = self._infected(theta)
        return jnp.sum(jax.scipy.stats.binom.logpmf(x, 1000, p))

    def _infected(self, theta: Array) -> Array:
        return jnp.exp(self.log_fractions(theta, jnp.asarray(self.times, theta.dtype))[:, 1])


def lotka_volterra() -> LotkaVolterra:
    """Four rates of predators and prey from twenty noisy counts."""
    centre = jnp.array([-0.125, -3.0, -0.125, -3.0])
    return LotkaVolterra(LogNormalPrior(centre, jnp.full(4, 0.5)))


def sir() -> SIR:
    """Two rates of an epidemic from ten counts."""
    return SIR(LogNormalPrior(jnp.log(jnp.array([0.4, 0.125])), jnp.array([0.5, 0.2])))


def _populations(logs: Array) -> Array:
    """The populations, from their logarithms, cut off at e^20, which is half a billion.

    A trial step that overshoots must not overflow: the step size would become NaN. No accepted
    step comes near the cut.
    """
    return jnp.exp(jnp.minimum(logs, 20.0))


def _solve(rates: Callable[..., Array], start: Array, times: Array) -> Array:
    """The solution at `times`, from `start` at time 0; relative error below 1e-4."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rates),
        diffrax.Tsit5(),
        jnp.zeros((), start.dtype),
        times[-1],
        None,
        start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5),
        max_steps=16_384,
    )
    if solution.ys is None:  # for the type checker: SaveAt(ts=...) always saves
        raise RuntimeError("diffrax saved nothing")
    return solution.ys
