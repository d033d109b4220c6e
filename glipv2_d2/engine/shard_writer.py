"""Shards of grounding records, as jsonl or as WebDataset tar files, that are written whole or not at all."""

from __future__ import annotations

import glob
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import InputError

# Suffix of a shard of each format.
SHARD_SUFFIXES = {"jsonl": ".jsonl", "shards": ".tar"}


class JsonlShardWriter:
    """Writes one record a line; the images stay files of their own.

    Args:
        file: Open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, record: Mapping[str, Any], key: str, image: bytes, image_suffix: str) -> None:
        """Write a record; key and image are what a tar shard would need."""
        self._file.write(_to_json(record) + b"\n")

    def close(self) -> None:
        """Do nothing: the owner of the file closes it."""


class TarShardWriter:
    """Writes ``KEY.jpg`` (or png, webp) and ``KEY.json`` for each record; the same records give the same bytes.

    Args:
        file: Open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w")

    def write(self, record: Mapping[str, Any], key: str, image: bytes, image_suffix: str) -> None:
        """Write a record and its image.

        Args:
            record: In plain types.
            key: Without a dot in its last part, at which readers cut the name of a member.
            image: An encoded image, kept byte by byte.
            image_suffix: Suffix of the image's format, without a dot.
        """
        self._add(f"{key}.{image_suffix}", image)
        self._add(f"{key}.json", _to_json(record))

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # no time and no owner
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))


@contextmanager
def open_shard(path: str | os.PathLike) -> Iterator[JsonlShardWriter | TarShardWriter]:
    """Open a shard for writing; it takes its name, in one step, when the block ends, and not at all after an error.

    Args:
        path: Ends in .jsonl or .tar. A file of that name is replaced. It has one writer at a time: what one that was
            killed has left behind is removed.

    Raises:
        FileNotFoundError: There is no folder to write to.
        InputError: The name has another ending.
    """
    path = Path(path)
    if path.suffix not in SHARD_SUFFIXES.values():
        raise InputError(f"{path}: expected a name that ends in {' or '.join(SHARD_SUFFIXES.values())}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            writer = TarShardWriter(file) if path.suffix == ".tar" else JsonlShardWriter(file)
            yield writer
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _to_json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
