r"""The four columns of Table 1, each as one object made of five independent choices.

A `Design` bundles how a model is *trained* (preconditioning, noise distribution) with
how it is *sampled* (grid, schedule, solver). Nothing ties the two halves together: a denoiser
sampled in another design keeps the preconditioning with which it was trained.
"""

import functools
import inspect
import textwrap
import warnings
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import numpy as np
from jaxtyping import Array

from . import grids, noise_levels, preconditioning, schedules, solvers
from ._checks import concrete
from ._deprecated import renamed


@final
class Design(eqx.Module):
    """One column of Table 1; printed, it shows the formulas and the values of its parts.

    Arguments:
        grid: `grid(n)` gives n noise levels, data units.
        schedule: sigma(t) and s(t) of the sampler.
        solver: of the sampler.
        preconditioning: around the network.
        sigma_dist: the law of the noise level in training.
    """

    grid: Callable[[int], Array]
    schedule: schedules.AbstractSchedule
    solver: solvers.AbstractSolver
    preconditioning: preconditioning.AbstractPreconditioning
    sigma_dist: noise_levels.AbstractNoiseDistribution

    @property
    def noise(self) -> noise_levels.AbstractNoiseDistribution:
        """The `sigma_dist`, as version 0.1.0 called it."""
        message = "Design.noise is now Design.sigma_dist"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.sigma_dist

    def rows(self) -> dict[str, str]:
        """The column as text: each row of Table 1 with its formula and parameters.

        Each part says its own `formula`; one of your own that has none is shown by its name.
        """
        clock, scale = _of_schedule(self.schedule)
        c_skip, c_out, c_in, c_noise, weight = _formula(self.preconditioning, count=5)
        return {
            "Solver": _join(_formula(self.solver)[0], _values(self.solver)),
            "Time steps": _join(_formula(_bare(self.grid))[0], _arguments(self.grid)),
            "Schedule sigma(t)": _join(clock, _values(self.schedule)),
            "Scaling s(t)": scale,
            **{"c_skip": c_skip, "c_out": c_out, "c_in": c_in, "c_noise": c_noise},
            "Parameters": _join("", _values(self.preconditioning)) or "none",
            "Noise distribution": _join(_formula(self.sigma_dist)[0], _values(self.sigma_dist)),
            "Loss weighting": weight,
        }

    def __str__(self) -> str:
        lines = []
        for name, text in self.rows().items():
            lines += [PARTS[name]] if name in PARTS else []
            lines.append(WRAP.fill(f"  {name:<18}  {text}"))
        return "\n".join(lines)


Design.__init__ = renamed(noise="sigma_dist")(Design.__init__)

WRAP = textwrap.TextWrapper(
    80, subsequent_indent=" " * 22, break_long_words=False, break_on_hyphens=False
)
# The three parts of Table 1, by the first row of each.
PARTS = {
    "Solver": "Sampling",
    "c_skip": "Network and preconditioning",
    "Noise distribution": "Training",
}


def vp() -> Design:
    """The variance-preserving SDE of Song et al. (Table 1, column "VP")."""
    return Design(
        grid=grids.vp_sigmas,
        schedule=schedules.VariancePreserving(),
        solver=solvers.Euler(),
        preconditioning=preconditioning.VPPreconditioning(),
        sigma_dist=noise_levels.UniformTime(),
    )


def ve() -> Design:
    """The variance-exploding SDE of Song et al. (Table 1, column "VE")."""
    return Design(
        grid=grids.ve_sigmas,
        schedule=schedules.VarianceExploding(),
        solver=solvers.Euler(),
        preconditioning=preconditioning.VEPreconditioning(),
        sigma_dist=noise_levels.LogUniform(),
    )


def iddpm() -> Design:
    """Improved DDPM, sampled as DDIM (Table 1, column "iDDPM")."""
    return Design(
        grid=grids.iddpm_sigmas,
        schedule=schedules.Linear(),
        solver=solvers.Euler(),
        preconditioning=preconditioning.IDDPMPreconditioning(),
        sigma_dist=noise_levels.UniformLevels(),
    )


def edm(sigma_data: float = 0.5) -> Design:
    """EDM's own choices (Table 1, column "Ours").

    `sigma_data` 0.5 is the table's, for images; measure that of your data.

    Raises: ValueError unless `sigma_data` is positive and finite.
    """
    return Design(
        grid=grids.edm_sigmas,
        schedule=schedules.Linear(),
        solver=solvers.Heun(),
        preconditioning=preconditioning.EDMPreconditioning(sigma_data),
        sigma_dist=noise_levels.LogNormal(),
    )


def _formula(part: Any, count: int = 1) -> tuple[str, ...]:
    """The formula of a part, in one text or more, or else its name."""
    name = getattr(part, "__name__", type(part).__name__)
    formula = getattr(part, "formula", (name,) * count)
    return (formula,) if isinstance(formula, str) else formula


def _of_schedule(schedule: Any) -> tuple[str, ...]:
    """sigma(t) and s(t), where a wrapper leaves blanks for those of what it wraps."""
    formula = _formula(schedule, count=2)
    if "{" not in "".join(formula):
        return formula
    sigma, scale = _of_schedule(schedule.schedule)
    return tuple(text.format(sigma=sigma, scale=scale) for text in formula)


def _bare(grid: Any) -> Any:
    return grid.func if isinstance(grid, functools.partial) else grid


def _arguments(grid: Callable[..., Array]) -> dict[str, Any]:
    """The defaults of a grid or the keywords bound to it, and the numbers they imply."""
    _, *rest = inspect.signature(grid).parameters.values()
    values = {p.name: p.default for p in rest}
    return values | getattr(_bare(grid), "also", dict)(**values)


def _values(part: Any) -> dict[str, Any]:
    """The numbers an object is made of, those of the objects inside it included."""
    values = {}
    for name in inspect.signature(type(part)).parameters:
        value = getattr(part, name)
        values |= _values(value) if isinstance(value, eqx.Module) else {name: value}
    return values


def _join(formula: str, values: dict[str, Any]) -> str:
    pairs = ", ".join(f"{name} = {_number(value)}" for name, value in values.items())
    return "; ".join(filter(None, [formula, pairs]))


def _number(value: Any) -> str:
    if not (eqx.is_array_like(value) and concrete(value)):
        return str(value)
    if np.ndim(value) == 0:
        return f"{np.asarray(value):g}"
    return np.array2string(np.asarray(value), 1000, precision=4, threshold=4)
