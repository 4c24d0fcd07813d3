r"""Training as a generator: you own the loop, each pass through it is one compiled chunk.

Step i draws its batch and its noise from `fold_in(key, i)`, so a run is a function of the
key and the data alone: stopped anywhere and resumed, it gives the same weights. Its parts
are in files of their own: `batches`, `optimizers`, `ema`, `sharding`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from .._types import PRNGKey, as_float
from ..preconditioning import AbstractPreconditioning
from .averages import AbstractEMA, HalfLifeEMA
from .batches import Batch, Examples, Given, as_sources
from .sharding import automatic, replicate

EMA = AbstractEMA | tuple[AbstractEMA, ...] | None
"""How weights are averaged: by one rule, by several at once, or not at all."""


@final
class BatchLoss(eqx.Module):
    """A loss of a whole batch, for `train`: such as one that stratifies its noise levels.

    Arguments:
        loss: called as `loss(denoiser, x, cond, key=key)` with the whole batch, a scalar.
    """

    loss: Callable[..., Array]

    def __call__(self, denoiser: Any, x: Any, cond: Any, *, key: PRNGKey) -> Float[Array, ""]:
        """The loss of one batch, for one key."""
        return self.loss(denoiser, x, cond, key=key)


class TrainState(NamedTuple):
    """All that training needs to go on.

    Arguments:
        denoiser: the live weights.
        ema: their average, to sample with; a tuple of them where there were several rules.
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
    frozen = lambda node: isinstance(node, AbstractPreconditioning)
    mask = lambda node: not frozen(node) and eqx.is_inexact_array(node)
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
    ema: EMA = HalfLifeEMA(),
    every: int = 100,
    state: TrainState | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Iterator[tuple[TrainState, Float[Array, " chunk"]]]:
    """Train, yielding the state and the losses of every `every` steps.

        loss = partial(denoising_loss, sigma_dist=LogNormal())
        for state, losses in tqdm(train(denoiser, loss, x, optax.adam(1e-3), ...)):
            ...

    Arguments:
        denoiser: what to train; a preconditioning inside it is left alone.
        loss: called as `loss(denoiser, x, cond, key=key)` for one example, a scalar; or a
            `BatchLoss`, called so for a whole batch.
        data: examples `x` stacked along the first axis, or a pair `(x, cond)` of such, from
            which batches are drawn with replacement. Or a function of the step that returns
            a batch, `x` or `(x, cond)`: a resumed run asks it for the steps to come. Or an
            iterator of batches, which is read from where it stands: to resume exactly, hand
            it over at the batch of step `state.step`.
        steps: the total; a resumed run stops at the same step.
        batch_size: examples a step.
        key: everything random follows from it and the step number.
        ema: how weights are averaged, `state.ema`; a tuple of rules makes that a tuple of
            averages, None keeps it equal to the weights.
        every: steps a chunk. From arrays, each chunk is one compiled `scan`, and 1 does
            without, as given batches do, which on a CPU may be faster. Stopped and resumed
            with the same `every`, a run gives the same bits; another one may round otherwise.
        state: where to resume; `denoiser` is then only a template.
        sharding: of a batch's first axis over devices, for data-parallel training:
            `data_parallel()`.

    Raises:
        ValueError: data or batches that are empty, not finite, of unequal length or of
            another length than `batch_size`, an iterator that ends too early, a count
            (`steps`, `batch_size`, `every`) below 1, a `batch_size` that the devices of
            `sharding` do not divide, or a `state` without an average for each rule.
        TypeError: a count that is not a whole number, or a sharding of another kind.
    """
    _check(steps, batch_size, every)
    if state is None:
        state = init_state(denoiser, optimizer, ema)
    _check_averages(state, ema)
    plan = (loss, optimizer, key, ema)
    if sharding is not None:
        sharding = automatic(sharding, batch_size)
        state, plan = replicate((state, plan), sharding)
    sources = as_sources(data, batch_size, sharding)

    def chunks(state: Any) -> Iterator[tuple[TrainState, Array]]:
        while (done := int(state.step)) < steps:
            parts = []
            for source, length in sources(done, min(every, steps - done)):
                chunk = None if every == 1 else length
                state, losses = _chunk(state, source, plan, sharding, chunk)
                parts.append(losses)
            yield state, jnp.concatenate(parts)

    return chunks(state)


