"""Posteriors in files: a line of JSON, then the numbers. Nothing in a file is ever run.

The line says what the file is, its version, the checksum of all else, and how the posterior is
built; the numbers fill the form that is built from it. Two older kinds of files are read, not
written: in the version before, the checksum was of the numbers only; files of version 0.1.0 of the
package had another line and no checksum.
"""

import io
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._checks import check_range
from ..denoiser import Denoiser
from ..networks.mlp import MLP, Embedded, PosteriorMLP
from ..preconditioning import EDMPreconditioning
from .early_stopping import History
from .surprise import ObservationDensity
from .transforms.bounds import Bounds
from .transforms.chain import Chain
from .transforms.linear import LinearRegression
from .transforms.standardize import Standardizer

KIND, VERSION = "edm_tutorial posterior", 4
# What the first line says beside kind, version and checksum; `density` came later.
FIELDS = {"size", "shape", "linear", "network", "embedded", "sigmas", "history", "offsets"}


def save(posterior: Any, path: str | Path) -> None:
    """Storage of all fields of a `Posterior` in one file."""
    network = posterior.denoiser.network
    header = {
        "size": len(posterior.transform.bounds.low),
        "shape": posterior.x_scale.mean.shape,
        "linear": len(posterior.transform.steps) == 3,
        "network": _sizes(network),
        "embedded": isinstance(network, Embedded),
        "sigmas": [posterior.sigma_min, posterior.sigma_max],
        "history": posterior.history._asdict(),
        "offsets": [posterior.theta_offset, posterior.x_offset],
        "density": None if posterior.density is None else posterior.density.sizes,
    }
    write(path, {"kind": KIND, "version": VERSION}, header, _arrays(posterior))


def write(path: str | Path, kind: dict[str, Any], header: dict[str, Any], arrays: Any) -> None:
    """Storage as a line of JSON, with kind, version and checksum, then the numbers."""
    body = io.BytesIO()
    eqx.tree_serialise_leaves(body, arrays)
    first = kind | {"checksum": _checksum(kind | header, body.getvalue())} | header
    Path(path).write_bytes(json.dumps(first).encode() + b"\n" + body.getvalue())


def _checksum(header: dict[str, Any], body: bytes) -> int:
    """The checksum of a first line, whatever checksum it says, and of the numbers."""
    told = {name: value for name, value in header.items() if name != "checksum"}
    return zlib.crc32(body, zlib.crc32(json.dumps(told, sort_keys=True).encode()))


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
    header = _header(path, first, body)
    if header["embedded"] != (embedding is not None):
        needed = "an" if header["embedded"] else "no"
        raise ValueError(f"{path} was fitted with {needed} embedding=")
    if header["network"] is None and network is None:
        raise ValueError(f"{path} has a network of your own: pass network=")
    with sensible(path):
        told = of_sampling(header)
        told["theta_offset"], told["x_offset"] = map(tuple, header["offsets"])
        form = _form(header)
        inner: Any = _default(header, embedding) if network is None else network
    inner = inner if embedding is None else Embedded(inner, embedding)
    form["denoiser"] = Denoiser(inner, EDMPreconditioning(1.0))
    filled = partial(read, path, io.BytesIO(body))
    if "version" in header:
        fields = jax.tree.map(filled, form)
    else:
        fields = _release_0_1().filled(form, filled)
        warnings.warn(
            f"{path} is of version 0.1.0, which the next release does not read: `save` writes it "
            "in the present format",
            DeprecationWarning,
            stacklevel=3,
        )
    return fields | told


@contextmanager
def sensible(path: str | Path) -> Iterator[None]:
    """A reading of a first line: an error that a line without sense raises names the file.

    Raises:
        ValueError: in place of any other error.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is damaged: its first line makes no sense ({error})") from error


def of_sampling(header: dict[str, Any]) -> dict[str, Any]:
    """The noise levels and the training history in a first line.

    Raises:
        ValueError: noise levels that are none.
    """
    low, high = header["sigmas"]
    check_range(low, high)
    history: dict[str, Any] = header["history"]
    history = {k: tuple(v) if isinstance(v, list) else v for k, v in history.items()}
    return {"sigma_min": low, "sigma_max": high, "history": History(**history)}


def _arrays(posterior: Any) -> dict[str, Any]:
    names = "denoiser", "transform", "x_scale", "density"
    return {name: getattr(posterior, name) for name in names}


def _header(path: str | Path, line: bytes, body: bytes) -> dict[str, Any]:
    """The first line of a posterior's file, checked to be of a version that is known."""
    try:
        header = json.loads(line)
        if "kind" not in header:
            return _release_0_1().header(header)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a posterior that `Posterior.save` wrote") from None
    return first_line(path, line, body, kind=KIND, version=VERSION, fields=FIELDS)


