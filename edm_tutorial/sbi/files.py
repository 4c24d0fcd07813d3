"""Posteriors in files: a line of JSON, then the numbers. Nothing in a file is ever run.

The line says what the file is, its version, the checksum of all that follows, and how the
posterior is built; the numbers fill the form that is built from it.
"""

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..denoiser import Denoiser
from ..networks.mlp import MLP, Embedded
from ..preconditioning import EDMPreconditioning
from .early_stopping import History
from .transforms.bounds import Bounds
from .transforms.chain import Chain
from .transforms.linear import LinearRegression
from .transforms.standardize import Standardizer

KIND, VERSION = "edm_tutorial posterior", 2


def save(posterior: Any, path: str | Path) -> None:
    """Write all fields of a `Posterior` to one file."""
    body = io.BytesIO()
    eqx.tree_serialise_leaves(body, _arrays(posterior))
    network = posterior.denoiser.network
    header = {
        "kind": KIND,
        "version": VERSION,
        "checksum": zlib.crc32(body.getvalue()),
        "size": len(posterior.transform.bounds.low),
        "shape": posterior.x_scale.mean.shape,
        "linear": len(posterior.transform.steps) == 3,
        "network": _sizes(network),
        "embedded": isinstance(network, Embedded),
        "sigmas": [posterior.sigma_min, posterior.sigma_max],
        "history": posterior.history._asdict(),
        "offsets": [posterior.theta_offset, posterior.x_offset],
    }
    Path(path).write_bytes(json.dumps(header).encode() + b"\n" + body.getvalue())


def load(
    path: str | Path,
    network: Callable[..., Any] | None,
    embedding: Callable[[Any], Any] | None,
) -> dict[str, Any]:
    """The fields of the `Posterior` that `save` wrote.

    Raises:
        ValueError: as `Posterior.load`.
    """
    first, _, body = Path(path).read_bytes().partition(b"\n")
    header = _header(path, first)
    if zlib.crc32(body) != header["checksum"]:
        raise ValueError(f"{path} is damaged: its checksum is not the one it was saved with")
    if header["embedded"] != (embedding is not None):
        needed = "an" if header["embedded"] else "no"
        raise ValueError(f"{path} was fitted with {needed} embedding=")
    if header["network"] is None and network is None:
        raise ValueError(f"{path} has a network of your own: pass network=")
    form = _form(header, network, embedding)
    file = io.BytesIO(body)
    fields = jax.tree.map(lambda leaf: _read(path, file, leaf), form)
    low, high = header["sigmas"]
    history: dict[str, Any] = header["history"]
    history = {k: tuple(v) if isinstance(v, list) else v for k, v in history.items()}
    theta_offset, x_offset = map(tuple, header["offsets"])
    return fields | {
        "sigma_min": low,
        "sigma_max": high,
        "history": History(**history),
        "theta_offset": theta_offset,
        "x_offset": x_offset,
    }


def _arrays(posterior: Any) -> dict[str, Any]:
    return {name: getattr(posterior, name) for name in ("denoiser", "transform", "x_scale")}


def _header(path: str | Path, line: bytes) -> dict[str, Any]:
    """The first line, once it says that the file is a posterior of this version."""
    try:
        header = json.loads(line)
        kind, version = header["kind"], header["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a posterior that `Posterior.save` wrote") from None
    if (kind, version) != (KIND, VERSION):
        raise ValueError(
            f"{path} is {kind!r}, version {version}; this package reads {KIND!r}, version {VERSION}"
        )
    return header


def _sizes(network: Any) -> dict[str, Any] | None:
    """The keywords with which `MLP` makes the default network; None for any other."""
    inner = network.network if isinstance(network, Embedded) else network
    if not isinstance(inner, MLP):
        return None
    return {
        "cond_size": inner.cond_size,
        "width": inner.embed_input.out_features,
        "depth": len(inner.blocks),
        "octaves": inner.octaves,
        "dropout": inner.blocks[0].dropout.p,
    }


def _form(header: dict[str, Any], network: Any, embedding: Any) -> Any:
    """A posterior's parts with the right shapes, to be filled from the file."""
    size, shape = header["size"], tuple(header["shape"])
    if network is None:
        network = MLP(size, **header["network"], key=jr.key(0))
    if embedding is not None:
        network = Embedded(network, embedding)
    scale = lambda shape: Standardizer(jnp.zeros(shape), jnp.ones(shape))
    free = jnp.full(size, jnp.inf)
    steps = Bounds(-free, free, jnp.ones(size)), scale(size)
    if header["linear"]:
        linear = LinearRegression(jnp.zeros((size, *shape)), jnp.zeros(size), jnp.eye(size))
        steps = (*steps, linear)
    denoiser = Denoiser(network, EDMPreconditioning(1.0))
    return {"denoiser": denoiser, "transform": Chain(steps), "x_scale": scale(shape)}


def _read(path: str | Path, file: Any, leaf: Any) -> Any:
    """One leaf, in the dtype it was saved in."""
    if not eqx.is_array(leaf):
        return eqx.default_deserialise_filter_spec(file, leaf)
    value = np.load(file)
    if value.shape != leaf.shape:
        raise ValueError(
            f"{path} has an array of shape {value.shape} where network= or embedding= has "
            f"{leaf.shape}: pass those the posterior was fitted with"
        )
    return jnp.asarray(value)
