r"""The default network: one that sees everything, plus a small one for each parameter alone.

$F(z; x)_j = G(z, x)_j + g(z_j, m_j, e_j)$ with $m = P x$. The second network is one for all
parameters, so that n simulations of d parameters are n d examples to it: a bound, a skew, or a
width that changes with the prediction $m_j$ is learned from few simulations. $e_j$ tells it
which parameter it looks at. Both see the noise level; untrained, both return 0.
"""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._types import Condition, PRNGKey
from ..networks import MLP, Embedded
from ..networks.mlp import cast_floating

OCTAVES = 3  # of the parameters, beside them
MARGINAL_WIDTH = 32
CODE = 4


@final
class PosteriorMLP(eqx.Module):
    """F(z, c_noise, x) for parameters z of shape (size,) and an x of shape (cond_size,).

    Arguments:
        size, cond_size: numbers of parameters and of features of x.
        width, depth, dropout: of the residual MLP that sees everything.

    Raises:
        ValueError: as `MLP`.
    """

    joint: MLP
    marginal: eqx.nn.MLP
    predictor: eqx.nn.Linear
    codes: Float[Array, "d codes"]

    def __init__(
        self,
        size: int,
        cond_size: int,
        *,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
        key: PRNGKey,
    ):
        joint_key, marginal_key, predictor_key = jr.split(key, 3)
        self.joint = MLP(
            size,
            cond_size,
            width=width,
            depth=depth,
            octaves=OCTAVES,
            dropout=dropout,
            key=joint_key,
        )
        marginal = eqx.nn.MLP(
            4 + CODE, 1, MARGINAL_WIDTH, depth=2, activation=jax.nn.silu, key=marginal_key
        )
        last = lambda net: (net.layers[-1].weight, net.layers[-1].bias)
        self.marginal = eqx.tree_at(last, marginal, replace_fn=jnp.zeros_like)
        self.predictor = eqx.nn.Linear(cond_size, size, key=predictor_key)
        self.codes = jnp.zeros((size, CODE))

    def __call__(
        self,
        x: Float[Array, " d"],
        c_noise: Float[Array, ""],
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, " d"]:
        """The raw network output for one example; `cond` is the observation."""
        everything = self.joint(x, c_noise, cond, key=key)
        net = cast_floating(self, x.dtype)
        log_sigma = 4 * c_noise.astype(x.dtype)  # of EDM's preconditioning
        level = jnp.stack([log_sigma / 3, jnp.exp(-jnp.exp(log_sigma))])

        def alone(z: Array, m: Array, code: Array) -> Array:
            return net.marginal(jnp.concatenate([jnp.stack([z, m]), level, code]))[0]

        return everything + jax.vmap(alone)(x, net.predictor(cond.astype(x.dtype)), net.codes)


def build_network(
    key: PRNGKey,
    size: int,
    x: Any,
    embedding: Callable[[Any], Array] | None,
    *,
    width: int,
    depth: int,
    dropout: float,
) -> Callable[..., Array]:
    """The default network for `size` parameters and observations like `x`.

    Raises:
        ValueError: `x`, or what `embedding` makes of it, is not a vector.
    """
    cond = x if embedding is None else eqx.filter_eval_shape(embedding, jnp.asarray(x))
    if len(cond.shape) != 1:
        raise ValueError(
            f"the network is told a vector, got shape {cond.shape}: pass an embedding= that makes "
            "one of each observation"
        )
    sizes = {"width": width, "depth": depth, "dropout": dropout}
    network = PosteriorMLP(size, cond.shape[0], **sizes, key=key)
    return network if embedding is None else Embedded(network, embedding)


def sizes_of(network: Any) -> dict[str, Any] | None:
    """The keywords with which `build_network` makes such a network; None if it cannot."""
    inner = network.network if isinstance(network, Embedded) else network
    if not isinstance(inner, PosteriorMLP):
        return None
    joint = inner.joint
    width, dropout = joint.embed_input.out_features, joint.blocks[0].dropout.p
    return {"width": width, "depth": len(joint.blocks), "dropout": dropout}