def init_state(
    denoiser: Any, optimizer: optax.GradientTransformation, ema: EMA = None
) -> TrainState:
    """The state before the first step: a template to restore into, too."""
    params = eqx.filter(denoiser, trainable(denoiser))
    average = tuple(denoiser for _ in ema) if isinstance(ema, tuple) else denoiser
    return TrainState(denoiser, average, optimizer.init(params), jnp.zeros((), int))


@eqx.filter_jit
def _chunk(
    state: TrainState,
    source: Examples | Given,
    plan: tuple[Callable[..., Array], optax.GradientTransformation, PRNGKey, EMA],
    sharding: Any,
    length: int | None,
) -> tuple[TrainState, Array]:
    loss, optimizer, key, ema = plan
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: Any, _: None) -> tuple[Any, Array]:
        state = eqx.combine(dynamic, static)
        batch_key, loss_key = jr.split(jr.fold_in(key, state.step))
        batch = source.draw(batch_key, sharding)
        state, value = _step(state, loss, batch, optimizer, loss_key, ema, source.batch_size)
        return eqx.filter(state, eqx.is_array), value

    if length is None:
        dynamic, value = body(dynamic, None)
        return eqx.combine(dynamic, static), value[None]
    dynamic, losses = jax.lax.scan(body, dynamic, length=length)
    return eqx.combine(dynamic, static), losses


def _step(
    state: TrainState,
    loss: Callable[..., Array],
    batch: Batch,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    ema: EMA,
    batch_size: int,
) -> tuple[TrainState, Array]:
    x, cond = batch

    def mean_loss(denoiser: Any) -> Array:
        if isinstance(loss, BatchLoss):
            return loss(denoiser, x, cond, key=key)
        keys = jr.split(key, batch_size)
        return jnp.mean(jax.vmap(partial(loss, denoiser))(x, cond, key=keys))

    return descend(state, mean_loss, optimizer, ema, batch_size)


def descend(
    state: TrainState,
    mean_loss: Callable[[Any], Array],
    optimizer: optax.GradientTransformation,
    ema: EMA,
    batch_size: int,
) -> tuple[TrainState, Array]:
    """One step of any training: down the gradient of `mean_loss(denoiser)`, then the average.

    Arguments:
        batch_size: the examples in `mean_loss`, by which averages count.
    """
    params, static = eqx.partition(state.denoiser, trainable(state.denoiser))
    value, grads = jax.value_and_grad(lambda params: mean_loss(eqx.combine(params, static)))(params)
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes integer counts and floats
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        denoiser = eqx.combine(eqx.apply_updates(params, updates), static)
    average = _average(ema, state, denoiser, batch_size)
    return TrainState(denoiser, average, opt_state, state.step + 1), value


def _average(ema: EMA, state: TrainState, denoiser: Any, batch_size: int) -> Any:
    seen = as_float(state.step) * batch_size  # a float: in int32 it could overflow
    update = lambda rule, old: rule.update(old, denoiser, seen, batch_size)
    if isinstance(ema, tuple):
        return tuple(update(*pair) for pair in zip(ema, state.ema, strict=True))
    return denoiser if ema is None else update(ema, state.ema)


def _check_averages(state: TrainState, ema: EMA) -> None:
    if isinstance(ema, tuple):
        count = len(state.ema) if isinstance(state.ema, tuple) else 1
        if count != len(ema):
            raise ValueError(
                f"state.ema must hold one average for each of the {len(ema)} rules, got {count}"
            )


def _check(steps: int, batch_size: int, every: int) -> None:
    for name, count in (("steps", steps), ("batch_size", batch_size), ("every", every)):
        if not isinstance(count, Integral):
            raise TypeError(f"{name} must be a whole number, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
