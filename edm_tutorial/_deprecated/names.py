"""Names of version 0.1.0 that have moved, each with the name it has now.

A module that has moved leaves a stand-in behind, which hands on what it is asked for. A name that
has moved is found by the `__getattr__` of the module where it was. Both warn with the new name.
"""

import functools
import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

PACKAGE = __name__.removesuffix("._deprecated.names")

# Modules and where they are now, as paths inside the package.
MODULES = {
    **{name: f"images.{name}" for name in ("augmentation", "data")},
    **{name: f"training.{name}" for name in ("batches", "checkpoint", "optimizers", "sharding")},
    "cli": "images.command_line",
    "ema": "training.averages",
    **{name: f"book.{name}" for name in ("exercises", "exercises.checking", "exercises.verdict")},
    **{f"exercises.chapter_{n}": f"book.exercises.chapter_{n}" for n in range(10)},
    "initial_loss": "losses",
    **{
        f"networks.{name}": f"networks.unet.{name}"
        for name in ("blocks", "configurations", "convolution", "embedding", "layers", "state_dict")
    },
    "networks.import_edm": "networks.unet.official",
    "noise": "noise_levels",
    "plotting": "book.plotting",
    "posthoc": "training.averages",
    "sbi.bounds": "sbi.transforms.bounds",
    "sbi.heldout": "sbi.noise_levels",
    "sbi.history": "sbi.early_stopping",
    "sbi.loop": "sbi.early_stopping",
    "sbi.noise": "sbi.noise_levels",
    "sbi.ode_simulators": "sbi.tasks.ode",
    "sbi.plan": "sbi.settings",
    "sbi.regression": "sbi.transforms.linear",
    "sbi.simulators": "sbi.tasks",
    "sbi.standardize": "sbi.transforms.standardize",
    "sbi.two_moons": "sbi.tasks.two_moons",
    "sbi.two_sample": "sbi.calibration",
    "types": "_types",
}
# Names that are called otherwise now, or stand in another module than the others of theirs.
NAMES = {
    "Flow": ":ODE",
    "designs.table": "book.table1:table",
    "networks.unet.UNet": "networks:UNet",
    "parameterisations.noise": "parameterisations:epsilon",
    "sbi.Plan": "sbi:Settings",
    "sbi.bounds.Support": "sbi.transforms.bounds:Bounds",
    "sbi.default_plan": "sbi:default_settings",
    **{
        f"sbi.simulators.{task}": f"sbi.tasks.benchmark:{task}"
        for task in ("GaussianLinear", "GaussianLinearUniform", "GaussianMixtureTask", "SLCP")
    },
    "sbi.loop.optimizer_of": "sbi.settings:optimizer_of",
    "sbi.plan.Plan": "sbi:Settings",
    "sbi.plan.default_plan": "sbi:default_settings",
    "solvers.Flow": "solvers:ODE",
}
# What the old name gives, where the new one would not do in its place.
STAND_INS = {
    f"{module}.{name}": f"_deprecated.plan:{name}"
    for module in ("sbi", "sbi.plan")
    for name in ("Plan", "default_plan")
}


def keep_old_names() -> None:
    """Stand-ins for the old modules, and for the old names in the modules loaded so far."""
    for old, new in MODULES.items():
        stand_in = ModuleType(f"{PACKAGE}.{old}", f"The old name of `{PACKAGE}.{new}`.")
        sys.modules.setdefault(stand_in.__name__, stand_in)
    for path in {*MODULES, *(old.rpartition(".")[0] for old in MODULES | NAMES)}:
        module = sys.modules.get(f"{PACKAGE}.{path}".rstrip("."))
        if module is not None:
            vars(module).setdefault("__getattr__", functools.partial(old_name, path))


def old_name(path: str, name: str, *, stacklevel: int = 2) -> Any:
    """The object that was `name` in the module at `path` of version 0.1.0; warns with its new name.

    Raises: AttributeError if nothing was called so.
    """
    old = f"{path}.{name}".lstrip(".")
    new = NAMES.get(old) or MODULES.get(old)
    if new is None and path in MODULES and not name.startswith("_"):
        new = f"{MODULES[path]}:{name}"
    if new is None:
        module = f"{PACKAGE}.{path}".rstrip(".")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    where, _, attribute = STAND_INS.get(old, new).partition(":")
    found = import_module(f".{where}", PACKAGE)
    found = getattr(found, attribute) if attribute else found
    full = f"{PACKAGE}.{new.replace(':', '.').lstrip('.')}"
    warnings.warn(f"{PACKAGE}.{old} is now {full}", DeprecationWarning, stacklevel=stacklevel)
    return found
