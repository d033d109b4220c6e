"""AP of LVIS: the matching of the ``lvis`` package, run by category and only where there is something to match.

The package visits each pair of an image and a category, 24 million for the validation set, and keeps all results until
the end. It also calls ``numpy.float``, which numpy removed in 1.24. The two methods that do so, ``evaluate`` and
``accumulate``, are replaced here, without a change to numpy.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lvis import LVIS, LVISEval, LVISResults
from pycocotools import mask as mask_utils

from ..data.datasets.coco import Truth
from ..data.datasets.skip_report import with_progress
from ..data.datasets.value_checks import AnnotationError, show
from .ap_inputs import check_fields

# Fields that the evaluation needs beside those of COCO's format.
_FIELDS = {"images": ("neg_category_ids", "not_exhaustive_category_ids"), "categories": ("frequency",)}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class LVISGroundTruth(LVIS):
    """The annotations of LVIS that the loader uses; empty for a file without annotations, as of a test set.

    Annotations are numbered from 1, because the package takes a match with annotation 0 for no match.

    Args:
        json_file: The file that they are from, for messages.
        truth: Its content, as ``load_detection_truth`` returns it.

    Raises:
        AnnotationError: An entry lacks a field that the evaluation needs, or has another value than it needs.
    """

    def __init__(self, json_file: str, truth: Truth) -> None:
        self._truth = truth
        super().__init__(json_file)

    def _load_json(self, path: str) -> dict[str, Any]:
        content = {"annotations": [], **self._truth}
        if not content["annotations"]:
            # Nothing is judged, so the fields that judging needs may be absent, as in the file of a test set.
            for image in content["images"]:
                image.setdefault("neg_category_ids", [])
                image.setdefault("not_exhaustive_category_ids", [])
            return content
        for kind, fields in _FIELDS.items():
            check_fields(path, kind, content[kind], fields, "LVIS")
        for number, image in enumerate(content["images"]):
            for field in _FIELDS["images"]:
                if not isinstance(image[field], list):
                    found = show(image[field])
                    raise AnnotationError(
                        f"{path}: images[{number}].{field}: expected a list of category ids, found {found}"
                    )
        for number, category in enumerate(content["categories"]):
            if category["frequency"] not in ("r", "c", "f"):
                found = show(category["frequency"])
                raise AnnotationError(
                    f"{path}: categories[{number}].frequency: expected 'r', 'c' or 'f', found {found}"
                )
        return content

    def counted_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return image ids and category ids, both (number of pairs,) int64, of the pairs in which detections count.

        These are the pairs of an image and a category that is annotated in it or known to be absent. LVIS says nothing
        about other pairs.
        """
        pairs = {(annotation["image_id"], annotation["category_id"]) for annotation in self.dataset["annotations"]}
        for image in self.dataset["images"]:
            pairs.update((image["id"], category_id) for category_id in image["neg_category_ids"])
        images_and_categories = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return images_and_categories[:, 0], images_and_categories[:, 1]


class _Detections(LVISResults):
    """Detections with the images and categories of the ground truth.

    The package's own constructor copies all annotations, and fails without detections.
    """

    def __init__(self, ground_truth: LVIS, results: list[dict[str, Any]]) -> None:
        self.logger = logging.getLogger(__name__)
        shared = {kind: ground_truth.dataset[kind] for kind in ("images", "categories")}
        self.dataset = {**shared, "annotations": results}
        self._create_index()


