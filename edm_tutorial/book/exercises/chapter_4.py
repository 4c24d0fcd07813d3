r"""Chapter 4, Sampling: symptoms, orders, and what a sampler does to a Gaussian.

For data N(0, c^2) every sampler multiplies, $x_{i+1} = f(c, \sigma_i, \sigma_{i+1})\,x_i$, and its
gain is the product of the factors.
"""

from typing import Any, final

import jax.numpy as jnp
import numpy as np

from ...grids import edm_sigmas, ve_sigmas
from ...sampling import sample
from ...solvers import ODE, AbstractSolver, Euler, Heun
from .verdict import Exercise, at


def _symptoms() -> Exercise:
    return Exercise(
        needs="four numbers, the cause of A, of B, of C and of D",
        right=[2, 3, 1, 4],
        lesson="double N: what more steps do not cure is no error of the steps",
        mistakes={
            "which of the two narrow ones does more steps cure?": [1, 3, 2, 4],
            "noise that nobody removes makes samples too wide": [3, 2, 1, 4],
            "a start that is 80 times too small stays so on the whole way": [2, 3, 4, 1],
            "give the number of the cause for each letter, not the letter for each cause": [
                *(3, 1, 2, 4),
            ],
        },
        hint="first ask which of them more steps cure, then which is too wide",
        rtol=0.0,
    )


def heun_gain(c: Any, sigmas: Any) -> Any:
    """Standard deviation out of Heun's method over that of the data, for each scale `c`."""
    s = np.asarray(sigmas, float)
    gain = s[0] / c
    for sigma, lower in zip(s[:-1], s[1:], strict=True):
        slope, far = sigma / (c**2 + sigma**2), lower / (c**2 + lower**2)
        ahead = 1 + (lower - sigma) * slope
        gain = gain * (1 + (lower - sigma) / 2 * (slope + far * ahead))
    return gain * c**2 / (c**2 + s[-1] ** 2)


def is_flat(sigmas: Any) -> bool:
    """Whether Heun's gain in variance varies by less than 1% from c = 0.01 to 10."""
    gains = heun_gain(np.geomspace(0.01, 10.0, 200), sigmas) ** 2
    return bool(gains.max() < 1.01 * gains.min())


def _which_grid(sigmas: Any) -> list:
    """How many levels, from where to where, whether evenly in ln(sigma), and whether flat."""
    s = np.asarray(sigmas, float).ravel()
    even = np.ptp(np.diff(np.log(s))) < 1e-3
    return [len(s), s[0], s[-1], even, is_flat(s)]


def _flat() -> Exercise:
    ends = (0.0005, 400.0)
    smallest = next(n for n in range(8, 40) if is_flat(ve_sigmas(n, *ends)))
    return Exercise(
        needs="a grid of noise levels from 400 down to 0.0005",
        right=ve_sigmas(smallest, *ends),
        lesson="flat from 0.01 to 10; that it is not near 1 is another matter",
        mistakes={
            "flat, but fewer levels will do": ve_sigmas(smallest + 1, *ends),
            "the gain still varies by more than 1%": ve_sigmas(smallest - 1, *ends),
            "from high to low": ve_sigmas(smallest, *ends)[::-1],
            "these steps treat scales differently: they must be even in ln(sigma)": (
                edm_sigmas(smallest, *ends)
            ),
            "near its ends the range spoils the curve: from 400 to 0.0005": (
                ve_sigmas(18, 0.002, 80.0)
            ),
        },
        hint="ve_sigmas(n, 0.0005, 400.0): try one n after the other until the gain is flat",
        measure=_which_grid,
        rtol=1e-3,
    )


