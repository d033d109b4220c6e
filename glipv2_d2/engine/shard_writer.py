"""Shards of grounding records, as jsonl or as WebDataset tar files, that are written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import InputError
from ..tensor_files import atomic_path

# Suffix of a shard of each format.
SHARD_SUFFIXES = {"jsonl": ".jsonl", "shards": ".tar"}


class JsonlShardWriter:
    """Writes one record a line; images stay files of their own.

    Args:
        file: File that is open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, record: Mapping[str, Any], key: str, image: bytes, image_suffix: str) -> None:
        """Write a record; only a tar shard needs key and image."""
        self._file.write(_to_json(record) + b"\n")

    def close(self) -> None:
        """Do nothing: the owner of the file closes it."""


class TarShardWriter:
    """Writes ``KEY.jpg`` (or png, webp) and ``KEY.json`` for each record; the same records give the same bytes.

    Args:
        file: File that is open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w")

    def write(self, record: Mapping[str, Any], key: str, image: bytes, image_suffix: str) -> None:
        """Write a record and its image.

        Args:
            record: Record in plain types.
            key: Name of the two members, without a dot in its last part, at which readers cut it.
            image: Encoded image, kept byte by byte.
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
        path: Path that ends in .jsonl or .tar; see ``atomic_path``.

    Raises:
        FileNotFoundError: There is no folder to write to.
        InputError: The name has another ending.
    """
    path = Path(path)
    if path.suffix not in SHARD_SUFFIXES.values():
        raise InputError(
            f"{path}: expected a name that ends in {' or '.join(SHARD_SUFFIXES.values())}, found {path.name!r}"
        )
    with atomic_path(path) as unfinished, open(unfinished, "wb") as file:
        writer = TarShardWriter(file) if path.suffix == ".tar" else JsonlShardWriter(file)
        yield writer
        writer.close()


def _to_json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
