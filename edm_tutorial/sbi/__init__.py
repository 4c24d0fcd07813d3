"""Simulation-based inference: from simulations to a posterior, and how to check it."""

from importlib import import_module
from typing import Any

from .._deprecated.names import old_name
from . import tasks as tasks
from .early_stopping import FitState as FitState, History as History
from .embeddings import (
    ImageEmbedding as ImageEmbedding,
    SeriesEmbedding as SeriesEmbedding,
    SetEmbedding as SetEmbedding,
)
from .fit import fit_posterior as fit_posterior
from .noise_levels import LikelihoodNoise as LikelihoodNoise, PosteriorNoise as PosteriorNoise
from .posterior import Posterior as Posterior, Weights as Weights
from .rounds import fit_rounds as fit_rounds
from .settings import (
    JointSettings as JointSettings,
    Settings as Settings,
    default_settings as default_settings,
)
from .surprise import (
    DependentParameters as DependentParameters,
    DiscreteParameter as DiscreteParameter,
    DroppedSimulations as DroppedSimulations,
    DuplicatedSimulations as DuplicatedSimulations,
    FitWarning as FitWarning,
    NarrowTruncation as NarrowTruncation,
    PoorFit as PoorFit,
    SupportOrder as SupportOrder,
    Surprise as Surprise,
    UnlikelyObservation as UnlikelyObservation,
    UntrainedQuestion as UntrainedQuestion,
    WideScales as WideScales,
)
from .transforms.standardize import Standardizer as Standardizer

# These need more than the core (`pip install "edm-tutorial[sbi]"`): imported when asked for.
_CHECKS = ("sbc_ranks", "hpd_ranks", "tarp_ranks", "linear_references", "expected_coverage")
_CHECKS += ("local_calibration", "posterior_predictive", "c2st")
# Imported when asked for, too: a folder copied for `fit_posterior` needs no transformer.
_JOINT = {"fit_joint": "fit", "Joint": "conditionals", "Conditional": "conditionals"}


def __getattr__(name: str) -> Any:
    if name in _JOINT:
        return getattr(import_module(f".joint.{_JOINT[name]}", __name__), name)
    if name == "calibration" or name in _CHECKS:
        calibration = import_module(".calibration", __name__)
        return calibration if name == "calibration" else getattr(calibration, name)
    return old_name("sbi", name, stacklevel=3)
