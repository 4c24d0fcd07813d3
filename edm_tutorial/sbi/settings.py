"""Hyperparameters of a fit, as smooth functions of the number of simulations, and its optimizer.

Few simulations ask for strong weight decay and few steps; many bear a large network. The
numbers were chosen by validation loss, not by reference posteriors.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax

from .._checks import host, whole
from ..networks.mlp import Moments

LEFT_OF_DECAY = 3e-3  # of the weight decay, where it ends
# The weight decay of the hidden layers of `Moments`: so many times larger a step, up to a largest.
LOCATION_DECAY_A_STEP, LARGEST_DECAY = 1 / 320, 8.0


class Settings(NamedTuple):
    """The hyperparameters of one fit.

    Arguments:
        steps: at most; the learning rate falls to zero over them.
        batch_size: examples a step.
        learning_rate: at its highest, for Adam.
        weight_decay: decoupled, at first; over half the steps it falls to 0.3 % of it.
        width, depth, dropout: of the default network.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    width: int
    depth: int
    dropout: float

    @property
    def patience(self) -> int:
        """Steps without a lower validation loss after which training stops."""
        return max(self.steps // 4, 1)

    @property
    def every(self) -> int:
        """Steps between two looks at the validation loss, 40 looks or 10 where steps are few.

        A look costs as much as some twenty steps.
        """
        return max(self.steps // 40, min(self.steps // 10, 100), 1)

    def check(self) -> None:
        """Refuse a learning rate or a weight decay that cannot be one.

        Raises:
            ValueError: negative or not finite.
            TypeError: no number.
        """
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= host(f"settings.{name}", value) < np.inf:
                raise ValueError(f"settings.{name} must be finite and not negative, got {value}")

    def of_training(self) -> dict[str, Any]:
        """The keywords of `train`."""
        return {"steps": self.steps, "batch_size": self.batch_size, "every": self.every}

    def with_steps(self, steps: int | None) -> "Settings":
        """The same settings over another number of steps; fewer go with a higher learning rate.

        It rises as the square root of what the steps fall by, three times at most. None is
        as many as now.
        """
        if steps is None:
            return self
        steps = whole("steps", steps)
        shorter = float(np.clip(self.steps / steps, 1, 9))
        return self._replace(steps=steps, learning_rate=self.learning_rate * shorter**0.5)


# Simulations to train on, and the settings that go with them.
_row = partial(Settings, batch_size=256, depth=3)
POSTERIOR_ROWS = {
    1_000: _row(steps=8_400, learning_rate=1e-3, weight_decay=2.0, width=128, dropout=0.3),
    10_000: _row(steps=22_400, learning_rate=1e-3, weight_decay=0.2, width=128, dropout=0.3),
    100_000: _row(steps=48_000, learning_rate=7e-4, weight_decay=0.02, width=256, dropout=0.15),
}


SHARES = (0.5, 0.2, 0.1, 0.2)  # of posterior, likelihood, everything, any, in a joint fit


class JointSettings(NamedTuple):
    """The hyperparameters of a joint fit.

    Arguments:
        training: as for `fit_posterior`; width and depth are those of a transformer.
        shares: how often the parameters are hidden, the observation, everything, or any numbers. A
            question that is never asked in training is not learned.
    """

    training: Settings
    shares: tuple[float, float, float, float] = SHARES


# The training of `fit_joint`, whose width and depth are those of a transformer.
_joint_row = partial(Settings, batch_size=256, learning_rate=2e-3, width=64, depth=3, dropout=0.0)
JOINT_ROWS = {
    1_000: _joint_row(steps=3_000, weight_decay=0.5),
    10_000: _joint_row(steps=16_000, weight_decay=0.1),
    100_000: _joint_row(steps=64_000, weight_decay=0.02),
}


def default_settings(count: int, rows: dict[int, Settings] = POSTERIOR_ROWS) -> Settings:
    """The settings for `count` simulations to train on: rows, interpolated in logarithms.

    A setting that is 0 in one of the rows is interpolated as it is.
    """
    at, known = np.log(max(count, 1)), np.log(list(rows))

    def between(name: str) -> float:
        values = [getattr(row, name) for row in rows.values()]
        if not all(values):
            return float(np.interp(at, known, values))
        return float(np.exp(np.interp(at, known, np.log(values))))

    return Settings(
        steps=40 * round(between("steps") / 40),
        batch_size=round(between("batch_size")),
        learning_rate=between("learning_rate"),
        weight_decay=between("weight_decay"),
        width=32 * round(between("width") / 32),
        depth=round(between("depth")),
        dropout=between("dropout"),
    )


@cache  # one optimizer object for the same settings: fits alike are compiled once
def optimizer_of(settings: Settings) -> optax.GradientTransformation:
    """Adam with a short warm-up and a cosine to zero, and a weight decay that falls.

    The decay starts strong and falls over the first half of the steps, so that training passes
    from what is smooth to what is detailed, and early stopping finds where to stop. Gradients
    are clipped to norm 1.

    What says where a posterior is, `Moments`, would overfit before the rest has learned its shape:
    the decay of its hidden layers is larger, the more so the longer training lasts.
    """
    steps = settings.steps
    warm_up = max(1, steps // 50)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, warm_up, max(steps, warm_up + 1)
    )
    falling = optax.exponential_decay(
        1.0, max(steps // 2, 1), LEFT_OF_DECAY, end_value=LEFT_OF_DECAY
    )
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.inject_hyperparams(optax.add_decayed_weights)(falling),
        optax.scale_by_learning_rate(rate),
    )
    inner = optax.flatten(chain)  # one long vector in place of many: less to compile

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(updates, state, _decaying(params, settings))

    return optax.GradientTransformation(inner.init, update)


def _decaying(weights: Any, settings: Settings) -> Any:
    """The first decay times each weight."""
    decay = settings.weight_decay
    of_hidden = max(decay, min(decay * settings.steps * LOCATION_DECAY_A_STEP, LARGEST_DECAY))
    times = lambda factor, tree: jax.tree.map(lambda leaf: factor * leaf, tree)
    is_moments = lambda part: isinstance(part, Moments)

    def of(part: Any) -> Any:
        if not is_moments(part):
            return times(decay, part)
        hidden = lambda moments: moments.blocks
        return eqx.tree_at(hidden, times(decay, part), times(of_hidden, part.blocks))

    return jax.tree.map(of, weights, is_leaf=is_moments)
