"""What a table of AP does not say: curves of precision over recall, confusions of classes, and a score to cut at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask

from .ap_engine import COCO_LIMIT, precisions
from .ap_inputs import DetectionRows

# A detection and a box that was drawn by a person mean the same object from this IoU on.
MATCH_IOU = 0.5
# Score where no detection of a class is right, so that no threshold is better than another.
DEFAULT_SCORE = 0.3


class ClassReport(NamedTuple):
    """How well one class is found.

    Attributes:
        name: The class.
        num_boxes: Boxes that were drawn by a person, crowd regions left out.
        ap, ap50: In percent; NaN without boxes.
        precisions: (101,) precision at recall 0, 0.01 .. 1 and IoU 0.5, in [0, 1]; NaN without boxes.
    """

    name: str
    num_boxes: int
    ap: float
    ap50: float
    precisions: np.ndarray


class Confusion(NamedTuple):
    """What the detections above a score are of.

    Attributes:
        counts: (C + 1, C + 1) int64. Row: the class of a box, last "nothing there"; column: the class of the detection
            on it, last "not found".
        names: The C classes.
        score: Detections from this score on count.
    """

    counts: np.ndarray
    names: list[str]
    score: float


class CutOff(NamedTuple):
    """The score with the highest F1 over all classes together, and precision and recall there, in [0, 1]."""

    score: float
    precision: float
    recall: float


def class_reports(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], limit: int = COCO_LIMIT
) -> list[ClassReport]:
    """Measure each class by COCO's rules.

    Args:
        truth: In COCO's format, with ``area`` and ``iscrowd``; stays as it is.
        detections: In COCO's format of results.
        limit: Detections of an image and class that count.

    Returns:
        In the order of the categories.
    """
    found = precisions(truth, DetectionRows.from_results(detections), "bbox", limit=limit)[..., 0]
    reports = []
    for number, category in enumerate(sorted(truth["categories"], key=lambda one: one["id"])):
        of_class = np.where(found[:, :, number] < 0, np.nan, found[:, :, number])  # IoU, recall.
        num_boxes = sum(
            box["category_id"] == category["id"] and not box.get("iscrowd", 0) for box in truth["annotations"]
        )
        ap, ap50 = (100 * float(np.mean(part)) for part in (of_class, of_class[0]))
        reports.append(ClassReport(category["name"], num_boxes, ap, ap50, of_class[0]))
    return reports


def find_cut_off(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> CutOff:
    """Find the score to cut at.

    A detection is right if a box of its class that no better detection has taken overlaps it by ``MATCH_IOU``; one
    that lies on a crowd region does not count.
    """
    wanted = _boxes_by_image(truth["annotations"])
    right: list[tuple[float, bool]] = []
    for image_id, found in _boxes_by_image(detections).items():
        boxes = wanted.get(image_id, [])
        taken = [False] * len(boxes)
        for one in sorted(found, key=lambda item: -item["score"]):
            rows = [k for k, box in enumerate(boxes) if box["category_id"] == one["category_id"]]
            ious = _ious([one], [boxes[k] for k in rows])[0] if rows else np.zeros(0)
            near = [(iou, k) for iou, k in zip(ious, rows, strict=True) if iou >= MATCH_IOU]
            free = [(iou, k) for iou, k in near if not taken[k] and not boxes[k].get("iscrowd", 0)]
            if free:
                taken[max(free)[1]] = True
                right.append((one["score"], True))
            elif not any(boxes[k].get("iscrowd", 0) for _, k in near):
                right.append((one["score"], False))
    total = sum(not box.get("iscrowd", 0) for box in truth["annotations"])
    right.sort(key=lambda pair: -pair[0])
    best, best_f1, hits = CutOff(DEFAULT_SCORE, 0.0, 0.0), 0.0, 0
    for number, (score, is_right) in enumerate(right, 1):
        hits += is_right
        # A threshold takes all detections of its score.
        if number < len(right) and right[number][0] == score:
            continue
        f1 = 2 * hits / (number + total)
        if f1 > best_f1:
            best, best_f1 = CutOff(score, hits / number, hits / max(1, total)), f1
    return best


def confusion(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], score: float) -> Confusion:
    """Count which class is taken for which: boxes and detections are paired by IoU alone, the best pair first.

    One box may be detected as several classes: of equal IoUs the better score is first, then the class of the box.
    """
    ids = {category["id"]: row for row, category in enumerate(truth["categories"])}
    counts = np.zeros((len(ids) + 1, len(ids) + 1), dtype=np.int64)
    wanted = _boxes_by_image(box for box in truth["annotations"] if not box.get("iscrowd", 0))
    crowds = _boxes_by_image(box for box in truth["annotations"] if box.get("iscrowd", 0))
    found = _boxes_by_image(one for one in detections if one["score"] >= score)
    for image in truth["images"]:
        boxes, mine = wanted.get(image["id"], []), found.get(image["id"], [])
        ious = _ious(mine, boxes)
        ranked = [
            (-ious[one, box], -mine[one]["score"], mine[one]["category_id"] != boxes[box]["category_id"], one, box)
            for one, box in zip(*np.nonzero(ious >= MATCH_IOU), strict=True)
        ]
        row_of: dict[int, int] = {}
        for *_, detection, box in sorted(ranked):
            if detection not in row_of and box not in row_of.values():
                row_of[detection] = box
                counts[ids[boxes[box]["category_id"]], ids[mine[detection]["category_id"]]] += 1
        for number, box in enumerate(boxes):
            if number not in row_of.values():
                counts[ids[box["category_id"]], -1] += 1
        in_crowd = _ious(mine, crowds.get(image["id"], [])).max(axis=1, initial=0.0)
        for number, one in enumerate(mine):
            if number not in row_of and in_crowd[number] < MATCH_IOU:
                counts[-1, ids[one["category_id"]]] += 1
    return Confusion(counts, [category["name"] for category in truth["categories"]], score)


def _boxes_by_image(boxes: Any) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for box in boxes:
        by_image.setdefault(box["image_id"], []).append(box)
    return by_image


def _ious(found: Sequence[Mapping[str, Any]], boxes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return (K, M) IoUs of K detections and M boxes; for a crowd region, the share of the detection that is in it."""
    if not found or not boxes:
        return np.zeros((len(found), len(boxes)))
    pair = ([[float(value) for value in one["bbox"]] for one in group] for group in (found, boxes))
    return np.asarray(mask.iou(*(np.array(group) for group in pair), [int(box.get("iscrowd", 0)) for box in boxes]))
