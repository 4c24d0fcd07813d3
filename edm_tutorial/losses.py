r"""The denoising loss: the weighted error of a denoiser at noise levels drawn at random.

For a clean example $x$ with noise $n \sim N(0,\sigma^2 I)$, Eq. 2 is
$E\,\lambda(\sigma)\,\|D(x+n;\sigma)-x\|^2$, and Eq. 8 is the same error in the units of the
network's output: $\lambda c_{out}^2 = 1$, so

$$\begin{aligned}
  & \lambda\,(D(x+n)-x)^2 \\
  & = \Big(F(c_{in}(x+n)) - \frac{(1-c_{skip})\,x - c_{skip}\,n}{c_{out}}\Big)^2.
\end{aligned}$$

The right-hand side is what is computed. The huge numbers ($\lambda(0.002) = 250{,}000$)
and the tiny ones they multiply are never formed.

An untrained network has $F = 0$, so its expected loss is `initial_loss`. In EDM that is 1 at every
noise level exactly when $E x^2$ is `sigma_data` squared: `check_initial_loss` verifies it.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._checks import (
    check_cond,
    check_data,
    check_floating,
    check_key,
    check_output,
    check_positive,
    check_shape,
)
from ._deprecated import renamed
from ._types import Condition, DenoiserFn, Example, PRNGKey, Scalar, as_float
from .grids import edm_sigmas
from .preconditioning import AbstractPreconditioning


@runtime_checkable
class Preconditioned(Protocol):
    """A denoiser in its two parts, as `Denoiser` has them."""

    @property
    def network(self) -> Callable[..., Array]: ...

    @property
    def preconditioning(self) -> AbstractPreconditioning: ...


def weighted_error(
    denoiser: Preconditioned,
    x: Example,
    sigma: Scalar,
    n: Example,
    cond: Condition = None,
    *,
    key: PRNGKey | None = None,
) -> Example:
    r"""$\lambda(\sigma)\,(D(x+n;\sigma)-x)^2$ of one example, computed in network space.

    Eq. 2 by way of Eq. 8. `x` is clean and `n` noise of level `sigma`, in data units; `key` is
    for the network's dropout, if it has any. `denoiser` may be anything with the two fields of
    a `Denoiser`.

    Raises: ValueError if `denoiser` has no `network` and `preconditioning`, `x` is not floating, or
    `n` or the network's output is not shaped like `x`.
    """
    network, preconditioning = _parts(denoiser)
    check_floating("x", x)
    check_shape("n", n, x)
    c = preconditioning(as_float(sigma, x))
    output = network(c.c_in * (x + n), c.c_noise, cond, key=key)
    check_output(output, x)
    target = ((1 - c.c_skip) * x - c.c_skip * n) / c.c_out
    return (output - target) ** 2


@renamed(noise="sigma_dist")
def denoising_loss(
    denoiser: Preconditioned,
    x: Example,
    cond: Condition = None,
    *,
    sigma_dist: Callable[[PRNGKey], Array],
    null: Condition = None,
    p_null: Scalar = 0.1,
    key: PRNGKey,
) -> Float[Array, ""]:
    """The training loss of one example: `weighted_error` at a random noise level, averaged.

    Arguments:
        x: clean, in data units.
        sigma_dist: the law of the noise level, such as `LogNormal()`.
        null: the condition that tells nothing, for classifier-free guidance (condition dropout):
            it stands in place of `cond` with probability `p_null`, so that the denoiser can be its
            own guide, `Guided(D, Pinned(D, null), w)`. What is None in it is never replaced.
        p_null: used only where there is a `null`.
        key: split between the level, the noise and the network.

    Raises: ValueError as `weighted_error`, or if `null` is not shaped like `cond`.
    """
    error, _ = error_at_random_level(
        denoiser, x, cond, sigma_dist=sigma_dist, null=null, p_null=p_null, key=key
    )
    return error


def error_at_random_level(
    denoiser: Preconditioned,
    x: Example,
    cond: Condition = None,
    *,
    sigma_dist: Callable[[PRNGKey], Array],
    null: Condition = None,
    p_null: Scalar = 0.1,
    key: PRNGKey,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of one example at a random noise level, as `denoising_loss`, and that level.

    Raises: ValueError as `denoising_loss`.
    """
    if null is not None:
        null_key, key = jr.split(key)
        cond = _told_or_null(cond, null, jr.bernoulli(null_key, 1 - p_null))
    sigma_key, noise_key, network_key = jr.split(key, 3)
    sigma = as_float(sigma_dist(sigma_key), x)
    n = sigma * jr.normal(noise_key, x.shape, x.dtype)
    return jnp.mean(weighted_error(denoiser, x, sigma, n, cond, key=network_key)), sigma


