r"""Training loop as a generator: the caller owns the loop, and each pass is a chunk of steps.

Step $i$ draws its batch and its noise from `fold_in(key, i)`, so a run is a function of its key
and its data: stopped anywhere and resumed, it gives the same weights. Where a batch does not fit
in memory, its gradient is the mean over parts of it.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from .._checks import check_callable, check_key, check_kind, whole
from .._types import PRNGKey
from .averages import Averaging, HalfLifeEMA
from .batches import Batch, BatchOf, Examples, load
from .sharding import automatic, replicate
from .state import TrainState, add_examples, check_state, cleaners, init_state, trainable

REPAIRED = 10  # steps in a row without a finite loss that chunks of one step may have


class NonFiniteLossWarning(UserWarning):
    """A training loss that is NaN or infinite, and not repaired by `clean_gradients` now and then.

    Where every step needs the repair, nothing is learned, and that is said too.
    """


@final
class BatchLoss(eqx.Module):
    """Loss of a whole batch, for `train`; one that stratifies its noise levels is an example.

    `loss` is called as `loss(denoiser, x, cond, key=key)` and returns a scalar.
    """

    loss: Callable[..., Array]

    def __call__(self, denoiser: Any, x: Any, cond: Any, *, key: PRNGKey) -> Float[Array, ""]:
        """The loss of one batch, for one key."""
        return self.loss(denoiser, x, cond, key=key)


class Run(NamedTuple):
    """Arguments of `train` that all steps share."""

    loss: Callable[..., Array]
    optimizer: optax.GradientTransformation
    key: PRNGKey
    ema: Averaging
    batch_size: int
    accumulate: int
    sharding: NamedSharding | None


def train(
    denoiser: Any,
    loss: Callable[..., Array],
    data: Any,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    key: PRNGKey,
    ema: Averaging = HalfLifeEMA(),
    every: int = 100,
    accumulate: int = 1,
    state: TrainState | None = None,
    sharding: NamedSharding | None = None,
) -> Iterator[tuple[TrainState, Float[Array, " chunk"]]]:
    """Training, as an iterator over the states and losses of its chunks of steps.

        loss = partial(denoising_loss, sigma_dist=LogNormal())
        for state, losses in tqdm(train(denoiser, loss, x, optax.adam(1e-3), ...)):
            ...

    Arguments:
        denoiser: what to train, an `eqx.Module`; a field `preconditioning` is left alone.
        loss: called as `loss(denoiser, x, cond, key=key)` for one example, a scalar; or a
            `BatchLoss`, called so for a whole batch.
        data: examples `x` stacked along the first axis, or a tuple `(x, cond)` of such, from
            which batches are drawn with replacement. Or a function of the step that returns
            a batch, `x` or `(x, cond)`. Or an iterator of batches: to resume exactly, hand it
            over at the batch of step `state.step`.
        optimizer: any of Optax's. Those that ask for the loss, such as `reduce_on_plateau`
            and `lbfgs`, get `value`, `grad` and `value_fn` of the batch.
        steps: the total; a resumed run stops at the same step.
        batch_size: examples a step.
        key: everything random follows from it and the step number.
        ema: how weights are averaged, `state.ema`; a tuple of rules makes that a tuple of
            averages, None keeps it equal to the weights.
        every: steps a chunk. From arrays a chunk is one compiled loop; with `every=1`, and for
            convolutions on a CPU, there is no loop. A run resumed with the same `every` gives
            the same bits; with another one it may round otherwise.
        accumulate: parts of a batch, one after another: memory of one part, the gradient of all.
            The numbers drawn are those of the whole batch, so only rounding differs.
        state: where to resume; `denoiser` is then only a template.
        sharding: of a batch's first axis over devices, for data-parallel training:
            `data_parallel()`.

    Warns:
        NonFiniteLossWarning: at the end of the first chunk with a loss that is not finite; where
            `clean_gradients` is part of the optimizer, of the first chunk without one that is
            (in chunks of one step, of the tenth in a row).

    Raises:
        ValueError: data that are empty, not finite, or of another length than `batch_size`
            (batches) or than their `cond`; an iterator that ends too early; a count (`steps`,
            `batch_size`, `every`, `accumulate`) below 1; parts or devices that do not divide
            `batch_size`, or parts of a `BatchLoss`; a denoiser without weights or with layers
            that have a state; a `state` of another optimizer, or without an average for each
            rule.
        TypeError: a count that is not an integer, a key that is none, a sharding of another
            kind, a `state` that is no `TrainState`, no optimizer, or one that needs what is not
            known here.
    """
    steps, every = whole("steps", steps), whole("every", every)
    batch_size, accumulate = whole("batch_size", batch_size), whole("accumulate", accumulate)
    check_parts(accumulate, batch_size, loss)
    check_key("key", key)
    check_callable("loss", loss)
    if not callable(getattr(optimizer, "init", None)):
        raise TypeError(f"optimizer must be one of Optax's, as optax.adam(1e-3), got {optimizer!r}")
    sharding = None if sharding is None else automatic(sharding, batch_size // accumulate)
    source = load(data, batch_size, sharding)
    start = init_state(denoiser, optimizer, ema) if state is None else state
    check_kind("state", start, TrainState)
    check_state(start, optimizer, ema)
    run = Run(
        loss=loss,
        optimizer=optimizer,
        key=key,
        ema=ema,
        batch_size=batch_size,
        accumulate=accumulate,
        sharding=sharding,
    )
    if sharding is not None:
        start, run = replicate((start, run), sharding)
    return _chunks(start, source, run, steps=steps, every=every)


def _chunks(
    state: TrainState, source: Examples | BatchOf, run: Run, *, steps: int, every: int
) -> Iterator[tuple[TrainState, Array]]:
    told, unlearned = False, 0
    looped = is_loop(state, source, run, every)
    for done in range(int(state.step), steps, every):
        length = min(every, steps - done)
        if looped:
            state, losses = scan_steps(state, source, run, length)
        else:
            parts = []
            for i in range(done, done + length):
                drawn = source if isinstance(source, Examples) else source(i)
                state, loss = one_step(state, drawn, run)
                parts.append(loss)
            losses = jnp.stack(parts)
        if not told:
            finite = np.isfinite(np.asarray(losses))
            unlearned = int(np.argmax(finite[::-1])) if finite.any() else unlearned + length
            repaired = bool(cleaners(state))
            least = length if length > 1 else REPAIRED
            told = unlearned >= least if repaired else not finite.all()
            if told:
                message = _unlearned(unlearned) if repaired else _diverged(losses, done)
                warnings.warn(message, NonFiniteLossWarning, stacklevel=2)
        yield state, losses


def is_loop(state: TrainState, source: Examples | BatchOf, run: Run, every: int) -> bool:
    """Whether a chunk is one compiled loop.

    Not for batches from the host, nor on a CPU for convolutions: there loops make them 7 to 30
    times slower.

    Raises: ValueError or TypeError as `training_step`, which is traced.
    """
    if every == 1 or not isinstance(source, Examples):
        return False
    if jax.default_backend() != "cpu":
        return True
    jaxpr, *_ = eqx.filter_make_jaxpr(one_step)(state, source, run)  # traced here once for all
    return "conv_general_dilated" not in str(jaxpr)


@eqx.filter_jit
def scan_steps(
    state: TrainState, examples: Any, run: Run, length: int
) -> tuple[TrainState, Float[Array, " length"]]:
    """The state `length` steps on, and the losses on the way.

    Raises: ValueError or TypeError as `training_step`.
    """
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: Any, _: None) -> tuple[Any, Array]:
        state, loss = one_step(eqx.combine(dynamic, static), examples, run)
        return eqx.filter(state, eqx.is_array), loss

    dynamic, losses = jax.lax.scan(body, dynamic, length=length)
    return eqx.combine(dynamic, static), losses


def training_step(
    state: TrainState, source: Examples | Batch, run: Run
) -> tuple[TrainState, Float[Array, ""]]:
    """The next state, and the loss before it: a step of `train`, not compiled.

    Raises:
        ValueError: a loss that is no scalar, or what denoiser and network refuse.
        TypeError: an optimizer that needs what is not known here, or what the network refuses.
    """
    batch_key, key = jr.split(jr.fold_in(run.key, state.step))
    drawn = isinstance(source, Examples)
    x, cond = source.draw(batch_key, run.batch_size, run.sharding) if drawn else source
    params, static = eqx.partition(state.denoiser, trainable(state.denoiser))
    whole = isinstance(run.loss, BatchLoss)
    batch = x, cond, key if whole else jr.split(key, run.batch_size)

    def loss(params: Any, batch: Any) -> Array:
        x, cond, key = batch
        denoiser = eqx.combine(params, static)
        if whole:
            value = run.loss(denoiser, x, cond, key=key)
            _check_loss(value, "a batch")
            return value

        def one(*args: Any, key: PRNGKey) -> Array:
            value = run.loss(denoiser, *args, key=key)
            _check_loss(value, "one example")
            return value

        return jnp.mean(jax.vmap(one)(x, cond, key=key))

    gradient = partial(jax.value_and_grad(loss), params)
    value, grads = _mean(gradient, batch, run.accumulate)
    value_fn = lambda params: _mean(partial(loss, params), batch, run.accumulate)
    known = {"value": value, "grad": grads, "value_fn": value_fn}
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes integer counts and floats
        updates, opt_state = _update(run.optimizer, grads, state.opt_state, params, **known)
        denoiser = eqx.combine(eqx.apply_updates(params, updates), static)
    average = _average(run.ema, state, denoiser, run.batch_size)
    following = TrainState(
        denoiser=denoiser,
        ema=average,
        opt_state=opt_state,
        step=state.step + 1,
        seen=add_examples(state.seen, run.batch_size),
    )
    return following, value


def _mean(f: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """The mean of f over the parts of a batch, one at a time."""
    if parts == 1:
        return f(batch)
    batches = jax.tree.map(partial(_split, parts), batch)
    part = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batches)
    shapes = jax.eval_shape(f, part)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    add = lambda total, part: (jax.tree.map(jnp.add, total, f(part)), None)
    total, _ = jax.lax.scan(add, zero, batches)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def _split(parts: int, array: Array) -> Array:
    """The rows of an array in parts, interleaved: each device keeps its share of every part."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _split(parts, jr.key_data(array))
        return jr.wrap_key_data(data, impl=jr.key_impl(array))
    return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)


