"""Checks of single values that were read from a file, and the reading of a json file."""

from __future__ import annotations

import json
import logging
import os
import reprlib
from typing import Any

from detectron2.utils.file_io import PathManager

from ...errors import InputError

_LARGEST_NUMBER = 2**53  # beyond it, readers of json disagree about the value
_LARGE_FILE = 100 * 2**20  # bytes; the reading takes seconds, and cannot say how far it is


class AnnotationError(InputError):
    """Annotations break the format; the message is one line: file, entry, field, value, and what was expected."""


def read_json_file(json_file: str, kind: type = dict) -> Any:
    """Read a json file that holds an object or, with ``kind`` list, a list.

    Raises:
        FileNotFoundError: There is no such file.
        AnnotationError: It is no json, or holds something else.
    """
    try:
        with PathManager.open(json_file, "r", encoding="utf-8") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size > _LARGE_FILE:
                logging.getLogger(__name__).info("%s: reading %d MB ...", json_file, size // 2**20)
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{json_file}: {' '.join(str(error).split())}; expected a json file") from error
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise AnnotationError(f"{json_file}: holds {show(content)}, expected {expected}")
    return content


def is_integer(value: Any) -> bool:
    """Tell whether a value is an integer, and no boolean."""
    return type(value) is int and -_LARGEST_NUMBER < value < _LARGEST_NUMBER


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, and no boolean."""
    # Neither nan nor inf passes the comparison.
    return type(value) in (int, float) and -_LARGEST_NUMBER < value < _LARGEST_NUMBER


def is_text(value: Any) -> bool:
    """Tell whether a value is a string of more than white space."""
    # Half of a surrogate pair is legal in json, but cannot be tokenized, written or be part of a path.
    return isinstance(value, str) and bool(value.strip()) and value.encode("utf-8", "ignore").decode() == value


def is_box(value: Any) -> bool:
    """Tell whether a value is a list of four finite numbers."""
    return type(value) is list and len(value) == 4 and all([is_number(number) for number in value])


def stays_inside(path: str) -> bool:
    """Tell whether a relative path stays inside the folder that it is joined to."""
    return not os.path.isabs(path) and ".." not in path.replace("\\", "/").split("/")


def show(value: Any) -> str:
    """Write a value on one line, shortened; what cannot be printed is escaped."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)
