r"""Chapter 8, After EDM: flow matching's clock and loss, guidance, consistency, magnitudes.

Flow matching is $x_t = (1 - t)\,y + t\,n$, so $\sigma = t/(1 - t)$ and $s = 1 - t$.
"""

from typing import Any

import numpy as np

from ...grids import edm_sigmas
from .verdict import Exercise, at


def _which_time() -> Exercise:
    def time(sigma):
        return sigma / (1 + sigma)

    times = [time(0.002), time(0.5), time(80.0)]
    return Exercise(
        needs="five numbers: t at sigma = 0.002, 0.5 and 80, the shares below 0.02 and above 5",
        right=[*times, time(0.02), 1 - time(5.0)],
        lesson="uniform in t is not uniform in ln(sigma)",
        mistakes={
            "the last share is that above sigma = 5": [*times, time(0.02), time(5.0)],
            "a share is at most 1; divide per cent by 100": [*times, 2.0, 16.7],
            "t is the noise after scaling by 1 - t, so t is not sigma": [
                *(0.002, 0.5, 80.0, 0.02, 0.95),
            ],
            "sigma = t / (1 - t): solve that for t": [
                *(sigma / (1 - sigma + (sigma == 1)) for sigma in (0.002, 0.5, 80.0, 0.02, 5.0)),
            ],
            "these are times with data and noise exchanged": [
                *(1 - t for t in times),
                *(1 - time(0.02), time(5.0)),
            ],
        },
        hint="solve sigma = t / (1 - t) for t; with t uniform, a share is a difference of times",
        measure=lambda five: np.concatenate([np.ravel(part) for part in five]),  # or three, two
        rtol=0.03,
    )


def _its_loss() -> Exercise:
    def weight(sigma):
        return (1 + sigma) ** 2 / sigma**2

    values = at((0.1,), (1.0,), (7.0,))
    return Exercise(
        needs="a pair: the weight of |D - y|^2 as a function, and the sigma that counts most",
        right=(weight, 0.5),
        lesson="it trains hardest at sigma_data, where signal and noise are equal",
        mistakes={
            "the error is squared, and so is its factor": (
                lambda sigma: (1 + sigma) / sigma,
                0.5,
            ),
            "D is a guess of y, not of x_t: mind the scale 1 - t": (
                lambda sigma: 1 / sigma**2,
                0.5,
            ),
            "that divides where it should multiply": (lambda sigma: 1 / weight(sigma), 0.5),
            "that is the weight in EDM, for sigma_data = 1": (
                lambda sigma: (1 + sigma**2) / sigma**2,
                0.5,
            ),
            "the weight is right; where t = 1/2 the *law* of ln(sigma) is largest, not yet times "
            "the weight and c_out^2": (weight, 1.0),
        },
        hint="with x_t given, v and D are linear in each other: v - (n - y) is a multiple of "
        "D - y; what counts is law times weight times c_out^2, over ln(sigma)",
        measure=lambda pair: [*values(pair[0]), np.ravel(pair[1]).item()],
        rtol=1e-2,
    )


def _with_unit() -> Exercise:
    def measure(ratios):
        small, one, large = np.ravel(np.asarray(ratios, float))
        return [abs(small - 1) < 0.1, 0.3 < one < 0.45, one > 2, abs(large - 1) < 0.1]

    return Exercise(
        needs="three ratios, flow matching's error over EDM's at c = 0.01, 1 and 100",
        right=[1.0, 0.4, 1.0],
        lesson="a clock with a unit helps data of about that size; much smaller data see EDM's "
        "clock, much larger ones another method with about its error",
        mistakes={
            "divide flow matching's error by EDM's": [1.0, 2.7, 1.0],
            "EDM's clock cannot notice c; does your denoiser see flow matching's?": [1.0, 1.0, 1.0],
            "those are the errors; divide by EDM's": [0.0075, 0.0028, 0.0075],
        },
        hint="heun_error(FlowMatching(), 18, c) / heun_error(edm.Linear(), 18, c) for each c",
        measure=measure,
    )


