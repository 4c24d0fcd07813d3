"""The exercises of the book: each has a stub that fails, an answer that passes, and hints.

The solutions in the chapters end in `assert exercises.check(...)`, so that a chapter's own run
proves them. (About 15 seconds.)
"""

import ast
import re
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import edm_tutorial as edm
from edm_tutorial.book import exercises
from edm_tutorial.book.exercises import chapter_4, chapter_6
from edm_tutorial.book.exercises.checking import EXERCISES
from edm_tutorial.book.exercises.verdict import Exercise, at

CHAPTERS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("[0-9][0-9]_*.md"))
# The code of a cell, without the caption of its figure.
CELL = re.compile(r"^```\{code-cell\} python\n(?:---\n.*?^---\n)?(.*?)^```$", re.M | re.S)


class Asked(NamedTuple):
    """An exercise as the chapter has it: its stub, and the code of its solution."""

    stub: list[str]
    solution: str


def asked(chapter: Path) -> list[Asked]:
    """The exercises of a chapter, in their order, which is that of their numbers on the page."""
    _, *parts = re.split(r"^:{3,}\{exercise(?:-start)?\}", chapter.read_text(), flags=re.M)
    halves = [re.split(r"^:{3,}\{solution-start\}", part, flags=re.M) for part in parts]
    return [Asked(CELL.findall(text), "\n".join(CELL.findall(code))) for text, code in halves]


BOOK = {
    f"{int(chapter.name[:2])}.{number}": exercise
    for chapter in CHAPTERS
    for number, exercise in enumerate(asked(chapter), 1)
}
every = pytest.mark.parametrize("name", EXERCISES)


def test_every_exercise_of_the_book_can_be_checked_and_no_other():
    assert set(BOOK) == set(EXERCISES)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_at_least_five_a_chapter_from_easy_to_hard(chapter):
    stars = re.findall(r"^:{3,}\{exercise(?:-start)?\} (★+) ", chapter.read_text(), re.M)
    assert len(stars) >= 5 and min(stars) == "★" and max(stars) == "★★★"


@every
def test_the_stub_runs_and_is_not_yet_right(name):
    [stub] = BOOK[name].stub
    *lines, check = stub.rstrip().splitlines()
    assert len(lines) < 6 and check.startswith(f'exercises.check("{name}", ')
    reader = {"edm": edm, "jax": jax, "jnp": jnp, "np": np, "exercises": exercises}
    exec("\n".join(lines), reader)
    verdict = eval(check, reader)
    assert not verdict and repr(verdict).startswith("Not yet: ")


@every
def test_the_solution_is_checked(name):
    calls = [ast.unparse(node.test) for node in ast.walk(ast.parse(BOOK[name].solution))
             if isinstance(node, ast.Assert)]  # fmt: skip
    assert any(f"exercises.check('{name}', " in call for call in calls)


@every
def test_right_answers_pass_and_each_mistake_has_its_own_hint(name):
    exercise = EXERCISES[name]()
    assert exercises.check(name, exercise.right)
    assert exercise.mistakes and exercise.hint not in exercise.mistakes
    hint, wrong = next(reversed(exercise.mistakes.items()))
    verdict = exercises.check(name, wrong)
    assert not verdict and hint in repr(verdict)
    answers = [exercise.right, *exercise.mistakes.values()]
    measured = [exercise._measured(answer) for answer in answers]
    for one, other in combinations(measured, 2):
        assert not exercise._near(one, other)


COARSE = {"9.4": "the spread of four rows divides by n or by n - 1"}


@every
def test_an_answer_that_is_off_by_a_tenth_is_not_right(name):
    """All its numbers a tenth too large, or a tenth too small; exceptions say why."""
    exercise = EXERCISES[name]()
    right = exercise._measured(exercise.right)
    far = 1.5 if name in COARSE else 1.1
    for other in (right * far, right / far):
        assert not exercise._near(np.asarray(other), right)


def test_the_width_that_costs_a_hundredth():
    """6.2 by hand: sampling that ends at r widths makes the width 1 / sqrt(1 + r^2) of itself."""
    exercise = EXERCISES["6.2"]()
    shrink = 1 / np.sqrt(1 + np.asarray(exercise._measured(exercise.right)) ** 2)
    cover = 2 * norm.cdf(norm.ppf(0.95) * shrink) - 1
    np.testing.assert_allclose([shrink[0], cover[1]], [0.99, 0.89], rtol=1e-6)


def broken(*args, **kwargs):
    raise KeyError("no luck")


@every
def test_an_answer_of_no_use_is_not_yet_right(name):
    for answer in (..., "x", object(), broken, [[1.0, 2.0]] * 11, (None, None)):
        verdict = exercises.check(name, answer)
        assert not verdict and repr(verdict).startswith("Not yet: ")


SQUARE = Exercise(
    needs="a function of x",
    right=lambda x: x**2,
    lesson="it is even",
    mistakes={"that is a cube": lambda x: x**3},
    hint="is it even?",
    measure=at((2.0,), (-3.0,)),
)
JUDGED = {
    "right": (lambda x: x * x, "Right: it is even."),
    "nearly": (lambda x: 1.005 * x**2, "Right: it is even."),
    "a mistake": (lambda x: x**3, "Not yet: that is a cube."),
    "wrong": (lambda x: x, "Not yet: is it even?"),
    "nothing": (None, "Not yet: this needs a function of x."),
    "no number": (lambda x: None, "Not yet: this needs a function of x; what it gave are not all "
                  "finite numbers."),
    "a number": (4, "Not yet: this needs a function of x; 4 gave TypeError: 'int' object is not "
                 "callable."),
    "broken": (broken, "Not yet: this needs a function of x; broken gave KeyError: 'no luck'."),
    "a shape": (lambda x: [x, x], "Not yet: this needs a function of x: shape (2,), got (2, 2)."),
}  # fmt: skip


@pytest.mark.parametrize("answer, message", JUDGED.values(), ids=JUDGED)
def test_what_is_said_of_an_answer(answer, message):
    verdict = SQUARE.judge(answer)
    assert repr(verdict) == message and bool(verdict) == message.startswith("Right")


@pytest.mark.parametrize(
    "name, there", [("3.9", "3.1, 3.2"), ("12.1", "0.1, 1.1"), ("second", "0.1, 1.1")]
)
def test_an_unknown_exercise_is_refused_and_the_known_ones_are_named(name, there):
    with pytest.raises(ValueError, match=rf"no exercise '{name}'; there are {there}"):
        exercises.check(name, 1.0)


@pytest.mark.parametrize(
    "gain, solver",
    [(chapter_4.heun_gain, edm.Heun()), (chapter_6.multistep_gain, edm.DPMSolverPP2M())],
)
def test_the_gains_are_those_of_the_package(gain, solver):
    """The references of exercises 4.2 and 6.3 are recursions of their own."""
    scales, sigmas = np.array([0.05, 0.5, 3.0]), edm.edm_sigmas(9)

    def linear(x, sigma, cond=None, *, key=None):
        return x * scales**2 / (scales**2 + sigma**2)

    out = edm.sample(linear, jnp.ones(3), sigmas, solver=solver)
    np.testing.assert_allclose(gain(scales, np.asarray(sigmas)), out / scales, rtol=1e-10)
