r"""Checkpoints of a training that can be killed at any moment.

    state = checkpoint.restore(folder, init_state(denoiser, optimizer, ema))
    for state, losses in train(..., ema=ema, state=state):
        checkpoint.save(folder, state)

A checkpoint is a folder named by its step. It holds the arrays of a `TrainState`, written by
Orbax, and a page that lists each array with its shape, dtype and checksum. One that cannot be
read, has another checksum or is of another model is refused, and the one before it is used. (To
Orbax's `CheckpointManager` one damaged metric closes the whole folder, and while there is a later
step, however damaged, it saves nothing and says nothing.)

Checkpoints of version 0.1.0 are restored too.
"""

import re
import shutil
import warnings
import zlib
from contextlib import suppress
from math import inf, isclose, isfinite
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp

from .._checks import whole
from .state import TrainState, describe, differences

KIND = "edm_tutorial checkpoint 2"
RELEASE_0_1 = "edm_tutorial checkpoint 1"
ROUNDING = 1e-5  # of a measured number, such as sigma_data, on another machine
Folder = str | PathLike[str]


class Refused(Exception):
    """The reason why a checkpoint is not used."""


class Stored(NamedTuple):
    """Content of a checkpoint, under the names of `describe`."""

    leaves: dict[str, str]  # arrays by dtype and shape, numbers by value
    arrays: dict[str, np.ndarray]  # those that are not empty; random keys as their data


def save(path: Folder, state: TrainState, *, keep: int = 3, metric: float | None = None) -> None:
    """A checkpoint of `state` in `path/<step>`; only the last `keep` and the best are kept.

    With several processes every one of them calls this, on one file system.

    Arguments:
        keep: how many of the latest to keep.
        metric: lower is better; the best one saved with a metric is kept too.

    Raises: ValueError for `keep` below 1, a metric that is not finite, or a later checkpoint of the
    same model in `path`, which would be the one to be restored.
    """
    keep = whole("keep", keep)
    if metric is not None and not isfinite(metric):
        raise ValueError(f"metric must be finite, got {metric}: it could never be compared")
    path, step = Path(path).absolute(), int(state.step)
    for later in (other for other in _steps(path) if other > step):
        with suppress(Refused):  # what cannot be restored is not in the way
            _filled(_read(path / str(later), batch_size=1), state)
            raise ValueError(
                f"{path} has a later checkpoint of this model, of step {later}: restore it "
                f"before going on, or save step {step} elsewhere"
            )
    if jax.process_index() == 0:
        for leftover in path.glob("*.orbax-checkpoint-tmp*"):  # of a write that was killed
            shutil.rmtree(leftover)
    arrays = [_raw(leaf) for leaf in _named(state).values() if leaf.size]
    page = {
        "kind": KIND,
        "metric": None if metric is None else float(metric),
        "leaves": describe(state),
        "checksums": [_checksum(array) for array in arrays],
    }
    items = ocp.args.Composite(
        arrays=ocp.args.StandardSave({str(i): array for i, array in enumerate(arrays)}),
        page=ocp.args.JsonSave(page),
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path / str(step), items, force=True)
    if jax.process_index() == 0:
        _prune(path, step, keep)


def restore(
    path: Folder, template: TrainState, *, best: bool = False, batch_size: int | None = None
) -> TrainState | None:
    """Last state saved to `path`, bit for bit; None if there is none.

    A checkpoint that is damaged or foreign is refused with a warning that says why, and the
    one before it is used.

    Arguments:
        template: a state of the same model, such as `init_state` returns.
        best: the one of the lowest metric, the next best after it, and so on.
        batch_size: that of the training, only needed for a checkpoint of version 0.1.0: it
            did not count examples, so `seen` becomes `step * batch_size`.

    Raises: ValueError if there are checkpoints, and all of them are refused.
    """
    path = Path(path).absolute()
    candidates = sorted(_steps(path), reverse=True)
    if best:
        metrics = {step: _metric(path / str(step)) for step in candidates}
        finite = [step for step in candidates if isfinite(metrics[step])]
        candidates = sorted(finite, key=lambda step: metrics[step])
    reasons = []
    for step in candidates:
        try:
            return _filled(_read(path / str(step), batch_size), template)
        except Refused as reason:
            reasons.append(f"checkpoint {path / str(step)} is refused: {reason}")
            warnings.warn(reasons[-1], stacklevel=2)
    if reasons:
        raise ValueError("\n".join(reasons))
    return None


def _steps(path: Path) -> list[int]:
    return [int(folder.name) for folder in path.glob("*") if folder.name.isdecimal()]