def _update(optimizer: optax.GradientTransformation, *args: Any, **known: Any) -> tuple[Any, Any]:
    try:
        return optax.with_extra_args_support(optimizer).update(*args, **known)
    except (AttributeError, TypeError) as error:
        raise TypeError(f"this optimizer cannot be used in train: {error}") from error


def _average(ema: Averaging, state: TrainState, denoiser: Any, batch_size: int) -> Any:
    update = lambda rule, old: rule.update(old, denoiser, state.seen, batch_size)
    if isinstance(ema, tuple):
        return tuple(update(*pair) for pair in zip(ema, state.ema, strict=True))
    return denoiser if ema is None else update(ema, state.ema)


one_step = eqx.filter_jit(training_step)


def check_parts(accumulate: int, batch_size: int, loss: Any) -> None:
    """Refuse parts that a batch or its loss does not have.

    Raises:
        ValueError: `accumulate` does not divide `batch_size`, or the loss is of a whole batch.
    """
    if batch_size % accumulate:
        raise ValueError(f"accumulate must divide batch_size={batch_size}, got {accumulate}")
    if accumulate > 1 and isinstance(loss, BatchLoss):
        raise ValueError(
            f"accumulate must be 1 with a BatchLoss, which sees its whole batch, got {accumulate}: "
            "take the loss of one example"
        )


def _check_loss(value: Any, of: str) -> None:
    """Refuse what a loss returns unless it is one number."""
    needed = f"loss must return a scalar for {of}"
    if value is None:
        raise ValueError(f"{needed}, got None")
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
        raise ValueError(f"{needed}, got a {type(value).__name__}: return the loss alone")
    if shape := jnp.shape(value):
        raise ValueError(f"{needed}, got shape {shape}: take its mean")


def _unlearned(steps: int) -> str:
    return (
        f"none of the last {steps} losses is finite: clean_gradients repairs such steps, but "
        "nothing is learned from them alone. Look at the loss of one example"
    )


def _diverged(losses: Array, done: int) -> str:
    bad = np.flatnonzero(~np.isfinite(losses))
    return (
        f"the loss of step {done + bad[0]} is {losses[bad[0]]}, and {len(bad)} of {len(losses)} "
        "losses in this chunk are not finite: lower the learning rate, or repair such steps "
        "with optax.chain(clean_gradients(), ...)"
    )
