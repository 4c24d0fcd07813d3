r"""The posterior of the parameters given any observation, learned from simulations.

A denoiser of the parameters that is told the observation, trained on pairs $(\theta_i, x_i) \sim
p(\theta)\,p(x \mid \theta)$, is the denoiser of the posterior: no likelihood is evaluated, no prior
density is needed.

Theta passes through six places: `fit_posterior` here; `simulations`, where it is checked and
split; `transforms`, where it becomes z; the training loop, `training.loop`, which draws batches
of z; the loss, `StratifiedLoss`, which adds noise to them; and the network,
`networks.mlp.PosteriorMLP`, which takes the noise out again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_callable, check_key, check_kind, check_stateless
from .._deprecated import renamed
from .._types import PRNGKey, on_host
from ..denoiser import Denoiser
from ..losses import weighted_error
from ..networks.mlp import Embedded, PosteriorMLP
from ..noise_levels import AbstractNoiseDistribution
from ..preconditioning import EDMPreconditioning
from ..training.averages import HalfLifeEMA
from ..training.loop import BatchLoss, train
from ..training.state import init_state
from .early_stopping import FitState, until_stale
from .noise_levels import (
    LARGEST_SIGMA_MIN,
    HeldOut,
    LikelihoodNoise,
    PosteriorNoise,
    gaussian_nats,
    stratified,
)
from .posterior import Posterior
from .settings import Settings, default_settings, optimizer_of
from .simulations import Simulations, checked
from .surprise import ObservationDensity, PoorFit, WideScales, warn
from .transforms.chain import Chain
from .transforms.standardize import AbstractEmbedding, Standardizer

SIGMA_DIST = LikelihoodNoise(1e-3, 20.0)  # of validation, and between which to sample
ROWS_AT_ONCE = 65_536  # simulations on the device while they are transformed
ON_DEVICE = 2**30  # bytes of training data; more is fetched step by step
EMBEDDED_STEPS, EMBEDDED_RATE = 6_000, 1.4e-3  # of the default settings
UNLIKE = 1e3  # standard deviations of columns, as a ratio: the smaller is lost in one unit


@renamed(plan="settings", noise="sigma_dist")
def fit_posterior(
    key: PRNGKey,
    theta: Float[ArrayLike, "n d"] | Sequence[Any],
    x: Float[ArrayLike, " n *shape"] | Sequence[Any],
    *,
    prior_support: tuple[Any, Any] | None = None,
    network: Callable[..., Array] | None = None,
    embedding: Callable[[Any], Array] | None = None,
    steps: int | None = None,
    settings: Settings | None = None,
    sigma_dist: AbstractNoiseDistribution = PosteriorNoise(),
    invalid: str = "raise",
    progress: bool = True,
    callback: Callable[[FitState], Any] | None = None,
    state: FitState | None = None,
) -> Posterior:
    """The posterior of `theta` given `x`, learned from simulations.

        posterior = fit_posterior(key, theta, x, prior_support=(low, high))
        draws = posterior.sample(key, x_o, 10_000)

    A tenth is held out of training. Training stops when the validation loss of the averaged
    weights has not fallen for long, and the best of them are kept: the untrained network, which
    is a linear-Gaussian fit, is a candidate too.

    Arguments:
        theta: parameters drawn from the prior, one row a simulation. Parameters that spread over
            orders of magnitude are better given as logarithms.
        x: what was simulated with them, one vector a row; with `embedding`, any shape.
        prior_support: (low, high), each of shape (d,); -inf, inf or None where there is no bound.
        network: your own `F(z, c_noise, x, *, key=None)`, in place of the default one.
        embedding: turns one x into the vector that the network is told, and is trained with
            it: a `SetEmbedding`, `SeriesEmbedding` or `ImageEmbedding`, which are scaled channel
            by channel, or your own. By default there are at most 6,000 steps then.
        steps: optimizer steps at most; a smooth function of n unless given.
        settings: all hyperparameters, `default_settings(n)` unless given.
        sigma_dist: the distribution of the training noise level, in units of z.
        invalid: what to do with simulations that are not finite: "raise", or "drop" them with a
            warning, which conditions the posterior on success.
        progress: show steps and validation loss on stderr, in a terminal or notebook.
        callback: called after every chunk of steps with a `FitState`, which it may keep.
        state: a `FitState` to go on from, with the same simulations. To go on with more, start
            from its weights: `network=state.best.network`, or with an embedding
            `network=state.best.network.network, embedding=state.best.network.embedding`.

    Raises:
        ValueError: fewer than 50 simulations, `theta` and `x` of unequal length, columns that
            are constant or nearly, rows that are not finite, too few distinct simulations,
            parameters outside `prior_support`, a `state` of other simulations, settings that
            cannot be, or a network with nothing to train.
        TypeError: `key` is no random key, settings or `sigma_dist` of another kind, an embedding
            that is a class, is not written in JAX or returns more than an array, or layers of it
            or of a network that keep a state.
    """
    structured = embedding is not None
    check_kind("sigma_dist", sigma_dist, AbstractNoiseDistribution)
    given = checked(theta, x, prior_support, structured=structured, invalid=invalid)
    split_key, network_key, held_key, train_key, batch_key = _keys(key)
    kept, held = given.split(split_key)
    settings = _settings(settings, len(kept), structured=structured).with_steps(steps)

    x_scale, seen = _scaled(given.x, kept, embedding)
    transform = Chain.fit(given.theta[kept], None if structured else seen[kept], given.bounds)
    z, log_det = _transformed(transform, given.theta, seen)
    network = _network(
        network_key, z.shape[1], seen[0], settings, network=network, embedding=embedding
    )
    denoiser = Denoiser(network, EDMPreconditioning(1.0))
    held_out = HeldOut.draw(
        held_key, z[held], seen[held], log_det=log_det[held], sigma_dist=SIGMA_DIST
    )
    state = _start(state, denoiser, settings, held_out, given=given, kept=kept, held=held)

    chunks = train(
        denoiser,
        BatchLoss(StratifiedLoss(sigma_dist)),
        _batches(batch_key, z[kept], seen[kept], settings.batch_size),
        optimizer_of(settings),
        key=train_key,
        state=state.train,
        **settings.of_training(),
    )
    state = until_stale(chunks, state, held_out, settings, progress=progress, callback=callback)

    posterior = Posterior(
        denoiser=state.best,
        transform=transform,
        x_scale=x_scale,
        sigma_min=held_out.smallest_sigma(state.best, SIGMA_DIST.sigma_min),
        sigma_max=SIGMA_DIST.sigma_max,
        history=state.history,
        density=ObservationDensity.fit(state.best, seen[kept], seen[held]),
        theta_offset=given.theta_offset,
        x_offset=given.x_offset,
    )
    return _no_worse_than_the_prior(posterior, given, kept)


@final
class StratifiedLoss(eqx.Module):
    """The denoising loss of a batch whose i-th noise level is from the i-th part of its law.

    No batch then misses a part, which makes its gradient less noisy.

    Arguments:
        sigma_dist: the distribution of the noise level.
    """

    sigma_dist: AbstractNoiseDistribution

    def __call__(
        self,
        denoiser: Denoiser,
        z: Float[Array, "n d"],
        x: Float[Array, " n *shape"],
        *,
        key: PRNGKey,
    ) -> Float[Array, ""]:
        """The mean over the batch."""
        level_key, noise_key, network_key = jr.split(key, 3)
        sigmas = stratified(level_key, self.sigma_dist, len(z), z.dtype)
        n = sigmas[:, None] * jr.normal(noise_key, z.shape, z.dtype)

        def error(z: Array, sigma: Array, n: Array, x: Array, key: PRNGKey) -> Array:
            return weighted_error(denoiser, z, sigma, n, cond=x, key=key)

        return jnp.mean(jax.vmap(error)(z, sigmas, n, x, jr.split(network_key, len(z))))


def _keys(key: Any) -> Array:
    check_key("key", key)
    return jr.split(key, 5)


def _settings(settings: Any, count: int, *, structured: bool) -> Settings:
    """The user's settings, or the default ones for `count` simulations."""
    if settings is None:
        settings = default_settings(count)
        if structured:  # steps through an embedding cost more, and it learns from fewer
            settings = settings._replace(steps=EMBEDDED_STEPS, learning_rate=EMBEDDED_RATE)
    check_kind("settings", settings, Settings)
    settings.check()
    return settings


