"""The tools of the book are scripts beside each other, as the tests import them."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("_tools", "_ext"):
    sys.path.insert(0, str(ROOT / "book" / folder))
