r"""Mixed precision: a network that computes in another dtype than that of its parameters.

Half the bits are half the memory traffic. Parameters stay in float32, so that small updates
are not rounded away; each is cast where it is used. The result comes back in the dtype of `x`,
so preconditioning and loss, where digits are lost to cancellation, never see short numbers.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_callable
from .._types import Condition, Example, PRNGKey


@final
class Cast(eqx.Module):
    """A network that computes the image in `dtype`: `Cast(network, jnp.bfloat16)`.

    The network must compute in the dtype of `x`, as all networks here do. Noise label and
    condition are passed on as they are: bfloat16, with its eight significant bits, does not
    distinguish the labels 998 and 999.

    Raises: ValueError for a dtype that is not floating; TypeError for a network that cannot be
    called.
    """

    network: Callable[..., Array]
    dtype: jax.typing.DTypeLike = eqx.field(static=True, default=jnp.bfloat16)

    def __check_init__(self):
        check_callable("network", self.network)
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"dtype must be floating, such as jnp.bfloat16, got {self.dtype}")

    def __call__(
        self,
        x: Example,
        c_noise: Float[Array, ""],
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """The network's output, in the dtype of `x`."""
        return self.network(x.astype(self.dtype), c_noise, cond, key=key).astype(x.dtype)
