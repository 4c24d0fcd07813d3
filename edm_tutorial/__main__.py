"""`python -m edm_tutorial`: see `edm_tutorial.cli`."""

import sys

from edm_tutorial.cli import main

if __name__ == "__main__":
    sys.exit(main())
