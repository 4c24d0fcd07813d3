r"""The four columns of Table 1, each as one object made of five independent choices.

A `Design` bundles how a model is *trained* (preconditioning, noise distribution) with
how it is *sampled* (grid, schedule, solver). Nothing ties the two halves together:
sampling a denoiser in another design uses that design's grid, schedule and solver and
leaves the denoiser, its preconditioning included, as it was trained.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, final

import equinox as eqx
import numpy as np
from jaxtyping import Array

from . import grids, noise_levels as noise_laws, preconditioning, schedules, solvers
from ._checks import concrete


@final
class Design(eqx.Module):
    """One column of Table 1. Print it to read it, with the values its parts now have.

    Arguments:
        grid: `grid(n)` gives n noise levels, data units.
        schedule: sigma(t) and s(t) of the sampler.
        solver: of the sampler.
        preconditioning: around the network.
        noise: the law of the noise level in training.
    """

    grid: Callable[[int], Array]
    schedule: schedules.AbstractSchedule
    solver: solvers.AbstractSolver
    preconditioning: preconditioning.AbstractPreconditioning
    noise: noise_laws.AbstractNoiseDistribution

    def rows(self) -> dict[str, str]:
        """The column as text: each row of Table 1 with its formula and parameters.

        A part of your own is shown by its name.
        """
        clock, scale = _schedule(self.schedule)
        c_skip, c_out, c_in, c_noise, weight = _formulas(self.preconditioning, 5)
        return {
            "Solver": _join(_formulas(self.solver)[0], _values(self.solver)),
            "Time steps": _grid(self.grid),
            "Schedule sigma(t)": _join(clock, _values(self.schedule)),
            "Scaling s(t)": scale,
            **{"c_skip": c_skip, "c_out": c_out, "c_in": c_in, "c_noise": c_noise},
            "Parameters": _join("", _values(self.preconditioning)) or "none",
            "Noise distribution": _join(_formulas(self.noise)[0], _values(self.noise)),
            "Loss weighting": weight,
        }

    def __str__(self) -> str:
        lines = [f"  {name:<18}  {text}" for name, text in self.rows().items()]
        heads = [_PARTS[name] + "\n" if name in _PARTS else "" for name in self.rows()]
        return "\n".join(map("".join, zip(heads, lines, strict=True)))


def vp() -> Design:
    """The variance-preserving SDE of Song et al. (Table 1, column "VP")."""
    sampling = grids.vp_sigmas, schedules.VariancePreserving(), solvers.Euler()
    return Design(*sampling, preconditioning.VPPreconditioning(), noise_laws.UniformTime())


def ve() -> Design:
    """The variance-exploding SDE of Song et al. (Table 1, column "VE")."""
    sampling = grids.ve_sigmas, schedules.VarianceExploding(), solvers.Euler()
    return Design(*sampling, preconditioning.VEPreconditioning(), noise_laws.LogUniform())


def iddpm() -> Design:
    """Improved DDPM, sampled as DDIM (Table 1, column "iDDPM")."""
    sampling = grids.iddpm_sigmas, schedules.Linear(), solvers.Euler()
    training = preconditioning.IDDPMPreconditioning(), noise_laws.UniformLevels()
    return Design(*sampling, *training)


def edm(sigma_data: float = 0.5) -> Design:
    """EDM's own choices (Table 1, column "Ours").

    Arguments:
        sigma_data: 0.5 is the table's, for images; measure that of your data.
    """
    sampling = grids.edm_sigmas, schedules.Linear(), solvers.Heun()
    training = preconditioning.EDMPreconditioning(sigma_data), noise_laws.LogNormal()
    return Design(*sampling, *training)


def table(columns: Mapping[str, Design] | None = None) -> str:
    """Table 1 in Markdown: designs side by side, one row a choice.

    Arguments:
        columns: designs by name; the four of the paper unless given.
    """
    if columns is None:
        columns = {"VP": vp(), "VE": ve(), "iDDPM": iddpm(), "EDM": edm()}
    rows = {name: design.rows() for name, design in columns.items()}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in next(iter(rows.values()), {}):
        if name in _PARTS:
            lines.append(f"| **{_PARTS[name]}** |" + " |" * len(columns))
        cells = " | ".join(f"`{row[name]}`" for row in rows.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def _formulas(part: Any, count: int = 1) -> tuple[str, ...]:
    return _FORMULAS.get(type(part), (type(part).__name__,) * count)


def _schedule(schedule: Any) -> tuple[str, ...]:
    """The formulas of sigma(t) and s(t), of a wrapped schedule too."""
    if not isinstance(schedule, _WRAPPERS):
        return _formulas(schedule, 2)
    clock, scale = _schedule(schedule.schedule)
    match schedule:
        case schedules.Unscaled():
            return clock, "1"
        case schedules.VarianceScaled():
            return clock, "1/sqrt(sigma^2 + 1)"
    return f"{type(schedule).__name__}: {clock}", scale


def _grid(grid: Callable[..., Array]) -> str:
    """The formula of a grid, with the defaults or the keywords bound to it."""
    inner = grid.func if isinstance(grid, functools.partial) else grid
    name = getattr(inner, "__name__", type(inner).__name__)
    _, *rest = inspect.signature(grid).parameters.values()
    values = {p.name: p.default for p in rest}
    if inner is grids.iddpm_sigmas:
        values |= _used_levels(grid, values)
    return _join(_FORMULAS.get(inner, (name,))[0], values)


def _used_levels(grid: Callable[[int], Array], values: Mapping[str, Any]) -> dict[str, int]:
    """The indices j_0 and j_1 of the first and the last trained level that `grid` visits."""
    table = grids.iddpm_table(*(values[name] for name in ("levels", "c_1", "c_2")))
    first, last = (int(np.argmin(np.abs(table - sigma))) for sigma in grid(2))
    return {"j_0": first, "j_1": last}


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


_PARTS = {
    "Solver": "Sampling",
    "c_skip": "Network and preconditioning",
    "Noise distribution": "Training",
}
_WRAPPERS = (schedules.VarianceScaled, schedules.Unscaled, schedules.Rounded)
_FORMULAS: dict[Any, tuple[str, ...]] = {
    solvers.Euler: ("Euler, N calls",),
    solvers.Heun: ("Heun, 2 N - 1 calls",),
    solvers.DPMSolverPP2M: ("DPM-Solver++(2M), N calls",),
    grids.vp_sigmas: ("sigma(t_i) of VP at t_i = 1 + i/(N-1) (eps - 1)",),
    grids.ve_sigmas: ("sigma_max (sigma_min/sigma_max)^(i/(N-1))",),
    grids.iddpm_sigmas: (
        "u_j with j = j_0 + round(i (j_1 - j_0)/(N-1)), halves to even; u_levels = 0, "
        "u_(j-1) = sqrt((u_j^2 + 1)/max(a_(j-1)/a_j, c_1) - 1), "
        "a_j = sin(pi/2 j/(levels (c_2 + 1)))^2",
    ),
    grids.edm_sigmas: ("(a + i/(N-1) (b - a))^rho, a = sigma_max^(1/rho), b = sigma_min^(1/rho)",),
    schedules.Linear: ("t", "1"),
    schedules.VarianceExploding: ("sqrt(t)", "1"),
    schedules.VariancePreserving: (
        *("sqrt(exp(beta_d t^2/2 + beta_min t) - 1)", "1/sqrt(sigma^2 + 1)"),
    ),
    # c_skip, c_out, c_in, c_noise and the loss weighting
    preconditioning.VPPreconditioning: (
        *("1", "-sigma", "1/sqrt(sigma^2 + 1)", "(levels - 1) t(sigma)", "1/sigma^2"),
    ),
    preconditioning.VEPreconditioning: ("1", "sigma", "1", "ln(sigma/2)", "1/sigma^2"),
    preconditioning.IDDPMPreconditioning: (
        *("1", "-sigma", "1/sqrt(sigma^2 + 1)"),
        *("levels - 1 - argmin_j abs(u_j - sigma)", "1/sigma^2"),
    ),
    preconditioning.EDMPreconditioning: (
        "sigma_data^2/(sigma^2 + sigma_data^2)",
        "sigma sigma_data/sqrt(sigma^2 + sigma_data^2)",
        *("1/sqrt(sigma^2 + sigma_data^2)", "ln(sigma)/4"),
        "(sigma^2 + sigma_data^2)/(sigma sigma_data)^2",
    ),
    noise_laws.UniformTime: ("sigma(t) of VP, t ~ U(eps, 1)",),
    noise_laws.LogUniform: ("ln(sigma) ~ U(ln sigma_min, ln sigma_max)",),
    noise_laws.UniformLevels: ("sigma = u_j, j ~ U{0, ..., levels - 1}",),
    noise_laws.LogNormal: ("ln(sigma) ~ N(p_mean, p_std^2)",),
}
