"""Simulation-based inference: from simulations to a posterior, and how to check it."""

from importlib import import_module
from typing import Any

from edm_tutorial.sbi import simulators as simulators
from edm_tutorial.sbi.fit import fit_posterior as fit_posterior
from edm_tutorial.sbi.history import History as History
from edm_tutorial.sbi.loop import FitState as FitState
from edm_tutorial.sbi.noise import LikelihoodNoise as LikelihoodNoise
from edm_tutorial.sbi.noise import PosteriorNoise as PosteriorNoise
from edm_tutorial.sbi.plan import Plan as Plan
from edm_tutorial.sbi.plan import default_plan as default_plan
from edm_tutorial.sbi.posterior import Posterior as Posterior
from edm_tutorial.sbi.standardize import Standardizer as Standardizer

# These need more than the core (`pip install "edm-tutorial[sbi]"`): imported when asked for.
_CHECKS = ("sbc_ranks", "hpd_ranks", "tarp_ranks", "expected_coverage", "c2st")


def __getattr__(name: str) -> Any:
    if name == "calibration" or name in (*_CHECKS, "posterior_predictive"):
        calibration = import_module("edm_tutorial.sbi.calibration")
        return calibration if name == "calibration" else getattr(calibration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