class _CategoryWiseEval(LVISEval):
    """The package's evaluation, which holds the results of one category at a time in memory."""

    def _to_mask(self, anns: Sequence[dict[str, Any]], lvis: LVIS) -> None:
        super()._to_mask(with_progress(anns, "reading masks"), lvis)

    def run(self) -> None:
        self._prepare()
        images = defaultdict(set)
        for image_id, category_id in (*self._gts, *self._dts):
            images[category_id].add(image_id)
        category_ids, areas = self.params.cat_ids, self.params.area_rng
        num_thresholds, recalls = len(self.params.iou_thrs), self.params.rec_thrs
        # -1 marks categories and areas without annotations.
        precision = np.full((num_thresholds, len(recalls), len(category_ids), len(areas)), -1.0)
        recall = np.full((num_thresholds, len(category_ids), len(areas)), -1.0)
        for row, category_id in enumerate(with_progress(category_ids, f"LVIS AP, {self.params.iou_type}")):
            image_ids = sorted(images[category_id])
            self.ious = {(image_id, category_id): self.compute_iou(image_id, category_id) for image_id in image_ids}
            for column, area in enumerate(areas):
                matched = [self.evaluate_img(image_id, category_id, area) for image_id in image_ids]
                if any((match["gt_ignore"] == 0).any() for match in matched):
                    found = _precision_and_recall(matched, recalls)
                    precision[:, :, row, column], recall[:, row, column] = found
        self.eval = {"precision": precision, "recall": recall}
        self.summarize()


def _precision_and_recall(matched: list[dict[str, Any]], recalls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision at fixed recalls, and the recall of all detections, of one category and range of areas.

    Args:
        matched: Result of ``LVISEval.evaluate_img`` for each image; at least one annotation counts.
        recalls: (Q,) ascending, in [0, 1].

    Returns:
        Precision (I, Q) and recall (I,), in [0, 1], for the I thresholds of IoU. The precision at a recall is the best
        one at this recall or beyond, and 0 beyond the recall of all detections.
    """
    num_annotations = sum(int((match["gt_ignore"] == 0).sum()) for match in matched)
    order = np.argsort(-np.concatenate([match["dt_scores"] for match in matched]), kind="stable")
    is_match = np.concatenate([match["dt_matches"] for match in matched], axis=1)[:, order] > 0  # (I, K)
    counts = ~np.concatenate([match["dt_ignore"] for match in matched], axis=1)[:, order].astype(bool)
    hits = np.cumsum(is_match & counts, axis=1).astype(np.float64)
    misses = np.cumsum(~is_match & counts, axis=1).astype(np.float64)
    recall = hits / num_annotations
    # The package's formula, which is 0 where nothing counted yet.
    precision = hits / (misses + hits + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # One more column for recalls that are not reached.
    precision = np.concatenate((precision, np.zeros((len(precision), 1))), axis=1)
    columns = np.stack([np.searchsorted(row, recalls, side="left") for row in recall])
    final = recall[:, -1] if recall.shape[1] else np.zeros(len(recall))
    return np.take_along_axis(precision, columns, axis=1), final


def lvis_ap(ground_truth: LVISGroundTruth, results: list[dict[str, Any]], task: str) -> dict[str, float]:
    """Compute the AP of all detections whose category their image knows something about.

    Args:
        ground_truth: The annotations.
        results: Detections: ``image_id``, ``category_id``, ``score`` and ``bbox`` (XYWH) or ``segmentation``
            (compressed run lengths). ``id`` and ``area`` are added to them. Of equal scores, lower image ids count
            first, and within an image the order of the list.
        task: "bbox" or "segm".

    Returns:
        ``METRICS`` in 0..100: APs, APm and APl for small, medium and large boxes or masks, APr, APc and APf for rare,
        common and frequent categories. A metric is 0 if nothing is found, and NaN if there is nothing to find.

    Source: LVIS API, ``lvis/eval.py`` and ``lvis/results.py``, version 0.5.3.
    """
    for number, result in enumerate(results, 1):
        result["id"] = number
        if task == "segm":
            result["area"] = int(mask_utils.area(result["segmentation"]))
        else:
            result["area"] = result["bbox"][2] * result["bbox"][3]
    evaluation = _CategoryWiseEval(ground_truth, _Detections(ground_truth, results), task)
    evaluation.run()
    values = evaluation.get_results()
    return {metric: 100.0 * float(values[metric]) if values[metric] > -1 else float("nan") for metric in METRICS}
