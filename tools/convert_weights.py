#!/usr/bin/env python
"""Convert weights: ``python tools/convert_weights.py FILE OUT``, the same as ``glipv2 convert-weights``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from glipv2_d2.program.main import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command("convert-weights", sys.argv[1:] if argv is None else argv, "python tools/convert_weights.py")


if __name__ == "__main__":
    sys.exit(main())