def _prune(path: Path, step: int, keep: int) -> None:
    """The deletion of checkpoints other than the last `keep` up to `step` and the best."""
    steps = sorted(other for other in _steps(path) if other <= step)
    if len(steps) > keep:
        best = min(steps, key=lambda other: _metric(path / str(other)))
        for other in steps[:-keep]:
            if other != best or _metric(path / str(other)) == inf:
                shutil.rmtree(path / str(other))


def _metric(folder: Path) -> float:
    """The metric of a checkpoint; infinite without one, or where the page is not ours."""
    try:
        metric = _page(folder)["metric"]
    except Refused:
        return inf
    return inf if metric is None else metric


def _named(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by the names of their places."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    is_array = lambda leaf: isinstance(leaf, jax.Array | np.ndarray)
    return {jax.tree_util.keystr(place): leaf for place, leaf in leaves if is_array(leaf)}


def _raw(leaf: Any) -> np.ndarray:
    """The numbers of an array, also of random keys."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jr.key_data(leaf) if is_key else leaf)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _load(folder: Path, **items: Any) -> Any:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder, ocp.args.Composite(**items))
    except Exception as error:  # whatever Orbax meets in a damaged folder
        raise Refused(f"it cannot be read: {str(error)[:200]}") from error


def _page(folder: Path) -> dict[str, Any]:
    page = _load(folder, page=ocp.args.JsonRestore()).page
    parts = {"kind", "metric", "leaves", "checksums"}
    if not isinstance(page, dict) or set(page) != parts or page["kind"] not in (KIND, RELEASE_0_1):
        raise Refused(f"it is not an {KIND}")
    return page


def _read(folder: Path, batch_size: int | None) -> Stored:
    page = _page(folder)
    leaves, checksums = page["leaves"], page["checksums"]
    # Orbax takes no array that has an axis of length 0
    stored = lambda told: told.endswith("]") and not re.search(r"\D0[,\]]", told)
    names = [name for name, told in leaves.items() if stored(told)]
    arrays = _load(folder, arrays=ocp.args.StandardRestore()).arrays
    for n, checksum in enumerate(checksums):
        if _checksum(arrays[str(n)]) != checksum:
            raise Refused(f"array {n} of {len(checksums)} has another checksum than when saved")
    content = Stored(leaves, {name: arrays[str(n)] for n, name in enumerate(names)})
    return content if page["kind"] == KIND else _of_today(content, batch_size)


def _of_today(stored: Stored, batch_size: int | None) -> Stored:
    """A checkpoint of 0.1.0 in the form of today, with `seen`, and `sigma_data` not an array."""
    if batch_size is None:
        told = "it is of version 0.1.0, which did not count examples"
        raise Refused(f"{told}: pass batch_size, that of its training")
    leaves, arrays = {}, dict(stored.arrays)
    for name, told in stored.leaves.items():
        if name.endswith(".preconditioning.sigma_data"):
            value = arrays.pop(name).tolist() if name in arrays else float(told)
            parts = jax.tree_util.tree_leaves_with_path(value)
            new = name.removesuffix("sigma_data") + "_sigma_data"
            leaves |= {new + jax.tree_util.keystr(place): repr(part) for place, part in parts}
        else:
            leaves[name] = told
    dtype = np.dtype(f"u{arrays['.step'].dtype}")
    seen = min(int(arrays[".step"]) * batch_size, np.iinfo(dtype).max)
    return Stored(leaves | {".seen": f"{dtype}[]"}, arrays | {".seen": np.asarray(seen, dtype)})


def _filled(stored: Stored, template: TrainState) -> TrainState:
    """The template with the stored arrays and numbers in place of its own."""
    expected = describe(template)
    for place, leaf in jax.tree_util.tree_leaves_with_path(template):
        name = jax.tree_util.keystr(place)
        if type(leaf) is float and _is_close(stored.leaves.get(name, ""), leaf):
            expected[name] = stored.leaves[name]
    if told := differences(stored.leaves, expected):
        raise Refused(f"it is of another model: {told}")

    def fill(place: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(place)
        if name not in stored.arrays:
            return float(stored.leaves[name]) if type(leaf) is float else leaf
        array = jnp.asarray(stored.arrays[name])
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jr.wrap_key_data(array, impl=jr.key_impl(leaf)) if is_key else array

    return jax.tree_util.tree_map_with_path(fill, template)


def _is_close(told: str, value: float) -> bool:
    try:
        return isclose(float(told), value, rel_tol=ROUNDING)
    except ValueError:  # it was an array, or nothing
        return False
