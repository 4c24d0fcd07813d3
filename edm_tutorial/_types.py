"""Shared type aliases, the protocol of a denoiser, and the conversion of numbers to arrays.

Arrays are annotated with jaxtyping, `Float[Array, "n d"]`. One example at a time: no function
here has a batch axis unless its docstring says so; batch with `jax.vmap`.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Real

Example = Float[Array, "*shape"]
"""One example, of any shape; the same shape wherever a signature says so."""

Scalar = Real[ArrayLike, ""]
"""A number: a Python or NumPy one, or an array of shape ()."""

Condition = Any
"""What a denoiser is told besides `x` and `sigma`: any pytree, or None."""

PRNGKey = PRNGKeyArray
"""A JAX random key, `jax.random.key(seed)`."""


@runtime_checkable
class DenoiserFn(Protocol):
    """The one interface of this package: $D(x; \\sigma)$, the mean of the data given `x`.

    Any callable will do: an exact formula, a trained network, a guided pair, a posterior.
    `x` and `sigma` are in data units; the answer has the shape and dtype of `x`. `key` is passed
    only where one was given: a denoiser that does not draw needs no such parameter.
    """

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, /, *, key: PRNGKey | None = None
    ) -> Example: ...


def as_float(value: Any, like: Any = None) -> Array:
    """`value` as a floating array, in the dtype of `like` when that is given."""
    if like is not None:
        return jnp.asarray(value, jax.dtypes.canonicalize_dtype(like.dtype))
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def as_traced(tree: Any) -> Any:
    """`tree` with arrays for its Python numbers, so that `jit` compiles once for all of them.

    A plain list of numbers becomes one array. Booleans and everything else stay as they are.
    """
    number = lambda leaf: isinstance(leaf, int | float) and not isinstance(leaf, bool)
    if type(tree) is list and tree and all(map(number, tree)):
        return jnp.asarray(tree)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if number(leaf) else leaf, tree)


def on_host(key: PRNGKey) -> np.random.Generator:
    """NumPy's random numbers by a JAX key, for what is drawn once: nothing is compiled for them."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
