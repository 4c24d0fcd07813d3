"""What the repository promises beside the mathematics: one address, one set of
versions, one test command, a README that runs, and a core that installs light."""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_architecture import CARRIED, carried, imports

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
URL = PROJECT["urls"]["Repository"]


def tracked() -> list[Path]:
    """Every file of the repository, as git sees it, new ones included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    files = (ROOT / name.decode() for name in listing.stdout.split(b"\0") if name)
    return [file for file in files if file.is_file()]


def own_text() -> dict[str, str]:
    """Tracked files that we wrote: text, and nobody else's."""
    texts = {}
    for file in tracked():
        name = file.relative_to(ROOT).as_posix()
        vendored = re.search(r"^LICENSE$|^book/_static/.*mathjax", name, re.IGNORECASE)
        data = file.read_bytes()
        if not vendored and b"\0" not in data and not name.endswith(".svg"):
            texts[name] = data.decode()
    return texts


TEXT = own_text()


# Versions: three files, one truth


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and line[0] != "#"]
    pinned = {canonicalize_name(r.name): str(r.specifier) for r in found}
    assert len(pinned) == len(found), "a package is pinned twice"
    assert all(re.fullmatch(r"==[^,*]+", spec) for spec in pinned.values())
    return {name: spec.removeprefix("==") for name, spec in pinned.items()}


def all_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(r) for group in [PROJECT["dependencies"], *extras] for r in group]


def test_pins_lie_within_the_ranges():
    pinned = pins()
    for requirement in all_requirements():
        name = canonicalize_name(requirement.name)
        if name != PROJECT["name"]:
            assert name in pinned, f"{name} has no pin"
            assert requirement.specifier.contains(pinned[name]), name


def test_extras_are_those_the_readers_were_told_of():
    extras = set(PROJECT["optional-dependencies"])
    assert extras == {"book", "data", "gpu", "plot", "sbi", "test", "train"}


def test_conda_environment_points_at_both_files():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[book,test]"]}
    assert {name.split()[0] for name in conda} == {"python", "pip"}
    (python,) = (name for name in conda if name.startswith("python"))
    assert PROJECT["requires-python"] in python


def installed_closure(groups: Iterable[str], without: Collection[str] = ()) -> dict[str, str]:
    """The versions installed here of all that the core and these extras ask for."""
    extras = PROJECT["optional-dependencies"]
    todo = [Requirement(line) for line in PROJECT["dependencies"]]
    todo += [Requirement(line) for group in groups for line in extras[group]]
    found = {}
    seen = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name in without:
            continue
        seen.add(key)
        if name == PROJECT["name"]:
            todo += [Requirement(line) for group in requirement.extras for line in extras[group]]
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version
        for line in distribution.requires or []:
            inner = Requirement(line)
            wanted = [{"extra": extra} for extra in requirement.extras | {""}]
            if inner.marker is None or any(map(inner.marker.evaluate, wanted)):
                todo.append(inner)
    return found


@pytest.mark.pinned
def test_every_installed_version_is_pinned():
    pinned = pins()
    installed = installed_closure(["book", "test"])
    assert len(installed) > 100
    assert installed == {name: pinned.get(name) for name in installed}


# `make oldest`: everything at the lower end of its range

MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
           for folder in ("tests", "benchmarks", "edm_tutorial")
           for file in sorted((ROOT / folder).rglob("*.py"))}  # fmt: skip
MODULES |= {file.stem: file for file in ROOT.glob("tests/**/*.py") if file.name != "__init__.py"}


def imported(file: Path) -> Iterator[str]:
    """What a file imports; of `from a.b import c` both `a.b` and `a.b.c`."""
    folder = file.relative_to(ROOT).parent.as_posix().split("/")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def needed(file: Path) -> set[str]:
    """The first names of the modules of others that a file imports, itself or by our own files."""
    files, todo, others = set(), [file], set()
    while todo:
        file = todo.pop()
        if file not in files:
            files.add(file)
            names = set(imported(file))
            todo += [MODULES[name] for name in names if name in MODULES]
            others |= {name.partition(".")[0] for name in names}
    return others - sys.stdlib_module_names - {"edm_tutorial", "benchmarks", *MODULES}


