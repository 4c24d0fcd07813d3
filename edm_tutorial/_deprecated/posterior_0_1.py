r"""Posteriors that version 0.1.0 saved: its default network, and the order of its numbers.

Its network was the MLP that sees everything, plus a small one for each parameter alone:
$F(z; x)_j = G(z, x)_j + g(z_j, m_j, e_j)$ with $m = P x$ and a code $e_j$ for each parameter.
"""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._types import Condition, PRNGKey
from ..denoiser import Denoiser
from ..networks.mlp import MLP, cast_floating
from ..sbi.transforms.chain import Chain

OCTAVES, MARGINAL_WIDTH, CODE = 3, 32, 4


@final
class PosteriorMLP(eqx.Module):
    """F(z, c_noise, x) for parameters z of shape (size,) and an x of shape (cond_size,)."""

    joint: MLP
    marginal: eqx.nn.MLP
    predictor: eqx.nn.Linear
    codes: Float[Array, "d codes"]

    def __init__(
        self, size: int, cond_size: int, *, width: int, depth: int, dropout: float, key: PRNGKey
    ):
        joint_key, marginal_key, predictor_key = jr.split(key, 3)
        sizes = {"width": width, "depth": depth, "dropout": dropout}
        self.joint = MLP(size, cond_size, octaves=OCTAVES, **sizes, key=joint_key)
        self.marginal = eqx.nn.MLP(
            4 + CODE, 1, MARGINAL_WIDTH, depth=2, activation=jax.nn.silu, key=marginal_key
        )
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


def header(old: dict[str, Any]) -> dict[str, Any]:
    """The first line of a file of version 0.1.0, as now; a KeyError if it is something else."""
    network, (sigma_min, sigma_max, _) = old["network"], old["sampling"]
    return {
        "size": old["size"],
        "shape": old["shape"],
        "linear": old["regression"],
        "network": network and {"release": "0.1.0"} | network,
        "embedded": old["embedded"],
        "sigmas": [sigma_min, sigma_max],
        "history": dict(zip(("step", "train", "held_out"), old["history"], strict=True)),
        "offsets": [[], []],
    }


def default_network(header: dict[str, Any], embedding: Callable[[Any], Any] | None) -> PosteriorMLP:
    """A network of the sizes in a header, to be filled."""
    cond = jnp.zeros(header["shape"])
    cond = cond if embedding is None else eqx.filter_eval_shape(embedding, cond)
    sizes = {name: header["network"][name] for name in ("width", "depth", "dropout")}
    return PosteriorMLP(header["size"], len(cond), **sizes, key=jr.key(0))


def filled(form: dict[str, Any], read: Callable[[Any], Any]) -> dict[str, Any]:
    """The parts of a posterior, shaped as in `form`, from a file of version 0.1.0.

    They had another order. `read` gives the next leaf of the file, for one of its kind.
    """
    bounds, scale, *linear = form["transform"].steps
    sigma_data = 1.0
    order = [form["denoiser"].network, sigma_data, bounds, scale, form["x_scale"], *linear]
    network, _, bounds, scale, x_scale, *linear = jax.tree.map(read, order)
    return {
        "denoiser": Denoiser(network, form["denoiser"].preconditioning),
        "transform": Chain((bounds, scale, *linear)),
        "x_scale": x_scale,
    }
