"""Datasets in WebDataset tar shards, an image and its grounding record side by side: found and read.

A shard is read once, front to back; nothing in it is unpacked to the disk or executed.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import braceexpand
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys

from ...errors import InputError, one_line
from .grounding_records import read_odvg_grounding
from .skip_report import SkipReport
from .value_checks import EntryError, outside_files_allowed

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# Addresses that webdataset opens, by a program such as curl. All others are paths of detectron2's PathManager.
_REMOTE = re.compile(r"(pipe|https?|sftp|ftps|scp|gs|ais|hf):")
_COMPRESSED = (".tar.gz", ".tgz")
# A tar archive ends with blocks of zeros.
_END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE)
# Limit for the files of a sample together. A header can claim any size, also in few bytes: a sparse or compressed file.
_MAX_SAMPLE_BYTES = 2**28
# Limit for its json, of which Python makes objects many times as large.
_MAX_JSON_BYTES = 2**24


def expand_shard_urls(urls: str | Sequence[str]) -> list[str]:
    """List what a pattern such as ``caps-{000000..000099}.tar`` names, or several of them; ``*`` stays as it is.

    Raises:
        InputError: A pattern cannot be expanded, there is none, or a name ends neither like a tar file nor like a
            gzipped one.
    """
    expanded: set[str] = set()
    for pattern in [urls] if isinstance(urls, str) else urls:
        try:
            expanded.update(braceexpand.braceexpand(pattern))
        except ValueError as error:
            raise InputError(f"shards {pattern!r}: expected braces like {{000000..000099}}, found {error}") from error
    if not expanded:
        raise InputError(f"shards: expected at least one tar file, found {urls!r}")
    for url in expanded:
        if not _REMOTE.match(url) and not url.endswith((".tar", *_COMPRESSED)):
            raise InputError(f"shard {url!r}: expected a name that ends in .tar, .tar.gz or .tgz")
    return sorted(expanded)


def shard_urls_of(name: str) -> list[str] | None:
    """Return the shards of a registered dataset that exist, see ``find_shards``; None if it is not read as a stream.

    Raises:
        FileNotFoundError: A shard is a file and does not exist.
    """
    urls = MetadataCatalog.get(name).get("shard_urls")
    if urls is None:
        return None
    try:
        return find_shards(urls)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"dataset {name!r}: {error}") from error


def find_shards(urls: Iterable[str]) -> list[str]:
    """Return the files that paths with a ``*`` match, and all other shards as they are named, in sorted order.

    Raises:
        FileNotFoundError: A file does not exist, or nothing matches. A remote shard is not looked for.
        InputError: A shard is a command, and the config does not allow that.
    """
    found: set[str] = set()
    for url in urls:
        if url.startswith("pipe:") and not outside_files_allowed.get():
            raise InputError(
                f"shard {url!r}: expected a path or an address, found a command; "
                "DATASETS.ALLOW_OUTSIDE_FILES True lets it run"
            )
        is_pattern = "*" in url and not _REMOTE.match(url)
        matches = glob.glob(url) if is_pattern else [url]
        if not matches or not (is_pattern or _REMOTE.match(url) or PathManager.isfile(url)):
            raise FileNotFoundError(f"shard {url} does not exist")
        found.update(matches)
    return sorted(found)


def load_shards(shard_urls: Sequence[str], num_samples: int | None, name: str) -> list[dict]:
    """Read all samples of shards into memory, for tools that show or count a small dataset.

    Args:
        shard_urls: The shards, see ``find_shards``.
        num_samples: Not used here: a stream needs it.
        name: The dataset.

    Returns:
        Dataset dicts in the order of the shards, with ``image_bytes``.

    Raises:
        FileNotFoundError: A shard is a file and does not exist.
        AnnotationError: Nothing is left, or there are too many faults.
    """
    report = SkipReport(f"shards of dataset {name!r}", name)

    def leave_out(kind: str, lines: list[str]) -> None:
        report.count(kind, len(lines))
        for line in lines:
            report.skip(kind, "shards", EntryError(line, f"malformed {kind}"))

    urls = find_shards(shard_urls)
    dicts = [item for url in urls for _, item in read_shard_dicts(url, leave_out)]
    report.count("shards", len(urls))
    report.count("records", len(dicts))
    report.count("regions", sum(len(item["annotations"]) for item in dicts))
    report.close(dicts, "records")
    return dicts


def read_shard_dicts(
    url: str, report: Callable[[str, list[str]], None], is_wanted: Callable[[int], bool] = lambda number: True
) -> Iterator[tuple[int, dict]]:
    """Yield the usable records of a shard as dataset dicts, each with its number in the shard.

    Args:
        url: Path or address of the shard.
        report: Called with what was left out: a kind, "shards" for the end of a damaged shard, "records" or "regions",
            and a line for each.
        is_wanted: Tells by its number whether a record is read at all.
    """
    for number, sample in enumerate(read_shard(url, lambda line: report("shards", [line]))):
        if not is_wanted(number):
            continue
        try:
            dataset_dict, left_out = read_shard_sample(sample, url)
        except EntryError as error:
            # Files that a cut has taken away are part of the damage to the shard.
            if not sample.is_cut:
                report("records", [str(error)])
            continue
        report("regions", left_out)
        yield number, dataset_dict


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


def read_shard_sample(sample: TarSample, url: str) -> tuple[dict, list[str]]:
    """Make a dataset dict from the files of a sample; the image is not decoded.

    Args:
        sample: Files that may hold anything.
        url: Address of the shard; with the key it makes up ``file_name`` and ``image_id``.

    Returns:
        The dataset dict with ``image_bytes``, possibly without annotations, and a line for each box left out.

    Raises:
        EntryError: It has no image or no usable record.
    """
    where = f"{url}: {sample.key!r:.100}"
    suffix = next((suffix for suffix in _IMAGE_SUFFIXES if suffix in sample.files), None)
    missing = "an image" if suffix is None else "json"
    if suffix is None or "json" not in sample.files:
        raise EntryError(f"{where}: expected {missing} among its files, found {sorted(sample.files)}")
    num_bytes = len(sample.files["json"])
    if num_bytes > _MAX_JSON_BYTES:
        raise EntryError(f"{where}: expected json of at most {_MAX_JSON_BYTES} bytes, found {num_bytes}")
    try:
        entries, left_out = read_odvg_grounding(json.loads(sample.files["json"]))
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{where}: {one_line(error)}") from error
    file_name = f"{url}/{sample.key}.{suffix}"
    dataset_dict = {"file_name": file_name, "image_id": sample.key, "image_bytes": sample.files[suffix], **entries}
    return dataset_dict, [f"{where}: {line}" for line in left_out]


def read_shard(url: str, on_damage: Callable[[str], None]) -> Iterator[TarSample]:
    """Yield the samples of a shard in their order.

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
            stream: Any = _TailReader(gzip.GzipFile(fileobj=raw) if url.endswith(_COMPRESSED) else raw)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                yield from _members(archive, url, stream)
                # tarfile raises no error for a cut between two files, or where the next header is not one.
                if stream.block_at(archive.offset) != _END_OF_ARCHIVE:
                    raise EOFError("unexpected end of data")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        on_error(error)


