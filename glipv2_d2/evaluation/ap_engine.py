"""Precision of detections at fixed recalls: by a fast engine or by the official packages, with equal digits."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import InputError
from .ap_inputs import DetectionRows

ENGINES = ("auto", "reference")
# Detections of an image and category that COCO counts.
COCO_LIMIT = 100
# Rows of ``precisions``: thresholds of IoU 0.5, 0.55 .. 0.95; its last axis: areas in square pixels.
_IOU_50, _IOU_75 = 0, 5
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}


def check_engine(engine: str) -> None:
    """Raise InputError for another value of ``TEST.EVALUATION_ENGINE`` than ``ENGINES``."""
    if engine not in ENGINES:
        raise InputError(f"TEST.EVALUATION_ENGINE: expected one of {ENGINES}, found {engine!r}")


def precisions(
    truth: Mapping[str, Any],
    rows: DetectionRows,
    task: str,
    *,
    rules: str = "coco",
    engine: str = "auto",
    limit: int = COCO_LIMIT,
) -> np.ndarray:
    """Compare detections with annotations.

    Both engines give the same array bit for bit. Detections with a value that is not finite go to the reference.

    Args:
        truth: ``images``, ``categories`` and ``annotations`` in COCO's format, for "lvis" in LVIS's; they stay as they
            are. Annotations of other images are passed over.
        rows: Detections, for "segm" with masks. Of equal scores, lower image ids count first, and within an image the
            order of the rows. Detections in other images or of other categories are passed over.
        task: "bbox" or "segm".
        rules: "coco" counts the best of an image and category up to ``limit``, and forgives detections in crowd
            regions. "lvis" counts all, forgives those of categories that are not exhaustively annotated in their image,
            and leaves out annotations and detections without an area.
        engine: "auto" is hotcoco, where it is installed; "reference" is pycocotools or lvis.
        limit: COCO's own one, or another for data of which nothing is published.

    Returns:
        (10, 101, C, 4): for thresholds of IoU 0.5, 0.55 .. 0.95, recalls 0, 0.01 .. 1, categories by id, and all,
        small, medium and large areas, the best precision in [0, 1] at this recall or beyond; 0 beyond the recall of all
        detections; -1 where nothing is annotated.

    Source: pycocotools 2.0.11, ``COCOeval.accumulate``; lvis 0.5.3, ``LVISEval.accumulate``.
    """
    fast = _fast_engine() if engine == "auto" else None
    if fast is not None and all(np.isfinite(column).all() for column in (rows.scores, rows.boxes)):
        return _by_hotcoco(fast, truth, rows, task, None if rules == "lvis" else limit)
    if rules == "lvis":
        # Imported late: lvis configures the root logger, and imports OpenCV and matplotlib.
        from .lvis_reference import lvis_precisions

        return lvis_precisions(truth, as_annotations(rows, task), task)
    return _by_pycocotools(truth, as_annotations(rows, task), task, limit)


def average_precisions(precision: np.ndarray) -> dict[str, float]:
    """Return AP, AP50, AP75, APs, APm and APl in 0..100; NaN where nothing is annotated.

    Args:
        precision: As ``precisions`` returns it.
    """
    return {
        "AP": mean_precision(precision[..., 0]),
        "AP50": mean_precision(precision[_IOU_50, ..., 0]),
        "AP75": mean_precision(precision[_IOU_75, ..., 0]),
        **{f"AP{name}": mean_precision(precision[..., column]) for name, column in _AREAS.items() if name},
    }


def mean_precision(precision: np.ndarray) -> float:
    """Return the mean, in 0..100, of all values but those that are -1; NaN without any."""
    known = precision[precision > -1]
    return 100.0 * float(np.mean(known)) if len(known) else float("nan")


def as_annotations(rows: DetectionRows, task: str) -> list[dict[str, Any]]:
    """Return one dict per row as the official packages make them of results: with ``id`` from 1 and ``area``."""
    annotations = rows.to_results(task)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"], annotation["iscrowd"] = number, 0
        if task == "segm":
            annotation["area"] = int(mask_utils.area(annotation["segmentation"]))
        else:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    return annotations


@functools.cache
def _fast_engine() -> ModuleType | None:
    try:
        import hotcoco
    except ImportError:
        logging.getLogger(__name__).info(
            "evaluation: expected hotcoco, which computes AP fast, found none; pycocotools and lvis give the same "
            "numbers slowly; way out: pip install hotcoco"
        )
        return None
    return hotcoco


def _by_pycocotools(truth: Mapping[str, Any], detections: list[dict[str, Any]], task: str, limit: int) -> np.ndarray:
    # The package writes into annotations, takes a match with annotation 0 for no match, and prints its steps.
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(truth["annotations"], 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        pair = []
        for annotations in (numbered, detections):
            pair.append(COCO())
            pair[-1].dataset = {**truth, "annotations": annotations}
            pair[-1].createIndex()
        evaluation = COCOeval(*pair, task)
        evaluation.params.maxDets = [limit]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"][..., -1])


def _by_hotcoco(
    hotcoco: ModuleType, truth: Mapping[str, Any], rows: DetectionRows, task: str, limit: int | None
) -> np.ndarray:
    """Hand images and categories over by their rank: detections go as float64, which cannot hold all ids."""
    is_lvis = limit is None
    image_ids, category_ids = (np.unique([one["id"] for one in truth[kind]]) for kind in ("images", "categories"))
    annotations = _counted(truth["annotations"], image_ids, is_lvis)
    known = hotcoco.COCO.from_arrays(
        _ranked_images(truth, image_ids, category_ids, is_lvis),
        [{"id": number, "name": str(number), "frequency": "f"} for number in range(len(category_ids))],
        np.searchsorted(image_ids, _column(annotations, "image_id", image_ids.dtype)),
        np.searchsorted(category_ids, _column(annotations, "category_id", np.int64)),
        _column(annotations, "bbox", np.float64).reshape(-1, 4),
        area=_column(annotations, "area", np.float64),
        iscrowd=None if is_lvis else _column(annotations, "iscrowd", np.int64),
        segmentation=[annotation["segmentation"] for annotation in annotations] if task == "segm" else None,
    )
    masks = [
        {"size": size, "counts": counts.decode("ascii")}
        for size, counts in zip(rows.image_sizes.tolist(), rows.counts, strict=True)
        if task == "segm"
    ]
    boxes = rows.boxes.astype(np.float64)
    areas = np.array(hotcoco.mask.area(masks), dtype=np.float64) if task == "segm" else boxes[:, 2] * boxes[:, 3]
    counted = np.isin(rows.image_ids, image_ids) & np.isin(rows.category_ids, category_ids)
    if is_lvis:
        counted &= areas > 0
    found = known.load_res(
        np.column_stack(
            (
                np.searchsorted(image_ids, rows.image_ids),
                boxes,
                rows.scores,
                np.searchsorted(category_ids, rows.category_ids),
            )
        )[counted],
        segmentation=[masks[row] for row in np.flatnonzero(counted)] if task == "segm" else None,
    )
    if task == "segm" and counted.any():
        # Otherwise the area of a mask is that of its box.
        found.update_anns(ids=np.arange(1, 1 + counted.sum()), area=areas[counted])
    if is_lvis:
        found = found.cap_detections_per_image(None)
    evaluation = hotcoco.COCOeval(known, found, task, lvis_style=is_lvis)
    evaluation.params.max_dets = [max(1, len(areas)) if limit is None else limit]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"][..., -1])


def _counted(annotations: Sequence[dict[str, Any]], image_ids: np.ndarray, is_lvis: bool) -> list[dict[str, Any]]:
    known = set(image_ids.tolist())
    return [one for one in annotations if one["image_id"] in known and (not is_lvis or one["area"] > 0)]


def _ranked_images(
    truth: Mapping[str, Any], image_ids: np.ndarray, category_ids: np.ndarray, is_lvis: bool
) -> list[dict[str, Any]]:
    rank = {category_id: number for number, category_id in enumerate(category_ids.tolist())}
    fields = ("neg_category_ids", "not_exhaustive_category_ids") if is_lvis else ()
    return [
        {
            **{kind: image[kind] for kind in ("height", "width")},
            **{field: [rank[one] for one in image[field] if one in rank] for field in fields},
            "id": int(np.searchsorted(image_ids, image["id"])),
            "file_name": "",
        }
        for image in truth["images"]
    ]


def _column(annotations: Sequence[dict[str, Any]], field: str, dtype: type) -> np.ndarray:
    return np.array([annotation[field] for annotation in annotations], dtype=dtype)
