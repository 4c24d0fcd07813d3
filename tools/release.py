"""Make a release: its version and date in the changelog, a wheel and an sdist, both tried out.

    python tools/release.py 0.2.0
    python tools/release.py          # without a version: only build what is there and try it

Writes the version into pyproject.toml, CITATION.cff and CHANGELOG.md, builds both archives
in `dist`, and runs the README's example with each, installed in an empty environment of
its own. Commit and tag what it leaves; the workflow `release` tests, builds and tries the tag
once more, and publishes it.
"""

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNRELEASED = "## [Unreleased]\n"


def dated(changelog: str, version: str, today: datetime.date) -> str:
    """The changelog with what was unreleased under `version`, and room for what comes.

    Raises:
        ValueError: nothing is waiting to be released, or `version` was released before.
    """
    if re.search(rf"^## {re.escape(version)} - \d", changelog, re.MULTILINE):
        raise ValueError(f"{version} was released before: choose a higher version")
    heading = f"## {version} - {today.isoformat()}\n"
    before, found, after = changelog.partition(UNRELEASED)
    if not found:
        raise ValueError("CHANGELOG.md needs a section [Unreleased]")
    news, *older = re.split(r"^(?=## )", after, flags=re.MULTILINE)
    planned = f"## {version} - unreleased\n"
    if older and older[0].startswith(planned):  # written ahead under its own version
        news += older.pop(0).removeprefix(planned)
    if not news.strip():
        waiting = re.match(r"## (\S+) - unreleased\n", older[0]) if older else None
        hint = f": the one to release is {waiting[1]}" if waiting else ""
        raise ValueError(f"nothing is waiting under [Unreleased] in CHANGELOG.md{hint}")
    return f"{before}{UNRELEASED}\n{heading}\n{news.strip()}\n\n{''.join(older)}".rstrip() + "\n"


def write_version(version: str, today: datetime.date) -> None:
    """The version where it is stated, or nowhere if something is wrong with it."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"a version is three numbers such as 0.2.0, got {version}")
    changelog = dated((ROOT / "CHANGELOG.md").read_text(), version, today)
    (ROOT / "CHANGELOG.md").write_text(changelog)
    for name, pattern in (("pyproject.toml", '^version = ".*"'), ("CITATION.cff", "^version: .*")):
        text = (ROOT / name).read_text()
        line = f'version = "{version}"' if name.endswith("toml") else f"version: {version}"
        (ROOT / name).write_text(re.sub(pattern, line, text, count=1, flags=re.MULTILINE))


def build() -> list[Path]:
    """The wheel and the sdist in `dist`, which is emptied first."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run(sys.executable, "-m", "pip", "install", "-q", "build")
    run(sys.executable, "-m", "build", "--outdir", "dist", ".", cwd=ROOT)
    return sorted([*(ROOT / "dist").glob("*.whl"), *(ROOT / "dist").glob("*.tar.gz")])


def try_out(archive: Path) -> None:
    """Install one archive alone, and run the README's example far from the sources."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", f"{folder}/env")
        python = f"{folder}/env/bin/python"
        run(python, "-m", "pip", "install", "-q", str(archive))
        show = "from importlib.metadata import version; print(version('edm-tutorial'))"
        shown = subprocess.run([python, "-c", show], cwd=folder, capture_output=True, text=True)
        if shown.stdout.strip() != version:
            raise RuntimeError(f"{archive.name} installs version {shown.stdout!r}, not {version}")
        Path(folder, "example.py").write_text(example[1])
        run(python, "example.py", cwd=folder)
    print(f"{archive.name}: installs alone and runs the README's example")


def run(*command: str, cwd: Path | str | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and check a release.")
    parser.add_argument("version", nargs="?", help="three numbers, such as 0.2.0")
    version = parser.parse_args().version
    try:
        if version is not None:
            write_version(version, datetime.date.today())
    except ValueError as error:
        sys.exit(str(error))
    for archive in build():
        try_out(archive)
    if version is not None:
        print(f"Now commit, tag and push: git tag v{version}")


if __name__ == "__main__":
    main()
