"""What readers leave out of their files: counted, named in a warning, listed in ``data_report.json``, and limited."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from ...errors import InputError
from ...folders import write_text_once
from .value_checks import AnnotationError, EntryError, OmittedEntry, Value, outside_files_allowed

REPORT_FILE = "data_report.json"
# As many faults are never an error: in a small file, one is soon more than the share.
FEW_FAULTS = 10
DEFAULT_SHARE = 0.02

_MOST_NAMED = 3
_MOST_LISTED = 100_000  # of a file; beyond it cases are only counted
_SILENT_SECONDS = 5


class LeftOut(NamedTuple):
    """One entry that was left out.

    Attributes:
        unit: What the entry is, in the plural, as "annotations".
        kind: Kind of fault, as "boxes without area".
        where: Its location in the file, as "line 7".
        reason: Field, what was expected, and the value found.
    """

    unit: str
    kind: str
    where: str
    reason: str


class SkipReport:
    """Counts what a reader leaves out of one file.

    Args:
        source: The file that is read.
        dataset: Name of the dataset that it is read for.

    Attributes:
        names: Classes of boxes that were left out.
    """

    def __init__(self, source: str, dataset: str = "") -> None:
        self.source = source
        self.dataset = dataset
        self.totals: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.cases: list[LeftOut] = []
        self.names: set[str] = set()

    def count(self, unit: str, number: int = 1) -> None:
        """Say how many entries of a unit there are in the file, left out or not; the numbers of all calls are added."""
        self.totals[unit] += number

    def change(self, kind: str) -> None:
        """Count one entry that is used, but not as it stands in the file."""
        self.changed[kind] += 1

    def skip(self, unit: str, where: str, error: EntryError, names: Iterable[str] = (), number: int = 1) -> None:
        """Count entries that are left out, mostly one.

        Args:
            unit: What it is, in the plural, as "annotations".
            where: Its location in the file, as "line 7".
            error: The kind of fault, and what is wrong. An ``OmittedEntry`` does not count towards the limit.
            names: The classes of its boxes, where they are known.
            number: How many entries have the one fault.
        """
        self.names.update(names)
        self.counts[unit, error.kind] += number
        self.faults[unit] += 0 if isinstance(error, OmittedEntry) else number
        if len(self.cases) < _MOST_LISTED:
            self.cases.append(LeftOut(unit, error.kind, where, str(error)))

    def keep(self, unit: str, where: str, found: list[Value], left_out: list[EntryError]) -> list[Value]:
        """Return the entries at one location that could be read; count them and the others, which are skipped."""
        self.count(unit, len(found) + len(left_out))
        for error in left_out:
            self.skip(unit, where, error)
        return found

    def close(self, records: Sized, expected: str) -> None:
        """Log how many records there are, and in one warning all that was left out; hand both to the ``DataReport``.

        Raises:
            AnnotationError: There is no record, or too many entries have a fault.
        """
        report = DataReport.current()
        report.add(self)
        if not len(records):
            found = f"found nothing to use; left out: {self.summary()}"
            raise AnnotationError(f"{self.source}: expected {expected}, {found}")
        for unit, number in self.faults.items():
            if number and number > report.limit(self.totals[unit]):
                faulty = {key for key in self.counts if key[0] == unit}
                listed = f" {report.path} lists all of them;" if report.path else ""
                raise AnnotationError(
                    f"{self.source}: expected at most {report.max_share:.1%} faulty {unit}, found {number} of "
                    f"{self.totals[unit]}: {self.summary(faulty)};{listed} correct the file, or raise "
                    f"DATASETS.MAX_FAULTY_SHARE (of convert-data --max-faulty-share)"
                )
        logger = logging.getLogger(__name__)
        changed = "".join(f"; {kind}: {number}" for kind, number in self.changed.items())
        # A file is read anew for each evaluation: as it should be, it is no news.
        level = logging.INFO if changed else logging.DEBUG
        logger.log(level, "%s: %d records%s", self.source, len(records), changed)
        if self.counts:
            logger.log(report.level, "%s: left out %s", self.source, self.summary())

    def content(self) -> dict[str, Any]:
        """Return everything that is known, in types of json."""
        left_out: dict[str, dict[str, int]] = {}
        for (unit, kind), number in self.counts.items():
            left_out.setdefault(unit, {})[kind] = number
        return {
            "file": self.source,
            "dataset": self.dataset,
            "entries": dict(self.totals),
            "left_out": left_out,
            "changed": dict(self.changed),
            "cases": [case._asdict() for case in self.cases],
        }

    def summary(self, keys: Iterable[tuple[str, str]] | None = None) -> str:
        """Write counts by unit and kind, and the first cases, one of each kind before a second of any.

        Args:
            keys: Units and kinds; None: all.
        """
        keys = set(self.counts if keys is None else keys)
        units: dict[str, list[str]] = {}
        for (unit, kind), number in self.counts.items():
            if (unit, kind) in keys:
                units.setdefault(unit, []).append(f"{kind}: {number}")
        counts = ", ".join(f"{unit} ({', '.join(kinds)})" for unit, kinds in units.items())
        seen: Counter[tuple[str, str]] = Counter()
        ranked = []
        for case in self.cases:
            key = (case.unit, case.kind)
            if key in keys and seen[key] < _MOST_NAMED:
                ranked.append((seen[key], f"{case.where}: {case.reason}"))
                seen[key] += 1
        ranked.sort(key=lambda pair: pair[0])
        return counts + "".join(f"; {text}" for _, text in ranked[:_MOST_NAMED])


class DataReport:
    """Everything that readers leave out while a ``with`` block of this object runs.

    At the end of the block, after an error too, the main process writes ``data_report.json``: one entry for each file
    and dataset, which replaces the entry of an earlier run in the same folder.

    Args:
        max_share: Share of the entries of a file that may have a fault, in [0, 1]; up to ``FEW_FAULTS`` of them are
            allowed anyway, but with 0 none is.
        folder: Where the report is written; None: it is not.
        outside_files: Files of data may name files outside their folders, and commands as shards.
        is_quiet: What is left out, and files that are cut off, are no warnings, because the owner of the report tells
            them.

    Attributes:
        files: The report of each file, by the file and the name of the dataset.
    """

    _current: ContextVar[DataReport | None] = ContextVar("data_report", default=None)

    def __init__(
        self,
        max_share: float = DEFAULT_SHARE,
        folder: str | None = None,
        outside_files: bool = False,
        is_quiet: bool = False,
    ) -> None:
        self.max_share = max_share
        self.is_quiet = is_quiet
        self._outside_files = outside_files
        self._outside_token: Token[bool] | None = None
        self.path = None if folder is None else os.path.join(folder, REPORT_FILE)
        self.files: dict[tuple[str, str], SkipReport] = {}
        self._token: Token[DataReport | None] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DataReport:
        """Return a report for OUTPUT_DIR with DATASETS.MAX_FAULTY_SHARE and DATASETS.ALLOW_OUTSIDE_FILES.

        Inside of a quiet report it is quiet, too.

        Raises:
            InputError: The share is outside [0, 1].
        """
        share = cfg.DATASETS.MAX_FAULTY_SHARE
        if not 0 <= share <= 1:
            raise InputError(f"DATASETS.MAX_FAULTY_SHARE: expected a number in [0, 1], found {share}")
        return cls(share, cfg.OUTPUT_DIR, cfg.DATASETS.ALLOW_OUTSIDE_FILES, cls.current().is_quiet)

    @classmethod
    def current(cls) -> DataReport:
        """Return the report of the innermost ``with`` block; outside of any, one that is not written."""
        return cls._current.get() or cls()

    @property
    def level(self) -> int:
        """The level at which faults of data are logged."""
        return logging.INFO if self.is_quiet else logging.WARNING

    def __enter__(self) -> DataReport:
        self._token = self._current.set(self)
        self._outside_token = outside_files_allowed.set(self._outside_files)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            self._current.reset(self._token)
        if self._outside_token is not None:
            outside_files_allowed.reset(self._outside_token)
        if self.path is not None and self.files and comm.is_main_process():
            self.write(self.path)

    def add(self, report: SkipReport) -> None:
        """Add what was left out of one file."""
        self.files[report.source, report.dataset] = report

    def limit(self, total: int) -> float:
        """Return how many of a number of entries may have a fault."""
        return max(self.max_share * total, FEW_FAULTS) if self.max_share else 0.0

    def write(self, path: str) -> None:
        """Write the report; entries of other files that are there already stay."""
        entries = {(entry["file"], entry["dataset"]): entry for entry in _read_entries(path)}
        entries.update({key: report.content() for key, report in self.files.items()})
        PathManager.mkdirs(os.path.dirname(path))
        write_text_once(path, json.dumps({"files": list(entries.values())}, indent=1))


def _read_entries(path: str) -> list[dict[str, Any]]:
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            entries = json.load(file)["files"]
        return [entry for entry in entries if isinstance(entry["file"], str) and isinstance(entry["dataset"], str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # There is none yet, or it is not one of ours: it is written anew.


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


def _bar_options() -> dict[str, Any]:
    # In a file each step of a bar is a line.
    seconds = 1 if sys.stderr.isatty() else 30
    # Below the bar of a training it goes when it is done.
    return {"delay": _SILENT_SECONDS, "mininterval": seconds, "disable": not comm.is_main_process(), "leave": None}
