r"""State dicts of the reference implementation: the names, shapes and layouts of its weights.

A state dict maps names such as `enc.16x16_block0.conv0.weight` to arrays; levels are named
after their resolution. The weights of a convolution have shape (out, in, k, k) there and
(k, k, in, out) here. Resampling filters are no weights: they are compared with those of the
network and not kept.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from .configurations import dhariwal_unet, song_unet
from .embedding import SongEmbedding
from .network import AuxResidual, NoAux, UNet

BUILDERS = {"SongUNet": song_unet, "DhariwalUNet": dhariwal_unet}


def from_state_dict(cls: str, state: Mapping[str, ArrayLike], **config: Any) -> UNet:
    """A network of the reference implementation, with the weights of its state dict.

    Arguments:
        cls: "SongUNet" (DDPM++, NCSN++) or "DhariwalUNet" (ADM).
        state: name to array, as the reference's `state_dict()` has them.
        config: the keywords it was built with, those of `song_unet` or `dhariwal_unet`.

    Raises: ValueError for another `cls`, or a state dict that does not match: every missing or
    unknown name and every wrong shape, in one message; TypeError for an unknown keyword.
    """
    if cls not in BUILDERS:
        raise ValueError(f"cls must be one of {', '.join(BUILDERS)}, got {cls!r}")
    skeleton = eqx.filter_eval_shape(partial(BUILDERS[cls], **config), key=jax.random.key(0))
    leaves, structure = jax.tree.flatten(skeleton)
    names = state_names(skeleton)
    wanted = {name: leaf.shape for name, leaf in zip(names, leaves, strict=True)}
    arrays = {name: np.asarray(array) for name, array in state.items()}
    filters = {name for name in arrays if name.endswith("resample_filter")}
    problems = _wrong_filters(skeleton, {name: arrays.pop(name) for name in filters})
    arrays = {name: _channels_last(array) for name, array in arrays.items()}
    problems += _mismatches(wanted, {name: array.shape for name, array in arrays.items()})
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise ValueError(f"this is not the state dict of {cls} with {config}:\n  {listed}")
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in names])


def state_names(network: UNet) -> list[str]:
    """The reference's names of a network's arrays, in the order of `jax.tree.leaves`."""
    named = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return [
        prefix + named(path)
        for prefix, part in _parts(network)
        for path, _ in jax.tree_util.tree_leaves_with_path(part)
    ]


def _parts(network: UNet) -> Iterator[tuple[str, Any]]:
    """The parts of a network that have weights, each after the prefix of its names."""
    song = isinstance(network.embedding, SongEmbedding)
    levels = network.resolutions
    yield "", network.embedding
    for size, level in zip(levels, network.encoder, strict=True):
        at = "enc." + "x".join(map(str, size))
        yield f"{at}_conv." if size == levels[0] else f"{at}_down.", level.entry
        if not isinstance(level.aux, NoAux):
            kind = "residual" if isinstance(level.aux, AuxResidual) else "skip"
            yield f"{at}_aux_{kind}.", level.aux.conv
        for i, block in enumerate(level.blocks):
            yield f"{at}_block{i}.", block
    for size, level in zip(reversed(levels), network.decoder, strict=True):
        at = "dec." + "x".join(map(str, size))
        for i, block in enumerate(level.entry):
            yield f"{at}_in{i}." if size == levels[-1] else f"{at}_up.", block
        for i, block in enumerate(level.blocks):
            yield f"{at}_block{i}.", block
        if level.output is not None:
            output = f"{at}_aux" if song else "out"
            yield f"{output}_norm.", level.output.norm
            yield f"{output}_conv.", level.output.conv


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _mismatches(wanted: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple]) -> list[str]:
    """Names and shapes that do not match, a line each; shapes in the reference's layout."""
    first = lambda shape: (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
    missing = [f"{name}: missing, shape {first(wanted[name])}" for name in wanted.keys() - got]
    unknown = [f"{name}: unknown, shape {first(got[name])}" for name in got.keys() - wanted]
    wrong = [
        f"{name}: shape {first(got[name])}, needed {first(wanted[name])}"
        for name in wanted.keys() & got
        if got[name] != wanted[name]
    ]
    return missing + unknown + wrong


def _wrong_filters(network: UNet, filters: Mapping[str, np.ndarray]) -> list[str]:
    """Filters that are not the network's, a line each: outer products with sum 1."""
    taps = np.asarray(network.enlarge.resample_filter, float)
    expected = np.outer(taps, taps) / taps.sum() ** 2
    return [
        f"{name}: not the resample_filter {tuple(network.enlarge.resample_filter)}"
        for name, array in filters.items()
        if array.shape != (1, 1, *expected.shape) or not np.allclose(array, expected, atol=1e-6)
    ]
