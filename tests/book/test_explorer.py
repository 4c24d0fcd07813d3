"""The explorer computes what the package computes, says so, and obeys mouse, touch and keys.

Chromium loads the page's own elements and scripts from the disk, so no built book is needed.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial.dynamics import with_derivative

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "book/explorer.md").read_text()
LOW, HIGH = 0.002, 80.0
VP = edm.VariancePreserving.from_range(LOW, HIGH)
CLOCKS = {"linear": edm.Linear(), "ve": edm.VarianceExploding(), "vp": VP}

# Both compute in float64 with the same formulas. Rounding of 1e-16 in x/sigma^2 times |x|^2 makes
# 1e-11 of a weight at the lowest level, and the steps may add up a hundred of them.
CLOSE = 1e-9


def test_the_five_lines_of_the_page_run():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    noise = jnp.array([0.5, -1.0])
    names = {"edm": edm, "jnp": jnp, "noise": noise}
    exec(code, names)
    assert len(code.splitlines()) == 5
    # ln(w_1 / w_2) = 1 at sigma = 1, and D is w_1 - w_2 from the middle.
    w = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(names["weights"], [1 - w, w], rtol=1e-12)
    np.testing.assert_allclose(names["D"], [2 * w - 1, 0], atol=1e-12)
    # VE's last step goes half of the way from sigma = 0.002 to the point (1, 0).
    np.testing.assert_allclose(names["path"][-1], [1, 0], atol=LOW)


@pytest.fixture(scope="module")
def browser():
    tools = pytest.importorskip("browser")
    if tools.chromium() is None:
        pytest.skip("no Chromium: set $CHROMIUM or run `make browser`")
    with tools.launched() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """The page's own elements, without the book around them."""
    blocks = re.findall(r":::\{raw\} html\n(.*?)\n:::", TEXT, re.DOTALL)
    elements = "\n".join(blocks).replace("../_static", (ROOT / "book/_static").as_uri())
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>t</title>'
    )
    file = tmp_path_factory.mktemp("explorer") / "explorer.html"
    file.write_text(f'<!doctype html><html lang="en">{head}<main>{elements}</main></html>')
    return file.as_uri()


class Opener:
    """Opens the page in a window; what the browser complains about is an error."""

    def __init__(self, browser, address: str):
        self.browser, self.address, self.complaints, self.pages = browser, address, [], []

    def __call__(self, choice: str = "", width: int = 1280, **options):
        page = self.browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"{self.address}#{choice}")
        page.wait_for_selector("#explorer[data-shown]")
        self.pages.append(page)
        return page


@pytest.fixture
def opened(browser, address) -> Iterator[Opener]:
    opener = Opener(browser, address)
    yield opener
    for page in opener.pages:
        page.close()
    assert not opener.complaints


@pytest.fixture(scope="module")
def page(browser, address):
    """One page for all tests of the mathematics."""
    page = browser.new_page()
    page.goto(address)
    yield page
    page.close()


def settled(page, choice: str) -> None:
    """Wait until the sampler has run for the choice that the address shows."""
    page.wait_for_function(
        "c => document.getElementById('explorer').dataset.shown === c", arg=choice
    )


# The mathematics


def close(found, exact) -> None:
    np.testing.assert_allclose(np.array(found), exact, rtol=0, atol=CLOSE)


@pytest.mark.browser
def test_weights_and_denoiser(page, key):
    keys = jr.split(key, 3)
    data, directions = jr.normal(keys[0], (12, 2)), jr.normal(keys[1], (40, 2))
    sigmas = jnp.geomspace(0.01, HIGH, 40)
    denoiser, x = edm.EmpiricalDenoiser(data), directions * jnp.hypot(1.0, sigmas)[:, None]
    script = """([data, x, sigmas]) => {
        const denoiser = edm.EmpiricalDenoiser(data);
        const all = (f) => x.map((v, i) => f(v, sigmas[i]));
        return [all(denoiser.weights), all(denoiser)];
    }"""
    weights, denoised = page.evaluate(script, [data.tolist(), x.tolist(), sigmas.tolist()])
    close(weights, jax.vmap(denoiser.weights)(x, sigmas))
    close(denoised, jax.vmap(denoiser)(x, sigmas))


