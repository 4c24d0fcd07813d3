r"""Official EDM checkpoints as denoisers, without running the code they carry.

The official files are pickles, and a pickle runs whatever it likes when it is opened. Never
open one in your own process: run this line once, where you would run the reference itself
(its repository and environment), and bring back the `.npz`, which is numbers only.

    python -c "import pickle, sys, numpy; net = pickle.load(open(sys.argv[1], 'rb'))['ema']; \
    numpy.savez(sys.argv[2], **{k: v.cpu().numpy() for k, v in net.state_dict().items()}); \
    print(type(net).__name__, net.init_kwargs)" edm-cifar10-32x32-cond-vp.pkl network.npz

It prints the class and the keywords that `edm_denoiser` needs.

    denoiser = edm_denoiser("EDMPrecond", read_state("network.npz"), img_resolution=32,
        img_channels=3, label_dim=10, model_type="SongUNet", augment_dim=9,
        model_channels=128, channel_mult=[2, 2, 2])

$D = c_{skip} x + c_{out} F(c_{in} x; c_{noise})$ then is the official denoiser, and may be
sampled, scored and fine-tuned like any other.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..._types import Condition, PRNGKey
from ...denoiser import Denoiser
from ...grids import iddpm_levels
from ...preconditioning import (
    AbstractPreconditioning,
    EDMPreconditioning,
    IDDPMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from ...schedules import VariancePreserving
from .state_dict import from_state_dict


@final
class FirstChannels(eqx.Module):
    """A network of which only the first channels count, as many as `x` has.

    iDDPM's networks return as many again, about a variance that no ODE asks for.
    """

    network: Callable[..., Array]

    def __call__(
        self,
        x: Float[Array, "channels height width"],
        c_noise: Float[Array, ""],
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "channels height width"]:
        """The first half of the network's output."""
        return self.network(x, c_noise, cond, key=key)[: len(x)]


def edm_denoiser(
    cls: str,
    state: Mapping[str, ArrayLike],
    *,
    img_resolution: int,
    img_channels: int,
    model_type: str,
    label_dim: int = 0,
    **config: Any,
) -> Denoiser:
    """The official denoiser of class `cls`, with the weights of its state dict.

    Arguments:
        cls: "EDMPrecond", "VPPrecond", "VEPrecond" or "iDDPMPrecond".
        state: name to array, as `read_state` returns it; names may begin with "model.".
        img_resolution: height and width.
        img_channels: of an image; iDDPM's network returns twice as many.
        model_type: "SongUNet" or "DhariwalUNet".
        label_dim: length of the class labels; 0 for none.
        config: keywords of the preconditioning that change D (`sigma_data`; `beta_d`,
            `beta_min`, `M`; `C_1`, `C_2`, `M`), then those of the network. Leave out the
            others: `sigma_min`, `sigma_max`, `epsilon_t`, `use_fp16`, `label_dropout`.

    Raises:
        ValueError: another class, or weights that do not fit, all listed in one message.
        TypeError: an unknown keyword.
    """
    if cls not in _PRECONDITIONINGS:
        raise ValueError(f"cls must be one of {', '.join(_PRECONDITIONINGS)}, got {cls!r}")
    make = _PRECONDITIONINGS[cls]
    own = {name: config.pop(name) for name in inspect.signature(make).parameters if name in config}
    preconditioning = make(**own)
    iddpm = isinstance(preconditioning, IDDPMPreconditioning)
    state = {name.removeprefix("model."): array for name, array in state.items()}
    levels = state.pop("u", None) if iddpm else None
    network = from_state_dict(
        model_type,
        state,
        img_resolution=img_resolution,
        in_channels=img_channels,
        out_channels=2 * img_channels if iddpm else img_channels,
        label_dim=label_dim,
        **config,
    )
    if levels is not None:
        _check_levels(preconditioning, np.asarray(levels))
    return Denoiser(FirstChannels(network) if iddpm else network, preconditioning)


def _edm(sigma_data: float = 0.5) -> EDMPreconditioning:
    return EDMPreconditioning(sigma_data)


def _vp(beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000) -> VPPreconditioning:
    return VPPreconditioning(VariancePreserving(beta_d, beta_min), M)


def _ve() -> VEPreconditioning:
    return VEPreconditioning()


def _iddpm(C_1: float = 1e-3, C_2: float = 8e-3, M: int = 1000) -> IDDPMPreconditioning:
    return IDDPMPreconditioning(M, C_1, C_2)


_PRECONDITIONINGS: dict[str, Callable[..., AbstractPreconditioning]] = {
    "EDMPrecond": _edm,
    "VPPrecond": _vp,
    "VEPrecond": _ve,
    "iDDPMPrecond": _iddpm,
}


def _check_levels(preconditioning: Any, stored: np.ndarray) -> None:
    """The levels stored with an iDDPM network are those that its numbers make.

    To 1e-3: the reference computes them in float32, which costs 5e-4 at the smallest.
    """
    p = preconditioning
    table = iddpm_levels(p.levels, p.c_1, p.c_2)
    if stored.shape != np.shape(table) or not np.allclose(stored, table, rtol=1e-3):
        raise ValueError(
            f"u: {len(stored)} noise levels from {stored[0]:.6g} down, needed {len(table)} from "
            f"{table[0]:.6g}: give the M, C_1 and C_2 of the checkpoint"
        )


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` or `.safetensors` file by name; no code in it is ever run.

    Arrays of 16 bits become float32, the dtype of parameters here.

    Raises:
        ValueError: another kind of file, or a damaged one.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    elif path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    else:
        raise ValueError(
            f"{path} is neither .npz nor .safetensors. A pickle runs code when it is opened: "
            "export its numbers first, by the line in the docstring of import_edm"
        )
    return {name: a.astype(np.float32) if a.itemsize == 2 else a for name, a in arrays.items()}


_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_DTYPES |= {"I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Eight bytes of length, a header in JSON, then the arrays one after the other."""
    try:
        data = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            values = data[start + begin : start + end].tobytes()
            dtype = _DTYPES[entry["dtype"]]
            arrays[name] = np.frombuffer(values, dtype).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole .safetensors file: {error!r}") from error
    return arrays
