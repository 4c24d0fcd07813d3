r"""State of a training: weights, their averages, and what the optimizer remembers.

The optimizer may change the floating arrays of a denoiser, outside its `preconditioning`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, UInt

from .averages import Averaging


class TrainState(NamedTuple):
    """The state of a training between two steps, from which it goes on.

    Arguments:
        denoiser: the live weights.
        ema: their average, to sample with; a tuple of them where there were several rules.
        opt_state: of the optax optimizer.
        step: steps taken so far, shape ().
        seen: examples so far, shape (), by which averages count. Unsigned: where its 32 bits
            end, at 4.3 billion, it stops and does not wrap.
    """

    denoiser: Any
    ema: Any
    opt_state: Any
    step: Int[Array, ""]
    seen: UInt[Array, ""]


class Cleaned(NamedTuple):
    """Counts of what `clean_gradients` has repaired so far.

    Arguments:
        steps: the steps with an entry that was not finite.
        entries: such entries over all steps; the count stops at the largest int.
    """

    steps: Int[Array, ""]
    entries: Int[Array, ""]


def init_state(
    denoiser: Any, optimizer: optax.GradientTransformation, ema: Averaging = None
) -> TrainState:
    """State before the first step; also a template for `checkpoint.restore`.

    Raises: ValueError for a denoiser without weights or with layers that have a state.
    """
    average = tuple(denoiser for _ in ema) if isinstance(ema, tuple) else denoiser
    opt_state = optimizer.init(parameters(denoiser))
    unsigned = jax.dtypes.canonicalize_dtype(np.uint64)  # 32 bits, unless JAX may use 64
    return TrainState(
        denoiser=denoiser,
        ema=average,
        opt_state=opt_state,
        step=jnp.zeros((), int),
        seen=jnp.zeros((), unsigned),
    )


def trainable(denoiser: Any) -> Any:
    """Mask of what the optimizer may change: floating arrays outside `preconditioning`."""
    frozen = lambda place: any(getattr(key, "name", "") == "preconditioning" for key in place)
    mask = lambda place, leaf: eqx.is_inexact_array(leaf) and not frozen(place)
    return jax.tree_util.tree_map_with_path(mask, denoiser)


def parameters(denoiser: Any) -> Any:
    """Arrays to train, with None in place of all else."""
    stateful = lambda node: isinstance(node, eqx.nn.StateIndex)
    if any(map(stateful, jax.tree.leaves(denoiser, is_leaf=stateful))):
        raise ValueError(
            "the denoiser has layers with a state, such as eqx.nn.BatchNorm, and there is no "
            "state for them here: use layers without one, such as eqx.nn.GroupNorm"
        )
    params = eqx.filter(denoiser, trainable(denoiser))
    if not jax.tree.leaves(params):
        raise ValueError(
            "the denoiser has nothing to train, no floating array: make the network an "
            "eqx.Module; the weights inside a lambda or a functools.partial are out of reach"
        )
    return params


def check_state(state: TrainState, optimizer: optax.GradientTransformation, ema: Averaging) -> None:
    """Refuse a state that another optimizer or other rules have made."""
    expected = eqx.filter_eval_shape(optimizer.init, parameters(state.denoiser))
    if told := differences(describe(state.opt_state), describe(expected)):
        raise ValueError(f"state.opt_state is of another optimizer: {told}")
    if jax.tree.structure(state.opt_state) != jax.tree.structure(expected):
        raise ValueError(
            "state.opt_state is of another optimizer: its arrays are like those of this one, "
            "but they are nested otherwise"
        )
    if isinstance(ema, tuple):
        count = len(state.ema) if isinstance(state.ema, tuple) else 1
        if count != len(ema):
            raise ValueError(
                f"state.ema must hold one average for each of the {len(ema)} rules, got {count}"
            )
    elif jax.tree.structure(state.ema) != jax.tree.structure(state.denoiser):
        raise ValueError("state.ema must be an average for one rule, a tree like state.denoiser")


def add_examples(seen: UInt[Array, ""], batch_size: int) -> UInt[Array, ""]:
    """Count of examples after one more step; it stops at the largest number of its dtype."""
    total = seen + jnp.asarray(batch_size, seen.dtype)
    most = jnp.asarray(jnp.iinfo(seen.dtype).max, seen.dtype)
    return jnp.where(total < seen, most, total)  # unsigned integers wrap


def describe(tree: Any) -> dict[str, str]:
    """Arrays by dtype and shape and numbers by value, each under the name of its place."""
    found = {}
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(place)
        if isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            found[name] = f"{leaf.dtype}{list(leaf.shape)}"
        elif isinstance(leaf, bool | int | float | complex | np.generic):
            found[name] = repr(leaf)
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> str:
    """Differences of two descriptions in words, the first three; empty if there are none."""
    told = [
        f"{name} is {found.get(name, 'missing')}, here {expected.get(name, 'missing')}"
        for name in dict.fromkeys([*expected, *found])
        if found.get(name) != expected.get(name)
    ]
    return "; ".join([*told[:3], *([f"and {len(told) - 3} more"] if len(told) > 3 else [])])


def cleaners(state: Any) -> list[Cleaned]:
    """Counts of every `clean_gradients` in a `TrainState` or an optimizer's state."""
    is_count = lambda node: isinstance(node, Cleaned)
    return [leaf for leaf in jax.tree.leaves(state, is_leaf=is_count) if is_count(leaf)]
