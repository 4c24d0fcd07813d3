r"""Chapter 10, Every conditional: Gaussians by hand, games, graphs, and Bayes' rule as a check."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from .verdict import Exercise, at


def _two_lines() -> Exercise:
    return Exercise(
        needs="four numbers: the questions for 5 numbers and for 10, then the two slopes",
        right=[31, 1023, 0.6, 1 / 0.6],
        lesson="every way to leave something unknown is a question, and each has its own line",
        mistakes={
            "if all numbers are known, there is nothing to ask": [32, 1024, 0.6, 1 / 0.6],
            "both slopes are of lines in one picture, x upwards": [31, 1023, 0.6, 0.6],
            "the order is: the mean of x, then the mean of theta": [31, 1023, 1 / 0.6, 0.6],
            "any number may be unknown, in any company": [5, 10, 0.6, 1 / 0.6],
        },
        hint="each number is known or not; the mean of theta is 0.6 x, so x is theta over 0.6",
        rtol=5e-3,
    )


def _told(mean: Any, variance: Any) -> Any:
    """A denoiser of the Gaussian with that mean and variance."""

    def denoise(v, sigma, x, rho):
        m, s2 = mean(x, rho), variance(rho)
        return m + s2 / (s2 + sigma**2) * (v - m)

    return denoise


def _by_hand() -> Exercise:
    right = _told(lambda x, rho: rho * x, lambda rho: 1 - rho**2)
    return Exercise(
        needs="a function of v, sigma, x and rho: the denoised theta",
        right=right,
        lesson="the known number moves the mean and narrows the width; the rest is chapter 3",
        mistakes={
            "given x, theta is narrower: its variance is 1 - rho^2": _told(
                lambda x, rho: rho * x, lambda rho: 1.0
            ),
            "1 - rho^2 is a variance, and not to be squared": _told(
                lambda x, rho: rho * x, lambda rho: (1 - rho**2) ** 2
            ),
            "the mean of theta given x is rho x": _told(lambda x, rho: x, lambda rho: 1 - rho**2),
            "that forgets what is known": _told(lambda x, rho: 0.0, lambda rho: 1.0),
            "v - m is pulled, and m is added again": (
                lambda v, sigma, x, rho: (1 - rho**2) / (1 - rho**2 + sigma**2) * (v - rho * x)
            ),
        },
        hint="theta given x is N(rho x, 1 - rho^2); denoise v about that mean",
        measure=at((0.3, 0.7, 1.0, 0.8), (-1.0, 0.2, 0.5, -0.6), (2.0, 3.0, -1.5, 0.3)),
        rtol=1e-3,
    )


def _by_chance() -> Exercise:
    return Exercise(
        needs="one number, the share of games that hide the two parameters and nothing else",
        right=0.02,
        lesson="one game in fifty: what you ask most deserves a share of its own",
        mistakes={
            "at least one number is always hidden: it is drawn first": 1 / 60,
            "not all ways to hide are equally probable": 1 / 31,
            "the probability is one a simulation, not 1/2": 2 / 5 * 0.5**4,
            "either of the two parameters may be the one that is always hidden": 0.01,
        },
        hint="the one that is always hidden must be a parameter; then integrate u^3 (1 - u)",
        rtol=0.01,
    )


_DEPENDS = np.zeros((2, 6, 6), bool)
_DEPENDS[0][3, [0, 1]] = _DEPENDS[0][4, 1] = _DEPENDS[0][5, 2] = True
_DEPENDS[1][[3, 4], 0] = _DEPENDS[1][5, [1, 2, 3]] = _DEPENDS[1][2, 1] = True


def _moral(depends: Any, marry: str = "parents", self: bool = True, both: bool = True) -> Any:
    arrows = np.asarray(depends).astype(int)
    found = arrows + arrows.T if both else arrows
    found = found + {"parents": arrows.T @ arrows, "children": arrows @ arrows.T, "": 0}[marry]
    eye = np.eye(len(arrows), dtype=bool)
    return (found > 0) | eye if self else (found > 0) & ~eye


def _moralise() -> Exercise:
    return Exercise(
        needs="a function of a square array of bools that returns another one",
        right=_moral,
        lesson="two causes of one effect explain each other away, so they must meet",
        mistakes={
            "two parents of one child have to meet, too": lambda a: _moral(a, marry=""),
            "those are children of one parent; parents of one child have to meet": (
                lambda a: _moral(a, marry="children")
            ),
            "a token looks at itself": lambda a: _moral(a, self=False),
            "a parent looks at its child as well": lambda a: _moral(a, both=False),
        },
        hint="arrows, arrows turned round, parents of one child, and each itself",
        measure=lambda moralise: [moralise(depends) for depends in _DEPENDS],
    )


def _log_normal(v: Any, mean: Any, variance: float) -> Any:
    squares = np.square(np.asarray(v, float) - mean) / variance
    return -np.sum(squares + np.log(2 * np.pi * variance)) / 2


def _normal(mean: Any, variance: float) -> Any:
    return SimpleNamespace(log_prob=lambda v: _log_normal(np.ravel(v), mean, variance))


_JOINT = SimpleNamespace(  # theta ~ N(0, 4), x = theta + n: exact, in place of a fit
    posterior=lambda x: _normal(0.8 * np.ravel(x), 0.8),
    likelihood=lambda theta: _normal(np.ravel(theta), 1.0),
)


def _log_prior(theta: Any) -> Any:
    return _log_normal(theta, 0, 4.0)


def _bayes(prior: float = 1.0, posterior: float = -1.0, likelihood: float = 1.0) -> Any:
    def log_evidence(joint, log_prior, theta, x):
        return (
            likelihood * joint.likelihood(theta).log_prob(x)
            + prior * log_prior(theta)
            + posterior * joint.posterior(x).log_prob(theta)
        )

    return log_evidence


def _evidence() -> Exercise:
    points = [(np.array([theta]), np.array([x])) for theta, x in ((0.4, 1.0), (-2.0, 1.0), (3, -1))]
    return Exercise(
        needs="a function of joint, log_prior, theta and x that returns ln p(x)",
        right=_bayes(),
        lesson="theta drops out, if the two conditionals belong together: a check of both",
        mistakes={
            "Bayes' rule has the prior, too": _bayes(prior=0.0),
            "the posterior is divided by": _bayes(posterior=1.0),
            "that is ln p(x and theta)": _bayes(posterior=0.0),
            "the ratio is the other way round": _bayes(-1.0, 1.0, -1.0),
        },
        hint="ln p(x) = ln p(x given theta) + ln p(theta) - ln p(theta given x)",
        measure=lambda answer: [answer(_JOINT, _log_prior, *point) for point in points],
        rtol=1e-3,
    )


def _slope_std(times: Any, noise: float, prior: float = 1.0, level: bool = True) -> Any:
    """The width of the slope of a line of unknown level, given what was seen at some times."""
    times = np.asarray(times, float)
    design = np.stack([np.ones_like(times), times], axis=1)
    precision = prior * np.eye(2) + design.T @ design / noise**2
    return np.sqrt(np.linalg.inv(precision)[1, 1]) if level else precision[1, 1] ** -0.5


def _repair() -> Exercise:
    return Exercise(
        needs="a function of times and noise that returns the std of the slope",
        right=_slope_std,
        lesson="far from the others a sensor tells most of the slope: repair that one",
        mistakes={
            "the prior adds 1 to each diagonal entry of the precision": (
                lambda times, noise: _slope_std(times, noise, prior=0.0)
            ),
            "the level is unknown as well: invert the matrix, then take its entry": (
                lambda times, noise: _slope_std(times, noise, level=False)
            ),
            "noise is a standard deviation": lambda times, noise: _slope_std(times, noise**0.5),
            "that is a variance": lambda times, noise: _slope_std(times, noise) ** 2,
        },
        hint="the precision is I + A^T A / noise^2, with rows (1, t) of A",
        measure=at(([-1.0, 0.0, 1.0], 0.5), ([0.0, 1.0, 3.0], 0.3), ([2.0, 2.5, 3.0, 5.0], 0.8)),
        rtol=1e-3,
    )


EXERCISES = (_two_lines, _by_hand, _by_chance, _moralise, _evidence, _repair)
