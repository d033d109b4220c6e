"""Hooks of the trainer for its data: what was left out of it, and where its stream stands."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.datasets.skip_report import DataReport
from ..data.image_reading import DISK_FAULT
from ..data.stream.samples import DROPPED_COUNTS
from ..data.stream.state import TrainLoader
from ..distributed import reduce_mean
from ..errors import InputError
from ..plurals import counted, singular
from .stopping import StopHook

# Fewer unreadable files never end a training.
MIN_BAD_FILES = 3
# Numbers of lines of each kind that are logged as they come, and at the end of the run; of truncated images, which harm
# little, one.
_NUM_NAMED = 10
_NUM_NAMED_TRUNCATED = 1
_NUM_LISTED = 1000
# The ranks compare their unreadable files at each new one at first, later when there are this many times more.
_CHECK_GROWTH = 1.05

# Keys of a sample that hold lines of a report, with what each line names and what became of it.
_REPORTS = {
    "skipped_files": ("unreadable image", "skipped"),
    "truncated_files": ("truncated image", "decoded as far as possible; save again"),
    "damaged_shards": ("damaged shard", "read up to the damage"),
    "skipped_records": ("malformed record", "left out, or boxes of them"),
}


class SkippedImagesHook(HookBase):
    """Count and name what the data loader leaves out, and end the training if too many images cannot be read.

    The counts, over all ranks and since the start of this run, are among the metrics: ``data/skipped_files``, each file
    once on each rank, and ``data/dropped_NAME`` for each of ``DROPPED_COUNTS``, as soon as they are not 0.

    Args:
        max_share: Largest share of unreadable files, in [0, 1], among all images if their number is known, else among
            those drawn so far. Fewer than ``MIN_BAD_FILES`` are always allowed.
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._lines: dict[str, dict[str, None]] = {key: {} for key in _REPORTS}
        # A line for each unreadable file.
        self._bad_files: set[str] = set()
        # The number of them over the ranks from which on the ranks compare theirs.
        self._next_check = float(MIN_BAD_FILES)
        self._num_images = 0
        # Unreadable files, images drawn, and what was dropped.
        self._counts = torch.zeros(2 + len(DROPPED_COUNTS), dtype=torch.float64)

    def watch(self, loader: Iterable[list[dict[str, Any]]], num_images: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Yield the batches of a loader unchanged; see ``build_train_loader`` for what samples report.

        Args:
            loader: Yields lists of samples.
            num_images: Number of all images, 0 if it is unknown.
        """
        self._num_images = num_images
        for batch in loader:
            for sample in batch:
                skipped = sample.get("skipped_files", ())
                self._bad_files.update(skipped)
                dropped = sample.get("dropped", {})
                counts = [0, len(skipped) + 1, *(dropped.get(name, 0) for name in DROPPED_COUNTS)]
                self._counts += torch.tensor(counts, dtype=torch.float64)
                for key in _REPORTS:
                    self._name(key, sample.get(key, ()))
            yield batch

    def after_step(self) -> None:
        """Write the counts, and raise an error past the allowed share.

        Raises:
            InputError: Too many images could not be read; the message names one.
        """
        self._counts[0] = len(self._bad_files)
        device = next(self.trainer.model.parameters()).device
        means = reduce_mean(self._counts.to(device))
        skipped, drawn, *dropped = (means * comm.get_world_size()).round().long().tolist()
        dropped_counts = zip(DROPPED_COUNTS, dropped, strict=True)
        counts = {"skipped_files": skipped, **{f"dropped_{name}": count for name, count in dropped_counts}}
        for name, count in counts.items():
            if count:
                self.trainer.storage.put_scalar(f"data/{name}", count, smoothing_hint=False)
        if skipped >= self._next_check:
            self._next_check = max(skipped + 1, _CHECK_GROWTH * skipped)
            self._check_share(max(drawn, self._num_images))

    def _check_share(self, num_images: int) -> None:
        """Count the unreadable files of all ranks, each once, and raise an error if they are too many."""
        found = set().union(*comm.all_gather(self._bad_files))
        # To save a file again is no way out where the disk fails, which the one that is named says.
        files = sorted(found, key=lambda line: (DISK_FAULT not in line, line))
        if len(files) < MIN_BAD_FILES or len(files) <= self._max_share * num_images:
            return
        enough = min(1.0, math.ceil(200 * len(files) / num_images) / 100)
        raise InputError(
            f"training images: expected at most {self._max_share:.1%} unreadable (DATALOADER.MAX_SKIPPED_SHARE), found "
            f"{len(files)} of {num_images}, such as {files[0]}; save these files again or leave them out, or set "
            f"DATALOADER.MAX_SKIPPED_SHARE {enough} to train without them"
        )

    def after_train(self) -> None:
        """List what was left out on this rank, and warn of it."""
        logger = logging.getLogger(__name__)
        for key, (thing, outcome) in _REPORTS.items():
            lines = self._lines[key]
            # The one truncated image has been named.
            if lines and not (key == "truncated_files" and len(lines) <= _NUM_NAMED_TRUNCATED):
                number = f"{'at least ' * (len(lines) == _NUM_LISTED)}{counted(len(lines), thing)}"
                if of_disk := sum(DISK_FAULT in line for line in lines):
                    number += f" ({of_disk} by errors of the disk)"
                logger.log(_level(key), "%s, %s:\n%s", number, outcome, "\n".join(lines))
        dropped = {name: int(n) for name, n in zip(DROPPED_COUNTS, self._counts[2:], strict=True) if n}
        # A window of an image may hold none of its boxes: nothing is lost, and nothing has to be done.
        if redrawn := dropped.pop("samples", 0):
            logger.info("%s without any box left gave way to others", counted(redrawn, "training sample"))
        if dropped:
            found = ", ".join(counted(count, singular(name.replace("_", " "))) for name, count in dropped.items())
            logger.warning("dropped from the training data of this process: %s", found)

    def _name(self, key: str, lines: Iterable[str]) -> None:
        """Log the first lines of a kind, each once, and keep more of them for the end."""
        known = self._lines[key]
        for line in lines:
            if line in known or len(known) == _NUM_LISTED:
                continue
            known[line] = None
            num_named = _NUM_NAMED_TRUNCATED if key == "truncated_files" else _NUM_NAMED
            if len(known) <= num_named:
                rest = "; others are only counted until the end" if len(known) == num_named else ""
                text = "decoded as far as it goes" if key == "truncated_files" else "left out of the training data"
                logging.getLogger(__name__).log(_level(key), "%s: %s%s", text, line, rest)


def _level(key: str) -> int:
    """Return the level at which a kind of ``_REPORTS`` is logged: what is wrong with files may be known."""
    return DataReport.current().level if key in ("skipped_files", "truncated_files") else logging.WARNING


class DataStateHook(HookBase):
    """Save the state of the stream of training samples, over all ranks, with each checkpoint.

    Args:
        periods: Steps between two checkpoints; each that is not 0 counts. A run resumed from a checkpoint of another
            iteration gets the same samples, but may read some shards from an earlier position.
        stop: Knows of signals, at which the run is saved too.
    """

    def __init__(self, *periods: int, stop: StopHook) -> None:
        self._periods = [period for period in periods if period]
        self._stop = stop
        self._loader: TrainLoader | None = None
        self._state: dict[str, Any] = {}

    @property
    def saved(self) -> dict[str, Any] | None:
        """The state of the run that is resumed, None for a new one."""
        return self._state or None

    def attach(self, loader: TrainLoader) -> None:
        """Follow a loader that was built from ``saved``."""
        self._loader = loader
        self._state = loader.state.as_dict()

    def after_step(self) -> None:
        # Every rank takes part, although only one writes the checkpoint.
        next_iter = self.trainer.iter + 1
        is_saved = any(next_iter % period == 0 for period in self._periods) or next_iter == self.trainer.max_iter
        if self._loader is not None and (is_saved or self._stop.requested):
            self._state = self._loader.state.as_dict()
            self._state["positions"] = merge_positions(comm.all_gather(self._state["positions"]))

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict


def merge_positions(positions_by_rank: Iterable[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """Join the positions of the ranks' streams; of two positions of one stream the later one is up to date."""
    merged: dict[str, list[int]] = {}
    for positions in positions_by_rank:
        for name, position in positions.items():
            merged[name] = max(position, merged.get(name, position))
    return merged
