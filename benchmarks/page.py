"""Fills the tables and numbers of `book/benchmarks.md` from `results/`, and draws its pictures.

A table of chapter 6 is filled, too: `make notebooks` then writes it into the notebook.

    python -m benchmarks.page

The page is written by hand, except for what stands between `<!-- name -->` and `<!-- end -->`: a
table where the marker ends its line, else a number within a sentence or a cell. The name is one of
`PARTS`, a table of `results/`, or one cell of a table: `unet_cost.compile_s where what=forward`. A
target follows it, `name: at most 1`; it is written beside the number, which is red if it misses.
"""

import re
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from benchmarks import joint, line, plots, posterior_samplers
from benchmarks.sbi import (
    BUDGETS,
    OBSERVATIONS,
    OURS,
    PEERS,
    ROUND_TARGETS,
    TARGETS,
    TOLD,
    in_rounds,
    rounds_of,
)
from benchmarks.timing import read

ROOT = Path(__file__).parents[1]
PAGE, CHAPTER = ROOT / "book" / "benchmarks.md", ROOT / "notebooks" / "06_sbi.md"
MARKED = re.compile(r"<!-- (?!end -->)([^\n]+?) -->((?:(?!<!--).)*)<!-- end -->", re.DOTALL)
TARGET = re.compile(r": (at most|at least) (?=\S+$)")
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?|-?\.\d+")
CELL = re.compile(r"(\w+)\.(\w+) where (.+)")
ABSENT = "not measured"
# CPU seconds that 10,000 simulations may cost on two cores: training, draws, log-densities.
LIMITS = {"two_moons": ("100", "2", "2"), "gaussian_mixture": ("100", "2", "2")}
LIMITS |= {"slcp": ("150", "4", "2")}
COSTS = ("train_cpu_s", "sample_cpu_s", "log_prob_cpu_s")
AS_POINTS, AS_STATISTICS = (f"{OURS}, {told}" for told in TOLD)


def fill(text: str) -> str:
    """The page, with everything between its markers written anew.

    Raises:
        ValueError: a marker without its other half, one that begins a line of prose, which
            Markdown would take for HTML, or a name that stands for nothing.
    """
    if wrong := re.search(r"^ *<!--[^\n]*?-->.*\S.*$", text, re.MULTILINE):
        raise ValueError(f"no line may begin with a number from a table, got {wrong[0]!r}")
    if wrong := re.search("<!--.*", MARKED.sub("", text)):
        raise ValueError(f"a marker needs its other half, got {wrong[0]!r}")

    def written(found: re.Match[str]) -> str:
        name, old = found.groups()
        new = f"\n\n{part(name)}\n\n" if old.startswith("\n") else part(name)
        return f"<!-- {name} -->{new}<!-- end -->"

    return MARKED.sub(written, text)


def part(marker: str) -> str:
    """What stands behind a marker: a number, beside its target if it has one, or a table."""
    name, *target = TARGET.split(marker)
    if name in PARTS:
        return judged(PARTS[name](), *target)
    if cell := CELL.fullmatch(name):
        table, column, conditions = cell.groups()
        wanted = dict(one.split("=", 1) for one in conditions.split(" and "))
        values = [row[column] for row in read(table) if wanted.items() <= row.items()]
        if len(values) < 2:
            return judged(values[0] if values else ABSENT, *target)
    elif rows := read(name):
        heads = [head for head in rows[0] if head != "machine"]
        cells = [[row[head] for head in heads] for row in rows]
        return markdown([head.replace("_", " ") for head in heads], cells) + machines(rows)
    raise ValueError(f"no table and no single cell stands behind {name!r}")


def judged(value: str, rule: str | None = None, bound: str | None = None, shown: str = "") -> str:
    """`value`, or how it is to be `shown`, beside its target; in red where it misses that."""
    shown = shown or value or "-"
    if not bound:
        return shown
    if value not in ("", ABSENT):
        number, goal = (float(NUMBER.findall(text)[0]) for text in (value, bound))
        shown = red(shown) if (number > goal if rule == "at most" else number < goal) else shown
    return f"{shown} ({rule} {bound})"


def red(text: str) -> str:
    """In red and bold; the theme knows the red of its mode."""
    return f'<strong style="color: var(--pst-color-danger)">{text}</strong>'


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in (heads, *rows)]
    head, *body = (f"| {line} |" for line in lines)
    return "\n".join([head, "|---" * len(heads) + "|", *body])


def machines(rows: list[dict[str, str]]) -> str:
    """The line below a table: every machine, each once."""
    names = dict.fromkeys(row["machine"] for row in rows if row.get("machine", ABSENT) != ABSENT)
    return f"\n\nMeasured on: {'; '.join(names)}." if names else ""


