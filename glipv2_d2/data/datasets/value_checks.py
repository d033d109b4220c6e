"""Values that were read from a file and are not trusted: each kind is checked, and converted, here and nowhere else.

Functions that read a value raise EntryError where it is not what they return.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, TypeGuard, TypeVar

from detectron2.utils.file_io import PathManager

from ...errors import InputError, one_line
from ...structures import CharSpan

_LARGEST_NUMBER = 2**53  # beyond it, neighbouring coordinates are the same number
_LARGEST_INTEGER = 2**63  # ids are kept as 64 bits
_LARGE_FILE = 100 * 2**20  # bytes; the reading takes seconds, and cannot say how far it is
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*", re.ASCII)
_LONGEST_NUMBER = 40  # characters

# Whether files of data may name files outside their folders, and commands as shards.
outside_files_allowed: ContextVar[bool] = ContextVar("outside_files_allowed", default=False)

Box = tuple[float, float, float, float]
Value = TypeVar("Value")


class AnnotationError(InputError):
    """An annotation file cannot be used; the message is one line: file, entry, field, value, and what was expected."""


class EntryError(InputError):
    """One entry of a file is faulty and is left out.

    The message is one line: field, value found, and what was expected.

    Attributes:
        kind: The kind of fault, in the plural, under which a report counts it.
    """

    def __init__(self, message: str, kind: str = "malformed entries"):
        super().__init__(message)
        self.kind = kind


class OmittedEntry(EntryError):
    """One entry of a file is proper, but a rule of its format leaves it out. It does not count as a fault."""


def read_json_file(json_file: str, kind: type = dict) -> Any:
    """Read a json file of UTF-8, or of UTF-16 with its mark, that holds an object or, with ``kind`` list, a list.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: It is not json, or holds something else.
    """
    try:
        with PathManager.open(json_file, "rb") as file:
            is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            size = file.seek(0, 2)
            file.seek(0)
            if size > _LARGE_FILE:
                logging.getLogger(__name__).info("%s: reading %d MB ...", json_file, size // 2**20)
            content = json.load(io.TextIOWrapper(file, encoding="utf-16" if is_wide else "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{json_file}: expected json in UTF-8, found another encoding ({error.reason}, byte {error.start}); "
            "save it as UTF-8, from Latin-1 by: iconv -f LATIN1 -t UTF-8 OLD.json > NEW.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{json_file}: expected a json file, found {one_line(error)}") from error
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise AnnotationError(f"{json_file}: expected {expected}, found {show(content)}")
    return content


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the json object that a line holds."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EntryError(f"expected json, found {one_line(error)}", "lines that are not json") from error
    return read_object(content)


def read_all(entries: Iterable[Any], read: Callable[[Any], Value]) -> tuple[list[Value], list[EntryError]]:
    """Return what a function makes of each entry, and the errors of those that it cannot read."""
    found: list[Value] = []
    left_out: list[EntryError] = []
    for entry in entries:
        try:
            found.append(read(entry))
        except EntryError as error:
            left_out.append(error)
    return found, left_out


def list_of(content: Mapping[str, Any], kind: str, json_file: str) -> list[Any]:
    """Return the list under a key of a json file; AnnotationError if there is none."""
    if not isinstance(content.get(kind), list):
        raise AnnotationError(f"{json_file}: {kind}: expected a list, found {show(content.get(kind))}")
    return content[kind]


def show(value: Any) -> str:
    """Write a value on one line, shortened; characters that cannot be printed are escaped."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)