def _alpha() -> Exercise:
    return Exercise(
        needs="two numbers: the alpha that is best on the Gaussian, and the order all three have",
        right=[0.5, 2.0],
        lesson="the order says how fast an error falls, not how large it is",
        mistakes={
            "compare the errors at 36 steps, on the Gaussian, once more": [1.0, 2.0],
            "one of them is better still, on the Gaussian": [2 / 3, 2.0],
            "halving the steps divides these errors by about four: what order is that?": [0.5, 4.0],
            "with the error of one step this would be so; count the error at the end": [0.5, 3.0],
        },
        hint="the order is log2 of the ratio of the errors at 144 and at 288 steps",
        atol=[0.0, 0.4],
    )


def _width() -> Exercise:
    return Exercise(
        needs="a function of sigma_data and sigma_max",
        right=lambda data, top: np.sqrt(1 + (data / top) ** 2),
        lesson="the start has the variance of noisy data, not of noise alone",
        mistakes={
            "that is a factor for variances": lambda data, top: 1 + (data / top) ** 2,
            "the samples are too narrow, so the start must be wider": (
                lambda data, top: 1 / np.sqrt(1 + (data / top) ** 2)
            ),
            "variances add, standard deviations do not": lambda data, top: 1 + data / top,
            "that is the standard deviation of the start; the noise has sigma_max already": (
                lambda data, top: np.sqrt(top**2 + data**2)
            ),
        },
        hint="what is the variance of noisy data at sigma_max, and what is that of the noise?",
        measure=at((1.0, 5.0), (0.5, 1.0), (2.0, 3.0)),
        rtol=1e-3,
    )


def _guided() -> Exercise:
    return Exercise(
        needs="a function of w, s_m and s_g",
        right=lambda w, main, guide: main**w * guide ** (1 - w),
        lesson="the logarithms of the widths are mixed, not the precisions",
        mistakes={
            "that adds precisions, as Bayes would; integrate the slope of ln x instead": (
                lambda w, main, guide: (w / main**2 + (1 - w) / guide**2) ** -0.5
            ),
            "the *logarithm* of the width is the mixture": (
                lambda w, main, guide: w * main + (1 - w) * guide
            ),
            "w belongs to the model, 1 - w to the guide": (
                lambda w, main, guide: main ** (1 - w) * guide**w
            ),
            "that is the variance": lambda w, main, guide: main ** (2 * w) * guide ** (2 - 2 * w),
        },
        hint="the slope of ln x is w times that of one denoiser plus 1 - w times the other's",
        measure=at((0.5, 0.4, 1.0), (1.5, 0.4, 0.7), (3.0, 0.2, 0.3)),
    )


@final
class _DPMSolver2(AbstractSolver):
    """Euler's step to the geometric mean of the levels, and its slope for the whole step."""

    def init(self, x):
        return None

    def step(self, ode: ODE, x, t, t_next, state):
        middle = ode.schedule.sigma(t) * ode.schedule.sigma(t_next)
        middle = ode.schedule.time(jnp.sqrt(middle))
        half = x + (middle - t) * ode.velocity(t, x)
        return x + (t_next - t) * ode.velocity(middle, half), None

    def last(self, ode: ODE, x, t, state):
        return ode.denoise(t, x)


def _unit_gaussian(x, sigma, cond=None, *, key=None):
    return x / (1 + sigma**2)


def _solver() -> Exercise:
    return Exercise(
        needs="a solver, an instance of your subclass of edm.AbstractSolver",
        right=_DPMSolver2(),
        lesson="two calls a step, order 2, and the half way of noise levels is geometric",
        mistakes={
            "the half way in question is the geometric mean, not the arithmetic": Heun(0.5),
            "that is Heun's method": Heun(),
            "that is Euler's method: the second slope is missing": Euler(),
        },
        hint="on a Gaussian it takes other steps: the whole step starts at x, with the slope found "
        "half way",
        measure=lambda solver: sample(_unit_gaussian, jnp.array(1.0), edm_sigmas(8), solver=solver),
        rtol=1e-3,
    )


EXERCISES = (_symptoms, _flat, _alpha, _width, _guided, _solver)
