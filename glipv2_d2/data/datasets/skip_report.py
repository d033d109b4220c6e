"""What a reader leaves out of a file, counted and named in one warning; and progress while a large file is read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sized

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from .value_checks import AnnotationError

_MOST_NAMED = 3
_SILENT_SECONDS = 5


class SkipReport:
    """Counts what a reader leaves out, kind by kind, and keeps the first few cases of each."""

    def __init__(self, source: str):
        """
        Args:
            source: The file that is read.
        """
        self.source = source
        self.counts: dict[str, int] = {}
        self._cases: dict[str, list[str]] = {}

    def skip(self, kind: str, where: str, reason: str) -> None:
        """Count one case.

        Args:
            kind: What is left out, in the plural, as "boxes".
            where: Its place in the file, as "line 7".
            reason: Field, value found and what was expected.
        """
        self.counts[kind] = self.counts.get(kind, 0) + 1
        cases = self._cases.setdefault(kind, [])
        if len(cases) < _MOST_NAMED:
            cases.append(f"{where}: {reason}")

    def close(self, records: Sized, expected: str) -> None:
        """Log how many records there are, and in one warning all that was left out.

        Raises:
            AnnotationError: There is no record.
        """
        left_out = "; ".join(
            f"{count} {kind} ({'; '.join(self._cases[kind])}{'; ...' if count > _MOST_NAMED else ''})"
            for kind, count in self.counts.items()
        )
        if not len(records):
            raise AnnotationError(f"{self.source}: found nothing to use, expected {expected}; left out: {left_out}")
        logger = logging.getLogger(__name__)
        logger.info("%s: %d records", self.source, len(records))
        if left_out:
            logger.warning("%s: left out %s", self.source, left_out)


def with_progress(items: Iterable, description: str) -> Iterable:
    """Pass items on; from the fifth second on a bar on the main process shows how far it is."""
    return tqdm(items, description, **_bar_options())


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield the byte offset and the bytes of each line of a file, with a bar as ``with_progress`` shows it."""
    with PathManager.open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        offset = 0
        with tqdm(desc=path, total=size, unit="B", unit_scale=True, **_bar_options()) as bar:
            for line in file:
                yield offset, line
                offset += len(line)
                bar.update(len(line))


def _bar_options() -> dict:
    return {"delay": _SILENT_SECONDS, "mininterval": 1, "disable": not comm.is_main_process()}
