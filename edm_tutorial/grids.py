r"""Grids of the sampler: $N$ noise levels $\sigma_0 > \dots > \sigma_{N-1} > 0$.

Each function returns the *positive* levels in data units; the final $\sigma_N = 0$ is
implied (Table 1, row "Time steps"). One level is `[sigma_max]` in every grid. They are
computed in float64 on the host, and cast to the dtype of the noise where they are used.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import check_range, host, whole

Grid = TypeVar("Grid", bound=Callable[..., Array])


def formula(text: str, also: Callable[..., dict[str, Any]] = dict) -> Callable[[Grid], Grid]:
    """A decorator that gives a grid the formula of its i-th of N levels, for a printed design.

    `also` gives the numbers in the formula that follow from the grid's arguments.
    """

    def mark(grid: Any) -> Any:
        grid.formula, grid.also = text, also
        return grid

    return mark


@formula("(a + i/(N-1) (b - a))^rho, a = sigma_max^(1/rho), b = sigma_min^(1/rho)")
def edm_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, " n"]:
    r"""Levels evenly spaced in $\sigma^{1/\rho}$ (Eq. 5): `rho` bends steps towards low noise.

    Raises: ValueError if n < 1, not 0 < sigma_min < sigma_max, or rho is not positive;
    TypeError if `n` is not a whole number, or a number is known only inside `jit`.
    """
    (sigma_min, sigma_max), rho = _range(sigma_min, sigma_max), host("rho", rho)
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return jnp.asarray((high + _ramp(n) * (low - high)) ** rho)


@formula("sigma_max (sigma_min/sigma_max)^(i/(N-1))")
def ve_sigmas(n: int, sigma_min: float = 0.02, sigma_max: float = 100.0) -> Float[Array, " n"]:
    r"""Levels evenly spaced in $\ln\sigma$ (Table 1, column "VE").

    Raises: ValueError if n < 1 or not 0 < sigma_min < sigma_max; TypeError if `n` is not a whole
    number, or a number is known only inside `jit`.
    """
    sigma_min, sigma_max = _range(sigma_min, sigma_max)
    return jnp.asarray(sigma_max * (sigma_min / sigma_max) ** _ramp(n))


@formula("sigma(t_i) of VP at t_i = 1 + i/(N-1) (eps - 1)")
def vp_sigmas(
    n: int, eps: float = 1e-3, beta_d: float = 19.9, beta_min: float = 0.1
) -> Float[Array, " n"]:
    r"""Levels evenly spaced in the time of the VP schedule, from 1 down to `eps` (Table 1).

    For a range of noise levels take the betas of
    `VariancePreserving.from_range(sigma_min, sigma_max, eps)`.

    Raises: ValueError if n < 1 or not 0 < eps < 1, or for betas whose noise does not rise;
    TypeError if `n` is not a whole number, or a number is known only inside `jit`.
    """
    eps, beta_d, beta_min = host("eps", eps), host("beta_d", beta_d), host("beta_min", beta_min)
    t = 1 + _ramp(n) * (eps - 1)
    if not 0 < eps < 1:
        raise ValueError(f"need 0 < eps < 1, got eps={eps}")
    rates = np.array([beta_min + beta_d * eps / 2, beta_min + beta_d * eps, beta_min + beta_d])
    if not (np.all(np.isfinite(rates)) and np.all(rates > 0)):
        raise ValueError(
            f"the noise must be positive at t = eps and rise from there to t = 1, got "
            f"eps={eps}, beta_d={beta_d} and beta_min={beta_min}"
        )
    return jnp.asarray(np.sqrt(np.expm1(t * (beta_d * t / 2 + beta_min))))


def _inside(
    sigma_min: float, sigma_max: float, levels: int, c_1: float, c_2: float
) -> dict[str, int]:
    """The indices j_0 and j_1 of the first and the last trained level in the range."""
    table = iddpm_levels(levels, c_1, c_2)
    slack = 1 + 1e-6  # a bound that is itself a level counts, whatever its last digits
    first, end = np.sum(table > sigma_max * slack), np.sum(table >= sigma_min / slack)
    return {"j_0": int(first), "j_1": int(end) - 1}


@formula(
    "u_j with j = j_0 + round(i (j_1 - j_0)/(N-1)), halves to even; u_levels = 0, "
    "u_(j-1) = sqrt((u_j^2 + 1)/max(a_(j-1)/a_j, c_1) - 1), "
    "a_j = sin(pi/2 j/(levels (c_2 + 1)))^2",
    also=_inside,
)
def iddpm_sigmas(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 81.0,
    levels: int = 1000,
    c_1: float = 1e-3,
    c_2: float = 8e-3,
) -> Float[Array, " n"]:
    r"""`n` of the trained levels of improved DDPM inside the range (Table 1, "iDDPM").

    Evenly spaced in the index, which is rounded, halves to even as in the reference.

    Raises: ValueError if n < 1, for a bad range, or with fewer than n levels inside it; TypeError
    if `n` or `levels` is not a whole number, or a number is known only inside `jit`.
    """
    n = whole("n", n)
    first, last = _inside(*_range(sigma_min, sigma_max), levels, c_1, c_2).values()
    if n > last - first + 1:
        raise ValueError(
            f"iDDPM has {last - first + 1} levels between sigma_min={sigma_min} and "
            f"sigma_max={sigma_max}, got n={n}: ask for fewer, or raise `levels`"
        )
    step = (last - first) / max(n - 1, 1)
    index = np.round(step * np.arange(n)).astype(int)  # ties to even
    return jnp.asarray(iddpm_levels(levels, c_1, c_2)[first + index])


def iddpm_table(
    levels: int = 1000, c_1: float = 1e-3, c_2: float = 8e-3
) -> Float[Array, " {levels}+1"]:
    r"""The noise levels $u_0 > \dots > u_M = 0$ that improved DDPM was trained on.

    $u_{j-1}^2 = (u_j^2 + 1)$ $/ \max(\bar\alpha_{j-1}/\bar\alpha_j, C_1) - 1$ with
    $\bar\alpha_j = \sin^2(\tfrac\pi2 \, j / (M (C_2+1)))$ (Table 1, column "iDDPM").

    Raises: ValueError if levels < 1 or C_1, C_2 are outside (0, 1); TypeError if `levels` is not a
    whole number, or a number is known only inside `jit`.
    """
    return jnp.asarray(iddpm_levels(levels, c_1, c_2))


def iddpm_levels(levels: int, c_1: float, c_2: float) -> np.ndarray:
    """`iddpm_table` in float64 whatever JAX's default dtype is, shape (levels + 1,)."""
    return _recursion(whole("levels", levels), host("c_1", c_1), host("c_2", c_2))


@functools.cache
def _recursion(levels: int, c_1: float, c_2: float) -> np.ndarray:
    if not (0 < c_1 < 1 and 0 < c_2 < 1):
        raise ValueError(f"need c_1 and c_2 between 0 and 1, got {c_1} and {c_2}")
    angle = np.pi / 2 * np.arange(levels + 1) / (levels * (c_2 + 1))
    # 1 - abar_{j-1} / abar_j as a product of sines: no difference of nearly equal numbers
    drop = np.sin(np.diff(angle)) * np.sin(angle[1:] + angle[:-1])
    drop = np.minimum(drop / np.sin(angle[1:]) ** 2, 1 - c_1)
    u = np.zeros(levels + 1)
    for j in range(levels, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + drop[j - 1]) / (1 - drop[j - 1]))
    u.flags.writeable = False  # cached: one table for all callers
    return u


def _ramp(n: int) -> np.ndarray:
    return np.linspace(0.0, 1.0, whole("n", n))


def _range(sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    low, high = host("sigma_min", sigma_min), host("sigma_max", sigma_max)
    check_range(sigma_min, sigma_max)
    return low, high
