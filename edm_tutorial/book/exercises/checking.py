"""`check`: is this the answer to that exercise of the book?

    exercises.check("3.2", answer)

shows `Right: ...`, or `Not yet: ...` with a hint. A wrong answer is never an error, so that a
chapter runs from top to bottom with its exercises unsolved; `assert exercises.check(...)` makes it
one.
"""

from functools import cache
from typing import Any

from . import (
    chapter_0,
    chapter_1,
    chapter_2,
    chapter_3,
    chapter_4,
    chapter_5,
    chapter_6,
    chapter_7,
    chapter_8,
    chapter_9,
    chapter_10,
    chapter_11,
)
from .verdict import Verdict

_CHAPTERS = dict(
    enumerate(
        (chapter_0, chapter_1, chapter_2, chapter_3, chapter_4)
        + (chapter_5, chapter_6, chapter_7, chapter_8, chapter_9)
        + (chapter_10, chapter_11)
    )
)
EXERCISES = {
    f"{chapter}.{number}": cache(exercise)  # made when first asked for
    for chapter, module in _CHAPTERS.items()
    for number, exercise in enumerate(module.EXERCISES, 1)
}


def check(name: str, answer: Any) -> Verdict:
    """Judge the answer to an exercise: true if it is right, and shown as a sentence.

    Arguments:
        name: chapter and number, as "3.2" for the second exercise of chapter 3.
        answer: what the exercise asks for: a number, an array, a function, an object.

    Raises:
        ValueError: no exercise has that name.
    """
    if name not in EXERCISES:
        chapter = str(name).partition(".")[0]
        here = [known for known in EXERCISES if known.partition(".")[0] == chapter]
        known = here or [f"{number}.1" for number in _CHAPTERS]
        raise ValueError(f"no exercise {name!r}; there are {', '.join(known)}")
    return EXERCISES[name]().judge(answer)
