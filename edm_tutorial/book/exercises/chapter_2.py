r"""Chapter 2, The design space: clocks, grids, and steps that are the same in other words.

Whatever the clock, $x = s(t)\,(y + \sigma(t)\,n)$ (Eq. 4 is the ODE of all of them).
"""

import jax.numpy as jnp
import numpy as np

from ...grids import edm_sigmas, iddpm_sigmas, iddpm_table, vp_sigmas
from ...sampling import sample_path
from ...schedules import Linear, VarianceExploding, VariancePreserving
from ...solvers import Euler
from .verdict import Clock, Exercise, at, three_methods


def _invert_vp() -> Exercise:
    d, low = 19.9, 0.1

    def root(inside):
        return (np.sqrt(low**2 + inside) - low) / d

    return Exercise(
        needs="a function of sigma, for beta_d = 19.9 and beta_min = 0.1",
        right=VariancePreserving().time,
        lesson="a quadratic in t has a root that no table has to hold",
        mistakes={
            "take the logarithm of both sides first": lambda sigma: root(2 * d * sigma**2),
            "sigma^2 + 1 is what stands under the logarithm": (
                lambda sigma: root(2 * d * np.log(sigma**2)) if sigma > 1 else 0.0
            ),
            "mind the 1/2 before beta_d t^2": lambda sigma: root(4 * d * np.log1p(sigma**2)) / 2,
            "that is the logarithm to another base": (
                lambda sigma: root(2 * d * np.log10(1 + sigma**2))
            ),
        },
        hint="with L = ln(1 + sigma^2) this is a quadratic equation for t",
        measure=at((0.1,), (1.5,), (80.0,)),
    )


def _pure_noise() -> Exercise:
    def factor(schedule):
        stops = jnp.array([80.0, 40.0])
        path = sample_path(_nothing, jnp.ones(1), stops, schedule=schedule, solver=Euler())
        return float(path[1, 0] / path[0, 0])

    return Exercise(
        needs="two factors, in EDM's clock and in VE's",
        right=[factor(Linear()), factor(VarianceExploding())],
        lesson="where D is at rest, EDM's clock makes Euler exact",
        mistakes={
            "in VE's clock sigma^2 = t: halving sigma divides t by 4": [0.5, 0.75],
            "in VE's clock dx/dt = x / (2 t), with the 2": [0.5, 0.25],
            "the step in VE's clock is not exact: compute x + (t' - t) dx/dt": [0.5, 0.5],
        },
        hint="write dx/dt with D = 0 in each clock, and take one step",
    )


def _nothing(x, sigma, cond=None, *, key=None):
    return jnp.zeros_like(x)


def _first_level() -> Exercise:
    grids = [np.asarray(iddpm_sigmas(18, sigma_max=top), float) for top in (3e4, 81.0)]
    falls = np.array([grid[0] / grid[1] for grid in grids])
    return Exercise(
        needs="two factors, by which the noise level falls in the first of 18 levels' steps: "
        "from u_0, then from u_8",
        right=falls,
        lesson="one step over so many scales is what makes u_0 a bad start",
        mistakes={
            "these are factors between neighbours of the table; take those of the 18-level grids": [
                table[0] / table[1] for table in (iddpm_table(), iddpm_table()[8:])
            ],
            "divide the higher level by the lower": 1 / falls,
            "from u_0 first, then from u_8": falls[::-1],
            "both grids start at u_8; let sigma_max be 3e4 in the first": falls[[1, 1]],
        },
        hint="print the first two entries of iddpm_sigmas(18), and with sigma_max=3e4",
    )


def _flow_matching() -> Exercise:
    def sigma(t):
        return t / (1 - t)

    def time(sigma):
        return sigma / (1 + sigma)

    def scale(t):
        return 1 - t

    return Exercise(
        needs="a schedule, with its methods sigma, time and scale",
        right=Clock(sigma, time, scale),
        lesson="flow matching is a clock, and all of this book applies to it",
        mistakes={
            "x is scaled here: what multiplies y?": Clock(sigma, time, lambda t: 1.0),
            "t is the noise after scaling; sigma is that before it": (
                Clock(lambda t: t, lambda sigma: sigma, scale)
            ),
            "time must undo sigma: time(sigma(t)) = t": Clock(sigma, lambda s: s, scale),
        },
        hint="x = s(t) (y + sigma(t) n); compare with (1 - t) y + t n",
        measure=three_methods,
    )


def _ddim() -> Exercise:
    def right(z, y, alpha, after):  # Euler's step from sigma to lower, scaled back
        sigma, lower = np.sqrt(1 / alpha - 1), np.sqrt(1 / after - 1)
        x = z / np.sqrt(alpha)
        return np.sqrt(after) * (x + (lower - sigma) * (x - y) / sigma)

    def rest(z, y, alpha):
        return z - np.sqrt(alpha) * y

    return Exercise(
        needs="a function of z, the estimate y, and alpha_bar before and after the step",
        right=right,
        lesson="an estimate of data and one of noise, mixed anew: Euler's step",
        mistakes={
            "what is left is noise of the old size; scale it to the new one": (
                lambda z, y, alpha, after: np.sqrt(after) * y + rest(z, y, alpha)
            ),
            "the noise estimate is what is left, over sqrt(1 - alpha_bar)": (
                lambda z, y, alpha, after: (
                    np.sqrt(after) * y + np.sqrt(1 - after) * rest(z, y, alpha) / (1 - alpha)
                )
            ),
            "alpha_bar is a share of variance: data and noise are multiplied by roots": (
                lambda z, y, alpha, after: after * y + (1 - after) * (z - alpha * y) / (1 - alpha)
            ),
        },
        hint="estimate the noise from what is left of z, then mix with the next alpha_bar",
        measure=at((1.2, 0.4, 0.2, 0.5), (-0.7, 0.1, 0.6, 0.9)),
    )


def _explodes() -> Exercise:
    clock = VariancePreserving.from_range(0.002, 80.0, 4e-5)
    ours = vp_sigmas(18, eps=4e-5, beta_d=clock.beta_d, beta_min=clock.beta_min)
    last = [np.asarray(grid, float)[-2:] for grid in (ours, edm_sigmas(18))]
    falls = np.array([high / low for high, low in last])
    return Exercise(
        needs="two factors, by which the noise level falls between the last two of 18 levels: "
        "VP's grid, then EDM's",
        right=falls,
        lesson="the second slope of Heun divides by the small level what the long step missed",
        mistakes={
            "divide the higher level by the lower": 1 / falls,
            "a factor is asked for, not a difference": [high - low for high, low in last],
            "VP's grid first, then EDM's": falls[::-1],
        },
        hint='print the last two entries of grids["VP"](18) and grids["EDM"](18)',
    )


EXERCISES = (_invert_vp, _pure_noise, _first_level, _flow_matching, _ddim, _explodes)
