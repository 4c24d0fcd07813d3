"""Memory of a training step, as the compiler plans it, before anything is trained."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import optax

from .._checks import whole
from .averages import Averaging, HalfLifeEMA
from .batches import load
from .loop import Run, check_parts, training_step
from .state import init_state


def step_memory(
    denoiser: Any,
    loss: Callable[..., Any],
    data: Any,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    accumulate: int = 1,
    ema: Averaging = HalfLifeEMA(),
) -> int:
    """Bytes on the device during a step of `train` with the same arguments.

    All there is at its peak: data, weights, their average, the optimizer's state before and after
    the step, and what is kept for the gradient. XLA's own analysis of the compiled step, which
    is compiled for it, but not run. Where that is more than there is, raise `accumulate`.

    Arguments:
        data: as for `train`, but no iterator of batches, which would lose its first one.

    Raises:
        ValueError: as for `train`, or an iterator.
        NotImplementedError: a device whose compiler does not say.
    """
    batch_size, accumulate = whole("batch_size", batch_size), whole("accumulate", accumulate)
    check_parts(accumulate, batch_size, loss)
    if isinstance(data, Iterator):
        raise ValueError(
            "data must be arrays or a function of the step: an iterator would lose its first "
            f"batch, got {type(data).__name__}"
        )
    state = init_state(denoiser, optimizer, ema)
    run = Run(loss, optimizer, jax.random.key(0), ema, batch_size, accumulate, None)
    source = load(data, batch_size, None)
    if callable(source):
        source = source(0)
    compiled: Any = eqx.filter_jit(training_step).lower(state, source, run).compile()  # type: ignore
    plan = compiled.compiled.memory_analysis()
    if plan is None:
        raise NotImplementedError(f"{jax.default_backend()} does not say what a step needs")
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )
