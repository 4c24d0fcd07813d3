r"""Checkpoints: a run killed at any moment goes on as if nothing had happened.

    state = checkpoint.restore(folder, init_state(denoiser, optimizer, ema))
    for state, losses in train(..., ema=ema, state=state):
        checkpoint.save(folder, state)

A checkpoint is a folder named by its step: the arrays of a `TrainState`, written by Orbax,
and a page that names each with its shape, dtype and checksum. Orbax writes under a temporary
name and renames what is complete. Nothing is trusted: what cannot be read, has another
checksum or is of another model is refused, and the checkpoint before it is used.
"""

import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from math import inf, isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp

from .loop import TrainState

KIND = "edm_tutorial checkpoint 1"
Folder = str | PathLike[str]


class Refused(Exception):
    """Why a checkpoint is not used."""


def save(path: Folder, state: TrainState, *, keep: int = 3, metric: float | None = None) -> None:
    """Write `state` to `path/<step>`, then delete all but the last `keep` and the best.

    With several processes every one of them calls this, on one file system.

    Arguments:
        keep: how many of the latest to keep.
        metric: lower is better; the best one saved with a metric is kept too.

    Raises:
        ValueError: `keep` below 1, a metric that is not finite, or a later checkpoint of the
            same model in `path`: it would be the one to be restored.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    if metric is not None and not isfinite(metric):
        raise ValueError(f"metric must be finite, got {metric}: it could never be compared")
    path, step = Path(path).absolute(), int(state.step)
    for later in (other for other in _steps(path) if other > step):
        with suppress(Refused):  # what cannot be restored is not in the way
            _read(path / str(later), state)
            raise ValueError(
                f"{path} has a later checkpoint of this model, of step {later}: restore it "
                f"before going on, or save step {step} elsewhere"
            )
    if jax.process_index() == 0:
        for leftover in path.glob("*.orbax-checkpoint-tmp*"):  # of a write that was killed
            shutil.rmtree(leftover)
    leaves = jax.tree.leaves(state)
    arrays = [_raw(leaves[i]) for i in _places(leaves)]
    page = {
        "kind": KIND,
        "metric": None if metric is None else float(metric),
        "leaves": _describe(state),
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


def restore(path: Folder, template: TrainState, *, best: bool = False) -> TrainState | None:
    """The last state saved to `path`, bit for bit; None if there is none.

    A checkpoint that is damaged or foreign is refused with a warning that says why, and the
    one before it is used.

    Arguments:
        template: a state of the same model, such as `init_state` returns.
        best: the one of the lowest metric, the next best after it, and so on.

    Raises:
        ValueError: there are checkpoints, and all of them are refused.
    """
    path = Path(path).absolute()
    candidates = sorted(_steps(path), reverse=True)
    if best:
        metrics = {step: _metric(path / str(step)) for step in candidates}
        candidates = sorted(candidates, key=lambda step: metrics[step])
        candidates = [step for step in candidates if isfinite(metrics[step])]
    reasons = []
    for step in candidates:
        try:
            return _read(path / str(step), template)
        except Refused as reason:
            reasons.append(f"checkpoint {path / str(step)} is refused: {reason}")
            warnings.warn(reasons[-1], stacklevel=2)
    if reasons:
        raise ValueError("\n".join(reasons))
    return None


def _steps(path: Path) -> list[int]:
    return [int(folder.name) for folder in path.glob("*") if folder.name.isdecimal()]


def _prune(path: Path, step: int, keep: int) -> None:
    """Delete what is neither among the last `keep` up to `step` nor the best."""
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


def _leaves(state: Any) -> Iterator[tuple[str, Any]]:
    """Arrays and numbers by name; functions and the like come from the template."""
    for place, leaf in jax.tree_util.tree_leaves_with_path(state):
        if isinstance(leaf, jax.Array | np.ndarray) or _is_number(leaf):
            yield jax.tree_util.keystr(place), leaf


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | complex | np.generic)


def _describe(state: Any) -> dict[str, str]:
    """Shape and dtype of each array, the value of each number: another is another model."""
    return {
        name: repr(leaf) if _is_number(leaf) else f"{leaf.dtype}{list(leaf.shape)}"
        for name, leaf in _leaves(state)
    }


def _places(leaves: list[Any]) -> list[int]:
    """Which leaves are arrays with something in them: Orbax takes no others."""
    is_array = lambda leaf: isinstance(leaf, jax.Array | np.ndarray)
    return [i for i, leaf in enumerate(leaves) if is_array(leaf) and leaf.size]


def _raw(leaf: Any) -> np.ndarray:
    """An array as numbers, which a random key is not."""
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
    if not isinstance(page, dict) or set(page) != parts or page["kind"] != KIND:
        raise Refused(f"it is not an {KIND}")
    return page


def _compare(stored: dict[str, str], expected: dict[str, str]) -> None:
    names = dict.fromkeys([*expected, *stored])
    differences = [
        f"{name} is {stored.get(name, 'missing')}, here {expected.get(name, 'missing')}"
        for name in names
        if stored.get(name) != expected.get(name)
    ]
    if differences:
        more = "" if len(differences) <= 3 else f"; and {len(differences) - 3} more"
        raise Refused("it is of another model: " + "; ".join(differences[:3]) + more)


def _read(folder: Path, template: TrainState) -> TrainState:
    page = _page(folder)
    _compare(page["leaves"], _describe(template))
    leaves, structure = jax.tree.flatten(template)
    places = _places(leaves)
    empty = {str(n): np.empty_like(_raw(leaves[i])) for n, i in enumerate(places)}
    arrays = _load(folder, arrays=ocp.args.StandardRestore(empty)).arrays
    for n, (i, checksum) in enumerate(zip(places, page["checksums"], strict=True)):
        array = arrays[str(n)]
        if _checksum(array) != checksum:
            raise Refused(f"array {n} of {len(places)} has another checksum than when saved")
        leaves[i] = _like(array, leaves[i])
    return jax.tree.unflatten(structure, leaves)


def _like(array: np.ndarray, leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(jnp.asarray(array), impl=jr.key_impl(leaf))
    return jnp.asarray(array)