def fits() -> dict[tuple[str, str, str], list[list[dict[str, str]]]]:
    """Rows of `sbi.csv`: for each task, budget and method a list of fits with all observations."""
    found: dict[tuple[str, str, str], dict[str, list[dict[str, str]]]] = {}
    for row in read("sbi"):
        fit = found.setdefault((row["task"], row["budget"], row["method"]), {})
        fit.setdefault(row["seed"], []).append(row)
    whole = lambda rows: len(rows) == OBSERVATIONS or rows[0]["note"]
    return {name: kept for name, fit in found.items() if (kept := [*filter(whole, fit.values())])}


def mean_of(rows: list[dict[str, str]], column: str) -> float:
    """Over the observations of one fit; NaN where it failed or nothing was measured."""
    return float(np.mean([float(row[column] or "nan") for row in rows]))


def scores(runs: list[list[dict[str, str]]]) -> list[float]:
    """C2ST of each fit that did not fail, mean over its observations."""
    found = (mean_of(rows, "c2st") for rows in runs)
    return [score for score in found if np.isfinite(score)]


def standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def met(values: list[float], target: float) -> bool:
    """Whether the mean is below the target plus one standard error."""
    return bool(np.mean(values) <= target + standard_error(values))


def target_of(name: tuple[str, str, str]) -> float | None:
    task, budget, method = name
    if rounds_of(method) > 1:
        return ROUND_TARGETS.get((task, rounds_of(method))) if budget == "10000" else None
    if method == AS_POINTS:
        return between(task, budget)
    known = method == OURS and int(budget) in BUDGETS
    return TARGETS[task][BUDGETS.index(int(budget))] if known else None


def between(task: str, budget: str) -> float | None:
    """Two thirds of the way from what eight numbers give to what five statistics give."""
    ends = [scores(fits().get((task, budget, method), [])) for method in (OURS, AS_STATISTICS)]
    if not all(ends):
        return None
    flat, best = map(np.mean, ends)
    return round(float(flat - 2 / 3 * (flat - best)), 3)


def posteriors() -> str:
    """A row for each problem, budget and method: C2ST beside its target, CPU seconds, nats."""
    heads = ["problem", "simulations", "method", "seeds", "C2ST, mean", "median", "nats"]
    cells = []
    for name, runs in fits().items():
        task, budget, method = name
        limits = LIMITS.get(task, ()) if (method, budget) == (OURS, "10000") else ()
        costs = [np.median([mean_of(rows, column) for rows in runs]) for column in COSTS]
        costs = [
            judged("" if np.isnan(cost) else f"{cost:.3g}", "at most", most)
            for cost, most in zip_longest(costs, limits)
        ]
        named = [task.replace("_", " "), f"{int(budget):,}", method]
        named.append(" ".join(rows[0]["seed"] for rows in runs))
        cells.append([*named, *told(name, runs), *costs])
    heads = [*heads, "training", "draws", "log-densities"]
    return markdown(heads, cells) + machines(read("sbi"))


def told(name: tuple[str, str, str], runs: list[list[dict[str, str]]]) -> list[str]:
    """What `beside_goal` says, or why a method failed."""
    if not scores(runs):
        return [runs[0][0]["note"], "-", "-"]
    return beside_goal(runs, target_of(name))


def beside_goal(runs: list[list[dict[str, str]]], goal: float | None) -> list[str]:
    """Mean C2ST and its spread over seeds, the median over everything, -ln q."""
    values = scores(runs)
    shown = f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if values[1:] else "")
    shown = shown if goal is None or met(values, goal) else red(shown)
    beside = "" if goal is None else f" (at most {goal})"
    each = [float(row["c2st"]) for rows in runs for row in rows if row["c2st"]]
    nats = np.mean([mean_of(rows, "nats") for rows in runs])
    return [shown + beside, f"{np.median(each):.3f}", "-" if np.isnan(nats) else f"{nats:.3f}"]


def posteriors_met() -> str:
    named = fits().items()
    goals = [(scores(runs), goal) for name, runs in named if (goal := target_of(name)) is not None]
    return f"{sum(met(*pair) for pair in goals)} of {len(goals)}"


