"""Every name, keyword and file of version 0.1.0 works, and warns exactly where it has moved.

`release_0_1/names.txt` lists the names with their parameters.
"""

import functools
import inspect
import re
import warnings
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from edm_tutorial._deprecated import names

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "tests" / "release_0_1"

# What does not work any longer, and why.
INTERNAL = "documented, but used by files of the package alone"
GONE = {
    "batches.Given": INTERNAL,
    "batches.as_sources": INTERNAL,
    "cli.save_png": INTERNAL,
    "cli.table": INTERNAL,
    "dynamics.check_denoised": INTERNAL,
    "losses.errors_by_sigma": INTERNAL,
    "networks.assembly*": INTERNAL,
    "networks.embedding.waves": INTERNAL,
    "networks.layers.*": INTERNAL,
    "networks.unet.[!U]*": INTERNAL,
    "sbi.History.then": INTERNAL,
    "sbi.fit.smallest_sigma": INTERNAL,
    "sbi.loop.optimise": INTERNAL,
    "sbi.neighbours*": INTERNAL,
    "sbi.network*": INTERNAL,
    "sbi.simulators.[lt]*": INTERNAL,
    "sbi.tasks.Prior": INTERNAL,
    "sbi.tasks.[cn]*": INTERNAL,
    "training.descend": INTERNAL,
    "training.trainable": INTERNAL,
    "types.check_*": INTERNAL,
    "types.concrete": INTERNAL,
    "sbi.coordinates*": "a posterior's transform is a chain now, with other parts",
    "sbi.Posterior()": "made by fit_posterior and load alone; it has other fields now",
    "sbi.LikelihoodNoise(knee)": "nothing set it, and the bound on the likelihood needs 1",
    "sbi.c2st(folds)": "nothing set it, and scores compare only at five",
}
# Keywords that are called otherwise now.
KEYWORDS = {
    "denoising_loss": {"noise": "sigma_dist"},
    "sbi.fit_posterior": {"plan": "settings", "noise": "sigma_dist"},
    "Design": {"noise": "sigma_dist"},
    "designs.Design": {"noise": "sigma_dist"},
}
# Methods whose arguments are given by place, by users and by the package.
BY_PLACE = ("step", "last", "forward")


def listed() -> dict[str, dict[str, str | None]]:
    """The names of each module, with their parameters where they were listed."""
    found, module = {}, ""
    for line in (FILES / "names.txt").read_text().splitlines():
        name, bracket, parameters = line.strip().partition("(")
        if line.startswith(" "):
            found[module][name] = parameters.removesuffix(")") if bracket else None
        else:
            module = name.removeprefix("edm_tutorial").removeprefix(".")
            found[module] = {}
    return found


def is_gone(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in GONE)


OLD = {
    module: {name: what for name, what in names.items() if not is_gone(f"{module}.{name}")}
    for module, names in listed().items()
    if not is_gone(module)
}


def loaded(module: str) -> Any:
    return import_module(f"edm_tutorial.{module}".rstrip("."))


def looked_up(module: Any, name: str) -> tuple[Any, set[str]]:
    """An attribute, and what was said meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = functools.reduce(getattr, name.split("."), module)
    assert {warning.category for warning in caught} <= {DeprecationWarning}
    return value, {str(warning.message) for warning in caught}


def new_name(old: str, told: set[str]) -> str:
    """The new name, from the one message about the old one."""
    (message,) = told
    match = re.fullmatch(r"(\S+) is now (\S+)", message)
    assert match and f"edm_tutorial.{old}".endswith(match[1]), message
    return "edm_tutorial." + match[2].removeprefix("edm_tutorial.")


@pytest.mark.parametrize("module", OLD)
def test_a_name_is_found_and_warns_where_it_has_moved(module):
    found = loaded(module)
    stays = {*vars(found), *vars(found).get("_CHECKS", ())}
    for name in OLD[module]:
        value, told = looked_up(found, name)
        if name.split(".")[0] in stays:
            assert not told, name
        elif "." not in name:
            old = f"{module}.{name}".lstrip(".")
            home, _, new = new_name(old, told).rpartition(".")
            again, told = looked_up(import_module(home), new)
            assert not told, "the new name warns too"
            assert value is again or old in names.STAND_INS


@pytest.mark.parametrize("module", names.MODULES)
def test_a_module_that_has_moved_is_found_as_an_attribute(module):
    stand_in = loaded(module)
    if stand_in.__spec__ is not None:
        pytest.skip("has not moved yet")
    parent, _, name = module.rpartition(".")
    if name in OLD[parent]:
        return  # a function of this name was in its way
    value, told = looked_up(loaded(parent), name)
    assert value is import_module(new_name(module, told))


def test_a_stand_in_has_nothing_else():
    from edm_tutorial import checkpoint  # noqa: F401  # loads it


@pytest.mark.parametrize("module", OLD)
def test_a_call_fits_the_new_signature(module):
    for name, parameters in OLD[module].items():
        if parameters is None or is_gone(f"{module}.{name}()".lstrip(".")):
            continue
        path = f"{module}.{name}".lstrip(".")
        signature = inspect.signature(looked_up(loaded(module), name)[0])
        places, _, keywords = (re.findall(r"\w+", part) for part in parameters.partition("*"))
        first = ["self"] if "self" in signature.parameters else []
        new = KEYWORDS.get(path, {})
        kept = [key for key in keywords if not is_gone(f"{path}({key})")]
        signature.bind(*first, *places, **{new.get(key, key): None for key in kept})
        if name.split(".")[-1] not in BY_PLACE:
            everything = [new.get(key, key) for key in (*first, *places, *kept)]
            signature.bind(**dict.fromkeys(everything))
