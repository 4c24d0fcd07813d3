"""What the checks of chapter 6 accept and refuse: forms of right answers, near misses."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_exercises_3_to_5 import FORMS

from edm_tutorial.book import exercises
from edm_tutorial.book.exercises.chapter_6 import suspect

NUMBERS = {"6.2": [1 / 7, 1 / 4], "6.3": [71, 18, 49, 12], "6.4": [0.3, 0.7]}
MISSES = {
    "6.2": ([1 / 7, 1 / 5], [1 / 7, 0.2285], [7, 4], [0.02, 0.06]),
    "6.3": ([36, 18, 25, 12], [49, 12, 71, 18], [71, 18, 49, 8]),
    "6.4": ([-0.3, 0.7], [0.43, 0.7], [0.3, 1.43], [0.3, 1.0], [0.21, 0.7]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", NUMBERS)
def test_right_numbers_are_right_in_every_form(name, form):
    assert exercises.check(name, form(NUMBERS[name]))


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_are_not_right(name):
    for answer in MISSES[name]:
        assert not exercises.check(name, answer)


def test_the_suspect_is_what_the_exercise_says():
    """Shift and width by moments: 4 standard errors of 4,000 truths."""
    theta, draws = suspect()
    away = theta - draws.mean(axis=1)
    exact = 0.2**0.5
    np.testing.assert_allclose(-away.mean() / exact, 0.3, atol=4 / np.sqrt(4000))
    width = draws.std(axis=1, ddof=1).mean() / exact
    np.testing.assert_allclose(width, 0.7, rtol=0.01)  # E of the square root: 0.5 % less


def weights(draws, new, old):
    return new(draws) / old(draws)


def in_jax(draws, new, old):
    w = jnp.asarray(weights(draws, new, old))
    return w @ jnp.asarray(draws) / w.sum(), w.sum() ** 2 / (w**2).sum()


def a_column_of_weights(draws, new, old):
    w = weights(draws, new, old)
    return (w[:, None] * draws).sum(axis=0) / w.sum(), w.sum() ** 2 / (w**2).sum()


def by_average(draws, new, old):
    w = weights(draws, new, old)
    return np.average(draws, axis=0, weights=w), 1 / np.sum((w / w.sum()) ** 2)


@pytest.mark.parametrize("answer", [in_jax, a_column_of_weights, by_average])
def test_another_prior_is_right_for_draws_of_several_parameters(answer):
    assert exercises.check("6.6", answer)


def test_a_mean_over_all_numbers_is_not_a_mean_a_parameter():
    flat = lambda draws, new, old: (float(in_jax(draws, new, old)[0].mean()), 1.0)
    assert not exercises.check("6.6", flat)
    crash = lambda draws, new, old: (weights(draws, new, old) * draws).sum()
    assert not exercises.check("6.6", crash)
