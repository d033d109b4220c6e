"""Folders that results go to, checked before anything is computed, and files in them that several processes write."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def lock_folder(folder: str | os.PathLike[str], where: str, *, inherited: bool = True) -> Iterator[int]:
    """Keep other runs out of a folder that is there, if its file system has locks; without them a warning says so.

    Args:
        folder: Its path. A file ``.lock`` is left in it.
        where: The program, the flag or the config key, for the message.
        inherited: A process that inherits the descriptor holds the lock too, and it is gone with the last of them.
            Otherwise it is gone with this process, which may lock the folder again.

    Yields:
        The descriptor.

    Raises:
        InputError: Another run holds it.
    """
    # Windows has no such module.
    import fcntl

    # NFS locks no folders, and only what is open for writing.
    with open(os.path.join(folder, ".lock"), "a") as lock:
        try:
            (fcntl.flock if inherited else fcntl.lockf)(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = "found another one, or a process of a killed one, at work there"
            raise InputError(f"{where}: {folder}: expected no other run, {found}; wait for its end") from None
        except OSError as error:
            # As on Lustre that is mounted without them, and on NFS without its daemon.
            reason = error.strerror
            logging.getLogger(__name__).warning("%s: no locks there (%s): let no other run use it", folder, reason)
        yield lock.fileno()


def write_text_once(path: str, text: str) -> None:
    """Write a text file whole, or not at all, while others may do the same; a file of the same text stays as it is."""
    content = text.encode()
    if _holds(path, content):
        return
    unfinished = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    try:
        with space_errors(path):
            unfinished.write_bytes(content)
        # Others may read what one of them has written meanwhile, and NFS takes a file that is replaced from the readers
        # of other machines.
        if not _holds(path, content):
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _holds(path: str, content: bytes) -> bool:
    return os.path.isfile(path) and Path(path).read_bytes() == content