GRIDS = {
    "edm.edm_sigmas(7)": edm.edm_sigmas(7),
    "edm.edm_sigmas(1)": edm.edm_sigmas(1),
    "edm.edm_sigmas(18, 0.01, 50, 3)": edm.edm_sigmas(18, 0.01, 50.0, 3.0),
    "edm.ve_sigmas(9)": edm.ve_sigmas(9),
    "edm.vp_sigmas(9)": edm.vp_sigmas(9),
    "edm.iddpm_table()": edm.iddpm_table(),
    "edm.iddpm_sigmas(18)": edm.iddpm_sigmas(18),
    "edm.iddpm_sigmas(397, 0.002, 80)": edm.iddpm_sigmas(397, LOW, HIGH),  # an index ends in .5
}


@pytest.mark.browser
@pytest.mark.parametrize("code", GRIDS)
def test_grids(page, code):
    # Powers and sines may differ in their last digits.
    np.testing.assert_allclose(page.evaluate(code), GRIDS[code], rtol=1e-12)


@pytest.mark.browser
@pytest.mark.parametrize("clock", CLOCKS)
def test_schedules(page, clock):
    """sigma(t), s(t), their derivatives and the inverse, which JAX differentiates by itself."""
    schedule = CLOCKS[clock]
    t = jax.vmap(schedule.time)(edm.edm_sigmas(12))
    codes = {"linear": "edm.Linear()", "ve": "edm.VarianceExploding()",
             "vp": "edm.VariancePreserving.from_range(0.002, 80)"}  # fmt: skip
    script = f"""(times) => {{
        const s = {codes[clock]};
        return times.map((t) => [
            s.sigma(t), s.sigma_dot(t), s.scale(t), s.scale_dot(t), s.time(s.sigma(t))]);
    }}"""
    found = page.evaluate(script, t.tolist())
    sigma = jax.vmap(lambda t: jnp.stack(with_derivative(schedule.sigma, t)))(t)
    scale = jax.vmap(lambda t: jnp.stack(with_derivative(schedule.scale, t)))(t)
    exact = jnp.concatenate([sigma, scale, t[:, None]], axis=1)
    # VP's ln(1 + sigma^2) is a difference near its lowest level and loses three digits.
    np.testing.assert_allclose(found, exact, rtol=1e-11)


ODES = {  # clock, levels, solver, churn; the levels of the page's own grids
    "Heun, EDM": ("linear", "edm_sigmas(18)", "Heun()", None),
    "Euler, EDM": ("linear", "edm_sigmas(9)", "Euler()", None),
    "one step": ("vp", "edm_sigmas(1)", "Heun()", None),
    "midpoint, VE": ("ve", "ve_sigmas(14)", "Heun(0.5)", None),
    "Euler, VP": ("vp", "vp_sigmas(20)", "Euler()", None),
    "Heun, VP's clock on iDDPM": ("vp", "iddpm_sigmas(20)", "Heun(0.7)", None),
    "churn": ("linear", "edm_sigmas(18)", "Heun()", "Churn(10)"),
    "churn, VE": ("ve", "edm_sigmas(12)", "Euler()", "Churn(3, 0.05, 50, 1.007)"),
    "churn, VP": ("vp", "edm_sigmas(12)", "Heun()", "Churn(4, 0.01, 10, 1.003)"),
}
SCHEDULES = """const schedules = { linear: edm.Linear(), ve: edm.VarianceExploding(),
    vp: edm.VariancePreserving.from_range(0.002, 80) };"""


