"""The page of the book that shows the tables of `results/`, and the plot that chose a solver.

A target that is missed stands in red.

    python -m benchmarks.page

Writes `book/benchmarks.md` and `book/_static/benchmarks/work_precision.png`.
"""

import csv
from pathlib import Path

from benchmarks.timing import RESULTS
from edm_tutorial import plotting

BOOK = Path(__file__).parents[1] / "book"
PICTURE = BOOK / "_static" / "benchmarks" / "work_precision.png"

INTRODUCTION = """# Benchmarks

Every ratio here is one of medians, of things timed in turn in one run, so that the load of the
machine cancels. `make bench` measures them again and writes this page."""

SECTIONS = {
    "sampler_limit": (
        "The sampler against its limit",
        "The limit of a sampler is as many separate calls of the same jitted, batched denoiser "
        "as it makes. A ratio of 1 means that the sampler adds nothing; one program can be "
        "faster than many calls.",
    ),
    "sampler_compile": (
        "Compile time against the number of steps",
        "The loop is a `scan`: 256 steps compile in the time of 18.",
    ),
    "likelihood_cost": (
        "What a divergence costs",
        "One evaluation of the likelihood's right-hand side. The exact trace linearises the "
        "denoiser once for all d directions, against d + 1 calls of `jax.jvp`; one Hutchinson "
        "probe against one call of `jax.vjp`, forward included.",
    ),
}

WORK_PRECISION = """## Which solver for the likelihood, at which tolerance, in which variable?

:::{figure} _static/benchmarks/work_precision.png
:alt: Two log-log panels of the largest error in nats against evaluations of the denoiser for \
Tsit5, Dopri5 and Dopri8. In sigma each tolerance gives a smaller error than in log sigma. \
Dopri8 in sigma is flat from tolerance 1e-5 on.
:name: fig-benchmarks-work-precision

Largest error of the log-likelihood over 256 points of each of three mixtures (exact denoisers,
float32) against evaluations in accepted steps of the slowest point, for tolerances 1e-3, 1e-4,
1e-5 and 1e-6 from left to right. In $\\sigma$ a tolerance gives a smaller error than in
$\\ln\\sigma$. `Dopri8` at 1e-5 in $\\sigma$, the ringed point, is the default of
`log_likelihood`: it is down at the round-off of float32, where a tighter tolerance gains nothing.
:::
"""


POSTERIORS = """## Posteriors against reference posteriors

C2ST is the accuracy of a classifier between 10,000 of our draws and 10,000 reference draws: 0.5
is perfect, 1 useless. Each is the mean over five observations; one observation scatters by up to
0.04. EDM is `edm_tutorial.sbi.fit_posterior` with one set of defaults for all. NPE and NPSE are
a neural spline flow and a variance-exploding score of the package `sbi`, with its defaults for
everything else, on the same simulations and by the same C2ST; a dash is a run that was not made.
Seconds are CPU seconds, all threads together: of training, compilation included, of 10,000 draws
and of the log-density of 1,000 points, without it. A missed target stands in red. Measured by
`python -m benchmarks.sbi --peers`."""

METHODS = ("EDM", "sbi NPE", "sbi NPSE")
COSTS = ("train_cpu_s", "sample_cpu_s", "log_prob_cpu_s")
# CPU seconds that 10,000 simulations may cost on two cores: training, draws, log-densities.
LIMITS = {"two_moons": (100, 2, 2), "gaussian_mixture": (100, 2, 2), "slcp": (150, 4, 2)}


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def section(name: str) -> str:
    """A table as Markdown, with the machine below it."""
    title, text = SECTIONS[name]
    rows = read(name)
    heads = [head for head in rows[0] if head != "machine"]
    lines = [f"| {' | '.join(head.replace('_', ' ') for head in heads)} |"]
    lines.append("|---" * len(heads) + "|")
    lines += [f"| {' | '.join(row[head] for head in heads)} |" for row in rows]
    table = "\n".join(lines)
    return f"## {title}\n\n{text}\n\n{table}\n\nMeasured on: {rows[0]['machine']}.\n"


def red(text: str, missed: bool) -> str:
    """`text`, in red and bold where a target is missed; the theme knows the red of its mode."""
    return f'<strong style="color: var(--pst-color-danger)">{text}</strong>' if missed else text


def posterior_row(rows: dict[str, dict[str, str]]) -> list[str]:
    """The cells of one task at one budget: C2ST of each method, then their costs."""
    ours = rows["EDM"]
    task, budget, target = ours["task"], ours["budget"], ours["target"]
    limits = LIMITS.get(task, ()) if budget == "10000" else ()
    cells = [task.replace("_", " "), f"{int(budget):,}"]
    for method in METHODS:
        mean = rows.get(method, {}).get("mean", "")
        missed = method == "EDM" and bool(mean and target) and float(mean) > float(target)
        cells.append(red(f"{float(mean):.3f}", missed) if mean else "-")
        if method == "EDM":
            cells.append(target or "-")
    for i, cost in enumerate(COSTS):
        values = [rows.get(method, {}).get(cost, "") for method in METHODS]
        missed = bool(limits and values[0]) and float(values[0] or 0) > limits[i]
        shown = [f"{float(value):.3g}" if value else "-" for value in values]
        cells.append(" / ".join([red(shown[0], missed), *shown[1:]]))
    return cells


def posteriors() -> str:
    """The table of `results/sbi.csv`, and why a method is missing where one is."""
    rows = read("sbi")
    groups: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["budget"]), {})[row["method"]] = row
    costs = ("training", "draws", "log-densities")
    heads = ["task", "simulations", "EDM", "target", *METHODS[1:], *costs]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(posterior_row(g))} |" for g in groups.values() if "EDM" in g]
    notes = [
        f"{row['method']} on {row['task'].replace('_', ' ')} ({row['budget']}): {row['note']}."
        for row in rows
        if row["note"]
    ]
    order = "Costs are EDM / NPE / NPSE."
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows))
    return "\n\n".join([POSTERIORS, "\n".join(lines), order, *notes, f"Measured on: {machines}."])


def plot() -> None:
    """Error against work, one panel a variable; each solver's worst mixture."""
    plotting.plt.switch_backend("agg")
    plotting.use_style()
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
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150, metadata={"Software": None})
    plotting.plt.close(figure)


if __name__ == "__main__":
    plot()
    parts = [INTRODUCTION, *(section(name) for name in SECTIONS), WORK_PRECISION]
    if (RESULTS / "sbi.csv").exists():
        parts.append(posteriors())
    (BOOK / "benchmarks.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
