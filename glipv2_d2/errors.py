"""The package's own error, for something that a user gave, and one error for memory that has run out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# What torch says of the memory of a CPU, of CUDA, and of CUDA's library for products.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class InputError(ValueError):
    """A config key, a command-line flag, an argument or a file is not as expected; a program ends with its one line.

    The message follows one template, ``WHERE: expected X, found Y; way out``. WHERE is the config key, the flag, the
    argument, or the file and the field in it; the way out may be missing where it is clear. A mistake of the code that
    calls (a wrong dtype, shapes that do not fit) is a plain ValueError or TypeError and keeps its traceback.
    """


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError for every error within that means it: torch has a RuntimeError for each device."""
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise MemoryError from error
        raise
