r"""Chapter 0, First samples: the ideal denoiser of a list of data, and what it draws.

$$D(x; \sigma) = \sum_i w_i\, y_i, \qquad w_i \propto \exp(-\|x - y_i\|^2 / 2\sigma^2)$$

is Eq. 57, and the whole program needs nothing else but noise levels and a sampler.
"""

import jax.numpy as jnp
import numpy as np

from ...distributions import EmpiricalDenoiser, GaussianMixture
from ...grids import edm_sigmas
from .verdict import Exercise, at


def _both_ends() -> Exercise:
    denoiser = EmpiricalDenoiser(jnp.array([[-1.0], [0.0], [4.0]]))
    points = [(0.3, 1e4), (0.3, 0.01), (2.0, 0.01)]
    return Exercise(
        needs="three numbers, the limits for the data -1, 0 and 4",
        right=[denoiser(jnp.array([x]), sigma)[0] for x, sigma in points],
        lesson="all the data, then the nearest one, or the nearest two where they tie",
        mistakes={
            "these data are not centred, so their mean is not 0": [0.0, 0.0, 2.0],
            "half way, two data are equally near at every sigma: both keep their weight": [1, 0, 0],
            "at high noise all weights are equal, whatever x is": [0.3, 0.0, 2.0],
        },
        hint="compare the squared distances over 2 sigma^2, when sigma is huge and when it is tiny",
        atol=0.01,
    )


def _calls() -> Exercise:
    return Exercise(
        needs="a function of the number of levels N",
        right=lambda n: 2 * n - 1,
        lesson="two calls for each step between levels, one for the step to 0",
        mistakes={
            "the last step, to 0, is Euler's and calls the denoiser once": lambda n: 2 * n,
            "the step to 0 costs a call too": lambda n: 2 * n - 2,
            "that is the cost of Euler; Heun looks at both ends of a step": lambda n: n,
        },
        hint="count the steps between levels, and what the last step does",
        measure=at((1,), (2,), (18,)),
        rtol=0.0,
    )


def _only_threes() -> Exercise:
    def picture(value):  # 8 by 8 as the digits, at distance 1 where values differ by 1
        return jnp.full((8, 8), value / 8)

    data, labels = jnp.stack([picture(v) for v in (-1.0, 0.0, 2.0, 5.0)]), np.array([3, 1, 3, 3])

    def answers(build):
        denoiser = build(data, labels, 3)
        return [8 * denoiser(picture(0.4), sigma)[0, 0] for sigma in (0.5, 3.0, 100.0)]

    return Exercise(
        needs="a function of data, labels and a label that returns a denoiser",
        right=lambda data, labels, label: EmpiricalDenoiser(data[labels == label]),
        lesson="a condition makes the denoiser average over fewer data; the sampler stays",
        mistakes={
            "this denoiser still knows all the data": lambda data, *_: EmpiricalDenoiser(data),
            "this denoiser knows what it should not, and not what it should": (
                lambda data, labels, label: EmpiricalDenoiser(data[labels != label])
            ),
        },
        hint="at high noise it should return the mean of the data with that label alone",
        measure=answers,
    )


def _other_units() -> Exercise:
    sigmas = np.asarray(edm_sigmas(18))
    return Exercise(
        needs="the 18 noise levels for data that are 16 times as large",
        right=16 * sigmas,
        lesson="sigma has the units of the data, and nothing else in the program has",
        mistakes={
            "these are the old levels: is 80 as far above the data as it was?": sigmas,
            "a noise level is a standard deviation, not a variance": 256 * sigmas,
            "the data became larger, so the levels must": sigmas / 16,
        },
        hint="every distance over sigma must stay what it was",
    )


def _cheaper_walk() -> Exercise:
    return Exercise(
        needs="two shares of the 128 digits, for Euler on 18 and on 35 levels",
        right=[0.78, 0.91],
        lesson="every end is a digit, but not always the one the exact path leads to",
        mistakes={
            "any digit of the data is reached; ask whether it is the *right* one": [1.0, 1.0],
            "these are the shares that differ": [0.22, 0.09],
            "the share for 18 levels comes first": [0.91, 0.78],
        },
        hint="compare the arrivals of Euler's method with exact, and take the mean",
        atol=0.05,
    )


def _room() -> Exercise:
    points = jnp.array([[0.0, 0.0], [1.0, 0.5], [-0.5, 1.0]])
    memoriser, x = EmpiricalDenoiser(points), jnp.array([0.3, 0.4])

    def right(x, sigma, h, memoriser):
        covs = jnp.stack([h**2 * jnp.eye(2)] * 3)
        return GaussianMixture(jnp.full(3, 1 / 3), points, covs).denoise(x, sigma)

    def blend(x, guess, sigma, h):
        return (h**2 * x + sigma**2 * guess) / (sigma**2 + h**2)

    return Exercise(
        needs="a function of x, sigma, h and a memoriser",
        right=right,
        lesson="it agrees with the mixture of Gaussians",
        mistakes={
            "the weights of the data are those at the level of noise and room together": (
                lambda x, sigma, h, memoriser: blend(x, memoriser(x, sigma), sigma, h)
            ),
            "that is the memoriser alone, which gives the data no room": (
                lambda x, sigma, h, memoriser: memoriser(x, sigma)
            ),
            "which of the two deserves more trust when h is small, x or the memoriser?": (
                lambda x, sigma, h, memoriser: blend(
                    memoriser(x, (sigma**2 + h**2) ** 0.5), x, sigma, h
                )
            ),
        },
        hint="given the digit, its clean version lies between y_i and x, at the fraction "
        "h^2 / (sigma^2 + h^2) of the way",
        measure=at((x, 0.3, 0.2, memoriser), (x, 0.5, 0.8, memoriser)),
    )


EXERCISES = (_both_ends, _calls, _only_threes, _other_units, _cheaper_walk, _room)