def joint_posteriors() -> str:
    """A row for each joint fit, all its seeds together: C2ST beside its target, nats, seconds."""
    found: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for row in read("joint"):
        fit = found.setdefault((row["variant"], row["budget"]), {})
        fit.setdefault(row["seed"], []).append(row)
    cells = []
    for (variant, budget), fit in found.items():
        runs = [rows for rows in fit.values() if len(rows) == OBSERVATIONS]
        goal = joint.TARGETS.get(variant) if budget == "10000" else None
        if runs:
            costs = [np.mean([mean_of(rows, column) for rows in runs]) for column in COSTS[:2]]
            seeds = " ".join(rows[0]["seed"] for rows in runs)
            named = [variant.replace("_", " "), f"{int(budget):,}", seeds]
            mean, *rest = beside_goal(runs, goal)
            plain = f"{np.mean([mean_of(rows, 'ode') for rows in runs]):.3f}"
            cells.append([*named, mean, plain, *rest, *(f"{cost:.3g}" for cost in costs)])
    heads = [
        "joint fit",
        "simulations",
        "seeds",
        "C2ST, mean",
        "without churn",
        "median",
        "nats",
        "training",
        "draws",
    ]
    return markdown(heads, cells) + machines(read("joint"))


def joint_gain() -> str:
    """What churn gains in C2ST, over observations of the same fit, and its standard error."""
    gains = [float(row["ode"]) - float(row["c2st"]) for row in read("joint")]
    return f"{np.mean(gains):.3f} ± {standard_error(gains):.3f}" if gains else ABSENT


def line_posteriors() -> str:
    """A row for each way of fitting the spectral line: medians over observations, over seeds."""
    rows, cells = read("line"), []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        seeds = sorted({row["seed"] for row in own})
        found = [line.medians([row for row in own if row["seed"] == seed]) for seed in seeds]
        shifts, widths = [shift for shift, _ in found], np.mean([width for _, width in found], 0)
        most, *ends = line.TARGETS.get(method, (None, None, None))
        spread = f" ± {np.std(shifts, ddof=1):.2f}" if shifts[1:] else ""
        shift = f"{np.mean(shifts):.2f}{spread}"
        shift = shift if most is None or met(shifts, most) else red(shift)
        shift += "" if most is None else f" (at most {most})"
        shown = " ".join(f"{width:.2f}" for width in widths)
        if ends[0] is not None:
            right = ends[0] <= widths.min() and widths.max() <= ends[1]
            shown = (shown if right else red(shown)) + f" ({ends[0]} to {ends[1]})"
        training = np.mean([float(row["train_cpu_s"]) for row in own])
        cells.append([method, " ".join(seeds), shift, shown, f"{training:.0f}"])
    heads = ["told", "seeds", "worst shift", "widths", "training"]
    return markdown(heads, cells) + machines(rows)


def samplers() -> str:
    """A row for each sampler: mean C2ST on each problem, and its gain over the default."""
    rows, cells = read("posterior_samplers"), []
    asked = list(dict.fromkeys(row["task"] for row in rows))
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        each = [[float(row["c2st"]) for row in own if row["task"] == task] for task in asked]
        gain = posterior_samplers.gains(rows, name)
        error = np.std(gain, ddof=1) / len(gain) ** 0.5
        shown = "-" if name == posterior_samplers.DEFAULT else f"{np.mean(gain):+.4f} ± {error:.4f}"
        cells.append([name, *(f"{np.mean(values):.3f}" for values in each), shown])
    heads = ["sampler", *(task.replace("_", " ") for task in asked), "gain, mean and its error"]
    return markdown(heads, cells) + machines(rows)


def beside_npse(task: str, column: str) -> str:
    """At 10,000 simulations: how many times our CPU seconds theirs are, or our C2ST less theirs."""
    known = fits()
    runs = [known.get((task, "10000", method), []) for method in (OURS, "sbi NPSE")]
    if not all(runs):
        return ABSENT
    ours, theirs = (np.mean([mean_of(rows, column) for rows in each]) for each in runs)
    return f"{ours - theirs:.3f}" if column == "c2st" else f"{theirs / ours:.1f}"


def bugs() -> str:
    """Every planted bug and its fate: the test that caught it, an excuse, or that it survived."""
    cells = []
    for row in read("mutants"):
        file, drawn, change = row["mutant"].partition(": ")
        what = f"`{file}` {row['what'].partition(': ')[0]}: `{change}`" if drawn else row["what"]
        fate = row["caught_by"]
        excused = fate.startswith("equivalent")
        told = f"`{fate}`" if fate.startswith("test_") else fate if excused else red(fate)
        cells.append([what, told])
    return markdown(["bug", "caught by"], cells)


def count(column: str, pattern: str) -> int:
    """How many planted bugs have a `column` that begins with a `pattern`."""
    return sum(bool(re.match(pattern, row[column])) for row in read("mutants"))


def share_caught() -> str:
    real = count("caught_by", "(?!equivalent)")
    return f"{100 * count('caught_by', 'test_') // real}%" if real else ABSENT


