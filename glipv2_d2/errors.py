"""The package's own error, for something that a user gave, and one each for memory and disks that have run out."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What torch says of the memory of a CPU, of CUDA, and of CUDA's library for products.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
# What the system says where a disk, a quota or the largest file that a disk takes is full.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors say it in words only.
_NO_SPACE_WORDS = ("inline_container.cc", "PytorchStreamWriter", *(f"(os error {number})" for number in _NO_SPACE))


class InputError(ValueError):
    """A config key, a command-line flag, an argument or a file is not as expected; a program ends with its one line.

    The message follows one template, ``WHERE: expected X, found Y; way out``. WHERE is the config key, the flag, the
    argument, or the file and the field in it; the way out may be missing where it is clear. A mistake of the code that
    calls (a wrong dtype, shapes that do not fit) is a plain ValueError or TypeError and keeps its traceback.
    """


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError for every error within that means it: torch has a RuntimeError for each device."""
    try:
        yield
    except RuntimeError as error:
        if means_no_memory(error):
            raise MemoryError from error
        raise


def means_no_memory(error: BaseException | None) -> bool:
    """Tell whether the memory of the machine or of a device was too small."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(sign in words for sign in _OUT_OF_MEMORY)


class DiskFullError(OSError):
    """A file that could not be written for want of space; its message is one line that names the file."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def space_errors(path: str | os.PathLike[str], note: str = "") -> Iterator[None]:
    """Raise DiskFullError for every error within that means a full disk: the system names no file where a write fails.

    Args:
        path: What is written within; a name that an inner context gave stays.
        note: End of the message.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not means_full_disk(error):
            raise
        raise DiskFullError(errno.ENOSPC, full_disk_message(path) + note) from error


def means_full_disk(error: BaseException) -> bool:
    """Tell whether a file could not be written for want of space."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_SPACE
    return any(word in str(error) for word in _NO_SPACE_WORDS)


def full_disk_message(path: str | os.PathLike[str] | None = None) -> str:
    """Say in one line that there is no space for a file, or for one without a name, and what to do."""
    free = ""
    if path is not None:
        # A folder may be the root of its own disk.
        whole = Path(path).absolute()
        folder = next(one for one in (whole, *whole.parents) if one.is_dir())
        free = f" ({shutil.disk_usage(folder).free // 2**20} MiB free)"
    found = f"found the disk or the quota at its limit{free}"
    where = "disk" if path is None else os.fspath(path)
    return f"{where}: expected space for the file, {found}; free some, or name a folder on another disk"
