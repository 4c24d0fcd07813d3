"""What the checks of chapters 3 to 5 accept and refuse: forms of right answers, near misses."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import edm_tutorial as edm
from edm_tutorial.book import exercises
from edm_tutorial.book.exercises.chapter_4 import is_flat

NUMBERS = {
    "3.1": [1, 1, 1, 0],
    "3.2": [2e-6, 2],
    "3.3": [0.47, 0.02],  # as the solution prints them
    "3.4": [100.0],
    "4.1": [2, 3, 1, 4],
    "4.3": [0.5, 2.0],
    "5.1": [2.39, 75.4, 2.39],
}
FORMS = {
    "list": list,
    "tuple": tuple,
    "numpy": np.asarray,
    "jax": jnp.asarray,
    "column": lambda answer: np.asarray(answer)[:, None],
    "row": lambda answer: np.asarray(answer)[None],
    "arrays of one number": lambda answer: [np.array([number]) for number in answer],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", NUMBERS)
def test_right_numbers_are_right_in_every_form(name, form):
    assert exercises.check(name, form(NUMBERS[name]))


MISSES = {
    "3.1": ([1, 0, 0, 1], [1, 1, 1], [1, 1, 0.5, 0]),
    "3.2": ([2e-6, 1], [2, 2e-6], [1e-6, 2]),
    "3.3": ([47, 2], [0.45, 0.05], [0.02, 0.47]),
    "3.4": (5.0, 0.01, -100.0),
    "4.1": ([3, 1, 2, 4], [2, 3, 4, 1], [2, 3, 1]),
    "4.2": (
        edm.ve_sigmas(13, 0.0005, 400.0),
        edm.ve_sigmas(12, 0.0005, 400.0)[::-1],
        edm.ve_sigmas(12, 0.002, 400.0),
    ),
    "4.3": ([1.0, 2.0], [0.5, 3.0], [2.0, 0.5]),
    "5.1": ([2.39, 75.4, 1.39], [2.39, -13.4, 2.39], [1.66, 75.4, 1.66]),
}


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_are_not_right(name):
    for answer in MISSES[name]:
        assert not exercises.check(name, answer)


def test_shares_in_per_cent_are_told_so():
    assert "percentage" in repr(exercises.check("3.3", [47, 2.3]))


def test_the_smallest_flat_grid_and_no_other():
    """A thirteenth level is flat too, and one too many."""
    flat = [n for n in range(4, 20) if is_flat(edm.ve_sigmas(n, 0.0005, 400.0))]
    assert exercises.check("4.2", np.asarray(edm.ve_sigmas(flat[0], 0.0005, 400.0))[:, None])
    assert exercises.check("4.2", list(edm.ve_sigmas(flat[0], 0.0005, 400.0)))
    for n in flat[1:]:
        assert not exercises.check("4.2", edm.ve_sigmas(n, 0.0005, 400.0))


def levels(uniform):
    return jnp.exp(-1.2 + 1.2 * norm.ppf(uniform))


STRATIFIED = {
    "in turn": lambda u: levels((jnp.arange(len(u), dtype=u.dtype) + u) / len(u)),
    "from the top": lambda u: levels((jnp.arange(len(u), dtype=u.dtype)[::-1] + u) / len(u)),
    "permuted": lambda u: levels((jnp.roll(jnp.arange(len(u), dtype=u.dtype), 2) + u) / len(u)),
    "one draw for all": lambda u: levels((jnp.arange(len(u), dtype=u.dtype) + u[0]) / len(u)),
    "numpy": lambda u: np.asarray(levels((np.arange(len(u)) + np.asarray(u)) / len(u))),
}


@pytest.mark.parametrize("function", STRATIFIED.values(), ids=STRATIFIED)
def test_every_way_to_stratify_is_right(function):
    assert exercises.check("3.5", function)


def test_what_is_not_stratified_is_not_right():
    for function in (
        lambda u: levels(u),
        lambda u: levels((jnp.arange(len(u), dtype=u.dtype) + 0.5) / len(u)),
        lambda u: levels((jnp.arange(len(u), dtype=u.dtype) + u) / (len(u) + 1)),
        lambda u: levels((jnp.arange(len(u), dtype=u.dtype) // 2 + u) / len(u)),
    ):
        assert not exercises.check("3.5", function)


def test_one_array_twice_is_not_what_u_says():
    scored = np.linspace(0.6, 1.0, 5)
    assert exercises.check("3.6", ((1.1 * scored).tolist(), jnp.asarray(scored)))
    assert "one array twice" in repr(exercises.check("3.6", (scored, scored)))
    for said in (np.log(scored), 1 / scored, 1.3 * scored):
        assert not exercises.check("3.6", (said, scored))


def off_diagonal(a):
    return np.asarray(a) - np.diag(np.diag(np.asarray(a)))


PROBES = {
    "by the matrix": lambda a, wanted: 2 * np.sum(off_diagonal(a) ** 2) / wanted**2,
    "by pairs": lambda a, wanted: 4 * np.sum(np.triu(a, 1) ** 2) / wanted**2,
    "in JAX": lambda a, wanted: 2 * jnp.sum(jnp.asarray(off_diagonal(a)) ** 2) / wanted**2,
}


@pytest.mark.parametrize("function", PROBES.values(), ids=PROBES)
def test_every_way_to_count_probes_is_right(function):
    assert exercises.check("5.2", function)


def test_another_number_of_probes_is_not_right():
    by_matrix = PROBES["by the matrix"]
    for function, hint in (
        (lambda a, wanted: np.sqrt(by_matrix(a, wanted)), "square root"),
        (lambda a, wanted: 2 * np.sum(np.square(a)) / wanted**2, "diagonal"),
        (lambda a, wanted: by_matrix(a, wanted) / 2, "meets twice"),
        (lambda one, wanted: (17.3 / wanted) ** 2, ""),
    ):
        verdict = exercises.check("5.2", function)
        assert not verdict and hint in repr(verdict)
