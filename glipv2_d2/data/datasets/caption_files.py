"""Images with captions but without boxes: jsonl files and WebDataset tar shards, read piece by piece as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from detectron2.utils.file_io import PathManager

from ...errors import InputError
from .tar_shards import expand_shard_urls, read_shard
from .value_checks import stays_inside

# Longer texts are not captions, and the text encoder reads the beginning only.
MAX_CAPTION_LENGTH = 10_000
# Longer lines are not read into memory.
_MAX_LINE_BYTES = 1 << 20

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


class CaptionSample(NamedTuple):
    """An image and its caption.

    Attributes:
        name: Where it was found, for messages.
        key: Its name in a tar shard: unique in its piece, without a dot in its last part.
        file_name: Path of the image below the image folder, or its name in the shard.
        caption: Text of at most ``MAX_CAPTION_LENGTH`` characters that can be tokenized and written; may be blank.
        image: The encoded image; None where it is a file of its own.
    """

    name: str
    key: str
    file_name: str
    caption: str
    image: bytes | None


class SkippedCaption(NamedTuple):
    """An entry that gives no sample, and why; entries with the same reason are counted together."""

    name: str
    reason: str


class JsonlCaptions:
    """Lines ``{"filename": ..., "caption": ...}`` in pieces of equal length; other fields are not read.

    Only the positions where the pieces begin are kept in memory.

    Args:
        path: The jsonl file.
        piece_size: Lines in a piece.

    Raises:
        FileNotFoundError: The file does not exist.
        InputError: It is empty.
    """

    # Images are files of their own.
    holds_images = False
    # Content of a line, for a message.
    _content = "a filename and a caption"

    def __init__(self, path: str, piece_size: int) -> None:
        self.files = [_local_file(path)]
        self.piece_size = piece_size
        self._offsets = [0]
        self.num_lines = 0
        with open(self.files[0], "rb") as file:
            for _ in _bounded_lines(file):
                self.num_lines += 1
                if self.num_lines % piece_size == 0:
                    self._offsets.append(file.tell())
        if self.num_lines % piece_size == 0:
            self._offsets.pop()
        if not self._offsets:
            raise InputError(f"{path}: expected lines with {self._content}, found none")

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, piece: int) -> Iterator[Any]:
        """Yield a ``CaptionSample`` or ``SkippedCaption`` for each line of a piece that is not blank."""
        with open(self.files[0], "rb") as file:
            file.seek(self._offsets[piece])
            first = piece * self.piece_size
            for number, line in zip(range(first, first + self.piece_size), _bounded_lines(file), strict=False):
                if line is None or line.strip():
                    entry = read_line(line, number)
                    yield entry if isinstance(entry, SkippedCaption) else self._make_sample(*entry, number)

    def _make_sample(self, name: str, content: dict[str, Any], number: int) -> Any:
        """Make a sample of the content of a line, or say why there is none."""
        return _check_caption(name, f"{number:09d}", content["filename"], content.get("caption"), None)


class TarCaptions:
    """WebDataset tar shards, each of them a piece: ``KEY.jpg`` (png, webp) with ``KEY.txt`` or ``KEY.json``.

    The json is an object with the text ``caption``; the txt goes before it. Nothing is unpacked to the disk.

    Args:
        paths: The shards.

    Raises:
        FileNotFoundError: A shard is missing.
    """

    holds_images = True

    def __init__(self, paths: Sequence[str]) -> None:
        self.files = [_local_file(path) for path in paths]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, piece: int) -> Iterator[CaptionSample | SkippedCaption]:
        """Yield the samples of a shard; damage ends it with an entry that says so."""
        path = self.files[piece]
        damage: list[str] = []
        for sample in read_shard(path, damage.append):
            yield _read_members(f"{os.path.basename(path)}: {sample.key!r:.100}", sample.key, sample.files)
        for line in damage:
            yield SkippedCaption(line, "rest of a damaged tar shard")


def open_captions(path: str, piece_size: int) -> JsonlCaptions | TarCaptions:
    """Open captions by the ending of their name.

    Args:
        path: A jsonl file; or tar shards, with ranges in braces: ``captions-{000..009}.tar``.
        piece_size: Lines of a piece of a jsonl file. A tar shard is one piece.

    Raises:
        FileNotFoundError: A file is missing.
        InputError: The braces do not close, or the jsonl file is empty.
    """
    if path.rstrip("}").endswith(_TAR_SUFFIXES):
        return TarCaptions(expand_shard_urls(path))
    return JsonlCaptions(path, piece_size)


def _local_file(path: str) -> str:
    local_path = PathManager.get_local_path(path)
    if not os.path.isfile(local_path):
        raise FileNotFoundError(f"captions: there is no file {path}")
    return local_path


def _bounded_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield lines; None for one of at least ``_MAX_LINE_BYTES``, which is never in memory as a whole."""
    while line := file.readline(_MAX_LINE_BYTES):
        too_long = len(line) == _MAX_LINE_BYTES
        while len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES)
        yield None if too_long else line


def read_line(line: bytes | None, number: int) -> tuple[str, dict[str, Any]] | SkippedCaption:
    """Read the object on a line of jsonl, which has the ``filename`` of an image.

    Args:
        line: None for one that is too long.
        number: Counted from 0.

    Returns:
        Its name for messages and its content; or why it cannot be used.
    """
    name = f"line {number + 1}"
    if line is None:
        return SkippedCaption(name, f"line of more than {_MAX_LINE_BYTES} bytes")
    content = _read_object(line)
    if content is None:
        return SkippedCaption(name, "line that is not a JSON object")
    file_name = content.get("filename")
    if not isinstance(file_name, str) or not file_name:
        return SkippedCaption(name, "no filename")
    name = f"{name}: {file_name!r:.100}"
    if not stays_inside(file_name):
        return SkippedCaption(name, "filename that leaves the image folder")
    return name, content


def _read_members(name: str, key: str, files: Mapping[str, bytes]) -> CaptionSample | SkippedCaption:
    suffix = next((suffix for suffix in _IMAGE_SUFFIXES if suffix in files), None)
    if suffix is None:
        return SkippedCaption(name, "no image")
    if not stays_inside(key):
        return SkippedCaption(name, "key that leaves the folder")
    caption: Any = None
    if "txt" in files:
        try:
            caption = files["txt"].decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            return SkippedCaption(name, "caption that is not valid text")
    elif "json" in files:
        caption = (_read_object(files["json"]) or {}).get("caption")
    return _check_caption(name, key, f"{key}.{suffix}", caption, files[suffix])


def _check_caption(
    name: str, key: str, file_name: str, caption: Any, image: bytes | None
) -> CaptionSample | SkippedCaption:
    reason = why_unusable(caption, "caption", file_name)
    return CaptionSample(name, key, file_name, caption, image) if reason is None else SkippedCaption(name, reason)


def why_unusable(text: Any, field: str, file_name: str) -> str | None:
    """Return why a text that belongs to an image cannot be tokenized or written; None if it can."""
    if not isinstance(text, str):
        return f"no {field}"
    if len(text) > MAX_CAPTION_LENGTH:
        return f"{field} of more than {MAX_CAPTION_LENGTH} characters"
    # Half of a surrogate pair is legal in json, but cannot be tokenized or written.
    if any("\ud800" <= letter <= "\udfff" for letter in text + file_name):
        return f"{field} or filename that is not valid text"
    return None


def _read_object(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a text, None if there is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
