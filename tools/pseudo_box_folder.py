"""The folder that pseudo boxes are written to: its settings, its finished shards, and the report over all of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from glipv2_d2.engine.pseudo_boxes import PseudoBoxCounts
from glipv2_d2.engine.shard_writer import SHARD_SUFFIXES
from glipv2_d2.errors import InputError, one_line
from glipv2_d2.tensor_files import write_text

# Number of names per reason in the report; the counts of a shard hold all names.
_NUM_EXAMPLES = 10
_POLL_SECONDS = 2.0
# Long enough: the first process writes the settings before it does anything else.
_SETTINGS_TIMEOUT = 600.0


class PseudoBoxFolder:
    """A folder of shards ``pseudo-000000.jsonl`` (or .tar), with the counts of each beside them in ``counts/``.

    A shard is finished when its counts exist, which are written after it. Processes share only this folder: shard k
    belongs to process ``k % world_size``, and every file has one writer and appears as a whole.

    Args:
        folder: Path of the folder; it is created.
        output_format: "jsonl" or "shards".
        num_shards: Number of shards of the whole output.
        rank, world_size: Index of this process, and number of processes.
    """

    def __init__(
        self, folder: str | os.PathLike, output_format: str, num_shards: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.folder = Path(folder)
        self.suffix = SHARD_SUFFIXES[output_format]
        self.num_shards = num_shards
        self.rank, self.world_size = rank, world_size
        (self.folder / "counts").mkdir(parents=True, exist_ok=True)

    def check_settings(self, settings: Mapping[str, Any], timeout: float = _SETTINGS_TIMEOUT) -> None:
        """Begin the folder with these settings, or make sure that it was begun with the same ones.

        The first process writes ``settings.json``; the others wait for it.

        Raises:
            InputError: The folder was begun with other settings, or the first process has written none within
                ``timeout`` seconds.
        """
        path = self.folder / "settings.json"
        if self.rank == 0 and not path.exists():
            write_text(path, json.dumps(settings, indent=1) + "\n")
        deadline = time.monotonic() + timeout
        while not path.exists():
            if time.monotonic() > deadline:
                raise InputError(
                    f"{path}: expected the settings from the process of rank 0 within {timeout:.0f} seconds, found none"
                )
            time.sleep(min(_POLL_SECONDS, timeout))
        begun = _read_json(path)
        for key in {**settings, **begun}:
            if settings.get(key) != begun.get(key):
                raise InputError(
                    f"{path}: expected {key} {begun.get(key)!r}, with which this folder was begun, found "
                    f"{settings.get(key)!r}; repeat the settings, or name another --output"
                )

    def shard(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"pseudo-{number:06d}{self.suffix}"

    def counts(self, number: int) -> Path:
        """Return the path of the counts of a shard."""
        return self.folder / "counts" / f"{number:06d}.json"

    def unfinished(self) -> list[int]:
        """Return the shards of this process that are not finished."""
        own = range(self.rank, self.num_shards, self.world_size)
        return [number for number in own if not self._is_finished(number)]

    def finish(self, number: int, counts: PseudoBoxCounts) -> None:
        """Note that a shard has been written."""
        write_text(self.counts(number), json.dumps(asdict(counts), indent=1) + "\n")

    def wait(self, on_finished: Callable[[int], Any]) -> None:
        """Wait until the shards of all processes are finished.

        Args:
            on_finished: Called with the number of shards that have been finished since the last call.
        """
        missing = list(range(self.num_shards))
        while missing:
            still = [number for number in missing if not self._is_finished(number)]
            on_finished(len(missing) - len(still))
            missing = still
            if missing:
                time.sleep(_POLL_SECONDS)

    def write_report(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Sum up the counts of all shards, write ``report.json`` and return what it holds.

        Raises:
            InputError: The counts of a shard are damaged.
        """
        report = {**summarize(map(self._read_counts, range(self.num_shards))), "settings": dict(settings)}
        write_text(self.folder / "report.json", json.dumps(report, indent=1) + "\n")
        return report

    def _is_finished(self, number: int) -> bool:
        return self.counts(number).exists() and self.shard(number).exists()

    def _read_counts(self, number: int) -> PseudoBoxCounts:
        content = _read_json(self.counts(number))
        names = [field.name for field in fields(PseudoBoxCounts)]
        if sorted(content) != sorted(names):
            raise InputError(
                f"{self.counts(number)}: expected the counts of a shard, found {', '.join(sorted(content))}; delete "
                f"the file to make the shard anew"
            )
        return PseudoBoxCounts(**content)


def summarize(counts: Iterable[PseudoBoxCounts]) -> dict[str, Any]:
    """Sum up counts.

    Returns:
        The sums; ``shards``, their number; ``boxes_per_image``, the mean over all images that the teacher has seen (0
        without images); and ``skipped``, for each reason a ``count`` and the ``first`` few names.
    """
    numbers = [item.name for item in fields(PseudoBoxCounts) if item.name != "skipped"]
    total = dict.fromkeys(numbers, 0)
    skipped: dict[str, dict[str, Any]] = {}
    num_shards = 0
    for one in counts:
        num_shards += 1
        for name in numbers:
            total[name] += getattr(one, name)
        for reason, names in one.skipped.items():
            entry = skipped.setdefault(reason, {"count": 0, "first": []})
            entry["count"] += len(names)
            entry["first"] += names[: _NUM_EXAMPLES - len(entry["first"])]
    total["seconds"] = round(total["seconds"], 1)
    boxes_per_image = round(total["boxes"] / max(total["images"], 1), 3)
    return {"shards": num_shards, **total, "boxes_per_image": boxes_per_image, "skipped": skipped}


def format_report(report: Mapping[str, Any]) -> Sequence[str]:
    """Lay out a report in lines of text."""
    share = report["phrases_kept"] / max(report["phrases_found"], 1)
    of_answers = f", of answers {report['answer_boxes']}" if report["answer_boxes"] else ""
    lines = [
        f"samples: {report['samples']} in {report['shards']} shards",
        f"images: {report['images']}, without a box {report['images_without_box']}",
        f"phrases: found {report['phrases_found']}, kept {report['phrases_kept']} ({share:.1%}), past the token limit "
        f"{report['phrases_past_token_limit']}, without tokens {report['phrases_without_tokens']}",
        f"boxes: {report['boxes']}, {report['boxes_per_image']} per image{of_answers}",
    ]
    for reason, entry in sorted(report["skipped"].items(), key=lambda item: -item[1]["count"]):
        more = ", ..." if entry["count"] > len(entry["first"]) else ""
        lines.append(f"skipped, {reason}: {entry['count']} ({', '.join(entry['first'])}{more})")
    return lines


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = one_line(error)
        raise InputError(f"{path}: expected a JSON file of this program, found damaged text: {found}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
