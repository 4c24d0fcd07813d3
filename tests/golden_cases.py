"""The reference numbers of `tests/golden`, one case at a time, none left out.

`tests/golden/README.md` states every formula and every array. A `Case` remembers which
of its arrays were read, so that a test can claim to have compared them all.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

GOLDEN = Path(__file__).parent / "golden"


@cache
def manifest() -> dict[str, Any]:
    return json.loads((GOLDEN / "manifest.json").read_text())["files"]


@cache
def arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / file) as stored:
        return dict(stored)


class Case:
    """`case["D"]` is an array, `case.params` what the reference was called with."""

    def __init__(self, file: str, name: str):
        entry = manifest()[file]["cases"][name]
        self.name: str = name
        self.kind: str = entry["kind"]
        self.params: dict[str, Any] = _numbers(entry["params"])
        self._arrays = {a: arrays(file)[f"{name}/{a}"] for a in entry["arrays"]}
        self._unread = set(entry["arrays"])

    def __getitem__(self, array: str) -> np.ndarray:
        self._unread.discard(array)
        return self._arrays[array]

    def __contains__(self, array: str) -> bool:
        return array in self._arrays

    def check_all_read(self) -> None:
        assert not self._unread, f"{self.name}: never compared: {sorted(self._unread)}"


def each_case(file: str, kind: str | None = None):
    """Parametrise a test with every case of `file` (of one kind), by name."""
    cases = manifest()[file]["cases"]
    names = [name for name in cases if kind in (None, cases[name]["kind"])]
    return pytest.mark.parametrize("name", names)


def check_file(file: str, kinds: dict[str, int]) -> None:
    """The file holds what the manifest says, and as many cases of each kind."""
    cases = manifest()[file]["cases"]
    listed = {f"{name}/{a}" for name, entry in cases.items() for a in entry["arrays"]}
    assert set(arrays(file)) == listed
    found = [entry["kind"] for entry in cases.values()]
    assert {kind: found.count(kind) for kind in found} == kinds


def assert_close(got: ArrayLike, want: np.ndarray, tolerance: float = 1e-9) -> None:
    """|got - want| <= tolerance max(|want|, 1e-3 max|want|), element by element.

    Independent float64 implementations meet 1e-10, where the reference's own exp(.) - 1
    is what loses digits; a wrong formula misses 1e-9 by orders of magnitude.
    """
    got = np.asarray(got)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    size = np.maximum(np.abs(want), 1e-3 * np.max(np.abs(want)))
    np.testing.assert_array_less(np.abs(got - want), tolerance * size + 1e-300)


def raw_network(a: float, b: float, g: float):
    """The analytic network of the reference runs, F(z, c) = sin(a z) cos(b c) + g z."""
    import jax.numpy as jnp

    def network(z, c_noise, cond=None, *, key=None):
        return jnp.sin(a * z) * jnp.cos(b * c_noise) + g * z

    return network


def _numbers(params: dict[str, Any]) -> dict[str, Any]:
    return {k: float("inf") if v == "inf" else v for k, v in params.items()}
