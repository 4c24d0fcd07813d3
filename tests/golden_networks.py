"""Networks of the golden files, with the weights and inputs that the reference had."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from golden_cases import Case, manifest

from edm_tutorial.networks import ImageCondition, UNet, from_state_dict

NETWORKS = sorted(file for file in manifest() if file.startswith("net_"))


def state(file: str) -> dict[str, np.ndarray]:
    """The state dict of a golden file."""
    case = Case(file, "state")
    arrays = {name: case[name] for name in manifest()[file]["cases"]["state"]["arrays"]}
    case.check_all_read()
    return arrays


def config(file: str) -> tuple[str, dict[str, Any]]:
    """The class of a golden network, and the keywords it was built with."""
    params = Case(file, "state").params
    override = params.get("channels_per_head_override")
    extra = {} if override is None else {"channels_per_head": override}
    return params["cls"], params["kwargs"] | extra


def network(file: str) -> UNet:
    cls, keywords = config(file)
    return from_state_dict(cls, state(file), **keywords)


def condition(case: Case, dtype: Any) -> ImageCondition:
    """The labels of a case, a batch of them; None where it has none."""
    names = ("class_labels", "augment_labels")
    return ImageCondition(*(jnp.asarray(case[n], dtype) if n in case else None for n in names))


# Whole networks of random configurations; the README in the folder says what a file holds.

CONFIGS = Path(__file__).parent / "golden_configs"


def drawn_configs() -> dict[str, dict[str, Any]]:
    """Class, keywords and number of parameters of each file, by its name."""
    entries = json.loads((CONFIGS / "netx.json").read_text())
    return {Path(entry["file"]).stem: entry for entry in entries}


def drawn_network(name: str) -> tuple[UNet, dict[str, np.ndarray]]:
    """A network with the reference's weights, and its inputs and outputs by name."""
    entry = drawn_configs()[name]
    with np.load(CONFIGS / entry["file"]) as stored:
        arrays = dict(stored)
    inside = lambda part: {k.removeprefix(part): v for k, v in arrays.items() if part in k}
    weights, evaluation = inside("state/"), inside("labels/")
    assert len(weights) + len(evaluation) == len(arrays)
    # Counted with the buffers: frequencies and resampling filters.
    assert sum(array.size for array in weights.values()) == entry["num_params"]
    return from_state_dict(entry["cls"], weights, **entry["kwargs"]), evaluation
