"""The standard output of the program: the results that a person or another program asked for."""

from __future__ import annotations

import re
import sys

# Of a terminal; names of classes and files may hold them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write_line(text: str = "") -> None:
    """Write a line to standard output at once; characters that would control a terminal are written as numbers."""
    sys.stdout.write(_CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text) + "\n")
    sys.stdout.flush()