def is_integer(value: Any) -> TypeGuard[int]:
    """Tell whether a value is an integer of 64 bits, and not a boolean."""
    return type(value) is int and -_LARGEST_INTEGER <= value < _LARGEST_INTEGER


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a finite number, and not a boolean."""
    # Neither nan nor inf passes the comparison.
    return type(value) in (int, float) and -_LARGEST_NUMBER < value < _LARGEST_NUMBER


def is_text(value: Any) -> TypeGuard[str]:
    """Tell whether a value is a string of more than white space."""
    # Half of a surrogate pair is legal in json, but cannot be tokenized, written or be part of a path.
    return isinstance(value, str) and bool(value.strip()) and value.encode("utf-8", "ignore").decode() == value


def stays_inside(path: str) -> bool:
    """Tell whether a relative path stays inside the folder that it is joined to."""
    return not os.path.isabs(path) and ".." not in path.replace("\\", "/").split("/")


def path_inside(path: str, folder: str = "") -> str | None:
    """Return a path that stands in a file, relative to the folder that it is joined to.

    An absolute path below the folder is inside, also where links lead to either; so is one that leaves a folder inside
    and comes back ("a/../b.png"), without these steps. A path that leaves the folder stays as it is where
    ``outside_files_allowed`` is set, as the config does with DATASETS.ALLOW_OUTSIDE_FILES; otherwise it is None.
    Without a folder an address leaves it. Links inside the folder are not followed.
    """
    relative = os.path.normpath(path) if ".." in path.split("/") else path
    if folder and os.path.isabs(path):
        relative = os.path.relpath(path, os.path.abspath(folder))
        if not stays_inside(relative):
            real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            relative = os.path.relpath(real, os.path.realpath(folder))
    if stays_inside(relative) and (folder or "://" not in relative):
        return relative
    return path if outside_files_allowed.get() else None


def as_number(value: Any) -> float | None:
    """Return a finite number, also one that is given as text; None for every other value."""
    if type(value) is str and len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value):
        value = float(value)
    return float(value) if is_number(value) else None


def as_integer(value: Any) -> int | None:
    """Return an integer, also one given as text or as a float without a fraction; None for every other value."""
    if is_integer(value):
        return value
    if type(value) is str and len(value) <= _LONGEST_NUMBER and re.fullmatch(r"\s*[+-]?\d+\s*", value, re.ASCII):
        return int(value) if is_integer(int(value)) else None
    number = as_number(value)
    return int(number) if number is not None and number.is_integer() else None


def read_object(entry: Any) -> dict[str, Any]:
    """Return an entry that is a json object."""
    if not isinstance(entry, dict):
        raise EntryError(f"expected an object, found {show(entry)}")
    return entry


def read_integer(entry: Mapping[str, Any], field: str) -> int:
    """Return an integer, also one that is given as text."""
    number = as_integer(entry.get(field))
    if number is None:
        _fail(field, "an integer", entry.get(field), "malformed ids")
    return number


def read_image_size(entry: Mapping[str, Any], height_field: str = "height", width_field: str = "width") -> list[int]:
    """Return height and width in pixels, positive integers."""
    size = []
    for field in (height_field, width_field):
        side = as_integer(entry.get(field))
        if side is None or not 0 < side < _LARGEST_NUMBER:
            _fail(field, "a positive integer", entry.get(field), "malformed image sizes")
        size.append(side)
    return size


def has_image_size(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry says a height and a width that ``read_image_size`` can read."""
    return all((as_integer(entry.get(field)) or 0) > 0 for field in ("height", "width"))


def read_text(entry: Mapping[str, Any], field: str) -> str:
    """Return a text of some words and whole characters; control characters are left to the tokenizer."""
    text = entry.get(field)
    if not is_text(text):
        _fail(field, "a string that is not empty", text, "malformed texts")
    return text


def read_file_name(entry: Mapping[str, Any], field: str, folder: str = "") -> str:
    """Return the path of an image relative to its folder, which it does not leave, see ``path_inside``."""
    file_name = read_text(entry, field)
    path = path_inside(file_name, folder)
    if path is None:
        expected = "a path inside the folder of the images (or DATASETS.ALLOW_OUTSIDE_FILES True)"
        _fail(field, expected, file_name, "paths that leave the image folder")
    return path


def read_spans(value: Any, caption: str) -> tuple[CharSpan, ...]:
    """Return the half-open character ranges of a phrase, at least one; each holds text inside the caption."""
    kind = "malformed character ranges"
    if not isinstance(value, list) or not value:
        _fail("tokens_positive", "a list of pairs", value, kind)
    spans = []
    for pair in value:
        begin, end = (as_integer(one) for one in pair) if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if begin is None or end is None:
            _fail("tokens_positive", "pairs of integers", value, kind)
        if not (0 <= begin < end <= len(caption) and caption[begin:end].strip()):
            expected = f"ranges that hold text inside the caption of {len(caption)} characters"
            _fail("tokens_positive", expected, value, kind)
        spans.append((begin, end))
    return tuple(spans)


