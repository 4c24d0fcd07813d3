r"""How long to train what, as smooth functions of the number of simulations.

Few simulations ask for strong weight decay and few steps; many bear a large network. The
numbers were chosen by the held-out loss of the benchmark simulators, not by their reference
posteriors.
"""

from typing import Any, NamedTuple

import numpy as np


class Plan(NamedTuple):
    """The numbers of one fit.

    Arguments:
        steps: at most; the learning rate falls to zero over them.
        batch_size: examples a step.
        learning_rate: at its highest, for AdamW.
        weight_decay: of AdamW, at first; over half the steps it falls to 0.3 % of it.
        width, depth, dropout: of the network, where it is the default one.
        patience: steps without a lower held-out loss after which training stops.
        every: steps between two looks at the held-out loss.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    width: int
    depth: int
    dropout: float
    patience: int
    every: int

    def network(self) -> dict[str, Any]:
        """The keywords of the default network."""
        return {"width": self.width, "depth": self.depth, "dropout": self.dropout}

    def lasting(self, steps: int) -> "Plan":
        """The same plan over another number of steps; fewer go with a higher learning rate.

        It rises as the square root of what the steps fall by, three times at most.
        """
        shorter = float(np.clip(self.steps / max(steps, 1), 1, 9))
        return self._replace(
            steps=steps,
            learning_rate=self.learning_rate * shorter**0.5,
            patience=max(steps // 4, 1),
            every=max(steps // 40, 1),
        )


def default_plan(count: int) -> Plan:
    """The defaults for `count` simulations to train on."""
    decades = float(np.log10(np.clip(count, 100, 1_000_000))) - 4  # above ten thousand
    steps = 400 * round(32 * 1.5**decades)
    width = 32 * round(4 * 2 ** np.clip(decades, 0, 1))
    return Plan(
        steps=steps,
        batch_size=256,
        learning_rate=1e-3 * (128 / width) ** 0.5,
        weight_decay=float(np.clip(0.2 * 10**-decades, 0.01, 2)),
        width=width,
        depth=3,
        dropout=float(np.clip(0.3 * 2**-decades, 0.02, 0.3)),
        patience=steps // 4,
        every=steps // 40,
    )
