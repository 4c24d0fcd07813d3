"""The changelog of a release, and the tests in an sdist; `make release` tries both archives."""

import datetime
import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "tools/release.py"
SPEC = importlib.util.spec_from_file_location("release", PATH)
assert SPEC is not None and SPEC.loader is not None
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)

PYPROJECT = tomllib.loads((release.ROOT / "pyproject.toml").read_text())
DAY = datetime.date(2027, 1, 31)
FILES = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
OLD = "## 0.1.0 - 2026-12-01\n\n- First.\n"


def test_news_moves_under_its_version_and_leaves_room():
    before = f"# Changelog\n\n## [Unreleased]\n\n### Added\n\n- Something.\n\n{OLD}"
    after = release.dated(before, "0.2.0", DAY)
    assert after == (
        "# Changelog\n\n## [Unreleased]\n\n## 0.2.0 - 2027-01-31\n\n### Added\n\n"
        f"- Something.\n\n{OLD}"
    )


def test_news_written_ahead_is_dated():
    before = "# Changelog\n\n## [Unreleased]\n\n## 0.1.0 - unreleased\n\n- First.\n"
    after = release.dated(before, "0.1.0", DAY)
    assert after == "# Changelog\n\n## [Unreleased]\n\n## 0.1.0 - 2027-01-31\n\n- First.\n"


@pytest.mark.parametrize(
    "text, version, message",
    [
        (f"## [Unreleased]\n\n- New.\n\n{OLD}", "0.1.0", "released before"),
        (f"## [Unreleased]\n\n{OLD}", "0.2.0", "nothing is waiting"),
        ("## [Unreleased]\n\n## 0.1.0 - unreleased\n\n- First.\n", "0.2.0", "release is 0.1.0"),
        (OLD, "0.2.0", "needs a section"),
    ],
)
def test_refuses(text, version, message):
    with pytest.raises(ValueError, match=message):
        release.dated(text, version, DAY)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The three files that state the version, far from the repository."""
    for name in FILES:
        (tmp_path / name).write_text((release.ROOT / name).read_text())
    monkeypatch.setattr(release, "ROOT", tmp_path)
    return tmp_path


def test_the_version_is_written_in_three_files_and_nothing_else_changes(copy):
    changelog = (copy / "CHANGELOG.md").read_text()
    news = changelog.replace("## [Unreleased]\n", "## [Unreleased]\n\n- New.\n", 1)
    (copy / "CHANGELOG.md").write_text(news)
    before = {name: (copy / name).read_text().splitlines() for name in FILES}
    release.write_version("97.5.31", DAY)
    after = {name: (copy / name).read_text().splitlines() for name in FILES}
    new = {name: sorted(set(after[name]) - set(before[name])) for name in FILES}
    assert new["pyproject.toml"] == ['version = "97.5.31"']
    assert new["CITATION.cff"] == ["version: 97.5.31"]
    assert new["CHANGELOG.md"] == ["## 97.5.31 - 2027-01-31"]
    assert tomllib.loads("\n".join(after["pyproject.toml"]))["project"]["version"] == "97.5.31"


def test_a_refused_release_writes_nothing(copy):
    (copy / "CHANGELOG.md").write_text(f"## [Unreleased]\n\n{OLD}")
    before = {name: (copy / name).read_text() for name in FILES}
    with pytest.raises(ValueError, match="nothing is waiting"):
        release.write_version("97.5.31", DAY)
    assert before == {name: (copy / name).read_text() for name in FILES}


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "1.0.0rc1", ""])
def test_a_version_is_three_numbers(version):
    with pytest.raises(ValueError, match="three numbers"):
        release.write_version(version, DAY)


def test_without_a_version_nothing_is_written_and_both_archives_are_tried(copy, monkeypatch):
    before = {name: (copy / name).read_text() for name in FILES}
    tried = []
    monkeypatch.setattr(sys, "argv", ["release.py"])
    monkeypatch.setattr(release, "build", lambda: ["wheel", "sdist"])
    monkeypatch.setattr(release, "try_out", tried.append)
    release.main()
    assert tried == ["wheel", "sdist"]
    assert before == {name: (copy / name).read_text() for name in FILES}


BUILD = "import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])"
# Where the repository is installed in place, `benchmarks` would be found there.
COLLECT = """
import sys
from pathlib import Path
import pytest
sys.path[:] = [folder for folder in sys.path if not Path(folder, "benchmarks").is_dir()]
sys.exit(pytest.main(["-n0", "-q", "--collect-only", "-p", "no:cacheprovider"]))
"""


@pytest.mark.slow
def test_the_tests_in_the_sdist_can_be_collected(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    hatchling = str(tmp_path / "hatchling")
    subprocess.run([*pip, "install", "-q", "--target", hatchling, "hatchling"], check=True)
    build = [sys.executable, "-c", BUILD, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": hatchling}
    subprocess.run(build, cwd=release.ROOT, env=environment, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "alone", filter="data")
    (folder,) = (tmp_path / "alone").iterdir()
    assert (folder / "tests/golden/precond.npz").is_file()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    collect = [sys.executable, "-c", COLLECT]
    ran = subprocess.run(collect, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
    left_out = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["exclude"]
    for name in left_out:
        assert Path(f"{release.ROOT}{name}").exists() and not Path(f"{folder}{name}").exists()