def _smear() -> Exercise:
    return Exercise(
        needs="a function of s_m, s_g and s",
        right=lambda main, guide, s: np.log(guide / s) / np.log(guide / main),
        lesson="the nearer the guide is to the model, the larger the weight",
        mistakes={
            "check with w = 1: the width should be that of the model": (
                lambda main, guide, s: np.log(main / s) / np.log(main / guide)
            ),
            "the other way round: at s = s_m the weight is 1, and s further off needs more": (
                lambda main, guide, s: np.log(guide / main) / np.log(guide / s)
            ),
            "the logarithms of the widths are mixed": (
                lambda main, guide, s: (guide - s) / (guide - main)
            ),
            "that adds precisions": (
                lambda main, guide, s: (s**-2 - guide**-2) / (main**-2 - guide**-2)
            ),
        },
        hint="take the logarithm of s = s_m^w s_g^(1-w), and solve for w",
        measure=at((0.2, 0.4, 0.15), (0.3, 0.5, 0.4)),
        rtol=1e-3,
    )


def _two_calls() -> Exercise:
    values = at((0.46, 1.0, 0.45), (0.2, 0.5, 0.7))

    def width(first, sigma, g):
        return g * np.sqrt(first**2 + sigma**2)

    def measure(pair: Any) -> list:
        function, best = pair
        return [*values(function), *np.round(np.ravel(np.asarray(best, float)), 2)]

    best = _best_second_calls(width)
    return Exercise(
        needs="a pair: a function of the width after the first call, sigma, and g at sigma; and "
        "two numbers, the best widths over the true one",
        right=(width, best),
        lesson="it repairs what went wrong above its level, and repeats the training's own error",
        mistakes={
            "widths do not add, variances do": (lambda first, sigma, g: g * (first + sigma), best),
            "that is the variance": (
                lambda first, sigma, g: g**2 * (first**2 + sigma**2),
                best,
            ),
            "the noise is added before the call, so g multiplies it too": (
                lambda first, sigma, g: np.sqrt(g**2 * first**2 + sigma**2),
                best,
            ),
            "g multiplies a sample, so its square multiplies a variance": (
                lambda first, sigma, g: np.sqrt(g * (first**2 + sigma**2)),
                best,
            ),
            "the formula is right; the best widths are those over the true one, 1/2": (
                width,
                [value / 2 for value in best],
            ),
            "the formula is right; take the maximum over all levels, the highest too": (
                width,
                [best[0], best[1] / 2],
            ),
        },
        hint="add the noise to the variance, then multiply by g; then try every level of rungs",
        measure=measure,
        rtol=2e-3,
    )


def _magnitudes() -> Exercise:
    silu, relu = 0.5963, np.sqrt(0.5)
    return Exercise(
        needs="four numbers: for SiLU, ReLU, the mean of 2 x 2 pixels, and a + a",
        right=[silu, relu, 0.5, 2.0],
        lesson="a constant keeps the magnitude only of what it was made for: independent entries",
        mistakes={
            "that is the mean square; the magnitude is its root": [silu**2, 0.5, 0.25, 4.0],
            "the magnitude is about zero: do not subtract the mean": [0.5595, 0.5838, 0.5, 2.0],
            "a and a are not independent: their products count, too": [
                *(silu, relu, 0.5, np.sqrt(2.0)),
            ],
            "the mean of four has a quarter of the variance": [silu, relu, 0.25, 2.0],
            "a mean of independent pixels is smaller than a pixel": [silu, relu, 1.0, 2.0],
            "divide by the magnitude of what comes out; those are the factors to multiply with": [
                *(1 / silu, 1 / relu, 2.0, 0.5),
            ],
        },
        hint="draw many unit normals, apply the layer, take the root of the mean square",
        measure=lambda four: np.concatenate([np.ravel(part) for part in four]),
        rtol=0.01,
    )


def _best_second_calls(width: Any) -> list[float]:
    """The best width over c after a whole first call and after half of one, for the forty g."""
    c, rungs = 0.5, np.append(0.0, np.asarray(edm_sigmas(40), float)[::-1])
    lower, upper = rungs[:-1], rungs[1:]
    factors = (c**2 + lower * upper) / (c**2 + upper**2)
    g = np.append(1.0, np.cumprod(factors))
    once = g[-1] * rungs[-1]
    return [float(np.max(width(first, rungs, g)) / c) for first in (once, once / 2)]


EXERCISES = (_which_time, _its_loss, _with_unit, _smear, _two_calls, _magnitudes)