def test_the_oldest_versions_are_tried_with_all_that_the_tests_import():
    shown = subprocess.run(["make", "-n", "oldest"], cwd=ROOT, capture_output=True).stdout.decode()
    assert "--resolution lowest-direct" in shown and "-e '.[test]'" in shown
    (without,) = re.findall(r"echo '([\w-]+);", shown)
    brought = installed_closure(["test"], {without})
    owners = importlib.metadata.packages_distributions()
    left_out = {ROOT / name for name in re.findall(r"--ignore (\S+\.py)", shown)}
    for file in (ROOT / "tests").glob("test_*.py"):
        names = {
            module: set(map(canonicalize_name, owners.get(module, []))) for module in needed(file)
        }
        lacks = {module for module in names if not names[module] & brought.keys()}
        if file in left_out:
            assert without in file.read_text() or lacks == {without.replace("-", "_")}, file
        else:
            assert not lacks and without not in file.read_text(), file


# One command, one address, nothing private


@pytest.mark.parametrize(
    "name", [".ci/run", "README.md", "CONTRIBUTING.md", ".github/workflows/test.yml"]
)
def test_everyone_names_the_same_test_command(name):
    assert re.search(r"\bmake test\b", TEXT[name])


WORKFLOWS = {name: yaml.safe_load(text) for name, text in TEXT.items()
             if name.startswith(".github/workflows/")}  # fmt: skip
TESTED = "./.github/workflows/test.yml"
each_workflow = pytest.mark.parametrize("name", WORKFLOWS, ids=lambda name: Path(name).stem)


