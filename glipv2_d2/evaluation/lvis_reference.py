"""Precision by LVIS's rules: the matching of the ``lvis`` package, by category and where there is something to match.

The package visits each pair of an image and a category, 24 million for the validation set, and keeps all results until
the end. It also calls ``numpy.float``, which numpy removed in 1.24. The two methods that do so, ``evaluate`` and
``accumulate``, are replaced here, without a change to numpy.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lvis import LVIS, LVISEval, LVISResults

from ..data.datasets.skip_report import with_progress


class _Annotations(LVISResults):
    """Annotations or detections; the constructors of the package read files, copy, and fail without detections."""

    def __init__(self, truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> None:
        self.logger = logging.getLogger(__name__)
        self.dataset = {**truth, "annotations": annotations}
        self._create_index()


class _CategoryWiseEval(LVISEval):
    """The package's evaluation, which holds the results of one category at a time in memory."""

    def _to_mask(self, anns: Sequence[dict[str, Any]], lvis: LVIS) -> None:
        super()._to_mask(with_progress(anns, "reading masks"), lvis)

    def precisions(self) -> np.ndarray:
        self._prepare()
        images = defaultdict(set)
        for image_id, category_id in (*self._gts, *self._dts):
            images[category_id].add(image_id)
        category_ids, areas = self.params.cat_ids, self.params.area_rng
        recalls = self.params.rec_thrs
        # -1 marks categories and areas without annotations.
        precision = np.full((len(self.params.iou_thrs), len(recalls), len(category_ids), len(areas)), -1.0)
        for row, category_id in enumerate(with_progress(category_ids, f"LVIS AP, {self.params.iou_type}")):
            image_ids = sorted(images[category_id])
            self.ious = {(image_id, category_id): self.compute_iou(image_id, category_id) for image_id in image_ids}
            for column, area in enumerate(areas):
                matched = [self.evaluate_img(image_id, category_id, area) for image_id in image_ids]
                if any((match["gt_ignore"] == 0).any() for match in matched):
                    precision[:, :, row, column] = _precision_at(matched, recalls)
        return precision


def _precision_at(matched: list[dict[str, Any]], recalls: np.ndarray) -> np.ndarray:
    """Compute precision at fixed recalls, of one category and range of areas.

    Args:
        matched: Result of ``LVISEval.evaluate_img`` for each image; at least one annotation counts.
        recalls: (Q,) ascending, in [0, 1].

    Returns:
        (I, Q) in [0, 1], for the I thresholds of IoU: the best precision at this recall or beyond, and 0 beyond the
        recall of all detections.
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
    return np.take_along_axis(precision, columns, axis=1)


def lvis_precisions(truth: Mapping[str, Any], detections: list[dict[str, Any]], task: str) -> np.ndarray:
    """Compare detections with annotations by the rules of LVIS.

    Args:
        truth: In LVIS's format; stays as it is.
        detections: As ``as_annotations`` returns them; they are changed.
        task: "bbox" or "segm".

    Returns:
        (10, 101, C, 4), as ``precisions`` of the engine describes it.

    Source: LVIS API, ``lvis/eval.py`` and ``lvis/results.py``, version 0.5.3.
    """
    # The package writes into annotations, and takes a match with annotation 0 for no match.
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(truth["annotations"], 1)]
    return _CategoryWiseEval(_Annotations(truth, numbered), _Annotations(truth, detections), task).precisions()
