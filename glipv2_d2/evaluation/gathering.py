"""What evaluators share that look at one sample after the other and judge all of them at the end."""

from __future__ import annotations

from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class GatheringEvaluator(DatasetEvaluator):
    """Keep what ``process`` appends to ``_results``, and give that of all processes to the first.

    Args:
        distributed: Collect the results of all processes; otherwise each judges its own.
    """

    def __init__(self, distributed: bool) -> None:
        self._distributed = distributed
        self._results: list[Any] = []

    def reset(self) -> None:
        self._results = []

    def gather(self) -> list[Any] | None:
        """Return all results, those of the first process first; None on the processes that do not judge."""
        if not self._distributed:
            return self._results
        gathered = comm.gather(self._results)
        return [result for part in gathered for result in part] if comm.is_main_process() else None