def recorded(key, n: int, count: int = 5):
    """Points, starts, keys of their own, and the noise that the package draws with them."""
    data_key, noise_key, churn_key = jr.split(key, 3)
    keys = jr.split(churn_key, count)

    def drawn(key):
        return jax.vmap(lambda i: jr.normal(jr.fold_in(key, i), (2,)))(jnp.arange(n))

    draws = jax.vmap(drawn)(jr.clone(keys))
    return jr.normal(data_key, (12, 2)), jr.normal(noise_key, (count, 2)), keys, draws


@pytest.mark.browser
@pytest.mark.parametrize("name", ODES)
def test_the_sampler(page, key, name):
    """Every state of every path, with the noise that the package drew."""
    clock, grid, solver, churn = ODES[name]
    sigmas = eval(f"edm.{grid}")
    data, noise, keys, draws = recorded(key, len(sigmas))
    options = {"schedule": CLOCKS[clock], "solver": eval(f"edm.{solver}")}
    if churn:
        options["churn"] = eval(f"edm.{churn}")
    denoiser = edm.EmpiricalDenoiser(data)

    def path(noise, key):
        more = {"key": key} if churn else {}
        return edm.sample_path(denoiser, noise, sigmas, **options, **more)

    script = f"""([data, noise, draws]) => {{
        {SCHEDULES}
        const denoiser = edm.EmpiricalDenoiser(data);
        const churn = {f"edm.{churn}" if churn else "null"};
        const options = {{ schedule: schedules.{clock}, solver: edm.{solver}, churn }};
        return noise.map((z, i) =>
            edm.sample_path(denoiser, z, edm.{grid}, {{ ...options, draws: draws[i] }}));
    }}"""
    found = page.evaluate(script, [data.tolist(), noise.tolist(), draws.tolist()])
    close(found, jax.vmap(path)(noise, keys))


@pytest.mark.browser
@pytest.mark.parametrize("clock", CLOCKS)
def test_the_sde(page, key, clock):
    """Euler and Maruyama's method on the package's drift and diffusion."""
    schedule, sigmas = CLOCKS[clock], edm.edm_sigmas(16)
    data, noise, _, draws = recorded(key, len(sigmas))
    denoiser, times = edm.EmpiricalDenoiser(data), jax.vmap(schedule.time)(sigmas)
    drift, diffusion = edm.reverse_sde(denoiser, schedule)

    def path(noise, draws):
        def step(x, now):
            t, t_next, draw = now
            kick = diffusion(t, x, None).mv(draw) * jnp.sqrt(t - t_next)
            return x + (t_next - t) * drift(t, x, None) + kick, x

        first = noise * schedule.sigma(times[0]) * schedule.scale(times[0])
        x, states = jax.lax.scan(step, first, (times[:-1], times[1:], draws[:-1]))
        last = denoiser(x / schedule.scale(times[-1]), schedule.sigma(times[-1]))
        return jnp.concatenate([states, x[None], last[None]])

    script = f"""([data, noise, draws]) => {{
        {SCHEDULES}
        const denoiser = edm.EmpiricalDenoiser(data);
        return noise.map((z, i) => edm.sde_path(
            denoiser, z, edm.edm_sigmas(16), {{ schedule: schedules.{clock}, draws: draws[i] }}));
    }}"""
    found = page.evaluate(script, [data.tolist(), noise.tolist(), draws.tolist()])
    close(found, jax.vmap(path)(noise, draws))


