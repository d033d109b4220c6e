"""The part that the evaluators of COCO and LVIS share: detections are kept as rows of arrays and come together once."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..data.datasets.coco import Truth
from ..errors import InputError
from .ap_engine import check_engine
from .ap_inputs import DetectionRows, measurable_tasks
from .mask_encoding import MaskEncoder


class APEvaluator(DatasetEvaluator):
    """Keep the detections of some images, and bring those of all processes to the first one.

    A detection takes 52 bytes, and its run lengths if masks are evaluated. Masks themselves are kept of a few images
    only, see ``MaskEncoder``.

    Args:
        dataset_name: Registered dataset. ``thing_dataset_id_to_contiguous_id`` of its metadata gives the contiguous
            ids; without it, these are category ids less ``first_category_id``.
        tasks: "bbox", "segm" or both; ``measurable_tasks`` may leave "segm" out.
        distributed: Collect the detections of all processes; the first of them evaluates.
        output_folder: Folder of the detections; None: they are not written.
        engine: "auto" or "reference", as ``precisions`` takes it.
        mask_threads: Threads that encode masks while the model runs; 0: none.

    Raises:
        InputError: The engine is unknown.
    """

    # File of the detections.
    file_name: str
    first_category_id: int

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str],
        *,
        distributed: bool,
        output_folder: str | None,
        engine: str,
        mask_threads: int,
    ) -> None:
        check_engine(engine)
        self._name, self._engine = dataset_name, engine
        self._tasks = tuple(tasks)
        self._distributed, self._output_folder = distributed, output_folder
        self._category_ids = self._category_ids_of(MetadataCatalog.get(dataset_name))
        # Annotations may take a gigabyte, and only the first process compares with them.
        self._judges = not distributed or comm.is_main_process()
        self._truth: Truth = {}
        self._parts: list[DetectionRows] = []
        self._mask_threads = mask_threads
        self._encoder = MaskEncoder(mask_threads)
        self._logger = logging.getLogger(type(self).__module__)

    def _compare_with(self, truth: Truth) -> None:
        """Take the annotations, of which those of unusable masks are changed."""
        self._truth = truth
        self._tasks = measurable_tasks(self._name, self._tasks, truth.get("annotations", []), truth["images"])

    def reset(self) -> None:
        self._parts = []
        self._encoder = MaskEncoder(self._mask_threads)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the detections of some images; of masks, the run lengths.

        Raises:
            InputError: A class is not of the dataset, or masks are evaluated, and those of the instances are missing or
                not of the size of their image.
            RuntimeError: Masks of these or earlier images could not be encoded.
        """
        encoder = self._encoder if "segm" in self._tasks else None
        for sample, output in zip(inputs, outputs, strict=True):
            self._parts.append(DetectionRows.from_instances(output["instances"], sample, self._category_ids, encoder))

    def _counted(self, rows: DetectionRows) -> DetectionRows:
        """Return the rows that a protocol may count, of one process or of all."""
        return rows

    def _gather(self) -> DetectionRows | None:
        """Return the detections of all processes, and write them; None where nothing is to be measured.

        Raises:
            InputError: An image of them is not of the annotations.
            RuntimeError: Masks of an image could not be encoded.
        """
        self._encoder.finish()
        rows = self._counted(DetectionRows.join(self._parts))
        if self._distributed:
            # The best detections of all processes are among the best of each.
            rows = self._counted(DetectionRows.join(comm.gather(rows)))
        if not self._judges:
            return None
        if self._output_folder:
            PathManager.mkdirs(self._output_folder)
            rows.write(os.path.join(self._output_folder, self.file_name))
        if self._is_unannotated():
            self._logger.info("no annotations to evaluate against")
            return None
        image_ids = [image["id"] for image in self._truth["images"]]
        unknown = rows.image_ids[~np.isin(rows.image_ids, image_ids)]
        if len(unknown):
            raise InputError(
                f"image {unknown[0]}: expected an image id of the annotation file, found detections for another"
            )
        return rows

    def _is_unannotated(self) -> bool:
        return "annotations" not in self._truth

    def _category_ids_of(self, metadata: Metadata) -> np.ndarray:
        """Return the category ids of the contiguous ids 0, 1, ..."""
        contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return np.arange(len(metadata.thing_classes)) + self.first_category_id
        return np.array(sorted(contiguous, key=contiguous.get))
