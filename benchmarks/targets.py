"""What the project holds itself to, what was measured, and why where it falls short.

Each target is read from the tables of `results/`, so that it cannot say what they do not.
"""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.timing import read


class Target(NamedTuple):
    what: str
    goal: str
    measured: str  # "" where it was not
    met: bool = False


TARGETS = """## Targets

{table}{reasons}"""

# Why a target is missed, by part of its name: shown only where it is.
REASONS = {
    "log-likelihood: MLP": "Log-likelihood of a network: the matrix products decide. An evaluation "
    "of the flow is one forward pass and two directional derivatives on either side, and forward "
    "passes in one program are about twice as fast as PyTorch's, called one by one (the row of the "
    "sampler). What one program gains beyond that shows where the denoiser is cheap, in the row of "
    "the mixture."
}


def red(text: str, missed: bool) -> str:
    """`text`, in red and bold where a target is missed; the theme knows the red of its mode."""
    return f'<strong style="color: var(--pst-color-danger)">{text}</strong>' if missed else text


def sampler() -> Iterator[Target]:
    for row in read("sampler_limit"):
        if (row.get("network", "MLP"), row["solver"]) == ("MLP", "Heun"):
            ratio = float(row["ratio"])
            what = "sampler over its separate calls (MLP, batch 10,000, N = 18)"
            yield Target(what, "at most 1.0", f"{ratio:.2f}", ratio <= 1.0)


def peers() -> Iterator[Target]:
    """Rows of other packages that have a target; the plain row of a package stands for it."""
    for row in read("peers"):
        if row["target"] and row["times_faster"]:
            times, goal = float(row["times_faster"]), float(row["target"])
            what = f"{row['what']}, against {row['peer']}"
            yield Target(what, f"at least {goal:g} times faster", f"{times:.1f}", times >= goal)
        elif row["note"].startswith("not measured"):
            yield Target(f"{row['what']}, against {row['peer']}", "side by side", "")


def posterior_draws() -> Iterator[Target]:
    """10,000 draws against NPSE, where both were run, at no worse C2ST."""
    goal = "at least 10 times fewer CPU seconds, at no worse C2ST"
    rows = {(row["task"], row["budget"], row["method"]): row for row in read("sbi")}
    pairs = [
        (row, rows.get((task, budget, "sbi NPSE"), {}))
        for (task, budget, method), row in rows.items()
        if method == "EDM" and budget == "10000"
    ]
    for ours, theirs in pairs:
        what = f"10,000 posterior draws against sbi NPSE, {ours['task'].replace('_', ' ')}"
        if theirs.get("mean"):
            times = float(theirs["sample_cpu_s"]) / float(ours["sample_cpu_s"])
            better = float(ours["mean"]) <= float(theirs["mean"])
            shown = f"{times:.1f} (C2ST {float(ours['mean']):.3f}, {float(theirs['mean']):.3f})"
            yield Target(what, goal, shown, times >= 10 and better)
        else:
            yield Target(what, goal, "")


def bugs() -> Iterator[Target]:
    rows = read("mutants")
    if rows:
        excused = sum(row["caught_by"].startswith("equivalent") for row in rows)
        caught = sum(row["caught_by"].startswith("test_") for row in rows)
        share = caught / (len(rows) - excused)
        yield Target("planted bugs caught", "at least 95 %", f"{100 * share:.0f} %", share >= 0.95)


def targets() -> str:
    """The table, and below it a reason for each that is missed."""
    found = [*sampler(), *peers(), *posterior_draws(), *bugs()]
    lines = ["| what | target | measured |", "|---|---|---|"]
    for one in found:
        shown = red(one.measured, not one.met) if one.measured else "not measured"
        lines.append(f"| {one.what} | {one.goal} | {shown} |")
    missed = [one.what for one in found if one.measured and not one.met]
    reasons = [text for name, text in REASONS.items() if any(name in what for what in missed)]
    return TARGETS.format(table="\n".join(lines), reasons="".join(f"\n\n{r}" for r in reasons))