def first_line(
    path: str | Path, line: bytes, body: bytes, *, kind: str, version: int, fields: set[str]
) -> dict[str, Any]:
    """The first line of a file, checked: its kind, its version or the one before, and all bits.

    Raises:
        ValueError: the file is of another kind or version, or damaged.
    """
    try:
        header = json.loads(line)
        found, number, checksum = header["kind"], header["version"], header["checksum"]
    except (ValueError, KeyError, TypeError):
        what = kind.removeprefix("edm_tutorial ")
        raise ValueError(f"{path} is not a {what} that `save` wrote") from None
    if found != kind or number not in (version - 1, version):
        raise ValueError(
            f"{path} is {found!r}, version {number}; this package reads {kind!r}, version {version}"
        )
    if missing := fields - header.keys():
        raise ValueError(f"{path} is damaged: its first line lacks {sorted(missing)}")
    of_all = number == version
    same = checksum == (_checksum(header, body) if of_all else zlib.crc32(body))
    if not same or (of_all and json.dumps(header).encode() != line):
        raise ValueError(f"{path} is damaged: its checksum is not the one it was saved with")
    return header


def _release_0_1() -> Any:
    """The module that reads files of version 0.1.0, imported only when it is needed."""
    return import_module(".._deprecated.posterior_0_1", __package__)


def _sizes(network: Any) -> dict[str, Any] | None:
    """The keywords with which the default network is made; None for any other.

    That of version 0.1.0 says so beside them.
    """
    inner: Any = network.network if isinstance(network, Embedded) else network
    if isinstance(inner, PosteriorMLP):
        return {"cond_size": inner.moments.first.in_features} | _sizes_of(inner.correction)
    if isinstance(inner, _release_0_1().PosteriorMLP):
        told = {"release": "0.1.0", "cond_size": inner.joint.cond_size}
        return told | _sizes_of(inner.joint)
    return None


def _sizes_of(mlp: MLP) -> dict[str, Any]:
    return {
        "width": mlp.embed_input.out_features,
        "depth": len(mlp.blocks),
        "dropout": mlp.blocks[0].dropout.p,
    }


def _default(header: dict[str, Any], embedding: Any) -> Any:
    """The default network of the right sizes, to be filled from the file."""
    if "release" in header["network"]:
        return _release_0_1().default_network(header, embedding)
    return PosteriorMLP(header["size"], **header["network"], key=jr.key(0))


def _form(header: dict[str, Any]) -> dict[str, Any]:
    """A posterior's other parts with the right shapes, to be filled from the file."""
    size, shape = header["size"], tuple(header["shape"])
    scale = lambda shape: Standardizer(jnp.zeros(shape), jnp.ones(shape))
    steps = elementwise(size).steps
    if header["linear"]:
        linear = LinearRegression(jnp.zeros((size, *shape)), jnp.zeros(size), jnp.eye(size))
        steps = (*steps, linear)
    sizes = header.get("density")
    density = None if sizes is None else ObservationDensity.zeros(*sizes)
    return {"transform": Chain(steps), "x_scale": scale(shape), "density": density}


def elementwise(size: int) -> Chain:
    """Bounds and a scale of numbers, to be filled from a file."""
    free = jnp.full(size, jnp.inf)
    scale = Standardizer(jnp.zeros(size), jnp.ones(size))
    return Chain((Bounds(-free, free, jnp.ones(size)), scale))


def read(path: str | Path, file: Any, leaf: Any) -> Any:
    """One leaf, in the dtype it was saved in.

    Raises:
        ValueError: no such leaf follows in the file.
    """
    array = eqx.is_array(leaf)
    try:
        value = np.load(file) if array else eqx.default_deserialise_filter_spec(file, leaf)
    except (ValueError, EOFError):
        raise ValueError(
            f"{path} ends early or is damaged, or network= or embedding= has more numbers than the "
            "ones the posterior was fitted with"
        ) from None
    if array and value.shape != leaf.shape:
        raise ValueError(
            f"{path} has an array of shape {value.shape} where network= or embedding= has "
            f"{leaf.shape}: pass those the posterior was fitted with"
        )
    if array and (value.dtype, jnp.asarray(value).dtype) == (np.float64, np.float32):
        raise ValueError(
            f"{path} was fitted in float64: jax.config.update('jax_enable_x64', True) before "
            "loading it"
        )
    return jnp.asarray(value) if array else value
