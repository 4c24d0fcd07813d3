"""The two plots of the page of benchmarks, from the tables of `results/`."""

from pathlib import Path

import numpy as np

from benchmarks.timing import read
from edm_tutorial.book import plotting

FOLDER = Path(__file__).parents[1] / "book" / "_static" / "benchmarks"
NOISE_MB = 10.0  # below this, the peak of a process's memory is chance


def save(figure: plotting.Figure, name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=150, metadata={"Software": None})
    plotting.plt.close(figure)


def work_precision() -> None:
    """Error against work, one panel a variable; each solver's worst mixture."""
    rows = read("likelihood_work_precision")
    tolerances = sorted({float(row["tolerance"]) for row in rows}, reverse=True)
    figure, axes = plotting.panels(1, 2, size=(4.0, 3.8), sharex=True, sharey=True)
    for ax, variable in zip(axes, ("sigma", "log sigma"), strict=True):
        for solver in ("Tsit5", "Dopri5", "Dopri8"):
            of = [row for row in rows if (row["variable"], row["solver"]) == (variable, solver)]
            at = [[row for row in of if float(row["tolerance"]) == t] for t in tolerances]
            work = [max(int(row["evaluations"]) for row in group) for group in at]
            error = [max(float(row["largest_error_nats"]) for row in group) for group in at]
            ax.plot(work, error, "o-", label=solver)
            if (variable, solver) == ("sigma", "Dopri8"):
                ax.plot(work[2], error[2], "o", ms=13, mfc="none", color="black")
        ax.set(xscale="log", yscale="log", title=f"in {variable}")
        ax.set(xlabel="evaluations of the denoiser")
        ax.set_xticks([100, 200, 400, 800], ["100", "200", "400", "800"], minor=False)
        ax.minorticks_off()
    axes[0].set_ylabel("largest error (nats)")
    axes[0].legend()
    save(figure, "work_precision")


def scale() -> None:
    """CPU time above, memory below, against batch, dimension and steps."""
    rows = read("scale")
    figure, axes = plotting.panels(2, 3, size=(3.0, 2.6), sharex="col", sharey="row")
    for column, (varied, label) in enumerate(
        (("batch", "batch"), ("dimension", "dimension"), ("steps", "steps N"))
    ):
        kinds = {varied: "one vmap", f"{varied} in pieces": "in pieces of 10,000"}
        for kind, name in kinds.items():
            of = [row for row in rows if row["varied"] == kind]
            x = [int(row[varied]) for row in of]
            memory = np.maximum([float(row["memory_mb"]) for row in of], NOISE_MB)
            style = "o-" if kind == varied else "s--"
            axes[column].plot(x, [float(row["run_cpu_s"]) for row in of], style, label=name)
            axes[3 + column].plot(x, memory, style)
        axes[column].set(xscale="log", yscale="log")
        axes[3 + column].set(xscale="log", yscale="log", xlabel=label)
    axes[0].set_ylabel("CPU seconds")
    axes[3].set_ylabel("memory (MB)")
    axes[0].legend(loc="upper left")
    save(figure, "scale")


def draw_all() -> None:
    plotting.plt.switch_backend("agg")
    plotting.use_style()
    work_precision()
    scale()
