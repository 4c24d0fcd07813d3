"""The design-space explorer shows the package's numbers, and its errors mean what it says."""

import json
import re

import diffrax
import explorer
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return explorer.quantiles()


def explorer_index() -> dict:
    text = (explorer.FOLDER / "data.js").read_text()
    return json.loads(re.fullmatch(r"window\.explorer = \{ data: (.*) \};\n", text)[1])


@pytest.fixture(scope="module")
def index() -> dict:
    return explorer_index()


def block(name: str) -> list[np.ndarray]:
    text = (explorer.FOLDER / f"data-{name}.js").read_text()
    return explorer.decompress(re.fullmatch(r'explorer\.packed\("[^"]+", "([^"]+)"\);\n', text)[1])


def test_what_is_packed_comes_back(key):
    rows = []
    for n in explorer.STEPS:
        size = explorer.PATHS * len(explorer.vertices(n)) + 2 * explorer.SHOWN + explorer.BINS
        shape = (len(explorer.GRIDS) * len(explorer.MOVERS), size)
        rows.append(list(np.asarray(jr.bits(jr.fold_in(key, n), shape, jnp.uint8))))
    for row, back in zip(rows, explorer.decompress(explorer.compress(rows)), strict=True):
        np.testing.assert_array_equal(np.stack(row), back)


def test_the_distance_of_shifted_samples_is_the_shift(key, exact):
    """Far beyond the truth's width, W1 along a direction is the shift along it."""
    draws = jax.vmap(explorer.truth().sample)(jr.split(key, explorer.SAMPLES))
    shift = np.array([30.0, 0.0])
    angles = np.pi * np.arange(explorer.DIRECTIONS) / explorer.DIRECTIONS
    found = explorer.law_distance(np.asarray(draws) + shift, exact)
    # One direction is at a right angle to the shift; else samples' means err by 0.44/sqrt(n).
    expected = 30.0 * np.abs(np.cos(angles)).mean()
    assert found == pytest.approx(expected, abs=4 * 0.44 / explorer.SAMPLES**0.5)


def test_the_quantiles_are_those_of_the_truth(exact):
    """Their mean square is the variance along each direction: the mixture's mean is 0."""
    mixture = explorer.truth()
    second = jnp.einsum("k,kij->ij", mixture.weights, mixture.covs)
    second += jnp.einsum("k,ki,kj->ij", mixture.weights, mixture.means, mixture.means)
    e = np.stack([np.cos(a := np.pi * np.arange(16) / 16), np.sin(a)])
    expected = np.einsum("id,ij,jd->d", e, second, e)
    # The midpoint rule in probability misses a little of the tails.
    np.testing.assert_allclose((exact**2).mean(1), expected, rtol=2e-3)


@pytest.mark.slow
def test_the_exact_ends_are_those_of_an_adaptive_solver():
    """Diffrax, in ln(sigma): another method, another clock, and an error it controls."""
    mixture, z = explorer.truth(), explorer.noise()[:4]
    flow = edm.probability_flow(mixture.denoise)

    def velocity(log_sigma, x, args):
        return jnp.exp(log_sigma) * flow(jnp.exp(log_sigma), x, args)

    def end(noise):
        low, high = jnp.log(1e-4), jnp.log(explorer.HIGH)
        solution = diffrax.diffeqsolve(
            *(diffrax.ODETerm(velocity), diffrax.Tsit5(), high, low, -0.1),
            explorer.HIGH * noise,
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
        )
        return solution.ys[-1]

    ours = edm.edm_sigmas(2000, 1e-4, explorer.HIGH)
    ends = jax.vmap(lambda noise: edm.sample(mixture.denoise, noise, ours))(z)
    # Heun's error falls as 1/n^2, from 4e-4 (root mean square) at n = 144.
    np.testing.assert_allclose(ends, jax.vmap(end)(z), atol=1e-4)


CHOICES = [
    explorer.Choice("exact", 0, "edm-7", 18, "edm", "heun"),
    explorer.Choice("low", 0, "iddpm", 36, "vp", "euler"),
    explorer.Choice("high", 40, "ve", 9, "edm", "dpm"),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.denoiser}-{c.grid}-{c.solver}")
