#!/usr/bin/env python
"""The same as ``glipv2 predict``: ``python tools/demo.py INPUT ... --config-file FILE``; ``--help`` lists the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from glipv2_d2.program.main import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_command("predict", sys.argv[1:] if argv is None else argv, "python tools/demo.py")


if __name__ == "__main__":
    main()
