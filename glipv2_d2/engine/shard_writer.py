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


class ShardWriter:
    """Writes jsonl, one record a line; or a tar with ``KEY.jpg`` (or png, webp) and ``KEY.json`` for each record.

    The same records give the same bytes.

    Args:
        file: File that is open for writing bytes.
        holds_images: Write a tar. Otherwise images stay files of their own.
    """

    def __init__(self, file: IO[bytes], holds_images: bool) -> None:
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="w") if holds_images else None

    @property
    def holds_images(self) -> bool:
        """Whether the shard is a tar."""
        return self._tar is not None

    def write(self, record: Mapping[str, Any], key: str, image: bytes, image_suffix: str) -> None:
        """Write a record and, in a tar, its image.

        Args:
            record: Record in plain types.
            key: Name of the two members of a tar, without a dot in its last part, at which readers cut it.
            image: Encoded image, kept byte by byte.
            image_suffix: Suffix of the image's format, without a dot.
        """
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
        if self._tar is None:
            self._file.write(line + b"\n")
            return
        for name, content in ((f"{key}.{image_suffix}", image), (f"{key}.json", line)):
            member = tarfile.TarInfo(name)  # no time and no owner
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Write the end of a tar; the owner of the file closes it."""
        if self._tar is not None:
            self._tar.close()


@contextmanager
def open_shard(path: str | os.PathLike) -> Iterator[ShardWriter]:
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
        writer = ShardWriter(file, holds_images=path.suffix == ".tar")
        yield writer
        writer.close()
