"""Networks of the golden files, with the weights and inputs that the reference had."""

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
