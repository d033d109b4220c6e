"""The standard output of the program: the results that a person or another program asked for."""

from __future__ import annotations

import re
import sys

# Of a terminal; names of classes and files may hold them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write_line(text: str = "") -> None:
    """Write a line to standard output at once.

    Characters that would control a terminal are written as numbers, and so are those that the output has no code for:
    the name of a file need not be text.
    """
    shown = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(shown.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()
