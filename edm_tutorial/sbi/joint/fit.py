r"""One fit of every conditional of $(\theta, x)$: posterior, likelihood, and all between.

In training, some numbers of each simulation are hidden: noised, and to be denoised. The others are
shown as they are, and carry no loss. What is hidden is drawn anew each time: the parameters (this
trains the posterior), the observation (the likelihood), all numbers, or any.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from ..._checks import check_key, check_kind
from ..._types import PRNGKey
from ...denoiser import Denoiser
from ...networks.tokens import TokenTransformer
from ...preconditioning import EDMPreconditioning
from ...training.averages import HalfLifeEMA
from ...training.loop import BatchLoss, train
from ...training.state import init_state
from ..early_stopping import FitState, until_stale
from ..fit import SIGMA_DIST, check_continues
from ..noise_levels import HeldOut, PosteriorNoise
from ..settings import JOINT_ROWS, JointSettings, Settings, default_settings, optimizer_of
from ..simulations import FEWEST, Simulations, checked
from ..surprise import ObservationDensity, PoorFit, warn
from ..transforms.bounds import Bounds
from ..transforms.chain import Chain, rows
from ..transforms.standardize import Standardizer
from .conditionals import Joint
from .graph import connected, neighbours
from .hidden import HiddenLoss, held_out
from .network import GaussianPreconditioning, JointNetwork

# The games by whose gain the last noise level is chosen, each alone: posterior, likelihood.
ENDS = (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0)


def fit_joint(
    key: PRNGKey,
    theta: Float[ArrayLike, "n d"],
    x: Float[ArrayLike, " n *shape"],
    *,
    prior_support: tuple[Any, Any] | None = None,
    depends: Bool[ArrayLike, "tokens tokens"] | None = None,
    steps: int | None = None,
    settings: Settings | JointSettings | None = None,
    invalid: str = "raise",
    progress: bool = True,
    callback: Callable[[FitState], Any] | None = None,
    state: FitState | None = None,
) -> Joint:
    """Every conditional of (theta, x), learned from simulations.

        joint = fit_joint(key, theta, x, prior_support=(low, high))
        draws = joint.posterior(x_o).sample(key, 10_000)
        log_likelihood = joint.likelihood(theta_o).log_prob(x_o)

    Training stops, and the best weights are kept, as in `fit_posterior`; the untrained network is
    a joint Gaussian with the correlations of the simulations.

    Arguments:
        theta: parameters drawn from the prior, one row a simulation.
        x: what was simulated with them: numbers, (n, k), or m points of k numbers whose order
            means nothing, (n, m, k). A NaN is a missing number.
        prior_support: (low, high), each of shape (d,); -inf, inf or None where there is no bound.
        depends: `depends[i, j]`: token i is simulated from token j. Tokens are the parameters,
            then the numbers of x (or its points). Each then looks only at its parents, its
            children, and its children's other parents. All look at all unless given.
        steps: optimizer steps at most; a smooth function of n unless given.
        settings: all hyperparameters, or those of training alone, with the usual shares of what
            is hidden; `default_settings(n, JOINT_ROWS)` unless given.
        invalid: what to do with simulations that are infinite, or whose x is NaN throughout:
            "raise", or "drop" them with a warning.
        progress, callback: as for `fit_posterior`.
        state: a `FitState` to go on from, with the same simulations.

    Raises:
        ValueError: as `fit_posterior`; or `depends` of another shape, with a parameter that is
            simulated from x, or with a circle.
        TypeError: `key` is no random key, or `depends` is not made of True and False.
    """
    check_key("key", key)
    split_key, network_key, train_key, *held_keys = jr.split(key, 6)
    structured = np.ndim(x) == 3
    given = checked(theta, x, prior_support, structured=structured, invalid=invalid, missing=True)
    kept, held = given.split(split_key)
    settings, shares = _settings(settings, len(kept), steps)
    count = given.theta.shape[1]

    transform = _coordinates(given, kept)
    z, present, log_dets = transformed(transform, given.theta, given.x)
    mask = neighbours(depends, count, count + given.x.shape[1])
    network = _network(network_key, z[kept], mask, given, settings=settings)
    judge_of = partial(
        held_out, z=z[held], present=present[held], log_dets=log_dets[held], parameters=count
    )
    judge = judge_of(held_keys[0], shares=shares)
    denoiser = _no_worse_than_independent(Denoiser(network, EDMPreconditioning(1.0)), judge)
    state = _start(state, denoiser, settings, judge, fingerprint=given.fingerprint(kept))

    chunks = train(
        denoiser,
        BatchLoss(HiddenLoss(PosteriorNoise(), count, shares)),
        (z[kept], present[kept]),
        optimizer_of(settings),
        key=train_key,
        state=state.train,
        **settings.of_training(),
    )
    state = until_stale(chunks, state, judge, settings, progress=progress, callback=callback)
    _look_at_losses(state)
    return Joint(
        denoiser=state.best,
        transform=transform,
        sigma_min=_smallest_sigma(held_keys[1:], judge_of, state.best),
        sigma_max=SIGMA_DIST.sigma_max,
        count=count,
        x_shape=given.x.shape[1:],
        history=state.history,
        offset=_offset(given),
        density=_density(state.best, z[:, count:], present[:, count:], kept=kept, held=held),
        shares=tuple(map(float, shares)),
    )


def _settings(settings: Any, count: int, steps: int | None) -> JointSettings:
    """The user's settings, or the default ones for `count` simulations."""
    if settings is None:
        settings = default_settings(count, JOINT_ROWS)
    if not isinstance(settings, JointSettings):
        check_kind("settings", settings, Settings)
        settings = JointSettings(settings)
    settings.training.check()
    return settings._replace(training=settings.training.with_steps(steps))


