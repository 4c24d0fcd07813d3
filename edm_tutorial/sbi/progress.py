"""A progress bar on stderr, where somebody watches."""

import sys
import time
from importlib.util import find_spec
from typing import final

from .early_stopping import FitState


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
        """One more chunk is done."""
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
        """Replace the bar by one line: what the fit came to."""
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
