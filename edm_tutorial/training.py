r"""Training as a generator: you own the loop, each pass through it is one compiled chunk.

Step i draws its batch and its noise from `fold_in(key, i)`, so a run is a function of the
key and the data alone: stopped anywhere and resumed, it gives the same weights.
"""

from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from edm_tutorial.ema import HalfLifeEMA
from edm_tutorial.preconditioning import AbstractPreconditioning
from edm_tutorial.types import PRNGKey, as_float, check_cond, check_data


class TrainState(NamedTuple):
    """All that training needs to go on.

    Arguments:
        denoiser: the live weights.
        ema: their average, to sample with.
        opt_state: of the optax optimizer.
        step: steps taken so far, shape ().
    """

    denoiser: Any
    ema: Any
    opt_state: Any
    step: Int[Array, ""]


def trainable(denoiser: Any) -> Any:
    """A mask of what the optimizer may change: floating arrays outside preconditionings.

    Without it, weight decay would eat a `sigma_data` that is an array.
    """
    frozen = lambda node: isinstance(node, AbstractPreconditioning)  # noqa: E731
    mask = lambda node: not frozen(node) and eqx.is_inexact_array(node)  # noqa: E731
    return jax.tree.map(mask, denoiser, is_leaf=frozen)


def train(
    denoiser: Any,
    loss: Callable[..., Array],
    data: Any,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    key: PRNGKey,
    ema: HalfLifeEMA | None = HalfLifeEMA(),
    every: int = 100,
    state: TrainState | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Iterator[tuple[TrainState, Float[Array, " chunk"]]]:
    """Train, yielding the state and the losses of every `every` steps.

        loss = partial(denoising_loss, noise=LogNormal())
        for state, losses in tqdm(train(denoiser, loss, x, optax.adam(1e-3), ...)):
            ...

    Arguments:
        denoiser: what to train; a preconditioning inside it is left alone.
        loss: called as `loss(denoiser, x, cond, key=key)` for one example, a scalar.
        data: examples `x` stacked along the first axis, or a pair `(x, cond)` of such.
        steps: the total; a resumed run stops at the same step.
        batch_size: examples a step, drawn with replacement.
        key: everything random follows from it and the step number.
        ema: how weights are averaged; None keeps `state.ema` equal to the weights.
        every: steps a chunk; each chunk is one compiled `scan`.
        state: where to resume; `denoiser` is then only a template.
        sharding: of a batch's first axis over devices, for data-parallel training.

    Raises:
        ValueError: data that are empty, not finite or of unequal length, or a count
            (`steps`, `batch_size`, `every`) below 1.
        TypeError: a count that is not a whole number.
    """
    data = data if isinstance(data, tuple) else (data, None)
    _check(data, steps, batch_size, every)
    sharding = _automatic(sharding)
    if state is None:
        state = init_state(denoiser, optimizer)

    def chunks(state: TrainState) -> Iterator[tuple[TrainState, Array]]:
        while (done := int(state.step)) < steps:
            length = min(every, steps - done)
            state, losses = _chunk(
                state, loss, data, optimizer, key, ema, sharding, batch_size, length
            )
            yield state, losses

    return chunks(state)


def init_state(denoiser: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = eqx.filter(denoiser, trainable(denoiser))
    return TrainState(denoiser, denoiser, optimizer.init(params), jnp.zeros((), int))


@eqx.filter_jit
def _chunk(
    state: TrainState,
    loss: Callable[..., Array],
    data: Any,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    ema: HalfLifeEMA | None,
    sharding: Any,
    batch_size: int,
    length: int,
) -> tuple[TrainState, Array]:
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: Any, _: None) -> tuple[Any, Array]:
        state = eqx.combine(dynamic, static)
        batch_key, loss_key = jr.split(jr.fold_in(key, state.step))
        batch = _draw(batch_key, data, batch_size, sharding)
        state, value = _step(state, loss, batch, optimizer, loss_key, ema, batch_size)
        return eqx.filter(state, eqx.is_array), value

    dynamic, losses = jax.lax.scan(body, dynamic, length=length)
    return eqx.combine(dynamic, static), losses


def _automatic(sharding: Any) -> Any:
    """The same sharding over axes that the compiler handles, as `_draw` needs."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    devices: Any = sharding.mesh.devices
    mesh = jax.sharding.Mesh(devices, sharding.mesh.axis_names)
    return jax.sharding.NamedSharding(mesh, sharding.spec)


def _draw(key: PRNGKey, data: Any, batch_size: int, sharding: Any) -> Any:
    count = len(jax.tree.leaves(data)[0])
    index = jr.randint(key, (batch_size,), 0, count)
    batch = jax.tree.map(lambda array: array[index], data)
    if sharding is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, sharding)


def _step(
    state: TrainState,
    loss: Callable[..., Array],
    batch: Any,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    ema: HalfLifeEMA | None,
    batch_size: int,
) -> tuple[TrainState, Array]:
    params, static = eqx.partition(state.denoiser, trainable(state.denoiser))
    keys = jr.split(key, batch_size)

    def mean_loss(params: Any) -> Array:
        one = lambda x, cond, key: loss(eqx.combine(params, static), x, cond, key=key)  # noqa: E731
        x, cond = batch
        return jnp.mean(jax.vmap(one)(x, cond, keys))

    value, grads = jax.value_and_grad(mean_loss)(params)
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes integer counts and floats
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        denoiser = eqx.combine(eqx.apply_updates(params, updates), static)
    average = denoiser
    if ema is not None:
        seen = as_float(state.step) * batch_size  # a float: in int32 it could overflow
        average = ema.update(state.ema, denoiser, seen, batch_size)
    return TrainState(denoiser, average, opt_state, state.step + 1), value


def _check(data: tuple[Any, Any], steps: int, batch_size: int, every: int) -> None:
    for name, count in (("steps", steps), ("batch_size", batch_size), ("every", every)):
        if not isinstance(count, Integral):
            raise TypeError(f"{name} must be a whole number, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if len(data) != 2:
        raise ValueError(f"data must be x or a pair (x, cond), got {len(data)} parts")
    check_data("data", data[0])
    check_cond(data[1], len(data[0]))
