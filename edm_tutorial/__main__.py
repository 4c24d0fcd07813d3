"""Entry point of `python -m edm_tutorial`: see `edm_tutorial.images.command_line`."""

import sys

try:
    from .images.command_line import main
except ModuleNotFoundError as missing:
    if (missing.name or "").split(".")[0] not in {"orbax", "PIL", "pooch", "tqdm"}:
        raise
    sys.exit(
        f"the command line needs {missing.name}, which is not installed: "
        'pip install "edm-tutorial[train]"'
    )

if __name__ == "__main__":
    sys.exit(main())
