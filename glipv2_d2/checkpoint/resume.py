"""The checkpoints in the folder of a run: the one to continue from, and the one to use."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from ..tensor_files import is_whole

# Names that detectron2's hooks and trainers give.
LAST_CHECKPOINT = "last_checkpoint"
FINAL_WEIGHTS = "model_final.pth"
BEST_WEIGHTS = "model_best.pth"
# Of a tuning that forgets nothing the weights that it began with, and both these and the tuned ones, or some between.
BASE_WEIGHTS = "keep_base.safetensors"
KEPT_WEIGHTS = "model_kept.pth"
# What becomes of those that were made before this training in the folder.
EARLIER_RESULTS = {KEPT_WEIGHTS: "model_kept_before.pth", BEST_WEIGHTS: "model_best_before.pth"}
_NUMBERED = re.compile(r".*_(\d{7,})\.pth")


class _Candidate(NamedTuple):
    iteration: float
    is_tagged: bool
    written: float
    path: Path


def find_resume_file(folder: str) -> tuple[str, list[str]]:
    """Find the newest training checkpoint of a folder that is whole.

    The newest one has the latest iteration: the number in its name, or the end of the run for the final checkpoint and
    for any other that the file ``last_checkpoint`` names. Where that file exists, later iterations than the one it
    names count only if they were written after it: others are left from an earlier run in the same folder.

    Args:
        folder: May be absent; "" finds nothing.

    Returns:
        Its path, "" if there is none, and the paths of newer ones that are damaged.
    """
    if not folder:
        return "", []
    tag = Path(folder) / LAST_CHECKPOINT
    tagged = tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else ""
    candidates = [
        _Candidate(iteration, path.name == tagged, path.stat().st_mtime, path)
        for path in Path(folder).glob("*.pth")
        if (iteration := _iteration(path.name, tagged)) is not None
    ]
    if tagged and (tagged_iteration := _iteration(tagged, tagged)) is not None:
        tag_written = tag.stat().st_mtime
        candidates = [c for c in candidates if c.iteration <= tagged_iteration or c.written > tag_written]
    damaged: list[str] = []
    for candidate in sorted(candidates, reverse=True):
        if is_whole(candidate.path):
            return str(candidate.path), damaged
        damaged.append(str(candidate.path))
    return "", damaged


def find_result_file(folder: str) -> str:
    """Return the path of the weights that a run is used with: those kept, else the best, else the newest; "" for none.

    Args:
        folder: As for ``find_resume_file``.
    """
    for name in (KEPT_WEIGHTS, BEST_WEIGHTS) if folder else ():
        path = Path(folder) / name
        if path.is_file() and is_whole(path):
            return str(path)
    return find_resume_file(folder)[0]


def numbered_checkpoints(folder: str, num_updates: int) -> list[Path]:
    """Return the numbered checkpoints of a run in a folder up to this number of updates, the oldest first."""
    numbers = {path: _iteration(path.name, "") for path in Path(folder).glob("model_*.pth")}
    numbered = {path: number for path, number in numbers.items() if number is not None and number < num_updates}
    return sorted(numbered, key=numbered.__getitem__)


def _iteration(name: str, tagged: str) -> float | None:
    """Read from its name how far a run had come; None if the file is not known to be a training checkpoint."""
    if numbered := _NUMBERED.fullmatch(name):
        return int(numbered[1])
    return math.inf if name in (FINAL_WEIGHTS, tagged) else None
