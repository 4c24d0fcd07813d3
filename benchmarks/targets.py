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
    "against torch 2": (
        "Sampler against PyTorch: matrix products take 0.43 of our 0.74 s, and as much of "
        "PyTorch's. What its loop does between them depends on where a start puts things in "
        "memory: with pages at hand it takes 0.83 s in all, where glibc asks the system for "
        "half a million of them a run, 1.4 s and more. Drawn in pieces that fit the cache, by "
        "`jax.lax.map` and by slices, ours takes 0.60 s and PyTorch's 0.80 s."
    ),
    "log-likelihood: MLP": (
        "Log-likelihood of a network: neither side wastes much. For 500 points an evaluation of "
        "the flow takes 4 to 5 ms on both: a forward pass and two directional derivatives are "
        "three times the matrix products of a forward pass, 2.0 ms at 150 GFLOP/s, and about as "
        "much again for norms, SiLU and their slopes. And both evaluate equally often: 210 "
        "times on 36 levels, 218 times by dopri5 at 1e-6. What one program gains shows where "
        "the denoiser is cheap, in the row of the mixture."
    ),
    "U-Net training step": (
        "Training step of the U-Net: the forward pass is faster than PyTorch's, the way back "
        "slower. By the two profilers, 66 % of PyTorch's step are 3x3 and 1x1 convolutions, 4 % "
        "group norms, 4 % SiLU and 7 % Adam. Ours spends no more time in convolutions, but more "
        "between them: 42 % are 3x3 convolutions, 9 % matrix products, 18 % images brought into "
        "the order of axes that gradients of weights want, with the chains of sums along the "
        "skips computed anew for each, and 5 % other reductions. Much of the rest is "
        "elementwise passes: XLA on CPU writes one result at a time, so SiLU and its slope are "
        "two passes. Tried, and no faster: group norms with a derivative of their own and 1x1 "
        "kernels as convolutions (1.00 times), gradients of weights as products of patches or "
        "of shifts (1.1 to 4 times slower), barriers, which XLA on CPU drops before it fuses, "
        "and its flags: oneDNN, vectors of 512 bits and other schedulers (1.00 to 0.93 times), "
        "YNNPACK (1.6 times slower with its products, 2.2 times with its convolutions). On "
        "32x32 images with 64 channels PyTorch's convolutions pull ahead: forward 0.98, "
        "training step 0.58."
    ),
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


def unets() -> Iterator[Target]:
    """On every device that was measured: over their limits, and images a second over PyTorch's."""
    goals = {"sampler": 1.05, "training": 1.25}
    for row in read("unet_limit"):
        if (name := row["what"].partition(",")[0]) in goals:
            ratio, goal = float(row["ratio"]), goals[name]
            what = f"{name} of a U-Net over its limit, {row['device']}"
            yield Target(what, f"at most {goal:g}", f"{ratio:.2f}", ratio <= goal)
    for row in read("unet_torch"):
        what = f"U-Net {row['what']}, images a second over those of PyTorch, {row['device']}"
        if row["what"] != "not measured":
            ratio = float(row["ours_over_torch"])
            yield Target(what, "at least 1.0", f"{ratio:.2f}", ratio >= 1.0)


def peers() -> Iterator[Target]:
    """Rows of other packages that have a target; the plain row of a package stands for it."""
    for row in read("peers"):
        if row["target"] and row["times_faster"]:
            times, goal = float(row["times_faster"]), float(row["target"])
            what = f"{row['what']}, against {row['peer']}"
            yield Target(what, f"at least {goal:g} times faster", f"{times:.2f}", times >= goal)
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
    found = [*sampler(), *unets(), *peers(), *posterior_draws(), *bugs()]
    lines = ["| what | target | measured |", "|---|---|---|"]
    for one in found:
        shown = red(one.measured, not one.met) if one.measured else "not measured"
        lines.append(f"| {one.what} | {one.goal} | {shown} |")
    missed = [one.what for one in found if one.measured and not one.met]
    reasons = [text for name, text in REASONS.items() if any(name in what for what in missed)]
    return TARGETS.format(table="\n".join(lines), reasons="".join(f"\n\n{r}" for r in reasons))
