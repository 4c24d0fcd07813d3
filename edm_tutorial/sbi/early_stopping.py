"""Early stopping at the lowest validation loss of the averaged weights; a fit's progress."""

import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..denoiser import Denoiser
from ..training.state import TrainState
from .settings import Settings


class History(NamedTuple):
    """The course of training, one entry a chunk of steps.

    Arguments:
        step: steps taken by then.
        train: mean training loss of the chunk; 1 is an untrained network.
        held_out: upper bound on the mean of -ln q(theta given x) over the simulations kept out
            of training, for the averaged weights, nats.
        untrained: the same before the first step, nats.
        prior: that of a fit that ignores x, nats.
    """

    step: tuple[int, ...] = ()
    train: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    untrained: float = float("inf")
    prior: float = float("inf")


class FitState(NamedTuple):
    """The state of a fit, enough to go on from; handed to the callback after every chunk.

    Arguments:
        train: live weights, their average, the optimizer's state and the step.
        best: the average with the lowest validation loss so far.
        history: what `Posterior.history` will be.
        fingerprint: of the simulations.
    """

    train: TrainState
    best: Denoiser
    history: History
    fingerprint: int

    @classmethod
    def start(
        cls, train: TrainState, untrained: float, prior: float, fingerprint: int
    ) -> "FitState":
        """The state before the first step; the two losses are in nats."""
        return cls(train, train.ema, History(untrained=untrained, prior=prior), fingerprint)

    def check(self, fingerprint: int) -> None:
        """Refuse a state of other simulations, bounds or rows: their coordinates are others.

        Raises:
            ValueError: another fingerprint.
        """
        if self.fingerprint != fingerprint:
            raise ValueError(
                "state is of other simulations, another prior_support or another key than "
                "these. To add simulations and go on from its "
                "weights, pass network=state.best.network in place of state=, or with an embedding "
                "network=state.best.network.network and embedding=state.best.network.embedding"
            )

    def then(
        self, train: TrainState, losses: Float[Array, " chunk"], held_out: float
    ) -> "FitState":
        """The state one chunk later.

        Raises:
            ValueError: the validation loss is not finite.
        """
        step, past = int(train.step), self.history
        if not np.isfinite(held_out):
            raise ValueError(
                f"the validation loss is {held_out} after {step} steps: lower learning_rate "
                "in settings, or look for a network or an embedding that overflows"
            )
        lowest = min((*past.held_out, past.untrained))
        history = past._replace(
            step=(*past.step, step),
            train=(*past.train, float(jnp.mean(losses))),
            held_out=(*past.held_out, held_out),
        )
        best = train.ema if held_out < lowest else self.best
        return FitState(train, best, history, self.fingerprint)

    @property
    def stale(self) -> int:
        """Steps since the validation loss was last at its lowest."""
        held_out, step = self.history.held_out, self.history.step
        return step[-1] - step[int(np.argmin(held_out))] if step else 0


def until_stale(
    chunks: Iterator[tuple[TrainState, Array]],
    state: FitState,
    held_out: Callable[[Any], float],
    settings: Settings,
    *,
    progress: bool,
    callback: Callable[[FitState], Any] | None,
) -> FitState:
    """The last state of training, which ends when the validation loss has not fallen for long."""
    bar = Progress(settings.steps, shown=progress)
    while state.stale < settings.patience and (chunk := next(chunks, None)):
        state = state.then(*chunk, held_out(chunk[0].ema))
        bar.show(state)
        if callback is not None:
            callback(state)
    bar.close(state)
    return state


@final
class Progress:
    """Steps, validation loss and time left, in a terminal or notebook; by tqdm if it is there.

    Arguments:
        steps: in all.
        shown: False shows nothing.
    """

    def __init__(self, steps: int, *, shown: bool):
        self.steps, self.bar, self.shown = steps, None, shown and watched()
        self.start, self.first = time.monotonic(), None
        if self.shown and find_spec("tqdm"):
            from tqdm.auto import tqdm

            self.bar = tqdm(total=steps, unit="step", file=sys.stderr, leave=False)

    def show(self, fit: FitState) -> None:
        """The bar after one more chunk."""
        if not self.shown:
            return
        done, loss = fit.history.step[-1], fit.history.held_out[-1]
        if self.bar is not None:
            self.bar.set_postfix(held_out=f"{loss:.3f} nats", refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        self.first = self.first or (done, now)  # compilation does not count
        since, start = self.first
        left = (now - start) / max(done - since, 1) * (self.steps - done)
        told = f"step {done} of {self.steps}, held out {loss:.3f} nats, {left:.0f} s left"
        sys.stderr.write(f"\r{told:<70}")
        sys.stderr.flush()

    def close(self, fit: FitState) -> None:
        """The end of the bar, and in its place one line: what the fit came to."""
        if self.bar is not None:
            self.bar.close()
        if self.shown:
            history = fit.history
            nats = history.prior - min((*history.held_out, history.untrained))
            sys.stderr.write(
                f"\r{f'{history.step[-1]} steps, {nats:.2f} nats over the prior':<70}\n"
            )


def watched() -> bool:
    """Whether stderr is a terminal, or the process a notebook's kernel."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
