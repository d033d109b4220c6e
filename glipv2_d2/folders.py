"""Folders that results go to, checked before anything is computed, and files in them that several processes write."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

from .errors import InputError, full_disk_message, means_full_disk, space_errors

# Less than the results of any command; a folder where that much cannot be written is of no use.
_PROBE_BYTES = 2**16


def check_writable(folder: str | os.PathLike[str], where: str) -> None:
    """Check that a folder is one, or can be made, and that files can be written to it; nothing is left behind.

    Args:
        folder: Its path.
        where: The flag or config key that names it.

    Raises:
        NotADirectoryError: It is a file, or lies below one.
        InputError: Nothing can be written there, or the disk is full.
    """
    existing = Path(folder).absolute()
    try:
        existing = next(one for one in (existing, *existing.parents) if one.exists())
        with tempfile.TemporaryDirectory(dir=existing), tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except NotADirectoryError as error:
        raise NotADirectoryError(f"{where}: expected a folder, found a file at {existing}") from error
    except OSError as error:
        if means_full_disk(error):
            raise InputError(f"{where}: {full_disk_message(folder)}") from error
        found = f"{folder}, where nothing can be written: {error.strerror}"
        raise InputError(f"{where}: expected a folder that can be written to, found {found}") from error


def write_text_once(path: str, text: str) -> None:
    """Write a text file whole, or not at all, while others may do the same; a file of the same text stays as it is."""
    content = text.encode()
    if os.path.isfile(path) and Path(path).read_bytes() == content:
        return
    unfinished = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    try:
        with space_errors(path):
            unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