@pytest.mark.browser
def test_the_noise_is_normal_and_the_same_for_the_same_seed(page):
    script = "seed => { const z = edm.normal(seed); return Array.from({ length: 20000 }, z); }"
    z, again, other = (np.array(page.evaluate(script, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(z, again)
    # Four standard errors: sqrt(1/n) of a mean, sqrt(2/n) of a variance, sqrt(96/n) of a kurtosis.
    error = 4 / len(z) ** 0.5
    for draws in (z, other):
        assert abs(draws.mean()) < error and abs(draws.var() - 1) < 2**0.5 * error
        assert abs((draws**4).mean() - 3) < 96**0.5 * error
        assert abs((draws[1:] * draws[:-1]).mean()) < error
    assert abs((z * other).mean()) < error


# The page


def numbers(pattern: str, words: str) -> tuple[str, ...]:
    """What the groups of a pattern find."""
    found = re.search(pattern, words)
    assert found, words
    return found.groups()


SAID = {  # a choice, and the numbers of the page's text that it leads to, in order
    "points=two&x=0.5_0&sigma=80": ("denoiser", r"weight (\d+)%", "both points weigh {}%"),
    "points=two&x=0.5_0&sigma=1": ("denoiser", r"weight (\d+)%", "the nearer one has {}%"),
    "points=two&x=0.5_0&sigma=0.5": ("denoiser", r"weight (\d+)%", "= 0.5$ it has {}%"),
    "points=two&x=0.5_0&sigma=4": ("denoiser", r"weight (\d+)%", "({}% at $\\sigma = 4$)"),
    "points=two&n=3": ("sampler", r"(\d+ of 200)", "even 3 steps take {} samples"),
    "n=3": ("sampler", r"(\d+) of 200", "On the spiral 3 steps take {} to another point"),
    "": ("sampler", r"(\d+) of 200", "than the exact ODE, 18 steps take {},"),
    "n=36": ("sampler", r"(\d+) of 200", "and 36 steps {}."),
    "clock=ve": ("sampler", r"(\d+ of 200)", "take {} elsewhere in VE's clock"),
    "clock=vp": ("sampler", r"(\d+) of 200", "in VE's clock, {} in VP's"),
    "points=ring&shift=1": ("sampler", r"shares are (\S+)", "their shares are {} from even"),
    "points=ring&shift=1&way=churn": ("sampler", r"shares are (\S+)", "With churn it is {},"),
    "points=ring&shift=1&way=sde": ("sampler", r"shares are (\S+)", "the SDE has {};"),
    "points=ring&shift=1&way=churn&s_max=0.3": (
        "sampler", r"shares are (\S+)", "already belongs to its point: {}."),
    "points=ring": (
        "sampler", r"themselves: (\S+)\.$", "of the points themselves are on average {} away"),
}  # fmt: skip


@pytest.mark.browser
def test_the_numbers_of_the_text_are_those_of_the_page(opened):
    page, text = opened(), re.sub(r"\s+", " ", TEXT)
    for choice, (part, number, sentence) in SAID.items():
        page.evaluate("c => explorer.choose(choices.read(c))", choice)
        settled(page, page.evaluate("c => choices.address(choices.read(c))", choice))
        words = page.inner_text(f"#explorer-{part}-words")
        assert sentence.format(*numbers(number, words)) in text, (choice, words)


@pytest.mark.browser
def test_the_fair_distance_is_that_of_draws(opened):
    """Of 200 draws with equal chances: the mean distance of 8 shares from even, a closed form."""
    words = opened("points=ring").inner_text("#explorer-sampler-words")
    n, p, m = 200, 1 / 8, 26  # de Moivre: E|k - n p| = 2 m C(n, m) p^m (1-p)^(n-m+1), m = [np] + 1
    exact = 8 / 2 * 2 * m * math.comb(n, m) * p**m * (1 - p) ** (n - m + 1) / n
    # The page takes a normal for the binomial, to 1/(12 n p (1-p)), and shows two digits.
    assert float(numbers(r"themselves: (\S+)\.$", words)[0]) == pytest.approx(exact, rel=0.012)


@pytest.mark.browser
@pytest.mark.parametrize("choice", [
    "points=two&x=0.5_0.25&sigma=1&n=3&alpha=0.7", "clock=vp&grid=vp&solver=euler&n=6",
    "points=ring&clock=ve&grid=iddpm&way=sde&n=8", "points=0_0_1_1_-1_0.5&clock=vp&n=5",
])  # fmt: skip
def test_the_python_under_the_drawings_is_the_choice(opened, choice):
    page = opened(choice)
    found = page.evaluate("(({ noise, draws, paths }) => [noise, draws, paths])(explorer.found())")
    noise, draws, paths = ([rows[i] for i in range(3)] for rows in found)
    page.click("summary")
    # The ends are points, whatever the path: compare the paths.
    code = page.inner_text("#explorer-code").replace("edm.sample(", "edm.sample_path(")
    for z, draw, path in zip(noise, draws, paths, strict=True):
        names = {"edm": edm, "jnp": jnp, "noise": jnp.array(z), "draws": jnp.array(draw)}
        exec(code, names)
        close(path if "way=sde" not in choice else path[-1], names["x"])
        said = page.inner_text("#explorer-denoiser-words").replace("−", "-")
        denoised = [float(v) for v in numbers(r"D = \((.*?), (.*?)\)", said)]
        np.testing.assert_allclose(denoised, names["D"], atol=0.005 + 1e-9)  # two decimals


@pytest.mark.browser
def test_by_keyboard(opened):
    """Every control is reached by Tab; arrows move x, Enter and Backspace put and take points."""
    page = opened("points=two&x=0_0")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    controls = page.evaluate("""[...document.querySelectorAll(
        "#explorer :is(input, button, svg[tabindex])")].filter(
        (e) => !e.disabled && e.checkVisibility()).map((e) => e.id || e.name)""")
    assert set(controls) <= reached
    page.focus("#explorer-plane")
    page.evaluate("window.before = explorer.found()")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(100)
    assert page.evaluate("before === explorer.found()"), "x moved, and the sampler ran again"
    for pressed in ("ArrowRight", "Shift+ArrowUp", "Enter"):
        page.keyboard.press(pressed)
    settled(page, "points=-1_0_1_0_0.05_0.25&x=0.05_0.25")
    words = page.inner_text("#explorer-denoiser-words")
    assert "nearest point, (0.05, 0.25), is 0 away" in words and "of 3 points" in words
    assert page.locator("#explorer-plane .datum").count() == 3
    page.keyboard.press("Backspace")
    settled(page, "points=-1_0_1_0&x=0.05_0.25")
    page.focus("#explorer-n")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#explorer-n", "aria-valuetext") == "16 (31 calls)"
    settled(page, "points=-1_0_1_0&x=0.05_0.25&n=16")
    for live in ("denoiser", "sampler"):
        assert page.get_attribute(f"#explorer-{live}-words", "aria-live") == "polite"


def at(page, point: tuple[float, float]) -> tuple[float, float]:
    """The place in the window of a point of the denoiser's plane, which shows -2 to 2."""
    box = page.locator("#explorer-plane").bounding_box()
    a, b = point
    return box["x"] + box["width"] * (a + 2) / 4, box["y"] + box["height"] * (2 - b) / 4


def count(page) -> int:
    return page.locator("#explorer-plane .datum").count()


@pytest.mark.browser
def test_by_mouse(opened):
    """Dragging draws a row of points, or moves x; what is erased is gone; presets come back."""
    page = opened("points=two")
    page.click("#explorer-clear")
    assert "no point" in page.inner_text("#explorer-denoiser-words") and count(page) == 0
    page.mouse.move(*at(page, (-1, 1)))
    page.mouse.down()
    page.mouse.move(*at(page, (1, 1)), steps=20)
    page.mouse.up()
    assert count(page) == 11  # the pointer stops every 0.1, and points lie 0.12 apart or more
    page.check("[name=explorer-mode][value=erase]", force=True)
    page.mouse.click(*at(page, (-1, 1)))
    assert count(page) == 10
    page.check("[name=explorer-mode][value=move]", force=True)
    page.mouse.click(*at(page, (0.5, -0.5)))
    assert "x = (0.50, −0.50)" in page.inner_text("#explorer-denoiser-words")
    assert count(page) == 10
    page.click("#explorer-two")
    assert page.get_attribute("#explorer-two", "aria-pressed") == "true" and count(page) == 2
    page.click("#explorer-noise")
    settled(page, "points=two&x=0.5_-0.5&seed=2")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(opened, scheme):
    """A finger draws; nothing is wider than the window; letters have 8 px; the picture stays."""
    page = opened("mode=draw&points=two", 375, has_touch=True, color_scheme=scheme)
    page.locator("#explorer-plane").scroll_into_view_if_needed()
    page.touchscreen.tap(*at(page, (0, 1)))
    assert count(page) == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    smallest = page.evaluate("""Math.min(...[...document.querySelectorAll("#explorer text")].map(
        (e) => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a))""")
    assert smallest >= 8
    page.locator("#explorer-shift").scroll_into_view_if_needed()
    assert page.locator("#explorer-sampler").evaluate("e => e.getBoundingClientRect().top") >= 0


@pytest.mark.browser
def test_an_address_is_a_choice(opened):
    """What it says is shown, what it cannot mean is left out, and a heading is no choice."""
    choice = "points=ring&seed=3&clock=vp&grid=ve&way=churn&n=9&s_churn=5"
    page = opened(choice + "&rho=-1&solver=rk45&x=1_two&s_min=7")
    assert page.evaluate("choices.address(explorer.state)") == choice
    settled(page, choice)
    assert page.is_checked("[name=explorer-grid][value=ve]")
    assert page.is_disabled("#explorer-rho") and page.is_visible("#explorer-s_churn")
    page.evaluate("location.hash = 'way=sde'")
    settled(page, "way=sde")
    assert page.is_disabled("#explorer-alpha") and not page.is_visible("#explorer-s_churn")
    page.evaluate("location.hash = 'how-it-is-computed'")
    page.wait_for_function("location.hash === '#how-it-is-computed'")
    page.wait_for_timeout(100)  # a choice would have been made by now
    assert page.evaluate("choices.address(explorer.state)") == "way=sde"


@pytest.mark.browser
def test_the_experiments_set_the_page(opened):
    page = opened(width=375)
    buttons = page.locator("[data-explorer]")
    assert buttons.count() == 3
    for i in range(3):
        choice = buttons.nth(i).get_attribute("data-explorer")
        buttons.nth(i).click()
        settled(page, choice)
        picture = page.locator(f"#explorer-{buttons.nth(i).get_attribute('data-show')}")
        assert 0 <= picture.evaluate("e => e.getBoundingClientRect().top") < 400


@pytest.mark.browser
def test_motion_is_asked_for_and_may_be_reduced(opened):
    """Nothing moves by itself; Play does, but for readers who want no motion."""
    page = opened("points=two")
    place = "() => document.querySelector('#explorer-sampler .dot').getAttribute('cx')"
    ends = page.evaluate(place)
    page.click("#explorer-play")
    page.wait_for_function(f"end => ({place})() !== end", arg=ends)
    page.wait_for_function(f"end => ({place})() === end", arg=ends)
    page.focus("#explorer-step")
    page.keyboard.press("Home")
    assert page.get_attribute("#explorer-step", "aria-valuetext") == "0 of 18, σ = 80"
    assert page.evaluate(place) != ends
    still = opened("points=two", reduced_motion="reduce")
    assert not still.is_visible("#explorer-play") and still.is_visible("#explorer-step")


@pytest.mark.browser
def test_every_curve_that_is_drawn_has_only_numbers(opened):
    """VP's noise level is not defined just above time 0, where straight steps pass."""
    page = opened()
    for choice in (
        "clock=vp&n=4",
        "clock=vp&grid=vp&below=2",
        "n=1",
        "clock=ve&way=sde",
        "points=",
    ):
        page.evaluate("c => explorer.choose(choices.read(c))", choice)
        settled(page, choice)
        assert not re.search(r"NaN|Infinity|undefined", page.inner_html("#explorer"))
