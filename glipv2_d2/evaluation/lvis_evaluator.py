"""Evaluator of LVIS with both of its protocols."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data.datasets.coco import Truth, load_detection_truth
from ..errors import InputError
from .ap_inputs import DetectionRows, measurable_tasks
from .lvis_ap import LVISGroundTruth, lvis_ap

# Protocol: suffix of the names of its results.
_SUFFIXES = {"standard": "", "fixed": "_fixed"}
_TASKS = ("bbox", "segm")
_BOXES = ("official", "exact")


class LVISEvaluator(DatasetEvaluator):
    """AP of boxes and masks on LVIS, by the standard protocol and as Fixed AP.

    The standard protocol counts the best 300 detections of each image. Its result depends on how scores compare between
    categories. Fixed AP counts the best 10,000 detections of each category over all images, any number of them
    in one image.

    Results are "bbox" and "segm", with ``METRICS`` each, and "bbox_fixed" and "segm_fixed". Detections are written to
    ``lvis_instances_results.json``. A metric is 0 if nothing was found, and NaN if there is nothing to find (APr
    without rare categories). Images that no process saw count as images without detections.

    Args:
        dataset_name: Registered dataset whose metadata has ``json_file`` in LVIS's format. Its
            ``thing_dataset_id_to_contiguous_id`` gives the contiguous ids; without it, these are category ids less 1.
        tasks: "bbox", "segm" or both.
        protocols: "standard", "fixed" or both.
        boxes: "exact" compares boxes as they are. "official" takes a pixel from their width and height, as the official
            GLIP does: its boxes are inclusive corners, and it writes their difference. A perfect box of 16 pixels then
            has an IoU of 0.879, and AP is lower than it should be.
        distributed: Collect the detections of all processes; the first of them evaluates.
        output_folder: Folder of the detections; None: they are not written.
        detections_per_image: Limit of the standard protocol.
        detections_per_category: Limit of Fixed AP.
        truth: What the detections are compared with; its annotations are changed. None: ``json_file`` is read.

    Raises:
        InputError: A task or protocol is unknown, or none is given.
        AnnotationError: The annotations lack fields that LVIS's evaluation reads.

    Source: LVIS API; "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details" (Fixed AP), the
    protocol of the official GLIP.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = ("bbox",),
        protocols: Sequence[str] = ("standard", "fixed"),
        *,
        boxes: str = "exact",
        distributed: bool = True,
        output_folder: str | None = None,
        detections_per_image: int = 300,
        detections_per_category: int = 10_000,
        truth: Truth | None = None,
    ) -> None:
        for field, found, known in (
            ("tasks", tasks, _TASKS),
            ("TEST.LVIS_PROTOCOLS", protocols, tuple(_SUFFIXES)),
            ("TEST.LVIS_BOXES", (boxes,), _BOXES),
        ):
            if not found or not set(found) <= set(known):
                raise InputError(f"{field}: expected one or more of {known}, found {tuple(found)}")
        self._boxes = boxes
        self._tasks, self._protocols = tuple(tasks), tuple(protocols)
        self._distributed, self._output_folder = distributed, output_folder
        self._limits = {"standard": detections_per_image, "fixed": detections_per_category}
        metadata = MetadataCatalog.get(dataset_name)
        self._category_ids = _category_ids(metadata)
        self._logger = logging.getLogger(__name__)
        # The annotations of LVIS take a gigabyte, and only the first process compares with them.
        self._ground_truth: LVISGroundTruth | None = None
        if not distributed or comm.is_main_process():
            if truth is None:
                truth = load_detection_truth(metadata.json_file, metadata.get("image_root"), is_lvis=True)
            self._ground_truth = LVISGroundTruth(metadata.json_file, truth)
            content = self._ground_truth.dataset
            self._tasks = measurable_tasks(dataset_name, self._tasks, content["annotations"], content["images"])
        self._parts: list[DetectionRows] = []

    def reset(self) -> None:
        self._parts = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the detections of some images; of masks, the run lengths.

        Raises:
            InputError: A class is not of the dataset, or masks are evaluated, and those of the instances are missing or
                not of the size of their image.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            with_masks = "segm" in self._tasks
            rows = DetectionRows.from_instances(output["instances"], sample, self._category_ids, with_masks)
            self._parts.append(rows.with_inclusive_sizes() if self._boxes == "official" else rows)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Measure the detections; empty on all processes but the first, and for a dataset without annotations."""
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        rows = self._counted_by_a_protocol(DetectionRows.join(self._parts))
        if self._distributed:
            # The best detections of all processes are among the best of each.
            rows = self._counted_by_a_protocol(DetectionRows.join(comm.gather(rows)))
        if self._ground_truth is None:
            return results
        if self._output_folder:
            PathManager.mkdirs(self._output_folder)
            rows.write(os.path.join(self._output_folder, "lvis_instances_results.json"))
        if not self._ground_truth.dataset["annotations"]:
            self._logger.info("no annotations to evaluate against")
            return results
        _check_image_ids(rows, self._ground_truth)
        for protocol in self._protocols:
            counted = rows.select(self._best(protocol, rows))
            counted = counted.select(_is_annotated(counted, self._ground_truth))
            for task in self._tasks:
                name = task + _SUFFIXES[protocol]
                results[name] = lvis_ap(self._ground_truth, counted.to_results(task), task)
                self._logger.info("LVIS, %s protocol, %s:\n%s", protocol, task, create_small_table(results[name]))
        return results

    def _counted_by_a_protocol(self, rows: DetectionRows) -> DetectionRows:
        return rows.select(np.any([self._best(protocol, rows) for protocol in self._protocols], axis=0))

    def _best(self, protocol: str, rows: DetectionRows) -> np.ndarray:
        limit = self._limits[protocol]
        return rows.best_of_images(limit) if protocol == "standard" else rows.best_of_categories(limit)


def _category_ids(metadata: Any) -> np.ndarray:
    """Return the category ids of the contiguous ids 0, 1, ..."""
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    if contiguous is None:
        return np.arange(1, 1 + len(metadata.thing_classes))
    return np.array(sorted(contiguous, key=contiguous.get))


def _check_image_ids(rows: DetectionRows, ground_truth: LVISGroundTruth) -> None:
    unknown = rows.image_ids[~np.isin(rows.image_ids, ground_truth.get_img_ids())]
    if len(unknown):
        raise InputError(
            f"image {unknown[0]}: expected an image id of the annotation file, found detections for another"
        )


def _is_annotated(rows: DetectionRows, ground_truth: LVISGroundTruth) -> np.ndarray:
    """Mark, (K,) bool, the detections in images that say whether the category is there."""
    image_ids, category_ids = ground_truth.counted_pairs()
    stride = 1 + max(int(ids.max(initial=0)) for ids in (category_ids, rows.category_ids))
    return np.isin(rows.image_ids * stride + rows.category_ids, image_ids * stride + category_ids)
