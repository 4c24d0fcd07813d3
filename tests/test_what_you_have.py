"""The page "From what you have to what you need": its code runs, prints what the page shows, and
that is the truth. (About two CPU minutes, most of which compile the five fits.)"""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import norm

import edm_tutorial as edm

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.xdist_group("from_what_you_have")  # one worker runs the page, once
PAGE = (ROOT / "book/from_what_you_have.md").read_text()
IMPORTS, *PARTS = re.split(r"^#{2,3} (.+)$", PAGE, flags=re.MULTILINE)
SECTIONS = {
    title: text for title, text in zip(PARTS[::2], PARTS[1::2], strict=True) if "```python" in text
}


def block(language: str, text: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def exact_guided() -> tuple[float, ...]:
    """Mean and deviation of the class, and what guidance by exact denoisers makes of it."""
    one = lambda mean: edm.GaussianMixture(
        jnp.ones(1), jnp.full((1, 1), mean), jnp.full((1, 1, 1), 0.25)
    )
    both = edm.GaussianMixture(
        jnp.full(2, 0.5), jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.25)
    )
    guided = edm.Guided(one(1.0).denoise, both.denoise, 2.0)
    noise = jr.normal(jr.key(0), (4000, 1))
    x = jax.vmap(lambda noise: edm.sample(guided, noise, edm.edm_sigmas(64)))(noise)
    return 1.0, 0.5, float(x.mean()), float(x.std())


def two_signs() -> tuple[float, float, float]:
    """Evidence, mean size of the parameter whose square was seen as 0.25, and the standard error
    of that in 2,000 draws, by quadrature."""
    theta = np.linspace(-1, 1, 20_001)
    joint = norm.pdf(0.25, theta**2, 0.1) / 2
    evidence = trapezoid(joint, theta)
    size, square = (trapezoid(joint * np.abs(theta) ** n, theta) / evidence for n in (1, 2))
    return np.log(evidence), size, np.sqrt((square - size**2) / 2000)


GAUSSIAN = 0.5, -0.5 - np.log(2 * np.pi * 0.25)  # the log-density at (0.5, 0)
EVIDENCE, SIZE, ERROR = two_signs()
# The exact numbers, and how far off the printed ones may be: four standard errors of the draws,
# with half a digit for the rounding; for networks as much as three other seeds moved them.
TRUTH = {
    "A DDPM network": (GAUSSIAN, (0.021, 0.006)),
    "A score network": (GAUSSIAN, (0.021, 0.006)),
    "A flow": (GAUSSIAN, (0.021, 0.006)),
    "A plain network": ((1.0, 0.1), (0.08, 0.02)),
    "Classes and guidance": (exact_guided, (0.08, 0.06, 0.12, 0.08)),
    "Densities in bulk": ((0.0, 0.0), (1e-4, 1e-3)),  # 32 steps instead of adaptive ones
    "A measurement": ((0.64, np.sqrt(1 - 0.64 / 1.25)), (0.049, 0.037)),
    "A simulator": ((0.0, SIZE), (0.1, 0.03)),
    "A simulator with a likelihood": (
        (EVIDENCE, 1.0, SIZE, ERROR),
        (0.03, 0.3, 0.013, 0.001),
    ),
    "One observation that matters": (
        (0.5, 0.1, -0.26, np.sqrt(0.01 + 4 * 0.25 * 0.01 + 2 * 0.01**2)),
        (0.05, 0.03, 0.07, 0.04),
    ),
    "Every conditional": ((0.0, SIZE, 0.25, 0.1), (0.1, 0.04, 0.05, 0.06)),
    "Sets, series, images": ((10 / 11, np.sqrt(1 / 11)), (0.1, 0.06)),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> dict[str, str]:
    """What each section prints when the page is run from its top, in single precision."""
    pieces = [block("python", IMPORTS)]
    for title, text in SECTIONS.items():
        pieces += [f"print({'# ' + title!r})", block("python", text)]
    script = tmp_path_factory.mktemp("page") / "page.py"
    script.write_text("\n".join(pieces))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error::UserWarning", str(script)]  # a poor fit is one
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    parts = re.split(r"^# (.+)\n", ran.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_one_worker_runs_the_page(request):
    """pytest 9.2 ignores the groups of pytest-xdist 3.8: then every worker would run it."""
    grouped = getattr(request.config.option, "loadgroup", False)
    assert not grouped or request.node.nodeid.endswith("@from_what_you_have")


def test_every_section_has_its_truth_and_its_row():
    assert SECTIONS.keys() == TRUTH.keys()
    for title in SECTIONS:
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        assert f"[{title}](#{anchor})" in IMPORTS


@pytest.mark.parametrize("title", SECTIONS)
def test_a_block_is_short(title):
    lines = [line for line in block("python", SECTIONS[title]).splitlines() if line]
    assert len(lines) <= 15 and max(map(len, lines)) <= 88  # what fits beside the contents


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_prints_what_it_shows_and_that_is_true(printed, title):
    truth, tolerances = TRUTH[title]
    truth = truth() if callable(truth) else truth
    for text in (printed[title], block("text", SECTIONS[title])):
        assert re.sub(r"-?\d+\.?\d*(e-?\d+)?", "", text) == re.sub(
            r"-?\d+\.?\d*(e-?\d+)?", "", printed[title]
        )
        for got, exact, tolerance in zip(numbers(text), truth, tolerances, strict=True):
            assert got == pytest.approx(exact, abs=tolerance)


@pytest.mark.parametrize("title", SECTIONS)
def test_an_exact_number_of_the_prose_is_exact(title):
    """The numbers after the output with two or three decimals are those of `TRUTH`, rounded."""
    truth = TRUTH[title][0]
    truth = (1.0, 0.5) if callable(truth) else truth
    after = SECTIONS[title].rpartition("```")[2]
    for number in re.findall(r"(?<![\d./])-?\d\.\d{2,3}(?!\d|/)", after):
        digits = len(number.partition(".")[2])
        assert any(f"{exact:.{digits}f}" == number for exact in truth), number
