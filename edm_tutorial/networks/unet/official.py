r"""Official EDM checkpoints as denoisers, without running the code they carry.

The official files are pickles, and opening a pickle runs any code that it holds. Never open one
in your own process: run this line once, where you would run the reference itself (its
repository and environment), and copy the `.npz`, which holds numbers only.

    python -c "import pickle, sys, numpy; \
    net = pickle.load(open(sys.argv[1], 'rb'))['ema']; state = net.state_dict(); \
    numpy.savez(sys.argv[2], **{k: v.cpu().numpy() for k, v in state.items()}); \
    print(type(net).__name__, net.init_kwargs)" edm-cifar10-32x32-cond-vp.pkl network.npz

It prints the class and the keywords of `edm_denoiser`.

    denoiser = edm_denoiser("EDMPrecond", read_state("network.npz"), img_resolution=32,
        img_channels=3, label_dim=10, model_type="SongUNet", use_fp16=False, augment_dim=9,
        dropout=0.13, model_channels=128, channel_mult=[2, 2, 2])

$D = c_{skip} x + c_{out} F(c_{in} x; c_{noise})$ then is the official denoiser, and may be
sampled, scored and fine-tuned like any other. Its images are in [-1, 1], not centred.
"""

import inspect
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
    """An iDDPM network without the half of its output that describes a variance."""

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
        img_resolution, img_channels: height and width of an image, and its channels.
        model_type: "SongUNet" or "DhariwalUNet".
        label_dim: length of the class labels; 0 for none.
        config: the other `init_kwargs` of the checkpoint: those of the preconditioning
            (`sigma_data`; `beta_d`, `beta_min`, `M`; `C_1`, `C_2`, `M`) and of the network.
            Accepted and not used, since they do not change D: the range of the reference's
            sampler (`sigma_min`, `sigma_max`, `epsilon_t`), `label_dropout`, and `use_fp16`:
            here the network computes in the dtype of `x`, and `Cast` chooses another.

    Raises: ValueError for another class, or weights that do not fit, all listed in one message;
    TypeError for an unknown keyword.
    """
    if cls not in _PRECONDITIONINGS:
        raise ValueError(f"cls must be one of {', '.join(_PRECONDITIONINGS)}, got {cls!r}")
    config = {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT}
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


# The keywords of each class. The range of noise levels is the sampler's: it is accepted, and
# no part of a denoiser.
_PRECONDITIONINGS: dict[str, Callable[..., AbstractPreconditioning]] = {
    "EDMPrecond": lambda sigma_data=0.5, sigma_min=None, sigma_max=None: EDMPreconditioning(
        sigma_data
    ),
    "VPPrecond": lambda beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=None: VPPreconditioning(
        VariancePreserving(beta_d, beta_min), M
    ),
    "VEPrecond": lambda sigma_min=None, sigma_max=None: VEPreconditioning(),
    "iDDPMPrecond": lambda C_1=1e-3, C_2=8e-3, M=1000: IDDPMPreconditioning(M, C_1, C_2),
}
# Keywords of every class that do not change D in float32 or better.
_WITHOUT_EFFECT = {"use_fp16", "label_dropout"}


def _check_levels(preconditioning: Any, stored: np.ndarray) -> None:
    """Refuse noise levels of an iDDPM checkpoint that are not those of its keywords."""
    table = iddpm_levels(preconditioning.levels, preconditioning.c_1, preconditioning.c_2)
    # 1e-3: the reference computes them in float32, with an error of 5e-4 at the smallest.
    if stored.shape != np.shape(table) or not np.allclose(stored, table, rtol=1e-3):
        raise ValueError(
            f"u: {len(stored)} noise levels from {stored[0]:.6g} down, needed {len(table)} from "
            f"{table[0]:.6g}: give the M, C_1 and C_2 of the checkpoint"
        )


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` or `.safetensors` file by name; no code in it is ever run.

    Floating-point arrays of 16 bits become float32, the dtype of parameters here.

    Raises: ValueError for another kind of file, or a damaged one.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(
            f"{path} is neither .npz nor .safetensors. A pickle runs code when it is opened: "
            "export its numbers first, by the line in the docstring of "
            "edm_tutorial.networks.unet.official"
        )
    path.open("rb").close()  # so that a file which is not there is a FileNotFoundError
    try:
        arrays = _READERS[path.suffix](path)
    except ImportError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path} is not a whole {path.suffix} file: {error!r}") from error
    short = lambda a: a.itemsize == 2 and jnp.issubdtype(a.dtype, jnp.floating)
    return {name: a.astype(np.float32) if short(a) else a for name, a in arrays.items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file  # needed for such a file only
    except ImportError as error:
        raise ImportError(
            f'{path} needs safetensors: pip install safetensors, or "edm-tutorial[data]"'
        ) from error
    return load_file(path)


_READERS = {".npz": _read_npz, ".safetensors": _read_safetensors}
