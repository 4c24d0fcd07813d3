"""Answers to the exercises of chapters 7 to 9, in the forms in which readers give them.

Right ones pass, near misses do not. (A second or two.)
"""

import jax.numpy as jnp
import numpy as np
import pytest

from edm_tutorial.book import exercises
from edm_tutorial.book.exercises.checking import EXERCISES

NUMBERS = {"7.1", "7.3", "7.4", "7.5", "7.6", "8.1", "8.3", "8.6", "9.1", "9.2", "9.3"}
FORMS = {
    "list": lambda answer: np.asarray(answer, float).tolist(),
    "tuple": lambda answer: tuple(np.asarray(answer, float)),
    "NumPy": np.asarray,
    "JAX": jnp.asarray,
    "column": lambda answer: np.reshape(answer, (-1, 1)),
    "row": lambda answer: np.reshape(answer, (1, -1)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_the_form_of_an_answer_does_not_matter(name, form):
    assert exercises.check(name, form(EXERCISES[name]().right))


RIGHT = [
    ("7.2", 38.5),
    ("7.2", [38.53]),
    ("7.2", jnp.array(38.5)),
    ("7.2", 38),
    ("7.2", 39),
    ("7.3", [12, 22, 20, 18, 25, 21, 24, 20, 17, 21]),
    ("7.4", [0.99, 1.0, 1.01, 1.0, 1.02, 0.98, 1.0, 1.0, 1.0]),
    ("7.5", (0.98, 0.7)),
    ("8.1", [[0.002, 1 / 3, 0.988], [0.02, 0.167]]),
    ("8.2", (lambda sigma: (1 + 1 / sigma) ** 2, np.array([0.501]))),
    ("8.2", [lambda sigma: jnp.square((1 + sigma) / sigma), 0.5]),
    ("8.3", [1.0, 0.37, 1.0]),
    ("8.5", (lambda first, sigma, g: g * jnp.hypot(first, sigma), np.array([0.93, 0.93]))),
    ("8.6", [0.596, 0.707, 0.5, 2]),
    ("8.6", [jnp.array(0.598), np.float32(0.706), 1 / 2, 2.01]),
    ("8.6", (np.array([0.596, 0.707]), [0.5, 2.0])),
]


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers(name, answer):
    assert exercises.check(name, answer)


NEAR = [
    ("7.1", [4640, 545], ""),
    ("7.2", 37.9, ""),
    ("7.2", 128, "a bit is a factor of two"),
    ("7.3", [182, 2, 2, 2, 2, 2, 2, 2, 2, 2], "hardly occurs"),
    ("7.4", 1.0, "nine"),
    ("7.4", np.ones(9), "compute both"),
    ("7.5", (0.98, 0.89), "the spread should fall"),
    ("7.5", (99.5, 0.7), "per cent"),
    ("7.5", (0.96, 0.7), "the share should rise"),
    ("8.1", [0.002, 1 / 3, 0.988, 2, 17], "per cent"),
    ("8.2", (lambda sigma: (1 + 1 / sigma) ** 2, 1.0), "the weight is right"),
    ("8.2", (lambda sigma: 1 + 1 / sigma, 0.5), "squared"),
    ("8.2", lambda sigma: (1 + 1 / sigma) ** 2, "this needs"),
    ("8.2", (lambda sigma: (1 + 1 / sigma) ** 2, None), "this needs"),
    ("8.3", [1, 0.1, 1], ""),
    ("8.3", [1, 0.5, 1], ""),
    ("8.5", (lambda first, sigma, g: g * np.hypot(first, sigma), [0.93, 0.46]), "highest too"),
    ("8.5", (lambda first, sigma, g: g * np.hypot(first, sigma), None), "this needs"),
    ("8.6", [0.596, 0.707, 0.5, 1.414], "not independent"),
    ("8.6", [0.356, 0.5, 0.25, 4], "its root"),
    ("8.6", [0.56, 0.584, 0.5, 2], "do not subtract"),
    ("8.6", [1.68, 1.414, 2, 0.5], "factors to multiply"),
    ("8.6", [0.596, 0.707, 1, 2], "smaller than a pixel"),
    ("8.6", [0.596, 0.707, 0.5, 2.5], "unit normals"),
    ("9.1", [1, 400], "high noise first"),
    ("9.2", [20.02, 0.5], ""),
    ("9.3", [0.0164, 0.014], ""),
]


@pytest.mark.parametrize("name, answer, hint", NEAR)
def test_near_misses(name, answer, hint):
    verdict = exercises.check(name, answer)
    assert not verdict and hint in repr(verdict)