def _told_or_null(cond: Condition, null: Condition, told: Array) -> Condition:
    """`cond` if it is told, and otherwise `null`, wherever that has an array."""

    def either(null: Any, cond: Any) -> Any:
        if null is None:
            return cond
        cond = jnp.asarray(cond)
        if jnp.shape(null) != cond.shape:
            shapes = f"{cond.shape}, got {jnp.shape(null)}"
            raise ValueError(f"null must be shaped like cond, in whose place it stands, {shapes}")
        return jnp.where(told, cond, jnp.asarray(null, cond.dtype))

    return jax.tree.map(either, null, cond, is_leaf=lambda leaf: leaf is None)


def loss_by_sigma(
    denoiser: DenoiserFn | Preconditioned,
    x: Float[Array, " n *shape"],
    sigmas: Float[ArrayLike, " levels"],
    cond: Condition = None,
    *,
    key: PRNGKey,
    preconditioning: AbstractPreconditioning | None = None,
) -> Float[Array, " levels"]:
    r"""The loss at each noise level, averaged over a data set.

    One fresh noise for every example and level. 1 is an untrained network. The denoiser is
    called without a key, as samplers call it: a network with dropout uses all its units.

    Arguments:
        x: examples, stacked along the first axis, data units; `cond` likewise, or None.
        sigmas: the noise levels, data units.
        preconditioning: whose $\lambda(\sigma)$ weighs the error of a denoiser that has
            none of its own, such as an exact one.

    Raises: ValueError for a plain callable without `preconditioning`, if `x` is empty or not
    finite, `sigmas` not 1-D and positive, or `cond` not one for each example; TypeError if `key` is
    no random key.
    """
    errors = _errors_by_sigma(denoiser, x, sigmas, cond, key=key, preconditioning=preconditioning)
    return errors.mean(axis=1)


def initial_loss(
    preconditioning: AbstractPreconditioning, sigma: Scalar, mean_square: Scalar
) -> Float[Array, "..."]:
    r"""The expected loss of a zero network: $\lambda[(c_{skip}-1)^2 E x^2 + c_{skip}^2\sigma^2]$.

    `sigma` is in data units; `mean_square`, in their square, is $E x^2$ of the data about zero.
    """
    sigma = as_float(sigma)
    c_skip = preconditioning(sigma).c_skip
    spread = (c_skip - 1) ** 2 * as_float(mean_square, sigma) + c_skip**2 * sigma**2
    return preconditioning.loss_weight(sigma) * spread


