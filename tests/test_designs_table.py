"""What a printed design says is what its objects are: values, formulas, wrappers."""

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial import designs
from edm_tutorial.book.table1 import table

COLUMNS = {f.__name__: f() for f in (designs.vp, designs.ve, designs.iddpm, designs.edm)}
each_column = pytest.mark.parametrize("design", COLUMNS.values(), ids=COLUMNS)

# The printed formulas are Python but for "^" and products without a sign.
FUNCTIONS = {"sqrt": np.sqrt, "exp": np.exp, "ln": np.log, "abs": np.abs}


def values(text: str) -> dict[str, float]:
    """The "name = number" pairs of one printed row."""
    pairs = re.findall(r"(\w+) = ([-+.\de]+)", text.rpartition("; ")[2])
    return {name: float(number) for name, number in pairs}


def evaluate(text: str, **names: float) -> float:
    formula, _, _ = text.partition(";")
    formula = formula.replace("^", "**").replace("sigma sigma_data", "sigma * sigma_data")
    formula = re.sub(r"(beta_\w+) t", r"\1 * t", formula)
    return float(eval(formula, {**FUNCTIONS, **names, **values(text)}))


def numbers(part: Any) -> dict[str, Any]:
    """The numeric arguments of an object and of the objects in it, read independently."""
    fields = {f.name.lstrip("_"): getattr(part, f.name) for f in dataclasses.fields(part)}
    inner = [value for value in fields.values() if dataclasses.is_dataclass(value)]
    out = {k: v for k, v in fields.items() if isinstance(v, float | int)}
    for part in inner:
        out |= numbers(part)
    return out


@each_column
def test_printed_values_are_those_of_the_objects(design):
    rows = design.rows()
    for name, part in [
        ("Solver", design.solver),
        ("Schedule sigma(t)", design.schedule),
        ("Parameters", design.preconditioning),
        ("Noise distribution", design.sigma_dist),
    ]:
        assert values(rows[name]) == pytest.approx(numbers(part)), name
    defaults = inspect.signature(design.grid).parameters.values()
    defaults = {p.name: p.default for p in defaults if p.default is not p.empty}
    computed = {"j_0": 8, "j_1": 999} if design is COLUMNS["iddpm"] else {}
    assert values(rows["Time steps"]) == pytest.approx(defaults | computed)
    assert all(f"{value:g}" in str(design) for value in defaults.values())


@each_column
def test_printed_formulas_compute_what_the_objects_do(design):
    rows = design.rows()
    t = 0.37
    sigma = float(design.schedule.sigma(jnp.float64(t)))
    scale = float(design.schedule.scale(jnp.float64(t)))
    assert evaluate(rows["Schedule sigma(t)"], t=t) == pytest.approx(sigma, rel=1e-12)
    assert evaluate(rows["Scaling s(t)"], sigma=sigma) == pytest.approx(scale, rel=1e-12)

    c = design.preconditioning(jnp.float64(sigma))
    known = {"sigma": sigma, **values(rows["Parameters"])}
    for name in ("c_skip", "c_out", "c_in"):
        got = evaluate(rows[name], **known)
        assert got == pytest.approx(float(getattr(c, name)), rel=1e-12), name
    weight = float(design.preconditioning.loss_weight(jnp.float64(sigma)))
    assert evaluate(rows["Loss weighting"], **known) == pytest.approx(weight, rel=1e-12)


def test_noise_labels():
    """c_noise is not always a formula of sigma alone, so each is checked by hand."""
    sigma = 0.7
    table = np.asarray(edm.iddpm_table())
    expected = {
        "vp": ("(levels - 1) t(sigma)", 999 * designs.vp().schedule.time(sigma)),
        "ve": ("ln(sigma/2)", np.log(sigma / 2)),
        "iddpm": (
            "levels - 1 - argmin_j abs(u_j - sigma)",
            999 - np.argmin(np.abs(table - sigma)),
        ),
        "edm": ("ln(sigma)/4", np.log(sigma) / 4),
    }
    for name, (formula, value) in expected.items():
        design = COLUMNS[name]
        assert design.rows()["c_noise"] == formula
        got = float(design.preconditioning(jnp.float64(sigma)).c_noise)
        assert got == pytest.approx(float(value), rel=1e-12)


