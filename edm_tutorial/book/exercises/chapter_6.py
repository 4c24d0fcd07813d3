r"""Chapter 6, Simulation-based inference: conditions, coverage, and posteriors put together.

A width that is too large by a factor r makes a central 90% interval hold the truth in
$2\Phi(1.645\,r) - 1$ of all cases, and a 90% region of d parameters in $F_d(F_d^{-1}(0.9)\,r^2)$,
with the chi-square law of d degrees of freedom.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammainc, ndtri

from ...denoiser import Pinned
from ...grids import edm_sigmas
from .chapter_4 import heun_gain
from .verdict import Exercise, at


def _pinned() -> Exercise:
    def told(x, sigma, cond=None, *, key=None):
        return x / (1 + sigma) + (0.0 if cond is None else cond)

    def measure(pin):
        pinned = pin(told, jnp.array(0.5))
        return [pinned(jnp.array(x), sigma) for x, sigma in ((0.2, 1.0), (-1.0, 3.0))]

    return Exercise(
        needs="a function of a denoiser and an observation that returns a denoiser of x and sigma",
        right=Pinned,
        lesson="a posterior is a denoiser like any other",
        mistakes={
            "the observation does not arrive: the denoiser's third argument is missing": (
                lambda denoiser, seen: lambda x, sigma: denoiser(x, sigma)
            ),
            "the observation is not a picture to denoise; it is the third argument": (
                lambda denoiser, seen: lambda x, sigma: denoiser(seen, sigma, x)
            ),
        },
        hint="return a function of x and sigma that calls the denoiser with all three",
        measure=measure,
    )


def _low_enough() -> Exercise:
    def ratio(width):  # the sigma_min / s at which the width is too small by that factor
        return np.sqrt(width**-2 - 1)

    narrow = float(ndtri((1 + 0.89) / 2) / ndtri((1 + 0.9) / 2))
    return Exercise(
        needs="two ratios sigma_min / s: for a width 1% too small, and for 89% in place of 90%",
        right=[ratio(0.99), ratio(narrow)],
        lesson="coverage near 90% forgives more than the width does",
        mistakes={
            "that is the ratio's square": [ratio(0.99) ** 2, ratio(narrow) ** 2],
            "divide sigma_min by s": [1 / ratio(0.99), 1 / ratio(narrow)],
            "1% of coverage is not 1% of width: the normal law stands between them": [
                *(ratio(0.99), ratio(0.99)),
            ],
            "one percentage point is meant, 89% in place of 90%": [
                *(ratio(0.99), ratio(float(ndtri((1 + 0.9 * 0.99) / 2) / ndtri(0.95)))),
            ],
            "the interval is central: 5% lie above it and 5% below": [
                *(ratio(0.99), ratio(float(ndtri(0.89) / ndtri(0.9)))),
            ],
        },
        hint="1 / sqrt(1 + r^2) is the factor of the width; which factor makes 89% of 90%?",
        rtol=0.035,  # a seventh and a quarter will do
    )


SIZES = (8, 12, 18, 25, 36, 60)


def multistep_gain(c: Any, sigmas: np.ndarray) -> Any:
    """Standard deviation out of DPM++(2M) over that of the data N(0, c^2)."""
    x, past = sigmas[0] / c, None
    for i, sigma in enumerate(sigmas[:-1]):
        shrink = sigmas[i + 1] / sigma
        now = ahead = x * c**2 / (c**2 + sigma**2)
        if past is not None:
            ahead = now + np.log(shrink) / np.log(sigma / sigmas[i - 1]) / 2 * (now - past)
        x, past = shrink * x + (1 - shrink) * ahead, now
    return x * c**2 / (c**2 + sigmas[-1] ** 2)


def _region(ratio: float) -> float:
    """How often 90% regions of ten parameters hold the truth, all `ratio` times too wide."""
    low, high = 0.0, 100.0
    for _ in range(60):  # bisection on the chi-square law
        middle = (low + high) / 2
        below = gammainc(5.0, middle / 2) < 0.9
        low, high = (middle, high) if below else (low, middle)
    return float(gammainc(5.0, low * ratio**2 / 2))


def _enough(top: float) -> list[int]:
    """The numbers of levels from which on Heun and DPM++(2M) stay within 0.88 and 0.92."""
    needed = []
    for gain in (heun_gain, multistep_gain):
        grids = [np.asarray(edm_sigmas(n, 0.05 / 7, top), float) for n in SIZES]
        good = [abs(_region(float(gain(0.05, grid))) - 0.9) < 0.02 for grid in grids]
        needed.append(SIZES[max([i + 1 for i, fine in enumerate(good) if not fine], default=0)])
    return needed


def _coverage() -> Exercise:
    levels = np.array([*_enough(80.0), *_enough(10.0)])
    calls = np.array([2, 1, 2, 1]) * levels - np.array([1, 0, 1, 0])
    return Exercise(
        needs="four numbers of calls: Heun and DPM++(2M) from 80, then both from 10",
        right=calls,
        lesson="ten parameters multiply a small fault, and the solver decides about it",
        mistakes={
            "those are levels; Heun makes 2 N - 1 calls": levels,
            "from 80 first, then from 10": calls[[2, 3, 0, 1]],
            "Heun first, then DPM++(2M)": calls[[1, 0, 3, 2]],
        },
        hint="widths r times too large cover F(F^-1(0.9) r^2), F the chi-square law of ten degrees",
        rtol=0.0,
    )


def _langevin() -> Exercise:
    return Exercise(
        needs="a function of s and epsilon",
        right=lambda s, epsilon: s / np.sqrt(1 - epsilon / (2 * s**2)),
        lesson="the step makes the chain too wide, by epsilon / (4 s^2) of its width at first",
        mistakes={
            "that is the width for infinitely small steps": lambda s, epsilon: s,
            "that is the variance": lambda s, epsilon: s**2 / (1 - epsilon / (2 * s**2)),
            "the kicks have variance 2 epsilon, not epsilon": (
                lambda s, epsilon: s / np.sqrt(2 - epsilon / s**2)
            ),
            "the chain is wider than the posterior, not narrower": (
                lambda s, epsilon: s * np.sqrt(1 - epsilon / (2 * s**2))
            ),
        },
        hint="the score is -theta / s^2: which variance v is left alone by a step, "
        "v = (1 - epsilon / s^2)^2 v + 2 epsilon?",
        measure=at((0.2, 0.02), (1.0, 0.5), (0.5, 0.2)),
        rtol=3e-3,
    )


SHIFT, NARROWER = 0.3, 0.7  # of `suspect`, in widths of the exact posterior


def suspect() -> tuple[np.ndarray, np.ndarray]:
    """Truths (4000,) and draws (4000, 50) of a posterior that is wrong in some way."""
    random = np.random.default_rng(66)
    theta = random.normal(size=4000)
    x = theta + 0.5 * random.normal(size=4000)
    width = 0.2**0.5
    middle = 0.8 * x + SHIFT * width
    return theta, middle[:, None] + NARROWER * width * random.normal(size=(4000, 50))


def _diagnosis() -> Exercise:
    return Exercise(
        needs="two numbers: the shift in exact widths, and the width over the exact one",
        right=[SHIFT, NARROWER],
        lesson="truths that rank low among the draws, and spread too far for them",
        mistakes={
            "the draws lie above the truths, so the posterior is shifted upwards": [
                *(-SHIFT, NARROWER),
            ],
            "the shift is asked for in exact widths, not in those of the draws": [
                *(SHIFT / NARROWER, NARROWER),
            ],
            "that is how far the truths spread, in widths of the draws; the width is its inverse": [
                *(SHIFT, 1 / NARROWER),
            ],
            "the spread of truths about the middle of their draws is the exact width": [
                *(SHIFT, 1.0),
            ],
        },
        hint="measure each truth from the middle of its draws, in the width of these draws: what "
        "are mean and standard deviation, if the posterior is shifted by a and b times too wide?",
        rtol=0.0,
        atol=0.05,  # 4,000 pairs and 50 draws: 0.016 and 0.008 are standard errors
    )


def _other_prior() -> Exercise:
    draws = np.array([[-0.6, 2.0], [0.1, 1.5], [0.4, 0.2], [1.1, -1.0], [1.7, 0.3]])

    def new(theta):
        return np.exp(-((theta[:, 0] - 1.0) ** 2))

    def old(theta):
        return 0.3 * np.exp(-(theta[:, 0] ** 2) / 4)

    def by(weight):
        def answer(draws, new, old):
            w = weight(draws, new, old)
            return w @ draws / np.sum(w), np.sum(w) ** 2 / np.sum(w**2)

        return answer

    def measure(answer):
        calls = [answer(rows, new, old) for rows in (draws, draws + 0.3)]
        return [np.concatenate([np.ravel(part) for part in call]) for call in calls]

    right = by(lambda draws, new, old: new(draws) / old(draws))
    return Exercise(
        needs="a function of draws (n, d), the new prior and the old, that returns the mean, one "
        "number a parameter, and the effective number of draws",
        right=right,
        lesson="the likelihood is in the draws already, and only the prior changes",
        mistakes={
            "the draws come from the old posterior, which has the old prior in it": (
                by(lambda draws, new, old: new(draws))
            ),
            "the new prior over the old": by(lambda draws, new, old: old(draws) / new(draws)),
            "normalise the weights before you count draws": (
                lambda *a: (right(*a)[0], 1 / np.sum((a[1](a[0]) / a[2](a[0])) ** 2))
            ),
            "equal weights leave the prior as it was": (
                by(lambda draws, new, old: np.ones(len(draws)))
            ),
        },
        hint="weights w = new / old, one a draw; the mean is w @ draws / sum(w), the number "
        "sum(w)^2 / sum(w^2)",
        measure=measure,
        rtol=1e-3,
    )


EXERCISES = (_pinned, _low_enough, _coverage, _diagnosis, _langevin, _other_prior)
