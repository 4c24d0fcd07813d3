"""Joint fits in files: as posteriors are, a line of JSON, then the numbers."""

import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from ...denoiser import Denoiser
from ...networks.tokens import TokenTransformer
from ...preconditioning import EDMPreconditioning
from ..files import elementwise, first_line, of_sampling, read, sensible, write
from ..surprise import ObservationDensity
from .network import GaussianPreconditioning, JointNetwork

KIND, VERSION = "edm_tutorial joint fit", 2
FIELDS = {"kinds", "sizes", "count", "shape", "sigmas", "history", "offset", "density", "shares"}


def save(joint: Any, path: str | Path) -> None:
    """Storage of all fields of a `Joint` in one file."""
    transformer = joint.denoiser.network.transformer
    header = {
        "kinds": transformer.kinds,
        "sizes": transformer.sizes,
        "count": joint.count,
        "shape": joint.x_shape,
        "sigmas": [joint.sigma_min, joint.sigma_max],
        "history": joint.history._asdict(),
        "offset": joint.offset,
        "shares": joint.shares,
        "density": None if joint.density is None else joint.density.sizes,
    }
    arrays = {name: getattr(joint, name) for name in ("denoiser", "transform", "density")}
    write(path, {"kind": KIND, "version": VERSION}, header, arrays)


def load(path: str | Path) -> dict[str, Any]:
    """The fields of the `Joint` that `save` wrote.

    Raises:
        ValueError: as `Joint.load`.
    """
    first, _, body = Path(path).read_bytes().partition(b"\n")
    header = first_line(path, first, body, kind=KIND, version=VERSION, fields=FIELDS)
    with sensible(path):
        told = {name: tuple(header[name]) for name in ("offset", "shares")}
        told |= {"count": header["count"], "x_shape": tuple(header["shape"])}
        told |= of_sampling(header)
        form = _form(header)
    return jax.tree.map(partial(read, path, io.BytesIO(body)), form) | told


def _form(header: dict[str, Any]) -> dict[str, Any]:
    """A joint fit's parts with the right shapes, to be filled from the file."""
    count, kinds = header["count"], header["kinds"]
    numbers = count + math.prod(header["shape"])
    transformer = TokenTransformer(kinds, **header["sizes"], key=jr.key(0))
    gaussian = GaussianPreconditioning(jnp.eye(numbers))
    mask = jnp.ones((len(kinds), len(kinds)), bool)
    network = JointNetwork(gaussian, transformer, mask, count)
    denoiser = Denoiser(network, EDMPreconditioning(1.0))
    sizes = header["density"]
    density = None if sizes is None else ObservationDensity.zeros(*sizes)
    return {"denoiser": denoiser, "transform": elementwise(numbers), "density": density}
