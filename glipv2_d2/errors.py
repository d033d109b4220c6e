"""The package's own error: something that a user gave is not as it has to be."""

from __future__ import annotations


class InputError(ValueError):
    """A config key, a command-line flag, an argument or a file is not as expected; a program ends with its one line.

    The message follows one template, ``WHERE: expected X, found Y; way out``. WHERE is the config key, the flag, the
    argument, or the file and the field in it; the way out may be missing where it is clear. A mistake of the code that
    calls (a wrong dtype, shapes that do not fit) is a plain ValueError or TypeError and keeps its traceback.
    """
