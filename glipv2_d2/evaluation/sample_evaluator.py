"""The part that all evaluators share which look at one sample after the other and judge them together at the end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..errors import InputError, space_errors

RECALL_LIMITS = (1, 5, 10)

Id = TypeVar("Id", bound=Hashable)
Known = TypeVar("Known")
Result = TypeVar("Result")


class SampleEvaluator(DatasetEvaluator, Generic[Id, Known, Result]):
    """Keep one result for each sample, and bring the results of all processes to the first one.

    Args:
        dataset_name: Name of the dataset, for messages.
        known: From the id of each sample to what is known about it.
        distributed: Collect the results of all processes; the first of them judges. Otherwise each judges its own.
        output_folder: Folder of the files that are written; None: no files.
    """

    def __init__(
        self, dataset_name: str, known: Mapping[Id, Known], *, distributed: bool, output_folder: str | None
    ) -> None:
        self._name, self._known = dataset_name, known
        self._distributed, self._output_folder = distributed, output_folder
        self._results: dict[Id, Result] = {}
        self._logger = logging.getLogger(type(self).__module__)

    def reset(self) -> None:
        self._results = {}

    def known(self, sample: Mapping[str, Any], key: str = "image_id") -> Known:
        """Return what is known about a sample, by its id.

        Raises:
            InputError: The dataset has no sample with this id.
        """
        if sample[key] not in self._known:
            raise InputError(
                f"{key} {sample[key]!r}: expected a sample of the dataset {self._name!r}, found another id"
            )
        return self._known[sample[key]]

    def gather(self, order: Iterable[Id]) -> dict[Id, Result] | None:
        """Return the result of each sample that was processed; None on the processes that do not judge.

        A sample that several processes had counts once.

        Args:
            order: Ids of the dataset in the order of the result. Sums of floating point numbers depend on the order, so
                it must not depend on the number of processes.
        """
        gathered = comm.gather(self._results) if self._distributed else [self._results]
        if self._distributed and not comm.is_main_process():
            return None
        found = {sample_id: result for part in reversed(gathered) for sample_id, result in part.items()}
        return {sample_id: found[sample_id] for sample_id in order if sample_id in found}

    def write(self, file_name: str, content: Any) -> None:
        """Write a json file, if files are written."""
        if self._output_folder:
            PathManager.mkdirs(self._output_folder)
            path = os.path.join(self._output_folder, file_name)
            with space_errors(path), PathManager.open(path, "w") as file:
                # Ids of a reader outside of this package may be numbers of numpy.
                json.dump(content, file, default=np.generic.item)

    def log(self, title: str, scores: Mapping[str, float]) -> None:
        """Log a table of scores under a title."""
        self._logger.info("dataset %r, %s:\n%s", self._name, title, create_small_table(dict(scores)))


def by_id(dataset_name: str, dataset_dicts: Collection[dict[str, Any]], key: str, expected: str) -> dict[Any, dict]:
    """Return dataset dicts by their id.

    Raises:
        InputError: Two of them have the same id; ``expected`` says what each of them stands for.
    """
    found = {item[key]: item for item in dataset_dicts}
    if len(found) < len(dataset_dicts):
        raise InputError(
            f"dataset {dataset_name!r}: expected one {key} for each {expected}, "
            f"found {len(found)} different ones in {len(dataset_dicts)} dicts"
        )
    return found


def percentage(part: float, whole: float) -> float:
    """Return a share in 0..100; NaN if there is nothing to share."""
    return 100.0 * part / whole if whole else float("nan")


def recalls(ranks: Sequence[int | None]) -> dict[str, float]:
    """Return ``R@1``, ``R@5`` and ``R@10``: the share, in 0..100, of phrases that one of the best boxes finds.

    Args:
        ranks: For each phrase the rank of the first box that fits, from 0; None if no box fits. NaN without phrases.
    """
    return {
        f"R@{limit}": percentage(sum(rank is not None and rank < limit for rank in ranks), len(ranks))
        for limit in RECALL_LIMITS
    }
