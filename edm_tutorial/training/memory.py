"""Memory of a training step, as the compiler plans it, before anything is trained."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from .._checks import whole
from .averages import Averaging, HalfLifeEMA
from .batches import load
from .loop import Run, check_parts, is_loop, one_step, scan_steps
from .state import init_state


def step_memory(
    denoiser: Any,
    loss: Callable[..., Any],
    data: Any,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    every: int = 100,
    accumulate: int = 1,
    ema: Averaging = HalfLifeEMA(),
) -> int:
    """Bytes on the device while `train` takes its steps, given the same arguments.

    All there is at the peak: data, weights, their average, the optimizer's state before and after,
    and what is kept for the gradient. It is XLA's own plan of the code that `train` will run, which
    is compiled for it, but not run; `train` then need not compile it again. Where that is more
    memory than there is, raise `accumulate`.

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
    run = Run(
        loss=loss,
        optimizer=optimizer,
        key=jax.random.key(0),
        ema=ema,
        batch_size=batch_size,
        accumulate=accumulate,
        sharding=None,
    )
    source = load(data, batch_size, None)
    if is_loop(state, source, run, whole("every", every)):
        lowered: Any = scan_steps.lower(state, source, run, every)  # type: ignore  # jitted
    else:
        batch = source(0) if callable(source) else source
        lowered = one_step.lower(state, batch, run)  # type: ignore  # jitted
    plan = lowered.compile().compiled.memory_analysis()
    if plan is None:
        raise NotImplementedError(f"{jax.default_backend()} does not say what a step needs")
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )
