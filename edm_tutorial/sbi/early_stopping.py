r"""Training with early stopping: chunks of steps, each followed by the held-out loss.

A batch is stratified: its i-th example has its noise level from the i-th part of the noise
law, so no batch misses a part. Step i draws everything from `fold_in(key, i)`, and what is kept
as the best so far is a state of its own: stopped and resumed, a run gives the same bits.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array

from .._types import PRNGKey
from ..losses import weighted_error
from ..noise_levels import AbstractNoiseDistribution
from ..training.averages import HalfLifeEMA
from ..training.loop import descend
from ..training.state import TrainState
from .history import History
from .settings import Plan

EMA = HalfLifeEMA()
LEFT_OF_DECAY = 3e-3  # of the weight decay, where it ends
ON_DEVICE = 2**30  # bytes of training data; more is fetched chunk by chunk


class FitState(NamedTuple):
    """All that a fit needs to go on; handed to the callback after every chunk.

    Arguments:
        train: live weights, their average, the optimizer's state and the step.
        best: the average with the lowest held-out loss so far.
        history: what `Posterior.history` will be.
    """

    train: TrainState
    best: Any
    history: History

    @property
    def stale(self) -> int:
        """Steps since the held-out loss was last at its lowest."""
        held_out, step = self.history.held_out, self.history.step
        return step[-1] - step[int(np.argmin(held_out))] if step else 0


@functools.cache  # one plan, one object: fits alike are compiled once
def optimizer_of(plan: Plan) -> optax.GradientTransformation:
    """AdamW with a short warm-up and a cosine to zero; gradients are clipped to norm 1.

    The weight decay starts strong and falls over the first half of the steps, so that
    training passes from what is smooth to what is detailed, and stopping early finds where to stop.
    """
    warm_up = max(1, plan.steps // 50)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, plan.learning_rate, warm_up, max(plan.steps, warm_up + 1)
    )
    decay, half = plan.weight_decay, max(plan.steps // 2, 1)
    falling = optax.exponential_decay(decay, half, LEFT_OF_DECAY, end_value=decay * LEFT_OF_DECAY)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.inject_hyperparams(optax.add_decayed_weights)(falling),
        optax.scale_by_learning_rate(rate),
    )


def optimise(
    key: PRNGKey,
    state: FitState,
    data: tuple[np.ndarray, np.ndarray],
    held_out: Callable[[Any], float],
    plan: Plan,
    noise: AbstractNoiseDistribution,
    callback: Callable[[FitState], Any] | None,
) -> FitState:
    """Train until the steps are done or the held-out loss has stopped falling.

    Arguments:
        data: standardised parameters and observations, in the host's memory.
        held_out: the loss of averaged weights, in nats.
        callback: called with the state after every chunk.
    """
    fits = sum(array.nbytes for array in data) <= ON_DEVICE
    source = jax.tree.map(jnp.asarray, data) if fits else data
    run = partial(_chunk, optimizer=optimizer_of(plan), noise=noise)
    while (done := int(state.train.step)) < plan.steps and state.stale < plan.patience:
        length = min(plan.every, plan.steps - done)
        index = _indices(key, done, length, plan.batch_size, len(data[0]))
        part = source
        if not fits:
            part = tuple(jnp.asarray(array[np.asarray(index).ravel()]) for array in data)
            index = jnp.arange(index.size).reshape(index.shape)
        train, losses = run(state.train, part, index, key)
        loss = held_out(train.ema)
        if not np.isfinite(loss):
            raise ValueError(
                f"the held-out loss is {loss} after {int(train.step)} steps: lower learning_rate"
            )
        best = state.best if loss >= min(state.history.held_out, default=np.inf) else train.ema
        state = FitState(train, best, state.history.then(int(train.step), losses, loss))
        if callback is not None:
            callback(state)
    return state


def _indices(key: PRNGKey, step: int, length: int, batch_size: int, count: int) -> Array:
    draw = lambda i: jr.randint(jr.fold_in(jr.fold_in(key, i), 0), (batch_size,), 0, count)
    return jax.vmap(draw)(step + jnp.arange(length))


@eqx.filter_jit
def _chunk(
    state: TrainState,
    data: Any,
    index: Array,
    key: PRNGKey,
    *,
    optimizer: optax.GradientTransformation,
    noise: AbstractNoiseDistribution,
) -> tuple[TrainState, Array]:
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: Any, index: Array) -> tuple[Any, Array]:
        state = eqx.combine(dynamic, static)
        batch = jax.tree.map(lambda array: array[index], data)
        step_key = jr.fold_in(jr.fold_in(key, state.step), 1)
        state, loss = _step(state, batch, step_key, optimizer, noise)
        return eqx.filter(state, eqx.is_array), loss

    dynamic, losses = jax.lax.scan(body, dynamic, index)
    return eqx.combine(dynamic, static), losses


def _step(
    state: TrainState,
    batch: tuple[Array, Array],
    key: PRNGKey,
    optimizer: optax.GradientTransformation,
    noise: AbstractNoiseDistribution,
) -> tuple[TrainState, Array]:
    z, x = batch
    level_key, noise_key, network_key = jr.split(key, 3)
    strata = jnp.arange(len(z), dtype=z.dtype) + jr.uniform(level_key, (len(z),), z.dtype)
    sigmas = jax.vmap(noise.from_variate)(strata / len(z))
    n = sigmas[:, None] * jr.normal(noise_key, z.shape, z.dtype)

    def mean_loss(denoiser: Any) -> Array:
        error = partial(weighted_error, denoiser)
        keys = jr.split(network_key, len(z))
        return jnp.mean(jax.vmap(lambda *a, key: error(*a, key=key))(z, sigmas, n, x, key=keys))

    return descend(state, mean_loss, optimizer, EMA, len(z))