def _network(
    key: PRNGKey,
    size: int,
    x: np.ndarray,
    settings: Settings,
    network: Callable[..., Array] | None,
    embedding: Callable[[Any], Array] | None,
) -> Callable[..., Array]:
    """The user's network, or the default one, behind the embedding if there is one."""
    check_stateless("embedding", embedding)
    cond = x if embedding is None else _told(embedding, x)
    if network is None:
        if not isinstance(cond, jax.ShapeDtypeStruct | np.ndarray | Array):
            raise TypeError(
                f"embedding must return one vector, got a {type(cond).__name__}: join what it "
                "returns with jnp.concatenate"
            )
        if len(cond.shape) != 1:
            raise ValueError(
                f"the network is told a vector, got shape {cond.shape}: pass an embedding= that "
                "makes one of each observation"
            )
        sizes = {"width": settings.width, "depth": settings.depth, "dropout": settings.dropout}
        network = PosteriorMLP(size, len(cond), **sizes, key=key)
    return network if embedding is None else Embedded(network, embedding)


def _told(embedding: Any, x: np.ndarray) -> Any:
    """The shape and dtype of what an embedding makes of one observation."""
    if isinstance(embedding, type):
        raise TypeError(
            f"embedding must be an instance, got the class {embedding.__name__}: make one, as with "
            f"{embedding.__name__}(..., key=key)"
        )
    check_callable("embedding", embedding)
    try:
        return eqx.filter_eval_shape(embedding, jnp.asarray(x))
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            "embedding must be written in JAX, jax.numpy in place of numpy, without a look at the "
            "numbers: it is trained with the network"
        ) from error


