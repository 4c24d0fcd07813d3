"""Where the repository lives on the web: one owner of its address.

The address is `Repository` under `[project.urls]` in `pyproject.toml`. To move it:

    python book/_tools/repository.py https://github.com/owner/name

rewrites the address, and the `owner/name` in links to Colab, badges and raw files, in
every text file that git tracks (or would track).
"""

import argparse
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"^https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?$")


@dataclass(frozen=True)
class Repository:
    """A repository on GitHub, and the addresses of its files."""

    owner: str
    name: str
    branch: str = "main"

    @classmethod
    def parse(cls, url: str) -> "Repository":
        match = ADDRESS.match(url)
        if match is None:
            raise ValueError(f"need https://github.com/OWNER/NAME, got {url!r}")
        return cls(match[1], match[2])

    @property
    def slug(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def url(self) -> str:
        return f"https://github.com/{self.slug}"

    @property
    def pages(self) -> str:
        """Where GitHub serves the built book."""
        return f"https://{self.owner}.github.io/{self.name}"

    def blob(self, path: str) -> str:
        return f"{self.url}/blob/{self.branch}/{path}"

    def raw(self, path: str) -> str:
        return f"https://raw.githubusercontent.com/{self.slug}/{self.branch}/{path}"

    def colab(self, path: str) -> str:
        host = "https://colab.research.google.com/github"
        return f"{host}/{self.slug}/blob/{self.branch}/{path}"


def read(root: Path = ROOT) -> Repository:
    """The repository named in `pyproject.toml`."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return Repository.parse(project["urls"]["Repository"])


def move(root: Path, new: Repository) -> list[Path]:
    """Rewrite the address everywhere below `root`; returns the files that changed."""
    old, changed = read(root), []
    for path in _files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        moved = rewrite(text, old, new)
        if moved != text:
            path.write_text(moved, encoding="utf-8")
            changed.append(path)
    return changed


def rewrite(text: str, old: Repository, new: Repository) -> str:
    """`text` with the address of `old` replaced, also in its `owner/name` form."""
    text = text.replace(old.pages, new.pages)
    return re.sub(rf"(?<![\w.-]){re.escape(old.slug)}(?![\w-])", new.slug, text)


def _files(root: Path) -> list[Path]:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        listing, cwd=root, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Move the book to another repository.")
    parser.add_argument("url", type=Repository.parse, help="https://github.com/OWNER/NAME")
    for path in move(ROOT, parser.parse_args().url):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
