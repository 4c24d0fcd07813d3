r"""Chapter 9, Your own data: the numbers of a recipe, and what a network may predict.

A wrong `sigma_data` scores $E x^2/\sigma_{data}^2$ at high noise; the last step narrows a width c
to $c^2/\sqrt{c^2 + \sigma_{min}^2}$; a prediction is a line $a\,x + b\,D$.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...losses import initial_loss
from ...parameterisations import Line, epsilon, velocity
from ...preconditioning import EDMPreconditioning
from .verdict import Exercise, at


def _score() -> Exercise:
    recipe = EDMPreconditioning(0.5)
    return Exercise(
        needs="two scores of an untrained network, at high noise and at low noise",
        right=[initial_loss(recipe, sigma, 100.0) for sigma in (1e5, 1e-5)],
        lesson="a wrong sigma_data shows at high noise only",
        mistakes={
            "that is a right sigma_data's; here it is far too small": [1, 1],
            "the loss is in units of sigma_data squared": [100, 1],
            "it is a loss of squares": [20, 1],
            "what does the untrained network say when there is hardly any noise?": [400, 400],
            "high noise first": [1, 400],
        },
        hint="with F = 0 the denoiser says c_skip x: 0 at high noise, x at low noise",
        measure=np.ravel,
    )


def _centre() -> Exercise:
    measured = float(np.hypot(20.0, 1.0))
    return Exercise(
        needs="sigma_data and c_skip at sigma = 1",
        right=[measured, EDMPreconditioning(measured)(1.0).c_skip],
        lesson="the noise is let through where the structure is, and no check complains",
        mistakes={
            "those are the numbers of centred data": [1, 0.5],
            "from_data measures about zero, not about the mean": [1, 401 / 402],
            "this is its square": [401, 401 / 402],
            "c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)": [measured, 1 / 402],
        },
        hint="sigma_data is the root mean square about zero, mean and all",
        measure=np.ravel,
        rtol=1e-3,
    )


def _logarithm() -> Exercise:
    return Exercise(
        needs="the widths of the two narrowest principal axes, the narrowest first",
        right=[0.0168, 0.1056],
        lesson="a thin sheet that is bent looks thick to a straight axis",
        mistakes={
            "those are the widths with logarithms": [0.014, 0.017],
            "these are variances": [0.0168**2, 0.1056**2],
            "the narrowest first": [0.1056, 0.0168],
        },
        hint="take the square roots of np.linalg.eigvalsh of the covariance of the scaled data",
        measure=np.ravel,
        rtol=0.06,
    )


def _luck() -> Exercise:
    rows = np.array([[1.0, 1.1, 0.9], [2.0, 1.9, 2.2], [0.1, -0.2, 0.2], [-1.0, -0.8, -1.3]])

    def independent(x: Any, n: int) -> Any:
        return np.std(np.asarray(x) ** 2) / np.sqrt(n * np.shape(x)[1])

    def rowwise(x: Any, n: int) -> Any:
        return np.std(np.mean(np.asarray(x) ** 2, axis=1)) / np.sqrt(n)

    return Exercise(
        needs="a function of a table x and a number of rows n",
        right=rowwise,
        lesson="the columns of a row rise and fall together: rows count, not numbers",
        mistakes={
            "that would hold for independent columns": independent,
            "that would hold for independent normal numbers": lambda x, n: (2 / (n * 3)) ** 0.5,
            "that is the spread of one row; n rows are averaged": (lambda x, n: rowwise(x, 1)),
            "n counts the rows of the new table, not of x": lambda x, n: rowwise(x, len(x)),
        },
        hint="average the squares over each row, then ask how far a mean of n such numbers strays",
        measure=at((rows, 9), (2 * rows, 150)),
        rtol=0.2,  # n or n - 1 in the spread of four rows
    )


def _narrow() -> Exercise:
    return Exercise(
        needs="a function of the width c",
        right=lambda c: c * (1 / 0.81 - 1) ** 0.5,
        lesson="about half of the width",
        mistakes={
            "a tenth of c narrows it by half a percent": lambda c: c / 10,
            "that is a tenth of the variance": lambda c: c * (1 / 0.9 - 1) ** 0.5,
            "that leaves a tenth of the width": lambda c: c * 99**0.5,
        },
        hint="solve c / sqrt(c^2 + sigma_min^2) = 0.9 for sigma_min",
        measure=at((0.01,), (2.0,)),
    )


def _backwards() -> Exercise:
    def minus(kind: Any) -> Any:
        return lambda sigma: Line(-kind(sigma).a, -kind(sigma).b)

    return Exercise(
        needs="a function of sigma that returns a Line",
        right=minus(velocity),
        lesson="a new name costs two coefficients",
        mistakes={
            "their network predicts data minus noise, and velocity is noise minus data": velocity,
            "the prediction holds the data, too, not the noise alone": minus(epsilon),
            "x is already divided by their scale": (
                lambda sigma: Line(-(1 + sigma) / sigma, (1 + sigma) / sigma)
            ),
        },
        hint="n is the line (x - D) / sigma, and the prediction is D minus that",
        measure=lambda function: [list(function(jnp.asarray(sigma))) for sigma in (0.2, 3.0)],
    )


def _whiten() -> Exercise:
    cov = np.array([[4.0, 1.9, 0.3], [1.9, 1.0, 0.1], [0.3, 0.1, 0.5]])
    values, axes = np.linalg.eigh(cov)
    return Exercise(
        needs="a function from a covariance matrix to a matrix of the same shape",
        right=lambda cov: np.linalg.inv(np.linalg.cholesky(cov)).T,
        lesson="all directions are equally wide",
        mistakes={
            "rotated, but not scaled": lambda cov: axes,
            "divide by the widths, not by their squares": lambda cov: axes / values,
            "each axis is a column of eigh's matrix": lambda cov: (axes / np.sqrt(values)).T,
            "the columns had one scale before; it is the axes that have not": (
                lambda cov: np.diag(np.diag(cov) ** -0.5)
            ),
        },
        hint="W^T C W must be the identity: take the axes of C, each over its width",
        measure=lambda function: function(cov).T @ cov @ function(cov),
        atol=1e-3,
    )


EXERCISES = (_score, _centre, _logarithm, _luck, _narrow, _backwards, _whiten)
