r"""Data-parallel training: each device takes its part of every batch.

The gradient of a mean over $B$ examples is the mean over $n$ devices of the gradients of
$B/n$ examples each. Weights and data are on every device, and the batch is split along its
first axis; the compiler inserts the sum over devices.

Several processes (one a machine, or one a GPU) are joined before anything else, by

    jax.distributed.initialize(address, num_processes, process_id)

Then every process runs the same lines as one would, `train` with the same arguments.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_parallel() -> NamedSharding:
    """Sharding of a batch over all devices of all processes, for `train(sharding=...)`."""
    return NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))


def replicate(tree: Any, sharding: NamedSharding) -> Any:
    """Copy of a tree with all its arrays on every device."""
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())

    def place(array: Any) -> jax.Array:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jr.wrap_key_data(place(jr.key_data(array)), impl=jr.key_impl(array))
        return _place(array, everywhere)

    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.tree.map(place, arrays), static)


def split(batch: Any, sharding: NamedSharding) -> Any:
    """Arrays of a batch, which every process holds whole, split along their first axis."""
    return jax.tree.map(lambda array: _place(array, sharding), batch)


def _place(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array by way of the host: a device of another process cannot be written to."""
    host = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
    part = lambda index: np.asarray(host[index])
    return jax.make_array_from_callback(host.shape, sharding, part)


def automatic(sharding: Any, batch_size: int) -> NamedSharding:
    """The same sharding over axes of the kind that the compiler handles, as `train` needs.

    Raises: TypeError if it is not a `NamedSharding`; ValueError for a batch that does not divide
    evenly.
    """
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f"sharding must be a NamedSharding, got {sharding!r}")
    devices: Any = sharding.mesh.devices
    sharding = NamedSharding(Mesh(devices, sharding.mesh.axis_names), sharding.spec)
    try:
        sharding.shard_shape((batch_size,))
    except ValueError:
        needed = f"a multiple of the {devices.size} devices it is split over"
        raise ValueError(f"batch_size must be {needed}, got {batch_size}") from None
    return sharding