@each_workflow
def test_workflows_ask_for_little(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    own = [job for job in workflow["jobs"].values() if "uses" not in job]
    assert all("timeout-minutes" in job for job in own)
    writes = {
        permission
        for job in workflow["jobs"].values()
        for permission, level in job.get("permissions", {}).items()
        if level == "write"
    }
    allowed = {"pages": {"pages", "id-token"}, "release": {"id-token"}, "weekly": {"issues"}}
    assert writes == allowed.get(Path(name).stem, set())


@each_workflow
def test_what_goes_out_was_tested_before(name):
    """A job with an environment puts something on the web: the book, or an archive."""
    jobs = WORKFLOWS[name]["jobs"]
    outward = [job for job in jobs.values() if "environment" in job]
    assert bool(outward) == (Path(name).stem in ("pages", "release"))
    for job in outward:
        assert {"uses": TESTED} in [jobs[other] for other in job["needs"]]


def test_a_release_tries_both_archives_before_it_is_published():
    jobs = WORKFLOWS[".github/workflows/release.yml"]["jobs"]
    assert "build" in jobs["publish"]["needs"]
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert commands[-1] == "python tools/release.py"  # without a version, it builds and tries


def test_the_tests_of_a_push_and_of_a_tag_run_once():
    triggers = {Path(name).stem: workflow[True] for name, workflow in WORKFLOWS.items()}  # `on:`
    assert triggers["test"] == {"pull_request": None, "workflow_call": None}
    assert triggers["pages"]["push"] == {"branches": ["main"]}
    assert triggers["release"] == {"push": {"tags": ["v*"]}}


def test_actions_are_pinned_by_hash_and_named_by_tag():
    """A tag can be moved to other code, a hash cannot; one version of each action."""
    used = [line.partition("uses:")[2].strip() for name in WORKFLOWS
            for line in TEXT[name].splitlines() if "uses:" in line]  # fmt: skip
    actions = {line for line in used if line != TESTED}
    pinned = [
        re.fullmatch(r"([\w-]+/[\w-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in actions
    ]
    assert all(pinned) and len({pin[1] for pin in pinned if pin}) == len(actions)


def test_each_week_draws_other_mutants():
    steps = WORKFLOWS[".github/workflows/weekly.yml"]["jobs"]["mutants"]["steps"]
    (command,) = (step["run"] for step in steps if "make mutants" in step.get("run", ""))
    assert command == "make mutants SEED=$(date +%-V) SHARE=0.85"
    assert any(
        "mutants.csv" in step.get("run", "") for step in steps if step.get("if") == "always()"
    )
    make = ["make", "-n", "mutants", "SEED=48", "SHARE=0.85"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True)
    assert b"run.py --seed 48 --share 0.85" in shown.stdout


def test_a_week_that_fails_is_reported():
    jobs = WORKFLOWS[".github/workflows/weekly.yml"]["jobs"]
    report = jobs["report"]
    assert {"report", *report["needs"]} == set(jobs) and report["if"] == "failure()"
    assert any("gh issue create" in step["run"] for step in report["steps"])


@pytest.mark.parametrize("missing", [None, "git", "make", "python3"])
def test_ci_run_installs_what_a_bare_machine_lacks(tmp_path, missing):
    """With stand-ins that only write down how they are called."""
    for name in {"apt-get", "git", "make", "python3"} - {missing}:
        script = f'#!{shutil.which("sh")}\necho {name} "$@" >>"{tmp_path}/calls"\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    run = [shutil.which("bash") or "", ROOT / ".ci" / "run"]
    subprocess.run(run, env={"PATH": str(tmp_path)}, capture_output=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    installs = [call.split() for call in calls if call.startswith("apt-get install")]
    assert bool(installs) == (missing is not None)
    assert all({"git", "make", "python3", "python3-venv"} <= set(call) for call in installs)
    if missing != "make":
        assert calls[-2:] == ["make browser", "make test"]


def test_ci_tests_both_ends_of_the_python_range():
    jobs = WORKFLOWS[".github/workflows/test.yml"]["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]


def test_make_lists_its_commands():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, check=True).stdout
    listed = re.findall(r"^  make (\w+)", shown.decode(), re.MULTILINE)
    promised = {"help", "book", "test", "check", "notebooks", "serve", "clean"}
    assert promised <= set(listed)
    phony = re.search(r"^\.PHONY: (.*)$", TEXT["Makefile"], re.MULTILINE)
    assert phony and set(listed) <= set(phony[1].split())


@pytest.mark.parametrize("under_ci", [False, True])
@pytest.mark.slow
def test_a_skipped_test_fails_under_ci_and_only_there(tmp_path, under_ci):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    skipping = "import pytest\n@pytest.mark.skip\ndef test_a(): pass\ndef test_b(): pass"
    (tmp_path / "test_two.py").write_text(skipping)
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1"],
        cwd=tmp_path,
        env=environment | ({"CI": "true"} if under_ci else {}),
        capture_output=True,
        text=True,
    )
    assert "1 passed, 1 skipped" in ran.stdout
    assert ran.returncode == under_ci


def test_pre_commit_needs_no_download():
    config = yaml.safe_load(TEXT[".pre-commit-config.yaml"])
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert all(hook["language"] == "system" for r in config["repos"] for hook in r["hooks"])


def test_one_address():
    """Only the address in pyproject.toml occurs, whoever's it has become."""
    home = URL.removeprefix("https://github.com/")
    address = re.compile(r"github(?:usercontent)?(?:\.com)?/([\w.-]+/edm-tutorial)\b")
    pages = re.compile(r"([\w-]+)\.github\.io(/edm-tutorial)\b")
    for file, text in TEXT.items():
        found = {*address.findall(text), *("".join(hit) for hit in pages.findall(text))}
        assert found <= {home}, file
    assert home in TEXT["README.md"]
    assert yaml.safe_load(TEXT["CITATION.cff"])["repository-code"] == URL
    assert yaml.safe_load(TEXT["_config.yml"])["repository"]["url"] == URL


def test_one_version():
    version = PROJECT["version"]
    assert yaml.safe_load(TEXT["CITATION.cff"])["version"] == version
    assert f"## {version}" in TEXT["CHANGELOG.md"]


# What must not be in a public repository: paths of somebody's machine, hosts of package
# registries (pip knows its own), and talk about how the text came to be.
PRIVATE = {
    "a machine's path": r"(?<![\w.])/(work|root|home|tmp|opt|Users)/",
    "a registry's host": r"pypi\.org|python[h]osted|registry\.npmjs|deb\.debian",
    "working talk": r"\b([Tt]his|[Nn]ext|[Pp]revious|[Ee]arlier|[Aa] later) session\b",
    "a ticket's number": r"\b[Ii]ssues? #?\d+\b",
}


@pytest.mark.parametrize("what", PRIVATE)
def test_nothing_private(what):
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in TEXT.items()
        if not name.endswith((".js", ".css"))
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(PRIVATE[what], line)
    ]
    assert not found, what


def test_notebooks_carry_no_outputs():
    notebooks = [name for name in TEXT if name.endswith(".ipynb")]
    assert notebooks
    for name in notebooks:
        for cell in json.loads(TEXT[name])["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None, name


def test_golden_numbers_are_the_recorded_ones():
    golden = ROOT / "tests" / "golden"
    recorded = json.loads((golden / "manifest.json").read_text())["files"]
    files = {file.name: file for file in golden.glob("*.npz")}
    expected = {"precond", "losses", "gmm", "sampler_edm", "sampler_ablation"}
    assert {f"{name}.npz" for name in expected} <= set(files)
    for name, file in files.items():
        data = file.read_bytes()
        assert len(data) == recorded[name]["bytes"]
        assert hashlib.sha256(data).hexdigest() == recorded[name]["sha256"], name


def test_what_others_made_has_its_licence_beside_it():
    """Each folder that LICENSE-TEXT names; sbibm's notice in both places, word for word."""
    folders = re.findall(r"(\S+/\S+)$", TEXT["LICENSE-TEXT"].partition("What others made")[2], re.M)
    assert {"benchmarks/sbi_reference", "tests/sbi_reference"} <= set(folders)
    assert all((ROOT / folder / "LICENSE").is_file() for folder in folders)
    one, other = (TEXT[f"{folder}/sbi_reference/LICENSE"] for folder in ("benchmarks", "tests"))
    assert one == other and one.startswith("Copyright 2020 Jan-Matthis Lueckmann, ")
    assert "The above copyright notice and this permission notice shall be included" in one
    golden = TEXT["tests/golden/README.md"]
    assert "NVIDIA CORPORATION" in golden and "CC BY-NC-SA 4.0" in golden


# The README


def readme_block(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", TEXT["README.md"], re.DOTALL)
    return block


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_readme_example_is_twenty_lines():
    lines = [line for line in readme_block("python").splitlines() if line.strip()]
    assert len(lines) <= 20 and max(map(len, lines)) <= 88


EXACT = """
print(jax.vmap(truth.log_prob)(data).mean() - jax.vmap(truth.log_prob)(samples).mean())
for n in (18, 64):
    draw = jax.vmap(lambda noise: edm.sample(truth.denoise, noise, edm.edm_sigmas(n)))
    print(jax.vmap(truth.log_prob)(draw(jr.normal(noise_key, (2000, 2)))).mean())
"""


def test_the_introduction_prints_the_same_example():
    assert f"```python\n{readme_block('python')}```" in TEXT["book/intro.md"]


@pytest.mark.slow
def test_readme_example_runs_as_printed_and_its_numbers_are_right(tmp_path):
    (tmp_path / "example.py").write_text(readme_block("python") + EXACT)
    command = [sys.executable, "example.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *printed, short, exact_18, exact_64 = ran.stdout.splitlines()

    shown = readme_block("text")
    assert re.sub(r"-?\d+\.\d+", "", shown).splitlines() == [
        re.sub(r"-?\d+\.\d+", "", line) for line in printed
    ]
    # Rounding differs between machines and grows over training: a few hundredths at one seed,
    # where another seed moves the samples' score, and the gap with it, by 0.07.
    assert numbers(shown) == pytest.approx(numbers("\n".join(printed)), abs=0.04)
    prose = TEXT["README.md"].partition("An untrained network")[2]
    gap, claimed_18, claimed_64 = numbers(prose)[:3]
    assert float(short) == pytest.approx(gap, abs=0.04)
    assert float(exact_18) == pytest.approx(claimed_18, abs=0.02)
    assert float(exact_64) == pytest.approx(claimed_64, abs=0.02)
    assert numbers(printed[-1])[0] < float(exact_18) < float(exact_64)


# The folder, or a part of it, in a project of its own

ELSEWHERE = """
import sys

class Nowhere:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "edm_tutorial":
            raise ModuleNotFoundError(f"{name} must not be needed")

sys.meta_path.insert(0, Nowhere)
sys.path[0] = "."
"""
EVERYTHING = (
    ELSEWHERE
    + """
from functools import partial
import jax, jax.numpy as jnp, jax.random as jr, numpy as np, optax
import vendor.inner.my_diffusion as edm
from vendor.inner.my_diffusion import sbi

def denoiser(x, sigma, cond=None):  # of a Gaussian of standard deviation 1/2
    return x / (1 + 4 * sigma**2)

draw = jax.vmap(lambda noise: edm.sample(denoiser, noise, edm.edm_sigmas(64)))
draws = draw(jr.normal(jr.key(0), (999, 2)))
assert abs(draws.std() - 0.5) < 0.05  # a standard error is 0.008
likelihood = edm.log_likelihood(denoiser, jnp.array([0.5, 0.0]))
assert abs(likelihood.log_prob - (-0.5 - np.log(2 * np.pi * 0.25))) < 1e-3

learner = edm.Denoiser(edm.MLP(2, key=jr.key(1)), edm.EDMPreconditioning.from_data(draws))
loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
options = dict(steps=10, batch_size=64, key=jr.key(2))
((state, losses),) = edm.train(learner, loss, draws, optax.adam(1e-3), **options)
assert state.step == 10 and losses.shape == (10,) and jnp.isfinite(losses).all()

theta = jr.normal(jr.key(3), (200, 1))
x = theta + 0.1 * jr.normal(jr.key(4), theta.shape)
posterior = sbi.fit_posterior(jr.key(5), theta, x, steps=20, progress=False)
drawn = posterior.sample(jr.key(6), jnp.array([0.7]), 100)
assert abs(drawn.mean() - 0.7) < 0.1  # a standard deviation of the exact posterior
assert jnp.isfinite(posterior.log_prob(drawn[0], jnp.array([0.7])))
assert not any(name.partition(".")[0] == "edm_tutorial" for name in sys.modules)
print(edm.__file__)
"""
)


def copy(name: str, folder: Path) -> None:
    """A file of the package, or a folder of it, to its place below `folder`."""
    source, target = ROOT / "edm_tutorial" / name, folder / name
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def run_in(folder: Path, script: str) -> str:
    """What a script prints there, where no path leads back to the repository."""
    (folder / "script.py").write_text(script)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "script.py"]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.slow
def test_the_folder_works_wherever_it_is_copied(tmp_path):
    copy("", tmp_path / "vendor" / "inner" / "my_diffusion")
    assert Path(run_in(tmp_path, EVERYTHING)).is_relative_to(tmp_path)


def what_to_copy() -> dict[str, tuple[int, set[str]]]:
    """The README's table: how many files each thing needs, and what to copy."""
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+) files \| (.+) \|$", TEXT["README.md"], re.M)
    table = {name: (int(count), re.findall("`([^`]+)`", cell)) for name, count, cell in rows}
    named = {name.rpartition(".")[2]: cell for name, (_, cell) in table.items()}
    return {name: (count, {part for word in cell for part in named.get(word, [word])})
            for name, (count, cell) in table.items()}  # fmt: skip


@pytest.mark.parametrize("name", CARRIED)
def test_the_readme_says_what_to_copy(name):
    """All that the static imports reach, no folder or file without any of it, and their number.

    What keeps old names alive for a release does not count, but must be there.
    """
    module, _ = CARRIED[name]
    count, parts = what_to_copy()[f"{module}.{name}"]
    reached = carried(module)
    files = [path.removeprefix("edm_tutorial.").replace(".", "/") + ".py" for path in reached]
    within = [{part for part in parts if Path(file).is_relative_to(part)} for file in files]
    uses = {used for path in reached for used in imports(MODULES[path])}
    old = {"_deprecated/" for used in uses if "._deprecated" in used}
    assert count == len(files)
    assert all(within) and set.union(*within) | old == parts


@pytest.mark.slow
@pytest.mark.parametrize("name", CARRIED)
def test_what_the_readme_says_is_enough(name, tmp_path):
    module, _ = CARRIED[name]
    for part in what_to_copy()[f"{module}.{name}"][1]:
        copy(part, tmp_path / "mine")
    run_in(tmp_path, f"{ELSEWHERE}from mine.{module} import {name}")


def test_the_readme_says_it_of_nothing_else():
    assert what_to_copy().keys() == {f"{module}.{name}" for name, (module, _) in CARRIED.items()}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT[name]):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_what_contributing_speaks_of_exists():
    """Files and folders, commands of make, and what a new solver is added to."""
    text = TEXT["CONTRIBUTING.md"]
    quoted = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    paths = [name for name in quoted if re.fullmatch(r"[\w.-]+(/[\w.-]*)+|[\w-]+\.md", name)]
    assert {name for name in paths if not (ROOT / name).exists()} == {"notebooks/NN_name.md"}
    commands = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert {"check", "oldest", "mutants", "notebooks"} <= commands
    for name in commands:
        assert re.search(rf"^{name}:", TEXT["Makefile"], re.MULTILINE), name
    for test in ("test_solvers", "test_sampling"):
        assert f"`tests/{test}.py`" in text and "\nSOLVERS = " in TEXT[f"tests/{test}.py"]
    assert "`test_order_of_convergence`" in text
    assert "\ndef test_order_of_convergence(" in TEXT["tests/test_solvers.py"]


def test_contributing_has_the_limits_of_the_tests():
    (limits,) = re.findall(
        r"warns at (\d+) lines and refuses more than (\d+); a function has at\s+most (\d+)",
        TEXT["CONTRIBUTING.md"],
    )
    for limit, rule in zip(limits, ("lines > {}:", "lines <= {},", "text) <= {},"), strict=True):
        assert rule.format(limit) in TEXT["tests/test_architecture.py"]


def test_readme_shows_one_picture_and_every_chapter():
    pictures = re.findall(r"!\[([^\]]+)\]\((book/[^)]+)\)", TEXT["README.md"])
    assert len(pictures) == 1 and (ROOT / pictures[0][1]).is_file()
    home = URL.removeprefix("https://github.com/")
    for name in TEXT:
        if name.startswith("notebooks/") and name.endswith(".ipynb"):
            link = f"https://colab.research.google.com/github/{home}/blob/main/{name}"
            assert link in TEXT["README.md"], name


# The core in a clean environment


@pytest.mark.slow
def test_core_installs_and_imports_light(tmp_path):
    """A wheel of the package, in an environment with its core dependencies only."""

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"edm_tutorial"}
    assert "edm_tutorial/py.typed" in names
    assert {f"edm_tutorial/{f.relative_to(ROOT / 'edm_tutorial').as_posix()}"
            for f in (ROOT / "edm_tutorial").rglob("*.py")} <= names  # fmt: skip
    licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE-TEXT"}

    run(sys.executable, "-m", "venv", tmp_path / "clean")
    python = tmp_path / "clean" / "bin" / "python"
    run(python, *pip[1:], "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    listing = run(python, *pip[1:], "list", "--format=json")
    installed = {canonicalize_name(row["name"]) for row in json.loads(listing)}
    assert "edm-tutorial" in installed and "jax" in installed
    heavy = {"matplotlib", "ipython", "ipykernel", "jupyter-book", "scikit-learn"}
    assert not heavy & installed
    assert not {name for name in installed if name.startswith(("jupyter", "sphinx"))}
    run(python, "-c", "import edm_tutorial, sys; assert 'matplotlib' not in sys.modules")
