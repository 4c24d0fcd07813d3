"""The changelog of a release; `make release` itself builds and tries the archives."""

import datetime
import importlib.util
import tomllib
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "tools/release.py"
SPEC = importlib.util.spec_from_file_location("release", PATH)
assert SPEC is not None and SPEC.loader is not None
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)

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