def _members(archive: Any, url: str, stream: _TailReader) -> Iterator[dict[str, Any]]:
    """Yield name and content of each plain file of an open ``TarFile``."""
    key, num_bytes = "", 0
    for member in archive:
        stream.begin_member()
        if not member.isreg():
            continue
        # The files of a sample share this, see ``TarSample``; webdataset keeps them in memory together.
        folder, _, file_name = member.name.rpartition("/")
        own_key = f"{folder}/{file_name.partition('.')[0]}"
        key, num_bytes = own_key, member.size + (num_bytes if own_key == key else 0)
        if member.issparse() or num_bytes > _MAX_SAMPLE_BYTES:
            size = f"{member.size} bytes" + " with holes" * member.issparse()
            raise OSError(
                f"file {member.name!r:.100} has {size}, expected plain ones of at most {_MAX_SAMPLE_BYTES} in a sample"
            )
        yield {"fname": member.name, "data": archive.extractfile(member).read(), "__url__": url}
        # The archive keeps all headers otherwise; it has no public way to forget them.
        archive.members = []


class _TailReader:
    """A binary stream that remembers the end of what was read from it, and bounds what stands between two files."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._tail = b""
        self._position = 0
        self._begin = 0

    def begin_member(self) -> None:
        """Count anew: a header was read."""
        self._begin = self._position

    def read(self, size: int = -1) -> bytes:
        """Read as from the stream itself.

        Raises:
            OSError: Too much was read since the last header: tarfile keeps names and comments of any length in memory.
        """
        data = self._stream.read(size)
        self._tail = (self._tail + data)[-2 * tarfile.RECORDSIZE :]
        self._position += len(data)
        if self._position - self._begin > 2 * _MAX_SAMPLE_BYTES + len(self._tail):
            raise OSError(f"more than {2 * _MAX_SAMPLE_BYTES} bytes up to the next file, expected its header")
        return data

    def block_at(self, offset: int) -> bytes:
        """Return the block at an offset, shorter or empty where it was not among the last that were read."""
        start = offset - (self._position - len(self._tail))
        return self._tail[start : start + tarfile.BLOCKSIZE] if start >= 0 else b""