def read_four_numbers(value: Any) -> list[float]:
    """Return the four finite numbers of a box as they stand there, also those that are given as text."""
    found = [as_number(one) for one in value] if isinstance(value, (list, tuple)) else []
    numbers = [one for one in found if one is not None]
    if len(found) != 4 or len(numbers) != 4:
        _fail("bbox", "four finite numbers", value, "boxes that are not four numbers")
    return numbers


def read_corners(value: Any, *, has_sides: bool = False) -> Box:
    """Return a box as it stands there, XYXY in pixels, perhaps larger than its image.

    Args:
        value: Left, top, right, bottom; or left, top, width, height. Numbers may be given as text.
        has_sides: The last two numbers are width and height.

    Raises:
        EntryError: The value is not four finite numbers, or the box has a negative side or no area.
    """
    left, top, right, bottom = read_four_numbers(value)
    if has_sides:
        right, bottom = left + right, top + bottom
    if right < left or bottom < top:
        _fail("bbox", "sides >= 0", value, "boxes with a negative side")
    if right == left or bottom == top:
        _fail("bbox", "a width and a height above 0", value, "boxes without area")
    return left, top, right, bottom


def cut_box(box: Box, height: int, width: int, min_side: float = 0.0) -> Box:
    """Return the part of a box inside its image.

    Args:
        box: XYXY in pixels, with area.
        height, width: Size of the image in pixels.
        min_side: Both sides of that part must be longer.

    Raises:
        EntryError: The box lies outside the image.
        OmittedEntry: The part is too small.
    """
    left, top, right, bottom = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    if not (right - left > min_side and bottom - top > min_side):
        found = f"bbox: expected a box inside its image of {width} x {height} pixels, found corners {show(list(box))}"
        if right <= left or bottom <= top:
            raise EntryError(found, "boxes outside their image")
        raise OmittedEntry(f"{found} with at most {min_side:g} pixel of it inside", "boxes of at most one pixel")
    return left, top, right, bottom


def read_box(value: Any, height: int, width: int, *, has_sides: bool = False) -> Box:
    """Return a box of more than one pixel of width and height, XYXY in pixels, cut to its image.

    The official code leaves out a box whose last pixel is not beyond its first, in width or height.

    Args:
        value: Left, top, right, bottom; or left, top, width, height.
        height, width: Size of the image in pixels.
        has_sides: The last two numbers are width and height.

    Raises:
        EntryError: As in ``read_corners``, or the box lies outside its image.
        OmittedEntry: Inside the image it is at most one pixel wide or high.
    """
    return cut_box(read_corners(value, has_sides=has_sides), height, width, min_side=1.0)


def read_flag(entry: Mapping[str, Any], field: str) -> int:
    """Return 0 or 1, also of a boolean; 0 where there is none."""
    value = entry.get(field)
    flag = 0 if value is None else int(value) if value is True or value is False else as_integer(value)
    if flag not in (0, 1):
        _fail(field, "0 or 1", value, "malformed flags")
    return flag


def read_score(value: Any) -> float:
    """Return the score of a pseudo box, in [0, 1]."""
    score = as_number(value)
    if score is None or not 0 <= score <= 1:
        _fail("score", "a number in [0, 1]", value, "malformed scores")
    return score


def check_no_crowd(entry: Mapping[str, Any]) -> None:
    """Raise OmittedEntry for a crowd region, which a sentence does not mean."""
    if entry.get("iscrowd", 0) not in (0, False, None, "0"):
        raise OmittedEntry(f"iscrowd: expected 0, found {show(entry['iscrowd'])}", "crowd regions")


def unknown_id(field: str, value: Any, expected: str) -> EntryError:
    """Return the error of a reference to something that is not there."""
    return EntryError(f"{field}: expected {expected}, found {show(value)}", f"unknown {field}s")


def _fail(field: str, expected: str, found: Any, kind: str) -> NoReturn:
    raise EntryError(f"{field}: expected {expected}, found {show(found)}", kind)
