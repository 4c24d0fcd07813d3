r"""The four columns of Table 1, each as one object made of five independent choices.

A `Design` bundles how a model is *trained* (preconditioning, noise distribution) with how
it is *sampled* (grid, schedule, solver). Nothing ties the two halves together: sampling a
denoiser in another design uses that design's grid, schedule and solver and leaves the
denoiser, its preconditioning included, as it was trained.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
from jaxtyping import Array

from edm_tutorial.grids import edm_sigmas, iddpm_sigmas, ve_sigmas, vp_sigmas
from edm_tutorial.losses import (
    AbstractNoiseDistribution,
    LogNormal,
    LogUniform,
    UniformLevels,
    UniformTime,
)
from edm_tutorial.preconditioning import (
    AbstractPreconditioning,
    EDMPreconditioning,
    IDDPMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from edm_tutorial.schedules import (
    AbstractSchedule,
    Linear,
    VarianceExploding,
    VariancePreserving,
)
from edm_tutorial.solvers import AbstractSolver, Euler, Heun


@final
class Design(eqx.Module):
    """One column of Table 1. Print it to read it.

    Arguments:
        grid: `grid(n)` gives n noise levels, data units.
        schedule: sigma(t) and s(t) of the sampler.
        solver: of the sampler.
        preconditioning: around the network.
        noise: the law of the noise level in training.
    """

    grid: Callable[[int], Array]
    schedule: AbstractSchedule
    solver: AbstractSolver
    preconditioning: AbstractPreconditioning
    noise: AbstractNoiseDistribution


def vp() -> Design:
    """The variance-preserving SDE of Song et al. (Table 1, column "VP")."""
    return Design(
        vp_sigmas, VariancePreserving(), Euler(), VPPreconditioning(), UniformTime()
    )


def ve() -> Design:
    """The variance-exploding SDE of Song et al. (Table 1, column "VE")."""
    return Design(ve_sigmas, VarianceExploding(), Euler(), VEPreconditioning(), LogUniform())


def iddpm() -> Design:
    """Improved DDPM, sampled as DDIM (Table 1, column "iDDPM")."""
    return Design(iddpm_sigmas, Linear(), Euler(), IDDPMPreconditioning(), UniformLevels())


def edm(sigma_data: float = 0.5) -> Design:
    """EDM's own choices (Table 1, column "Ours").

    Arguments:
        sigma_data: 0.5 is the table's, for images; measure that of your data.
    """
    return Design(edm_sigmas, Linear(), Heun(), EDMPreconditioning(sigma_data), LogNormal())
