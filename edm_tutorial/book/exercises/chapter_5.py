r"""Chapter 5, Likelihood: nats, probes, and the area under the denoising loss.

$h(\sigma_{max}) - h(\sigma_{min})$ $= \int (d - \mathrm{mmse}(\sigma)/\sigma^2)\, d\ln\sigma$, the
entropy of noisy data as an area.
"""

import jax.numpy as jnp
import numpy as np

from ...likelihood import bits_per_dim
from .verdict import Exercise, at

_MATRIX = np.array([[1.0, 0.5, -0.2], [0.5, 2.0, 0.3], [-0.2, 0.3, -1.0]])


def _bits() -> Exercise:
    gained = 64 * np.log(2)
    bits = float(bits_per_dim(jnp.array(31.0), (64,), bins=17))
    return Exercise(
        needs="three numbers: bits per dimension on [-1, 1], then nats and bits per dimension on "
        "[0, 1]",
        right=[bits, 31 + gained, bits],
        lesson="nats depend on the unit, bits per dimension of grey levels do not",
        mistakes={
            "those are nats per dimension: divide by ln 2": [
                *(bits * np.log(2), 31 + gained, bits * np.log(2)),
            ],
            "a density is not a probability: multiply by the width of a grey level's cell": [
                *(-31 / gained, 31 + gained, -(31 + gained) / gained),
            ],
            "lengths are halved, so the density doubles in each dimension": [
                *(bits, 31 - gained, bits),
            ],
            "the width of a cell is halved as well": [bits, 31 + gained, bits - 1],
            "that is for 256 grey levels; these have 17": [
                *(-31 / gained + 7, 31 + gained, -31 / gained + 7),
            ],
        },
        hint="bits: -nats / (64 ln 2) - log2 of the width of a cell, 2 / 17 or 1 / 17",
    )


def _probes() -> Exercise:
    def variance(a):
        return 2 * np.sum(np.square(a)) - 2 * np.sum(np.square(np.diag(np.asarray(a))))

    return Exercise(
        needs="a function of a symmetric matrix A and of the standard error wanted",
        right=lambda a, wanted: variance(a) / wanted**2,
        lesson="ten times the accuracy costs a hundred times the probes",
        mistakes={
            "errors of a mean fall with the square root of the number": (
                lambda a, wanted: np.sqrt(variance(a)) / wanted
            ),
            "the other way round": lambda a, wanted: wanted**2 / variance(a),
            "a smaller error needs more probes, with its square": (
                lambda a, wanted: variance(a) / wanted
            ),
            "the diagonal does not count for signs: their squares are 1": (
                lambda a, wanted: 2 * np.sum(np.square(a)) / wanted**2
            ),
            "each pair i, j meets twice, as A_ij and as A_ji": (
                lambda a, wanted: variance(a) / 2 / wanted**2
            ),
        },
        hint="the mean of n probes has the variance of one over n; take that of one from the "
        "equation",
        measure=at((_MATRIX, 0.1), (_MATRIX[:2, :2], 2.0)),
        rtol=0.02,
    )


def _signs() -> Exercise:
    def total(a):
        return np.sum(np.asarray(a) ** 2)

    def diagonal(a):
        return np.sum(np.diag(np.asarray(a)) ** 2)

    return Exercise(
        needs="a function of a symmetric matrix A that returns two variances, of signs and of "
        "normal draws",
        right=lambda a: (2 * (total(a) - diagonal(a)), 2 * total(a)),
        lesson="signs know the diagonal exactly, since their squares are 1",
        mistakes={
            "the diagonal does not count for signs: their squares are 1": lambda a: (
                *(2 * total(a), 2 * total(a)),
            ),
            "each pair i, j meets twice, as A_ij and as A_ji": lambda a: (
                *(total(a) - diagonal(a), total(a)),
            ),
            "signs first, then normal draws": lambda a: (
                *(2 * total(a), 2 * (total(a) - diagonal(a))),
            ),
            "those are standard deviations": lambda a: (
                *(np.sqrt(2 * (total(a) - diagonal(a))), np.sqrt(2 * total(a))),
            ),
        },
        hint="write the estimate as the sum of A_ij e_i e_j, and ask which terms vary",
        measure=at((_MATRIX,), (np.diag([1.0, 2.0]),)),
        rtol=0.05,
    )


def _area() -> Exercise:
    def right(eigenvalues, low, high):
        return 0.5 * np.sum(np.log((eigenvalues + high**2) / (eigenvalues + low**2)))

    return Exercise(
        needs="a function of the eigenvalues (an array), sigma_min and sigma_max",
        right=right,
        lesson="it is the area, and the gain in entropy",
        mistakes={
            "mind the 1/2 of the integral of sigma / (lambda + sigma^2)": lambda *a: 2 * right(*a),
            "the area is positive: entropy grows with noise": lambda *a: -right(*a),
            "that is in bits; the chapter counts nats": lambda *a: right(*a) / np.log(2),
            "d ln(sigma) is d sigma / sigma": lambda eigenvalues, low, high: sum(
                high
                - low
                - np.sqrt(eigenvalues) * np.arctan(high / np.sqrt(eigenvalues))
                + np.sqrt(eigenvalues) * np.arctan(low / np.sqrt(eigenvalues))
            ),
        },
        hint="integrate sigma^2 / (lambda + sigma^2) over d ln(sigma), and sum",
        measure=at((np.array([0.01, 0.3, 4.0]), 0.05, 80.0), (np.array([1.0]), 0.5, 3.0)),
        rtol=1e-3,
    )


def _divergence() -> Exercise:
    def kl(a, b, sigma):
        ratio = (a**2 + sigma**2) / (b**2 + sigma**2)
        return 0.5 * (ratio - 1 - np.log(ratio))

    return Exercise(
        needs="a function of a, b, sigma_min and sigma_max",
        right=lambda a, b, low, high: kl(a, b, low) - kl(a, b, high),
        lesson="what the strip adds up is the divergence that noise has not yet hidden",
        mistakes={
            "that is the divergence at sigma_min; what is left at sigma_max?": (
                lambda a, b, low, high: kl(a, b, low)
            ),
            "the average is over p, so it is KL(p, q) and not KL(q, p)": (
                lambda a, b, low, high: kl(b, a, low) - kl(b, a, high)
            ),
            "noise adds to both variances": lambda a, b, low, high: kl(a, b, 0.0),
            "mind the 1/2 in the divergence of Gaussians": (
                lambda a, b, low, high: 2 * (kl(a, b, low) - kl(a, b, high))
            ),
            "a strip is positive, and noise makes distributions more alike": (
                lambda a, b, low, high: kl(a, b, high) - kl(a, b, low)
            ),
        },
        hint="KL of two centred Gaussians, with sigma^2 added to both variances, at both levels",
        measure=at((1.0, 0.7, 0.1, 2.0), (0.3, 0.9, 0.2, 1.0)),
        rtol=1e-3,
    )


EXERCISES = (_bits, _probes, _signs, _area, _divergence)
