r"""Chapter 11, Half a picture: posteriors of Gaussians by hand, and denoisers that were told y."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .verdict import Exercise, at


def _by_hand() -> Exercise:
    return Exercise(
        needs="two numbers, the denoiser given y = 1 at x = 0, for sigma = 1 and for sigma = 0.1",
        right=[0.8 / 1.2, 0.8 * 0.01 / 0.21],
        lesson="at low noise x is believed, at high noise y and the prior",
        mistakes={
            "that is the posterior's mean; x is given as well": [0.8, 0.8],
            "that is the prior's denoiser, which was not told y": [0.0, 0.0],
            "s is a standard deviation; its square belongs in the formula": [
                *(2 / 3 * level / (level + 1 / 3) for level in (1.0, 0.01)),
            ],
        },
        hint="the posterior is N(0.8, 0.2); use the denoiser of a Gaussian, mean and all",
        rtol=5e-3,
    )


def _two_points() -> Exercise:
    return Exercise(
        needs="the variance of the clean value given x, a function of x and sigma",
        right=lambda x, sigma: 1 - np.tanh(x / sigma**2) ** 2,
        lesson="1 - D^2: the mean of squares is 1, and the square of the mean is D^2",
        mistakes={
            "that is the derivative; the formula has a factor": (
                lambda x, sigma: (1 - np.tanh(x / sigma**2) ** 2) / sigma**2
            ),
            "that is D itself": lambda x, sigma: np.tanh(x / sigma**2),
            "D = tanh(x / sigma^2), with the square": (
                lambda x, sigma: 1 - np.tanh(x / sigma) ** 2
            ),
        },
        hint="D = tanh(x / sigma^2); differentiate, and multiply by sigma^2",
        measure=at((0.3, 0.7), (-0.4, 0.5), (0.1, 0.3)),
    )


def _gaussian(x: Any, sigma: Any, cond: Any = None, *, key: Any = None) -> Any:
    """The denoiser of two pixels with variances 2 and 1/2."""
    variance = jnp.array([2.0, 0.5])
    return x * variance / (variance + sigma**2)


def _without_covariance(power: int = 2, transpose: bool = True, level: bool = True) -> Any:
    """DPS: the covariance of the clean picture left out of the law of y."""

    def dps(denoiser: Any, operator: Any, y: Any, noise_std: Any) -> Any:
        def told(x, sigma, cond=None, *, key=None):
            denoised, pull = jax.vjp(lambda x: denoiser(x, sigma, cond), x)
            [back] = jax.vjp(operator, denoised)[1]((y - operator(denoised)) / noise_std**power)
            back = pull(back)[0] if transpose else back
            return denoised + (sigma**2 if level else 1) * back

        return told

    return dps


def _ask(dps: Any) -> list:
    told = dps(_gaussian, lambda x: x[:1] - x[1:], jnp.array([1.0]), 0.7)
    return [told(jnp.array(x), sigma) for x, sigma in (([0.3, 1.0], 0.5), ([2.0, -1.0], 1.5))]


def _dps() -> Exercise:
    return Exercise(
        needs="a function of denoiser, operator, y and noise_std that returns a denoiser",
        right=_without_covariance(),
        lesson="one line less than Measured, and a posterior that is far too sure",
        mistakes={
            "the variance is the square of noise_std": _without_covariance(power=1),
            "by the chain rule the gradient passes through D: J^T is missing": (
                _without_covariance(transpose=False)
            ),
            "the score is multiplied by sigma^2 to become a denoiser": (
                _without_covariance(level=False)
            ),
        },
        hint="differentiate -|y - A D(x)|^2 / (2 s^2) by x, times sigma^2, and add D",
        measure=_ask,
        rtol=1e-3,
    )


def _differences() -> Exercise:
    picture = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), float)
    return Exercise(
        needs="a function of a picture (8, 8) that returns an array (8, 7)",
        right=lambda x: x[:, 1:] - x[:, :-1],
        lesson="a linear function is all that Measured needs; JAX finds its transpose",
        mistakes={
            "right minus left": lambda x: x[:, :-1] - x[:, 1:],
            "an absolute value is not linear": lambda x: jnp.abs(x[:, 1:] - x[:, :-1]),
            "those are means": lambda x: (x[:, 1:] + x[:, :-1]) / 2,
        },
        hint="two slices of the columns, one shifted by one",
        measure=lambda operator: operator(picture),
    )


def _twice() -> Exercise:
    return Exercise(
        needs="four numbers: mean and std of the sum of the pixels, told once, and told twice",
        right=[2 * 2.5 / 2.75, 2 * 2.5 / 2.625, _left(1), _left(2)],
        lesson="the second measurement meets a prior that has been told the first",
        mistakes={
            "the order is mean once, mean twice, std once, std twice": [
                *(2 * 2.5 / 2.75, _left(1), 2 * 2.5 / 2.625, _left(2)),
            ],
            "those are variances": [2 * 2.5 / 2.75, 2 * 2.5 / 2.625, _left(1) ** 2, _left(2) ** 2],
        },
        hint="the sum has the prior variance 2.5; precisions add: 1/2.5 + n/0.25",
        rtol=0.01,
    )


def _left(n: int) -> float:
    """The std of the sum, of prior variance 2.5, after n measurements with noise 1/2."""
    return float((1 / 2.5 + n / 0.25) ** -0.5)


EXERCISES = (_by_hand, _two_points, _dps, _differences, _twice)
