"""Answers to the exercises of chapters 0 to 2, in the forms in which readers give them.

Right ones pass, near misses do not. (A few seconds.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial.book import exercises
from edm_tutorial.book.exercises.checking import EXERCISES

NUMBERS = ["0.1", "0.4", "0.5", "1.6", "2.2", "2.3", "2.6"]
FORMS = {
    "list": lambda answer: np.asarray(answer, float).tolist(),
    "tuple": lambda answer: tuple(np.asarray(answer, float)),
    "NumPy": np.asarray,
    "JAX": jnp.asarray,
    "column": lambda answer: np.reshape(answer, (-1, 1)),
    "row": lambda answer: np.reshape(answer, (1, -1)),
    "arrays of one": lambda answer: [jnp.asarray(number)[None] for number in answer],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", NUMBERS)
def test_the_form_of_an_answer_does_not_matter(name, form):
    assert exercises.check(name, form(EXERCISES[name]().right))


class Typed(edm.AbstractSchedule):
    """The schedule of 2.4, as its solution writes it."""

    def sigma(self, t):
        return t / (1 - t)

    def time(self, sigma):
        return sigma / (1 + sigma)

    def scale(self, t):
        return 1 - t


def by_softmax(data, labels, label):
    """The chapter's own four lines, for pictures."""
    own = data[labels == label]

    def ideal(x, sigma):
        distance = jnp.sum((own - x[None]) ** 2, axis=(1, 2))
        return jnp.tensordot(jax.nn.softmax(-distance / (2 * sigma**2)), own, axes=1)

    return ideal


def by_score(x, sigma):
    """1.3 by Tweedie, with the distribution function of SciPy."""
    norm = jax.scipy.stats.norm
    density = lambda x: norm.cdf((x + 1) / sigma) - norm.cdf((x - 1) / sigma)
    return x + sigma**2 * jax.grad(lambda x: jnp.log(density(x)))(x)


RIGHT = {
    "0.1": [1, 0, 2],
    "0.2": lambda n: 1 + 2 * (n - 1),
    "0.3": by_softmax,
    "0.4": list(16 * np.asarray(edm.edm_sigmas(18))),
    "0.5": (0.79, 0.90),  # against 18 levels of Heun
    "0.6": lambda x, sigma, h, memoriser: (
        x + (memoriser(x, jnp.hypot(sigma, h)) - x) * sigma**2 / (sigma**2 + h**2)
    ),
    "1.1": lambda low, high: ((high - low) * (high + low)) ** 0.5,
    "1.3": by_score,
    "1.6": [0.71, 1],
    "2.1": lambda sigma: float(edm.VariancePreserving().time(sigma)),
    "2.2": np.array([[0.5, 0.625]]),
    "2.4": Typed(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_another_right_answer(name):
    assert exercises.check(name, RIGHT[name])


NEAR_MISSES = [
    ("0.1", [1, 0, 0]),
    ("0.1", [0, 1, 2]),
    ("0.1", [1, 2]),
    ("0.3", lambda data, labels, label: by_softmax(data, labels, 1)),
    ("0.3", lambda data, labels, label: edm.EmpiricalDenoiser(data)),
    ("0.5", [0.66, 0.84]),
    ("0.5", [0.78, 0.78]),
    ("1.1", lambda low, high: high - low),
    ("1.6", [0.5, 1]),
    ("2.2", [0.5, 0.5]),
    ("2.2", [0.625, 0.5]),
    ("2.3", [8.3, 1871]),
    ("2.6", [1 / 96, 1 / 4]),
]


@pytest.mark.parametrize("name, answer", NEAR_MISSES)
def test_a_near_miss_is_not_yet_right(name, answer):
    assert not exercises.check(name, answer)


def draws(mixture, sigma=0.05):
    key, noise_key = jax.random.split(jax.random.key(0))
    x = jax.vmap(mixture.sample)(jax.random.split(key, 4000))
    return x + sigma * jax.random.normal(noise_key, x.shape)


def mixture_of(count, dimension):
    means = np.arange(count * dimension, dtype=float).reshape(count, dimension)
    return edm.GaussianMixture(np.full(count, 1 / count), means, [0.1 * np.eye(dimension)] * count)


def test_three_gaussians_in_the_plane_and_no_others():
    asked = mixture_of(3, 2)
    assert exercises.check("1.2", (asked, draws(asked)))
    assert exercises.check("1.2", (asked, np.asarray(draws(asked)).tolist()))
    for other in (mixture_of(2, 2), mixture_of(3, 1)):
        assert "three Gaussians" in repr(exercises.check("1.2", (other, draws(other))))
    assert not exercises.check("1.2", (asked, draws(asked, sigma=1.0)))
    assert not exercises.check("1.2", (asked, 2 * draws(asked)))


@pytest.mark.parametrize("name", ["1.4", "2.4"])
def test_a_class_in_place_of_an_instance_is_told(name):
    assert "make an instance" in repr(exercises.check(name, Typed))
