"""The standard output of the program: the results that a person or another program asked for."""

from __future__ import annotations

import sys


def write_line(text: str = "") -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