def _coordinates(given: Simulations, kept: np.ndarray) -> Chain:
    """Bounds and scale of every number by itself; the points of x share one scale."""
    rest, box = given.x[0].size, given.bounds
    fills = ((box.low, -jnp.inf), (box.high, jnp.inf), (box.softness, 1.0))
    bounds = Bounds(*(jnp.concatenate([own, jnp.full(rest, x, own.dtype)]) for own, x in fills))
    theta = Standardizer.fit(rows(box, given.theta[kept]), "theta")
    x, axes = given.x[kept].astype(float), tuple(range(given.x.ndim - 1))
    full = lambda value: jnp.asarray(np.broadcast_to(value, x.shape[1:]).ravel(), box.low.dtype)
    mean, std = full(np.nanmean(x, axis=axes)), full(np.nanstd(x, axis=axes))
    join = lambda *parts: jnp.concatenate(parts)
    return Chain((bounds, Standardizer(join(theta.mean, mean), join(theta.std, std))))


def transformed(
    transform: Chain, theta: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z of every number, 0 where it is missing, the mask of those present, log-determinants."""
    numbers = np.concatenate([theta, x.reshape(len(x), -1)], axis=1)
    present = np.isfinite(numbers)
    middle = np.asarray(transform.inverse(jnp.zeros_like(transform.bounds.low)))
    alone = jax.tree.map(lambda leaf: leaf[:, None], transform)
    one = lambda chain, value: (chain.forward(value[None])[0], chain.log_det(value[None]))
    of_rows = jax.jit(jax.vmap(jax.vmap(one), in_axes=(None, 0)))
    z, log_dets = of_rows(alone, jnp.asarray(np.where(present, numbers, middle)))
    return np.where(present, z, 0).astype(numbers.dtype), present, np.asarray(log_dets)


def _network(
    key: PRNGKey, z: np.ndarray, mask: np.ndarray, given: Simulations, settings: Settings
) -> JointNetwork:
    """The joint Gaussian of simulations, and an untrained transformer of parameters and x."""
    count, x_shape = given.theta.shape[1], given.x.shape[1:]
    points = len(x_shape) == 2
    size = x_shape[1] if points else 1
    kinds = [*range(count), *(count if points else count + i for i in range(x_shape[0]))]
    transformer = TokenTransformer(
        kinds,
        2 * size,
        size,
        width=settings.width,
        depth=settings.depth,
        dropout=settings.dropout,
        key=key,
    )
    of_number = np.concatenate([np.arange(count), count + np.arange(z.shape[1] - count) // size])
    together = (connected(mask) | mask)[np.ix_(of_number, of_number)]
    gaussian = GaussianPreconditioning.fit(z, together, count, size if points else None)
    return JointNetwork(gaussian, transformer, jnp.asarray(mask), count)


def _no_worse_than_independent(denoiser: Denoiser, judge: HeldOut) -> Denoiser:
    """The denoiser; where few simulations tell its correlations badly, one without them."""
    if judge(denoiser) <= judge.untrained:
        return denoiser
    where = lambda denoiser: denoiser.network.preconditioning.correlation
    return eqx.tree_at(where, denoiser, replace_fn=lambda c: jnp.eye(len(c), dtype=c.dtype))


def _start(
    state: FitState | None, denoiser: Denoiser, settings: Settings, judge: HeldOut, fingerprint: int
) -> FitState:
    """The state to go on from, or that before the first step."""
    if state is not None:
        check_continues(state, fingerprint, denoiser)
        return state
    start = init_state(denoiser, optimizer_of(settings), HalfLifeEMA())
    return FitState.start(start, judge(denoiser), judge.untrained, fingerprint)


def _smallest_sigma(
    keys: Sequence[PRNGKey], judge_of: Callable[..., HeldOut], denoiser: Denoiser
) -> float:
    """The noise level at which sampling may end, for posterior and likelihood alike."""
    ends = [judge_of(key, shares=shares) for key, shares in zip(keys, ENDS, strict=True)]
    return min(end.smallest_sigma(denoiser, SIGMA_DIST.sigma_min) for end in ends)


def _look_at_losses(state: FitState) -> None:
    """A warning where training did not help."""
    history = state.history
    trained, untrained = min(history.held_out, default=np.inf), history.untrained
    if trained >= untrained:
        warn(
            PoorFit,
            f"training did not help: on held-out simulations -ln q of what is hidden is "
            f"{trained:.3f} nats, {untrained:.3f} untrained, and {history.prior:.3f} if all "
            "numbers are independent. The joint Gaussian of the simulations is returned. More "
            "simulations may help",
        )


def _density(
    denoiser: Denoiser, x: np.ndarray, present: np.ndarray, kept: np.ndarray, held: np.ndarray
) -> ObservationDensity | None:
    """The density of observations of which nothing is missing, if there are enough of them."""
    whole = np.asarray(present.all(axis=1))
    kept, held = kept[whole[kept]], held[whole[held]]
    enough = min(len(kept), 4 * len(held)) >= FEWEST
    return ObservationDensity.fit(denoiser, x[kept], x[held]) if enough else None


def _offset(given: Simulations) -> tuple[float, ...]:
    """The offset of every number; empty where nothing is subtracted."""
    if not (given.theta_offset or given.x_offset):
        return ()
    parts = (given.theta_offset, given.theta[0]), (given.x_offset, given.x[0])
    full = [np.broadcast_to(offset or 0.0, like.shape).ravel() for offset, like in parts]
    return tuple(np.concatenate(full).tolist())
