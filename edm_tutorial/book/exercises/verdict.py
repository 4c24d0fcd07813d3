"""How an answer is judged: an exercise knows a right one, and wrong ones that are often given.

Answers may be numbers, arrays, functions or objects. What makes them comparable is a measure, which
turns any answer into an array: a function becomes its values at some points, a grid the gains of
a sampler on it. An answer is right if its measure is near that of the right one, and if it is near
that of a known mistake, the hint is about that mistake.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np


@final
@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and a sentence about it: true if and only if it is right.

    Arguments:
        right: the verdict itself.
        message: what is shown; never the solution.
    """

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.message


@final
@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What is asked for, and what is known about the answers.

    Arguments:
        needs: what has to be handed in, in words.
        right: a right answer.
        lesson: the sentence for whoever has it.
        mistakes: wrong answers, each under the hint for it.
        hint: for all other wrong answers.
        measure: from an answer to the numbers that are compared; may raise.
        rtol, atol: how near is near enough, as in `np.allclose`.
    """

    needs: str
    right: Any
    lesson: str
    mistakes: Mapping[str, Any]
    hint: str
    measure: Callable[[Any], Any] = lambda answer: answer
    rtol: float = 0.01
    atol: Any = 1e-6

    def judge(self, answer: Any) -> Verdict:
        """Whether `answer` is right; a wrong one, or one of the wrong kind, is no error."""
        if answer is None or answer is ...:
            return _not_yet(f"this needs {self.needs}")
        try:
            got = self._measured(answer)
        except Exception as error:  # whatever the reader's code raises
            return _not_yet(f"this needs {self.needs}; {_short(answer)} gave {_short(error)}")
        if not np.all(np.isfinite(got)):
            return _not_yet(f"this needs {self.needs}; what it gave are not all finite numbers")
        right = self._measured(self.right)
        if right.ndim < 2 and got.size == right.size:
            got = got.reshape(right.shape)  # a row or a column of the right numbers will do
        if got.shape != right.shape:
            return _not_yet(f"this needs {self.needs}: shape {right.shape}, got {got.shape}")
        if self._near(got, right):
            return Verdict(True, _sentence("Right", self.lesson))
        for hint, wrong in self.mistakes.items():
            if self._near(got, self._measured(wrong)):
                return _not_yet(hint)
        return _not_yet(self.hint)

    def _measured(self, answer: Any) -> np.ndarray:
        with np.errstate(all="ignore"):  # a wrong formula may divide by zero
            return np.asarray(self.measure(answer), float)

    def _near(self, got: np.ndarray, wanted: np.ndarray) -> bool:
        return bool(np.allclose(got, wanted, rtol=self.rtol, atol=self.atol))


def at(*points: tuple) -> Callable[[Any], list]:
    """The measure of a function: its values at some points, each a tuple of arguments."""
    return lambda function: [function(*point) for point in points]


@final
@dataclass(frozen=True)
class Clock:
    """A schedule in the eyes of an exercise: three functions."""

    sigma: Callable[[float], Any]
    time: Callable[[Any], Any]
    scale: Callable[[float], Any]


def three_methods(schedule: Any) -> list:
    """The measure of a schedule: sigma(t), its inverse, and s(t), at three times."""
    rows = [(schedule.sigma(t), schedule.scale(t)) for t in (0.2, 0.5, 0.7)]
    return [[sigma, schedule.time(sigma), scale] for sigma, scale in rows]


def _not_yet(sentence: str) -> Verdict:
    return Verdict(False, _sentence("Not yet", sentence))


def _sentence(start: str, text: str) -> str:
    return f"{start}: {text}" if text.endswith("?") else f"{start}: {text}."


def _short(value: Any) -> str:
    """What a value is, in one short line: a function's name, or an error with its type."""
    if isinstance(value, Exception):
        text = f"{type(value).__name__}: {value}"
    else:
        text = getattr(value, "__name__", None) or repr(value)
    line = text.split("\n")[0]
    return line if len(line) <= 80 else line[:77] + "..."
