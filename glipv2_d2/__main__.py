"""``python -m glipv2_d2`` is the program ``glipv2``."""

import sys

from .program.main import main

if __name__ == "__main__":
    sys.exit(main())
