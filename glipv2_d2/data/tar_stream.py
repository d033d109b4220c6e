"""Tar shards in WebDataset's layout as streams of samples; nothing in them is unpacked to the disk or executed."""

from __future__ import annotations

import glob
import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import braceexpand
from detectron2.utils.file_io import PathManager
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys

from ..errors import InputError

# Addresses that webdataset opens, by a program such as curl. All others are paths of detectron2's PathManager.
_REMOTE = re.compile(r"(pipe|https?|sftp|ftps|scp|gs|ais|hf):")
_COMPRESSED = (".tar.gz", ".tgz")
# A tar archive ends with blocks of zeros.
_END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE)
# Of one file in a shard. A header can claim any size, also in few bytes: a sparse or a compressed file.
_MAX_FILE_BYTES = 2**28


class TarSample(NamedTuple):
    """The files of a shard that share a name up to its first dot.

    Attributes:
        key: The shared name, with its folders.
        files: Contents by what follows the first dot, in lower case.
        is_cut: The shard is damaged behind this sample, which may lack files because of it.
    """

    key: str
    files: dict[str, bytes]
    is_cut: bool


def expand_shard_urls(urls: str | Sequence[str]) -> list[str]:
    """List what a pattern such as ``caps-{000000..000099}.tar`` names, or several of them; ``*`` stays as it is.

    Raises:
        InputError: A pattern cannot be expanded, there is none, or a shard is neither tar nor gzipped tar by its name.
    """
    expanded: set[str] = set()
    for pattern in [urls] if isinstance(urls, str) else urls:
        try:
            expanded.update(braceexpand.braceexpand(pattern))
        except ValueError as error:
            raise InputError(f"shards {pattern!r}: {error}; expected braces like {{000000..000099}}") from error
    if not expanded:
        raise InputError(f"shards: found {urls!r}, expected at least one tar file")
    for url in expanded:
        if not _REMOTE.match(url) and not url.endswith((".tar", *_COMPRESSED)):
            raise InputError(f"shard {url!r}: expected a name that ends in .tar, .tar.gz or .tgz")
    return sorted(expanded)


def find_shards(urls: Iterable[str]) -> list[str]:
    """Return the shards that are there, in sorted order: those that a path with a ``*`` matches, and all others named.

    Raises:
        FileNotFoundError: A shard that is a file is not there, or nothing matches. Remote ones are only known once they
            are read.
    """
    found: set[str] = set()
    for url in urls:
        is_pattern = "*" in url and not _REMOTE.match(url)
        matches = glob.glob(url) if is_pattern else [url]
        if not matches or not (is_pattern or _REMOTE.match(url) or PathManager.isfile(url)):
            raise FileNotFoundError(f"shard {url} does not exist")
        found.update(matches)
    return sorted(found)


def read_shard(url: str, on_damage: Callable[[str], None]) -> Iterator[TarSample]:
    """Yield the samples of a shard in their order; the shard is read once, front to back.

    A shard that is truncated, corrupt or cannot be opened ends early. A second file of a name within a sample is left
    out.

    Args:
        url: Path or address of a tar file, possibly gzipped.
        on_damage: Called with a line that names the shard, at most once, when it turns out to be damaged.
    """
    damage: list[str] = []
    doubles: list[str] = []
    count = 0
    # One sample is held back: only what follows shows whether it was cut.
    held: TarSample | None = None
    for sample in group_by_keys(_files(url, _collect(damage)), handler=_collect(doubles)):
        if held is not None:
            yield held
            count += 1
        held = TarSample(sample["__key__"], {name: data for name, data in sample.items() if name[:2] != "__"}, False)
    if held is not None:
        count += 1
        yield held._replace(is_cut=bool(damage))
    if damage:
        on_damage(f"{url}: {damage[0]}, {count} samples read; expected a whole tar file")
    elif doubles:
        on_damage(f"{url}: {doubles[0]}; expected each file once")


def _collect(reasons: list[str]) -> Callable[[Exception], bool]:
    """Return a handler of webdataset that notes an error and lets the reading go on, as far as it can."""

    def handler(error: Exception) -> bool:
        # webdataset adds the stream and the address to the arguments of the error, or to its text.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str((*error.args, "")[0])
        reasons.append(" ".join(reason.partition(" @ <")[0].split()) or type(error).__name__)
        return True

    return handler


def _files(url: str, on_error: Callable[[Exception], bool]) -> Iterator[dict[str, Any]]:
    """Yield the files of a shard as webdataset does; what ends them early goes to ``on_error``."""
    try:
        raw = gopen(url) if _REMOTE.match(url) else PathManager.open(url, "rb")
        with raw:
            stream = _TailReader(gzip.GzipFile(fileobj=raw) if url.endswith(_COMPRESSED) else raw)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                yield from _members(archive, url)
                # A cut between two files, or a header that is none, raises no error in tarfile.
                if stream.block_at(archive.offset) != _END_OF_ARCHIVE:
                    raise EOFError("unexpected end of data")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        on_error(error)


def _members(archive: tarfile.TarFile, url: str) -> Iterator[dict[str, Any]]:
    """Yield name and content of each plain file."""
    for member in archive:
        if not member.isreg():
            continue
        if member.issparse() or member.size > _MAX_FILE_BYTES:
            size = f"{member.size} bytes" + " with holes" * member.issparse()
            raise OSError(f"file {member.name!r:.100} has {size}, expected a plain one of at most {_MAX_FILE_BYTES}")
        yield {"fname": member.name, "data": archive.extractfile(member).read(), "__url__": url}
        # It keeps all headers otherwise.
        archive.members = []


class _TailReader:
    """A stream that remembers the end of what was read from it."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._tail = b""
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Read as from the stream itself."""
        data = self._stream.read(size)
        self._tail = (self._tail + data)[-2 * tarfile.RECORDSIZE :]
        self._position += len(data)
        return data

    def block_at(self, offset: int) -> bytes:
        """Return the block at an offset, shorter or empty where it was not among the last that were read."""
        start = offset - (self._position - len(self._tail))
        return self._tail[start : start + tarfile.BLOCKSIZE] if start >= 0 else b""
