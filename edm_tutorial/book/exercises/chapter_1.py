r"""Chapter 1, From SDE to ODE: noise, scores, and paths that share their marginals.

Tweedie's formula, $D(x; \sigma) = x + \sigma^2 \nabla \ln p(x; \sigma)$ (Eq. 3), and the reverse
process with any exchange of noise $\beta$ (Eq. 6).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...distributions import GaussianMixture
from .verdict import Clock, Exercise, at, three_methods


def _variances_add() -> Exercise:
    return Exercise(
        needs="a function of the two levels, low and high",
        right=lambda low, high: np.sqrt(high**2 - low**2),
        lesson="variances of independent noises add; levels do not",
        mistakes={
            "levels do not add, their squares do": lambda low, high: high - low,
            "that is a variance; a level is a standard deviation": (
                lambda low, high: high**2 - low**2
            ),
            "that is how much there is with both, not what is missing": (
                lambda low, high: np.sqrt(high**2 + low**2)
            ),
        },
        hint="write down the variance of the sum of two independent noises",
        measure=at((3.0, 5.0), (0.5, 1.3)),
    )


def _own_mixture() -> Exercise:
    def three(*means):
        return GaussianMixture([0.25, 0.25, 0.5], means, [np.eye(2)] * 3)

    mixture = three([0.0, 1.0], [0.0, 1.0], [0.0, -1.0])
    draws = np.random.default_rng(0)
    x = draws.normal(size=(2000, 2)) * np.hypot(1, 0.05)
    x[:, 1] += draws.choice([-1.0, 1.0], 2000)
    two = GaussianMixture([0.5, 0.5], [[0.0, 1.0], [0.0, -1.0]], [np.eye(2)] * 2)
    return Exercise(
        needs="a pair, your mixture of three and samples of shape (n, 2) at sigma = 0.05",
        right=(mixture, x),
        lesson="mean and covariance are those of the data with their noise, within 5 errors",
        mistakes={
            "the mean is right and the spread is not: does the path start at 10 and end at 0.05?": (
                (mixture, 10 * x)
            ),
            "the mean is off, the spread is right: is this the mixture they were drawn from?": (
                (mixture, x + 1.0)
            ),
            "three Gaussians in the plane are asked for": (two, x),
        },
        hint="neither mean nor spread are those of this mixture at sigma = 0.05",
        measure=_within_errors,
    )


def _within_errors(pair: Any) -> list:
    """Whether there are three Gaussians in the plane, and mean and covariance of the samples are
    within 5 standard errors of the exact ones."""
    mixture, x = pair
    x = np.asarray(x, float)
    parts = mixture.weights, mixture.means, mixture.covs
    weights, means, covs = (np.asarray(part, float) for part in parts)
    mean = weights @ means
    cov = np.einsum("k,kij->ij", weights, covs) + 0.05**2 * np.eye(len(mean))
    cov += (means - mean).T @ np.diag(weights) @ (means - mean)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    spread = (x - x.mean(axis=0))[:, :, None] * (x - x.mean(axis=0))[:, None, :]
    error = 5 * products.std(axis=0) / np.sqrt(len(x))
    off = np.abs(x.mean(axis=0) - mean) > 5 * np.sqrt(np.diag(cov) / len(x))
    asked = weights.shape == (3,) and means.shape == (3, 2)
    return [asked, not off.any(), not np.any(np.abs(spread.mean(axis=0) - cov) > error)]


def _tweedie_uniform() -> Exercise:
    y = (np.arange(4000) + 0.5) / 2000 - 1  # brute force: a sum over the data

    def mean_of_data(x, sigma):
        return np.average(y, weights=np.exp(-((x - y) ** 2) / (2 * sigma**2)))

    def step(x, sigma):  # sigma^2 times the score
        return mean_of_data(x, sigma) - x

    return Exercise(
        needs="the denoiser, a function of x and sigma",
        right=mean_of_data,
        lesson="it is the mean of the data given x, at high noise and at low",
        mistakes={
            "that is the score; the denoiser is x plus sigma^2 times it": (
                lambda x, sigma: step(x, sigma) / sigma**2
            ),
            "what multiplies the score is sigma^2": lambda x, sigma: x + step(x, sigma) / sigma,
            "the score points to where the data are: look at its sign": (
                lambda x, sigma: x - step(x, sigma)
            ),
        },
        hint="for x between the data it is near x at low noise, and near 0 at high noise",
        measure=at((0.7, 0.3), (0.7, 1.0), (-0.4, 0.6), (1.5, 3.0)),
    )


def _own_schedule() -> Exercise:
    def sigma(t):
        return np.tan(np.pi * t / 2)

    def time(sigma):
        return np.arctan(sigma) * 2 / np.pi

    def scale(t):
        return np.cos(np.pi * t / 2)

    return Exercise(
        needs="a schedule, with its methods sigma, time and scale",
        right=Clock(sigma, time, scale),
        lesson="any increasing sigma(t) and any positive s(t) lead to the same end",
        mistakes={
            "x is scaled here: what multiplies y?": Clock(sigma, time, lambda t: 1.0),
            "time must undo sigma: time(sigma(t)) = t": Clock(sigma, np.arctan, scale),
            "sigma is the noise relative to y, after the scale is divided out": (
                Clock(lambda t: np.sin(np.pi * t / 2), lambda s: np.arcsin(s) * 2 / np.pi, scale)
            ),
        },
        hint="x = s(t) (y + sigma(t) n); compare with cos y + sin n",
        measure=three_methods,
    )


def _any_beta() -> Exercise:
    def beta(x):
        return 1 + x**2

    def score(x):
        return -x / (1 + 0.4**2)

    return Exercise(
        needs="a function of beta, score, x and sigma, where beta and score are functions",
        right=lambda beta, score, x, sigma: sigma**2 * (beta(x) * score(x) + jax.grad(beta)(x)),
        lesson="the second term is the price of noise that depends on the place",
        mistakes={
            "kicks that are larger in some places push the density out of there": (
                lambda beta, score, x, sigma: sigma**2 * beta(x) * score(x)
            ),
            "the kicks have g^2 = 2 beta sigma^2, so all of the drift has sigma^2": (
                lambda beta, score, x, sigma: sigma**2 * beta(x) * score(x) + jax.grad(beta)(x)
            ),
            "check the sign of the new term in the Fokker-Planck equation": (
                lambda beta, score, x, sigma: sigma**2 * (beta(x) * score(x) - jax.grad(beta)(x))
            ),
        },
        hint="ask that drift and kicks cancel: (p drift)' = (beta sigma^2 p)''",
        measure=at((beta, score, 0.5, 0.4), (beta, score, -1.2, 0.4), (jnp.exp, score, 0.3, 2.0)),
    )


def _sphere() -> Exercise:
    return Exercise(
        needs="two numbers, lengths relative to a code: half way, and on the great circle",
        right=[np.sqrt(1 / 2), 1.0],
        lesson="for Gaussian data the ODE rescales, so the samples have these lengths too",
        mistakes={
            "that would be so if the two codes were opposite to a third": [0.5, 1.0],
            "the average of independent draws is shorter than they are": [1.0, 1.0],
            "first half way on the line, then on the circle": [1.0, np.sqrt(1 / 2)],
        },
        hint="lengths in many dimensions are square roots of variances, and variances add",
        atol=0.01,
    )


EXERCISES = (
    *(_variances_add, _own_mixture, _tweedie_uniform),
    *(_own_schedule, _any_beta, _sphere),
)