def test_grid_formulas_compute_the_grids():
    n = 7
    i = np.arange(n)
    ve = designs.ve()
    p = values(ve.rows()["Time steps"])
    expected = p["sigma_max"] * (p["sigma_min"] / p["sigma_max"]) ** (i / (n - 1))
    assert "sigma_max (sigma_min/sigma_max)^(i/(N-1))" in ve.rows()["Time steps"]
    np.testing.assert_allclose(ve.grid(n), expected, rtol=1e-12)

    p = values(designs.edm().rows()["Time steps"])
    a, b = p["sigma_max"] ** (1 / p["rho"]), p["sigma_min"] ** (1 / p["rho"])
    expected = (a + i / (n - 1) * (b - a)) ** p["rho"]
    assert "(a + i/(N-1) (b - a))^rho" in designs.edm().rows()["Time steps"]
    np.testing.assert_allclose(designs.edm().grid(n), expected, rtol=1e-12)

    text = designs.vp().rows()["Time steps"]
    p = values(text)
    t = 1 + i / (n - 1) * (p["eps"] - 1)
    schedule = edm.VariancePreserving(p["beta_d"], p["beta_min"])
    expected = [float(schedule.sigma(jnp.float64(time))) for time in t]
    assert "t_i = 1 + i/(N-1) (eps - 1)" in text
    np.testing.assert_allclose(designs.vp().grid(n), expected, rtol=1e-12)


@pytest.mark.parametrize("changed", [{}, {"sigma_min": 0.0065, "sigma_max": 80.0, "levels": 600}])
def test_the_printed_recursion_computes_the_grid_of_iddpm(changed):
    """The trained levels, j_0 and the rounding are read from the text.

    In the changed range, n = 5 has indices half-way between two levels.
    """
    base = COLUMNS["iddpm"]
    grid = functools.partial(edm.iddpm_sigmas, **changed)
    design = edm.Design(grid, base.schedule, base.solver, base.preconditioning, base.sigma_dist)
    text = design.rows()["Time steps"]
    u_formula = text.split("u_(j-1) = ")[1].split(", a_j")[0]
    a_formula = text.split("a_j = ")[1].split(";")[0]
    signs = {"^": "**", "pi/2 j": "pi/2 * j", "levels (": "levels * ("}
    signs |= {"a_(j-1)": "a[j - 1]", "a_j": "a[j]", "u_j": "u[j]"}
    for old, new in signs.items():
        u_formula, a_formula = u_formula.replace(old, new), a_formula.replace(old, new)

    p = values(text)
    names = {**FUNCTIONS, **p, "sin": np.sin, "pi": np.pi, "max": max}
    last = int(p["levels"])
    assert "; u_levels = 0, " in text
    u, a = np.zeros(last + 1), eval(a_formula, names | {"j": np.arange(last + 1)})
    for j in range(last, 0, -1):
        u[j - 1] = eval(u_formula, names | {"u": u, "a": a, "j": j})

    assert text.startswith("u_j with j = j_0 + round(i (j_1 - j_0)/(N-1)), halves to even; ")
    first, span = int(p["j_0"]), int(p["j_1"] - p["j_0"])
    assert first == np.argmax(u <= p["sigma_max"])
    for n in (5, 7):  # Python's round() takes halves to the even number
        index = [first + round(i * span / (n - 1)) for i in range(n)]
        np.testing.assert_allclose(grid(n), u[index], rtol=1e-9)


def test_changed_parameters_show():
    design = edm.Design(
        functools.partial(edm.edm_sigmas, rho=3.0, sigma_max=20.0),
        edm.VariancePreserving(beta_d=12.5),
        edm.Heun(alpha=0.5),
        edm.EDMPreconditioning(0.31),
        edm.LogNormal(p_mean=-0.4),
    )
    rows = design.rows()
    assert values(rows["Time steps"])["rho"] == 3.0
    assert values(rows["Time steps"])["sigma_max"] == 20.0
    assert values(rows["Schedule sigma(t)"])["beta_d"] == 12.5
    assert values(rows["Solver"]) == {"alpha": 0.5}
    assert values(rows["Parameters"]) == {"sigma_data": 0.31}
    assert values(rows["Noise distribution"])["p_mean"] == -0.4