def gpu() -> str:
    """What `benchmarks.gpu` measured: a value beside its target, red where it misses it."""
    planned, cells = read("gpu"), []
    rows = [row for row in planned if "not reached" not in row["note"]]
    for row in rows:
        rule, bound = row["target"].rsplit(" ", 1) if row["target"] else (None, None)
        shown = judged(row["value"], rule, bound) if row["value"] else row["note"]
        cells.append([row["part"], row["what"], shown, row["unit"], row["note"]])
    heads = ["part", "what", "measured (target)", "unit", "note"]
    left = f" {len(planned) - len(rows)} rows of the run were not reached in the time there was."
    return markdown(heads, cells) + machines(rows) + left


def gpu_right() -> str:
    """How many rows of the GPU that ask for exactness have it."""
    found = [row["met"] for row in read("gpu") if row["part"] == "correctness" and row["met"]]
    shown = f"{found.count('yes')} of {len(found)}"
    return shown if "no" not in found else red(shown)


def gpu_training(what: str) -> str:
    """One number of the training step that counts: bfloat16, 256 images."""
    name = f"training, bfloat16{what}"
    return next((row["value"] for row in read("gpu") if row["what"] == name), ABSENT)


def over_seeds(name: str, *columns: str) -> str:
    """A row of means over seeds for each value of `columns`, with standard deviations."""
    rows, groups = read(name), {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    others = [head for head in rows[0] if head not in (*columns, "seed", "machine")]

    def mean(same: list[dict[str, str]], column: str) -> str:
        values = [float(row[column]) for row in same]
        spread = f" ± {np.std(values, ddof=1):.2g}" if len(set(values)) > 1 else ""
        middle = float(np.mean(values))
        return (f"{middle:,.0f}" if middle >= 100 else f"{middle:.4g}") + spread

    cells = [[*key, *(mean(same, column) for column in others)] for key, same in groups.items()]
    return markdown([head.replace("_", " ") for head in (*columns, *others)], cells) + machines(
        rows
    )


def mean_c2st(task: str, rounds: int) -> str:
    """Of 10,000 simulations, in so many rounds."""
    values = scores(fits().get((task, "10000", in_rounds(rounds)), []))
    return f"{np.mean(values):.2f}" if values else ABSENT


def by_budget() -> str:
    """A row for each problem and number of simulations of ours, the mean C2ST of each method."""
    found = {name: scores(runs) for name, runs in fits().items()}
    ours = [name[:2] for name in found if name[2] == OURS]
    methods = [m for m in (OURS, *PEERS) if any((*name, m) in found for name in ours)]
    cells = []
    for task, budget in sorted(ours, key=lambda name: (name[0], int(name[1]))):
        values = [found.get((task, budget, method)) for method in methods]
        shown = [f"{np.mean(value):.3f}" if value else "-" for value in values]
        cells.append([task.replace("_", " "), f"{int(budget):,}", *shown])
    return markdown(["problem", "simulations", "this package", *methods[1:]], cells)


PARTS = {
    "edm2_training": partial(over_seeds, "edm2_training", "network", "cpu_s"),
    "edm2_guidance": partial(over_seeds, "edm2_guidance", "guide", "weight"),
    "C2ST by budget": by_budget,
    "gpu": gpu,
    "gpu rows right": gpu_right,
    "gpu share of peak": partial(gpu_training, ", batch 256: of the measured peak"),
    "gpu over torch.compile": partial(gpu_training, ", over torch.compile, batch 256"),
    "joint": joint_posteriors,
    "joint gain": joint_gain,
    "line": line_posteriors,
    "posteriors": posteriors,
    "posterior_samplers": samplers,
    "posteriors met": posteriors_met,
    "bugs": bugs,
    "bugs planted": lambda: str(count("mutant", "")),
    "bugs caught": lambda: str(count("caught_by", "test_")),
    "bugs without effect": lambda: str(count("caught_by", "equivalent")),
    "bugs found elsewhere": lambda: str(count("mutant", r"\d\d")),
    "bugs drawn": lambda: str(count("mutant", ".*: ")),
    "share of bugs caught": share_caught,
}
for _task in TARGETS:
    PARTS[f"NPSE seconds, {_task}"] = partial(beside_npse, _task, "sample_cpu_s")
    PARTS[f"NPSE C2ST, {_task}"] = partial(beside_npse, _task, "c2st")
    for _rounds in (1, 2, 3):
        PARTS[f"C2ST of {_task}, rounds: {_rounds}"] = partial(mean_c2st, _task, _rounds)

if __name__ == "__main__":
    plots.draw_all()
    for path in (PAGE, CHAPTER):
        path.write_text(fill(path.read_text()))
