"""Random access to the lines of a TSV file, by the byte offsets in the ``.lineidx`` file beside it."""

from __future__ import annotations

import os

import numpy as np
from detectron2.utils.file_io import PathManager

from ...errors import one_line
from .skip_report import read_lines
from .value_checks import AnnotationError, show

_NUM_PROBES = 100
_LONGEST_KEY = 4096  # bytes


class TsvFile:
    """A TSV file whose lines begin with a key.

    Its offsets come from the file of the same name that ends with ``.lineidx``; without one they are found by reading
    the whole file once. The file stays open until ``close``.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: The offsets are not those of its lines.
    """

    def __init__(self, path: str):
        self.path = path
        self._file = PathManager.open(path, "rb")
        index_file = os.path.splitext(path)[0] + ".lineidx"
        if PathManager.isfile(index_file):
            self.offsets = read_integers(index_file)
            self._check_offsets(index_file)
        else:
            self.offsets = np.array([offset for offset, _ in read_lines(path)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.offsets)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def row(self, number: int) -> tuple[bytes, bytes]:
        """Return the key and the last column of a line, empty where it has one column only."""
        self._file.seek(self.offsets[number])
        key, _, rest = self._file.readline().rstrip(b"\r\n").partition(b"\t")
        return key, rest.rpartition(b"\t")[2]

    def key(self, number: int) -> bytes:
        """Return the key of a line without reading the rest of it."""
        self._file.seek(self.offsets[number])
        return self._file.read(_LONGEST_KEY).partition(b"\t")[0]

    def probes(self) -> list[int]:
        """Return some lines spread over the file, the first and the last among them, for checks of samples."""
        return sorted(set(np.linspace(0, len(self) - 1, min(_NUM_PROBES, len(self))).astype(int).tolist()))

    def _check_offsets(self, index_file: str) -> None:
        size = self._file.seek(0, 2)
        offsets = self.offsets
        is_proper = bool(len(offsets)) and offsets[0] == 0 and (np.diff(offsets) > 0).all() and offsets[-1] < size
        # An index of another version of the file has offsets inside of lines.
        if not is_proper or not all(self._begins_line(offsets[number]) for number in self.probes()):
            raise AnnotationError(
                f"{index_file}: expected the beginnings of the lines of {self.path} in its {size} bytes, found other "
                f"offsets; without this file they are found anew"
            )

    def _begins_line(self, offset: int) -> bool:
        if offset == 0:
            return True
        self._file.seek(offset - 1)
        return self._file.read(1) == b"\n"


def read_integers(path: str) -> np.ndarray:
    """Read a file of integers, one a line, perhaps none: (n,) int64.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: It holds something else.
    """
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            if not file.read(1):
                return np.empty(0, dtype=np.int64)
            file.seek(0)
            return np.loadtxt(file, dtype=np.int64, ndmin=1, comments=None).reshape(-1)
    except (ValueError, OverflowError) as error:
        raise AnnotationError(f"{path}: expected an integer on each line, found {show(one_line(error))}") from error