@pytest.mark.slow
def test_the_page_shows_what_the_package_computes(choice, exact, index):
    """To one step of the rounding: elsewhere the last digit may round the other way."""
    first = float(explorer.levels(choice.grid, 1)[0])
    shown = explorer.result(choice, explorer.exact_ends(first), exact)
    row = explorer.choices(choice.denoiser, choice.churn, choice.n).index(choice)
    step, name = explorer.STEPS.index(choice.n), f"{choice.denoiser}-{choice.churn}"
    stored = block(name)[step][row].astype(int)
    assert np.abs(stored - explorer.packed(shown)).max() <= 1
    errors = index["errors"][name]
    assert errors["law"][step][row] == pytest.approx(shown.law, rel=6e-3)
    if choice.churn:
        assert errors["path"][step][row] is None
    else:
        assert errors["path"][step][row] == pytest.approx(shown.path, rel=6e-3)


def test_the_orders_are_to_be_seen(index):
    """Twice the steps: half the error for Euler, a quarter for Heun and DPM++(2M)."""
    path = np.array(index["errors"]["exact-0"]["path"], float)
    first = index["grids"].index("edm-7") * len(index["movers"])
    for mover, order in {"edm-euler": 1, "edm-heun": 2, "edm-dpm": 2}.items():
        before, after = path[-2:, first + index["movers"].index(mover)]
        assert np.log2(before / after) == pytest.approx(order, abs=0.35), mover


def test_the_data_of_the_page_are_small():
    size = sum(path.stat().st_size for path in explorer.FOLDER.glob("data*.js"))
    assert 0 < size < 600_000


@pytest.mark.browser
def test_the_explorer_by_keyboard():
    """Arrow keys choose, the address keeps the choice, and the words tell the numbers."""
    browser_tools = pytest.importorskip("browser")
    if browser_tools.chromium() is None:
        pytest.skip("no Chromium: set $CHROMIUM or run `make browser`")
    index = explorer_index()
    with browser_tools.served() as site, browser_tools.launched() as browser:
        page = browser.new_page(viewport={"width": 375, "height": 900})
        address = "#levels=edm&rho=7&clock=edm&solver=euler&n=36&churn=0&denoiser=exact&error=path"
        browser_tools.settle(page, f"{site}/book/explorer.html{address}")
        page.focus("input[name=solver][value=euler]")
        page.keyboard.press("ArrowRight")
        page.focus("#explorer-n")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector('#explorer[data-shown*="solver=heun&n=18"]')
        assert "solver=heun&n=18" in page.url
        row = explorer.choices("exact", 0, 18).index(CHOICES[0])
        shown = index["errors"]["exact-0"]["path"][explorer.STEPS.index(18)][row]
        sentence = page.inner_text("#explorer-sentence")
        assert f"paths end {float(f'{shown:.2g}'):g} from" in sentence
        corners = block("exact-0")[2][row][: explorer.PATHS * len(explorer.vertices(18))]
        drawn = page.locator("#explorer-paths circle").evaluate_all(
            "c => c.map((e) => e.cy.baseVal.value)"
        )
        slope, start = np.polyfit(corners.astype(float), drawn, 1)
        np.testing.assert_allclose(start + slope * corners, drawn, atol=0.1)  # of a pixel

        # The code beside the drawings is the choice.
        page.click("summary:has-text('The numbers')")
        code = page.inner_text("#explorer-code")
        z = explorer.noise()
        ends = exec_each(code, explorer.truth().denoise, z)
        exact = explorer.exact_ends(explorer.HIGH)
        distance = np.sqrt(((ends - exact) ** 2).sum(1).mean())
        assert shown == pytest.approx(distance, rel=6e-3)
        page.close()


def exec_each(code: str, denoiser, z: np.ndarray) -> np.ndarray:
    def end(noise):
        names = {"edm": edm, "denoiser": denoiser, "noise": noise}
        exec(code, names)
        return names["x"]

    return np.asarray(jax.jit(jax.vmap(end))(z))