def _scaled(
    x: np.ndarray, kept: np.ndarray, embedding: Callable[[Any], Array] | None
) -> tuple[Standardizer, Float[np.ndarray, " n *shape"]]:
    """The scale of observations, measured on the rows to train on, and all of them scaled.

    An embedding of this package knows its channels. For one of your own, all entries have one
    mean and one spread, which keeps sets exchangeable.
    """
    if embedding is None:
        scale = Standardizer.fit(x[kept], "x")
    elif isinstance(embedding, AbstractEmbedding):
        scale = embedding.scale(x[kept])
    else:
        stds = x[kept].std(axis=0, dtype=float)
        if x.ndim == 2 and stds.max() > UNLIKE * stds[stds > 0].min(initial=np.inf):
            warn(
                WideScales,
                "the columns of x have standard deviations that differ by a factor of more than "
                f"{UNLIKE:g}, and an embedding= of your own is told all in one unit: divide each "
                "column by its standard deviation first",
            )
        scale = Standardizer.fit(x[kept].reshape(-1), "x")
        full = lambda value: jnp.full(x.shape[1:], value)
        scale = Standardizer(full(scale.mean), full(scale.std))
    return scale, ((x - np.asarray(scale.mean)) / np.asarray(scale.std)).astype(x.dtype)


def _transformed(
    transform: Chain, theta: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """z and the log-determinant of each simulation, in the host's memory."""
    one = lambda theta, x: (transform.forward(theta, x), transform.log_det(theta, x))
    rows = eqx.filter_jit(jax.vmap(one))
    slices = [slice(i, i + ROWS_AT_ONCE) for i in range(0, len(theta), ROWS_AT_ONCE)]
    parts = [rows(jnp.asarray(theta[part]), jnp.asarray(x[part])) for part in slices]
    z, log_det = (np.concatenate(part) for part in zip(*parts, strict=True))
    return z, log_det


def _batches(key: PRNGKey, z: np.ndarray, x: np.ndarray, batch_size: int) -> Any:
    """The data of `train`: the arrays, or a function of the step where they are too large."""
    if z.nbytes + x.nbytes <= ON_DEVICE:
        return z, x

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = on_host(jr.fold_in(key, step)).integers(0, len(z), batch_size)
        return z[rows], x[rows]

    return batch


def _start(
    state: FitState | None,
    denoiser: Denoiser,
    settings: Settings,
    held_out: HeldOut,
    given: Simulations,
    kept: np.ndarray,
    held: np.ndarray,
) -> FitState:
    """The state to go on from, or that before the first step, with the untrained losses."""
    fingerprint = given.fingerprint(kept)
    if state is not None:
        check_continues(state, fingerprint, denoiser)
        return state
    ignorant = Chain.fit(given.theta[kept], None, given.bounds)
    prior = gaussian_nats(*_transformed(ignorant, given.theta[held], given.x[held]))
    train = init_state(denoiser, optimizer_of(settings), HalfLifeEMA())
    return FitState.start(train, held_out(denoiser), prior, fingerprint)


def check_continues(state: Any, fingerprint: int, denoiser: Denoiser) -> None:
    """Refuse all but a state of a fit of these simulations with this denoiser.

    Raises:
        ValueError: other simulations, or another network.
        TypeError: no state.
    """
    check_kind("state", state, FitState)
    state.check(fingerprint)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
    if shapes(state.best) != shapes(denoiser):
        raise ValueError(
            "state is of another network than this one: pass the settings or the network= that "
            "it was begun with"
        )


def _no_worse_than_the_prior(
    posterior: Posterior, given: Simulations, kept: np.ndarray
) -> Posterior:
    """The posterior, or one that ignores x where held-out simulations prefer that."""
    history = posterior.history
    trained, untrained = min(history.held_out, default=np.inf), history.untrained
    if trained < min(untrained, history.prior):
        return posterior
    kind = "the untrained linear fit" if untrained < history.prior else "a fit that ignores x"
    warn(
        PoorFit,
        f"training did not help: on held-out simulations -ln q is {trained:.3f} nats, untrained "
        f"{untrained:.3f}, and {history.prior:.3f} if x is ignored. {kind.capitalize()} is "
        "returned. More simulations, fewer features of x, or an embedding= may help",
    )
    if untrained < history.prior:
        return posterior
    # An embedding is left as it is: by its features the surprise is judged.
    part = lambda d: d.network.network if isinstance(d.network, Embedded) else d.network
    arrays, rest = eqx.partition(part(posterior.denoiser), eqx.is_inexact_array)
    silent = eqx.combine(jax.tree.map(jnp.zeros_like, arrays), rest)
    return dataclasses.replace(
        posterior,
        denoiser=eqx.tree_at(part, posterior.denoiser, silent),
        transform=Chain.fit(given.theta[kept], None, given.bounds),
        sigma_min=LARGEST_SIGMA_MIN,
    )