def test_sigma_data_per_feature_shows():
    base = COLUMNS["edm"]
    sigma_data = edm.EDMPreconditioning(jnp.array([0.25, 3.0]))
    design = edm.Design(base.grid, base.schedule, base.solver, sigma_data, base.sigma_dist)
    assert "sigma_data = [0.25 3.  ]" in str(design)


def test_wrapped_schedules_show_their_own_scaling():
    def rows(schedule):
        parts = COLUMNS["vp"]
        return edm.Design(
            parts.grid, schedule, parts.solver, parts.preconditioning, parts.sigma_dist
        ).rows()

    vp = rows(edm.VariancePreserving())
    plain = rows(edm.Unscaled(edm.VariancePreserving()))
    assert plain["Schedule sigma(t)"] == vp["Schedule sigma(t)"]
    assert plain["Scaling s(t)"] == "1" != vp["Scaling s(t)"]
    scaled = rows(edm.VarianceScaled(edm.VarianceExploding()))
    assert scaled["Schedule sigma(t)"] == "sqrt(t)"
    assert scaled["Scaling s(t)"] == vp["Scaling s(t)"]
    rounded = rows(edm.Rounded(edm.VariancePreserving(), edm.iddpm_table()))
    assert rounded["Schedule sigma(t)"].startswith("Rounded: sqrt(exp(")
    assert "beta_d = 19.9" in rounded["Schedule sigma(t)"]
    assert rounded["Scaling s(t)"] == vp["Scaling s(t)"]


def test_a_part_of_ones_own_is_shown_by_name():
    def my_grid(n, top=5.0):
        return edm.edm_sigmas(n, sigma_max=top)

    class Clock(edm.AbstractSchedule):
        power: float = 1.5

        def sigma(self, t):
            return jnp.asarray(t) ** self.power

        def time(self, sigma):
            return jnp.asarray(sigma) ** (1 / self.power)

        def scale(self, t):
            return jnp.ones_like(jnp.asarray(t))

    base = COLUMNS["edm"]
    design = edm.Design(my_grid, Clock(), base.solver, base.preconditioning, base.sigma_dist)
    rows = design.rows()
    assert rows["Time steps"] == "my_grid; top = 5"
    assert rows["Schedule sigma(t)"] == "Clock; power = 1.5"


def test_table_is_the_columns_side_by_side():
    lines = table().splitlines()
    assert {line.count("|") for line in lines} == {6}  # a cell with "|" would break it
    cells = [[cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["", "VP", "VE", "iDDPM", "EDM"]
    body = {row[0]: row[1:] for row in cells[2:]}
    columns = [COLUMNS[name].rows() for name in ("vp", "ve", "iddpm", "edm")]
    for name in columns[0]:
        assert body[name] == [column[name] for column in columns]
    assert [n for n in body if n not in columns[0]] == [
        "Sampling",
        "Network and preconditioning",
        "Training",
    ]


def test_table_of_chosen_designs():
    text = table({"mine": designs.edm(0.2), "theirs": designs.ve()})
    assert text.startswith("| | mine | theirs |")
    assert "sigma_data = 0.2" in text


@pytest.mark.parametrize("make", [designs.vp, designs.ve, designs.iddpm, designs.edm])
def test_a_printed_design_fits_eighty_columns(make):
    """What is too long goes on under its value; no word is lost."""
    design = make()
    lines, rows = str(design).split("\n"), design.rows()
    assert max(map(len, lines)) <= 80
    printed = " ".join(str(design).split())
    assert all(f"{name} {' '.join(text.split())}" in printed for name, text in rows.items())
    assert any(line.startswith(" " * 22) for line in str(designs.iddpm()).split("\n"))
