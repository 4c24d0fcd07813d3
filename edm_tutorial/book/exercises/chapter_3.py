r"""Chapter 3, Preconditioning: what a network sees, where it is trained, how it is judged.

$D(x; \sigma) = c_{skip}\,x + c_{out}\,F(c_{in}\,x; c_{noise})$ (Eq. 7), trained at
$\ln\sigma \sim N(P_{mean}, P_{std}^2)$ (Table 1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from ...losses import initial_loss
from ...noise_levels import LogNormal
from ...preconditioning import EDMPreconditioning
from .verdict import Exercise


def _two_ends() -> Exercise:
    low, high = (EDMPreconditioning(0.5)(sigma) for sigma in (1e-4, 1e4))
    return Exercise(
        needs="four limits: c_out / sigma and c_skip as sigma goes to 0, c_out / sigma_data and "
        "c_skip as it goes to infinity",
        right=[low.c_out / 1e-4, low.c_skip, high.c_out / 0.5, high.c_skip],
        lesson="noise is predicted at the low end and data at the high end",
        mistakes={
            "c_out goes to 0 with sigma; the question is how fast": [0, 1, 1, 0],
            "what does c_skip x add, when x is nearly all noise?": [1, 1, 1, 1],
            "when x is nearly the data, should the answer not begin with x?": [1, 0, 1, 0],
            "the limits are in units of sigma, then of sigma_data": [1, 1, 0.5, 0],
        },
        hint="set sigma far below sigma_data in the two formulas, then far above",
        atol=1e-3,
    )


def _units() -> Exercise:
    together = float(np.sqrt((1.0 + 1000.0**2) / 2))
    recipe = EDMPreconditioning(together)
    scores = [initial_loss(recipe, 1e9, square) for square in (1.0, 1000.0**2)]
    return Exercise(
        needs="the loss of each of the two features at high noise, with from_data",
        right=scores,
        lesson="one number serves neither feature",
        mistakes={
            "that is what two numbers give; from_data measures one for both": [1, 1],
            "from_data is the root mean square over both features, not the larger one": [1e-6, 1],
            "it is a loss of squares": np.sqrt(np.array(scores)),
            "the larger feature has the larger loss": scores[::-1],
        },
        hint="at high noise the untrained network says 0: the loss is the feature's mean square "
        "over sigma_data^2",
        atol=0.0,
    )


def _bell() -> Exercise:
    window = np.log([0.03, 0.3])

    def shares(window, std=1.2):
        return [np.diff(norm.cdf((window - mean) / std))[0] for mean in (-1.2, 1.2)]

    return Exercise(
        needs="the share of the draws between 0.03 and 0.3, for p_mean = -1.2 and for 1.2",
        right=shares(window),
        lesson="hardly any draw is left where there is something to learn",
        mistakes={
            "p_mean is the mean of the natural logarithm": shares(window / np.log(10)),
            "the standard deviation of ln(sigma) is 1.2, not 1": shares(window, 1.0),
            "the standard deviation is 1.2, not the variance": shares(window, 1.2**0.5),
            "p_mean = -1.2 first": shares(window)[::-1],
            "a share is a number from 0 to 1, not a percentage": 100 * np.array(shares(window)),
        },
        hint="ln(sigma) is normal: take its distribution function at ln 0.3 and at ln 0.03",
        rtol=0.03,
        atol=0.005,  # the shares with two decimals
    )


def _fair_ve() -> Exercise:
    return Exercise(
        needs="the factor by which VE's error at sigma = 80 falls",
        right=100.0,
        lesson="most of what looked like a fault of the recipe was one of the noise law",
        mistakes={
            "divide the old error by the new one": 0.01,
            "the error at 80 should fall by far more: is the last of the sigmas the one you took, "
            "and was VE trained with its own law?": 1.0,
        },
        hint="faults['VE'][-1] is the old error at 80; fit again with LogUniform(0.02, 100.0)",
        measure=_falls,
    )


def _falls(factor: Any) -> float:
    """1 for a fall by ten or more, whose size depends on the seed; -1 for such a rise; else 0."""
    return np.trunc(np.clip(np.log10(np.asarray(factor, float).item()), -1, 1))


def _strata() -> Exercise:
    draws = np.array([0.3, 0.85, 0.45, 0.05, 0.35])  # two in one stratum, none in another

    def levels(u):
        return jax.vmap(LogNormal().from_variate)(u)

    def strata(u):
        return (jnp.arange(len(u), dtype=u.dtype) + u) / len(u)

    def measure(function):
        """Ones if each stratum has a draw, at a place that is one of the draws; else the levels."""
        sigmas = np.sort(np.asarray(function(jnp.asarray(draws)), float).ravel())
        law = LogNormal()
        uniform = np.asarray(norm.cdf((np.log(sigmas) - law.p_mean) / law.p_std), float)
        place = len(draws) * uniform - np.arange(len(sigmas))
        drawn = np.abs(place[:, None] - draws).min(axis=1) < 1e-3
        return np.ones(len(draws)) if len(sigmas) == len(draws) and drawn.all() else sigmas

    return Exercise(
        needs="a function of n uniform numbers that returns n noise levels",
        right=lambda u: levels(norm.ppf(strata(u))),
        lesson="each stratum has its draw, and each draw is still lognormal",
        mistakes={
            "these are independent draws: squeeze number i into stratum i": (
                lambda u: levels(norm.ppf(u))
            ),
            "from_variate wants normal numbers, so the uniform ones go through norm.ppf": (
                lambda u: levels(strata(u))
            ),
            "these are the uniform numbers, one a stratum; now make them noise levels": strata,
            "the middle of a stratum is no draw: keep the random numbers": (
                lambda u: levels(norm.ppf(strata(0 * u + 0.5)))
            ),
        },
        hint="(i + u_i) / n lies in stratum i, for i from 0 to n - 1",
        measure=measure,
    )


def _learned_weight() -> Exercise:
    scored = np.linspace(0.6, 1.0, 5)
    return Exercise(
        needs="a pair of arrays, e^u and the loss at the same noise levels from 0.03 to 3",
        right=(1.01 * scored, scored),
        lesson="u has learned the logarithm of the loss, as the calculus says",
        mistakes={
            "u is the logarithm of what is asked for": (np.log(scored), scored),
            "look at the sign of u: the loss is multiplied by e^-u": (1 / scored, scored),
            "this is one array twice: e^u is what u says, and nobody measured it": (scored, scored),
        },
        hint="they differ by more than 15%: is u trained, and is it asked at ln(sigma)?",
        measure=_which_agree,
    )


def _which_agree(pair: Any) -> list:
    """Whether the first is the second to 15%, or its logarithm, or one over it; or its copy."""
    said, scored = (np.asarray(part, float) for part in pair)
    guesses = (scored, np.log(scored), 1 / scored)
    agree = [np.allclose(said, guess, rtol=0.15) for guess in guesses]
    return [*agree, np.array_equal(said, scored)]


EXERCISES = (_two_ends, _units, _bell, _fair_ve, _strata, _learned_weight)
