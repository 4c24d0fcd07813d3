"""`python -m edm_tutorial`: see `edm_tutorial.cli`."""

import sys

from .images.command_line import main

if __name__ == "__main__":
    sys.exit(main())
