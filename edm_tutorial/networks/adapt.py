"""Adapters for networks with another signature, such as `eqx.nn.MLP`, as F(x, c_noise, cond)."""

import inspect
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_callable
from .._types import Condition, Example, PRNGKey
from .mlp import cast_floating


def adapt(network: Callable[..., Any]) -> "Adapted":
    """A network of another signature, called as `F(x, c_noise, cond=None, *, key=None)`.

        F = adapt(eqx.nn.MLP(2 + 1, 2, width_size=64, depth=3, key=key))  # x and c_noise

    It is called, by what its signature takes, as `network(x, c_noise, cond)`, as `network(x,
    c_noise)`, or with one vector: x, c_noise and cond laid flat, one after another. It may return
    a pair, `(output, anything)`, of which the first is used.

    Raises: TypeError if `network` is not callable.
    """
    check_callable("network", network)
    try:
        parameters = list(inspect.signature(network).parameters.values())
    except (TypeError, ValueError):  # a builtin does not tell
        parameters = []
    takes_key = any(p.name == "key" or p.kind == p.VAR_KEYWORD for p in parameters)
    return Adapted(network, _arity(parameters), takes_key)


@final
class Adapted(eqx.Module):
    """A network of another signature as F(x, c_noise, cond), trained as the network is.

    It computes in the dtype of `x`. A call without a key is deterministic: dropout is off.
    """

    network: Callable[..., Any]
    arity: int = eqx.field(static=True)
    takes_key: bool = eqx.field(static=True)

    def __call__(
        self,
        x: Example,
        c_noise: Float[Array, ""],
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """The output of the network, shaped like `x` if it is as large.

        Raises: ValueError if the network returns None, or refuses the vector, most often because
        of its length.
        """
        network = cast_floating(self.network, x.dtype)
        if key is None:
            network = eqx.nn.inference_mode(network)
        given = {"key": key} if self.takes_key else {}
        if self.arity == 1:
            output = _of_vector(network, [x, c_noise, cond], given)
        else:
            output = network(*(x, c_noise, cond)[: self.arity], **given)
        output = output[0] if isinstance(output, tuple | list) else output
        if output is None:
            raise ValueError("the network must return an array shaped like x, got None")
        return output.reshape(x.shape) if output.size == x.size else output


def _of_vector(network: Callable[..., Any], parts: list[Any], given: dict[str, Any]) -> Any:
    """The network's answer to x, c_noise and cond laid flat, one after another."""
    flat = [jnp.zeros(0) if part is None else jnp.ravel(part) for part in parts]
    vector = jnp.concatenate([part.astype(parts[0].dtype) for part in flat])
    try:
        return network(vector, **given)
    except (TypeError, ValueError) as error:
        x, c_noise, cond = (part.size for part in flat)
        raise ValueError(
            f"the network failed on one vector of length {vector.size}: {x} of x and {c_noise} of "
            f"c_noise and {cond} of cond. If it is made for another length, that is why: {error}"
        ) from error


def _arity(parameters: list[inspect.Parameter]) -> int:
    """The number of x, c_noise and cond that a network takes; 1 is all of them in one vector."""
    variadic = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not parameters or variadic or len(positional) > 2:
        return 3
    return max(sum(p.default is p.empty for p in positional), 1)