def check_initial_loss(
    denoiser: Preconditioned,
    x: Float[Array, " n *shape"],
    cond: Condition = None,
    *,
    sigmas: Float[ArrayLike, " levels"] | None = None,
    key: PRNGKey | None = None,
) -> Float[Array, " levels"]:
    """The losses of an *untrained* denoiser, refused where they are not 1.

    Call it once before training: it finds data of another root mean square than `sigma_data`,
    by their unit or their mean, and a network whose last layer does not start at zero.

    Arguments:
        denoiser: a `Denoiser` before its first training step.
        x: data, stacked along the first axis (`cond` likewise). The more the better:
            the check allows 4 of its own standard errors, about 4 sqrt(2/(n d)).
        sigmas: noise levels to check; nine of `edm_sigmas` unless given.
        key: for the noise; a fixed one unless given, so that the check is repeatable.

    Raises: ValueError if a loss differs from 1 by more than 4 standard errors, and as
    `loss_by_sigma`; TypeError if `key` is no random key.
    """
    check_data("x", x)
    if len(x) < 2:
        raise ValueError(f"need at least 2 examples for a standard error, got {len(x)}")
    sigmas = edm_sigmas(9) if sigmas is None else jnp.asarray(sigmas)
    key = jr.key(0) if key is None else key
    errors = np.asarray(_errors_by_sigma(denoiser, x, sigmas, cond, key=key), float)
    loss = errors.mean(axis=1)
    # Few examples tend to underestimate their spread: it is at least that of a Gaussian's.
    spread = np.maximum(errors.std(axis=1, ddof=1), np.sqrt(2 / x[0].size))
    allowed = 4 * spread / np.sqrt(errors.shape[1])
    worst = int(np.argmax(np.abs(loss - 1) / allowed))
    if not abs(loss[worst] - 1) <= allowed[worst]:
        found = {"loss": loss[worst], "allowed": allowed[worst]}
        raise ValueError(_advice(denoiser, x, float(sigmas[worst]), **found))
    return as_float(loss, x)


def _errors_by_sigma(
    denoiser: Any,
    x: Array,
    sigmas: Float[ArrayLike, " levels"],
    cond: Condition,
    *,
    key: PRNGKey,
    preconditioning: AbstractPreconditioning | None = None,
) -> Float[Array, "levels n"]:
    """The mean weighted error of each example at each noise level."""
    check_data("x", x)
    check_positive("sigmas", sigmas)
    if np.ndim(sigmas) != 1:
        raise ValueError(
            f"sigmas must be a 1-D array of noise levels, got shape {np.shape(sigmas)}"
        )
    check_cond(cond, len(x))
    check_key("key", key)
    if preconditioning is None:
        _parts(denoiser)

    def one(x: Array, cond: Condition, sigma: Array, key: PRNGKey) -> Array:
        n = sigma * jr.normal(jr.split(key)[0], x.shape, x.dtype)
        if preconditioning is None:
            return jnp.mean(weighted_error(denoiser, x, sigma, n, cond))
        error = denoiser(x + n, sigma, cond) - x
        return jnp.mean(preconditioning.loss_weight(sigma) * error**2)

    def level(args: tuple[Array, PRNGKey]) -> Array:
        sigma, key = args
        keys = jr.split(key, len(x))
        return jax.vmap(one, in_axes=(0, 0, None, 0))(x, cond, sigma, keys)

    sigmas = as_float(sigmas, x)
    return jax.lax.map(level, (sigmas, jr.split(key, len(sigmas))))


def _parts(denoiser: Any) -> tuple[Callable[..., Array], AbstractPreconditioning]:
    try:
        return denoiser.network, denoiser.preconditioning
    except AttributeError:
        raise ValueError(
            "the loss takes its weight from a preconditioning: use Denoiser(network, "
            f"preconditioning), or pass preconditioning= to loss_by_sigma; got {denoiser}"
        ) from None


def _advice(
    denoiser: Preconditioned, x: Array, sigma: float, *, loss: float, allowed: float
) -> str:
    rms, mean = float(jnp.sqrt(jnp.mean(x**2))), float(jnp.mean(x))
    return (
        f"an untrained network must score 1 at every noise level, but scores {loss:.3f} at "
        f"sigma = {sigma:.3g} (allowed: 1 +- {allowed:.3f}). The data's root mean square is "
        f"{rms:.4g} and their mean {mean:.3g}; the preconditioning is "
        f"{denoiser.preconditioning}. Centre the data, use EDMPreconditioning.from_data(x), "
        "and start the network's last layer at zero."
    )
