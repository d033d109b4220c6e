"""Masks from files that are not trusted: polygons and run lengths, checked before native code sees them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from pycocotools import mask as mask_util

from .skip_report import SkipReport, with_progress
from .value_checks import EntryError, as_number, is_integer, show

Polygons = list[list[float]]

_MOST_POINTS = 10_000
# Square pixels; the points of a polygon with less lie on one line.
_LEAST_AREA = 1e-6
# pycocotools keeps room for six characters of five bits, one of them the sign, for each run.
_MOST_PIXELS = 2**29
_MOST_RUN_CHARACTERS = 6
_FIRST_CHARACTER = ord("0")


def read_segmentation(value: Any, height: int, width: int) -> Polygons | dict:
    """Return the mask of an annotation in a form that pycocotools and detectron2 can be given.

    Polygons without effect, of less than three points, without area or wholly outside the image, are left out of a mask
    that has others.

    Args:
        value: List of polygons, each a flat list x0, y0, x1, y1, ... in pixels; or an object with ``size``, height and
            width, and ``counts``, compressed (str or bytes) or not (list); not trusted.
        height, width: Size of the image in pixels.

    Returns:
        Polygons as they are, or ``{"size": [height, width], "counts": str}``, compressed.

    Raises:
        EntryError: The value has another form, a coordinate is not finite or more than an image outside, a mask has
            more than 10,000 points, the size is not that of the image, the counts cannot be decoded or do not add up
            to the image, or nothing is inside the mask.

    Source: the format of COCO's annotations.
    """
    if isinstance(value, dict):
        return _read_rle(value, height, width)
    return _read_polygons(value, height, width)


def keep_usable_masks(dataset_name: str, dataset_dicts: Sequence[dict]) -> list[dict]:
    """Return dataset dicts without the masks that cannot be used; every box stays.

    Args:
        dataset_name: The dataset, for the report.
        dataset_dicts: Dicts without a fault in their boxes; they stay as they are.

    Raises:
        AnnotationError: Too many masks cannot be used.
    """
    report = SkipReport(f"masks of dataset {dataset_name!r}", dataset_name)
    num_boxes = num_masks = 0
    kept = []
    for record in with_progress(dataset_dicts, f"{dataset_name}: masks"):
        annotations = [
            _with_usable_mask(item, record, f"{record['file_name']}: box {index}", report)
            for index, item in enumerate(record.get("annotations", ()))
        ]
        num_boxes += len(annotations)
        num_masks += sum("segmentation" in item for item in annotations)
        kept.append({**record, "annotations": annotations} if annotations else record)
    if kept:
        report.close(kept, "images")
    logging.getLogger(__name__).info("dataset %r: %d of %d boxes have a mask", dataset_name, num_masks, num_boxes)
    return kept


def leave_out_masks(dataset_dicts: Sequence[dict]) -> list[dict]:
    """Return dataset dicts without any mask: most of the memory of a dataset that has them."""
    return [
        (
            {**record, "annotations": [_without_mask(item) for item in record["annotations"]]}
            if any("segmentation" in item for item in record.get("annotations", ()))
            else record
        )
        for record in dataset_dicts
    ]


def decode_counts(text: bytes) -> np.ndarray:
    """Decode the compressed counts of an RLE: (K,) int64, lengths of runs outside and inside in turn.

    Each character holds five bits of a number, the lowest first, and whether it goes on; the highest bit is the sign.
    From the fourth number on it is the difference to the number two before. A result may be negative or too large.

    Raises:
        EntryError: A character does not belong to the code, or the text is empty, ends inside a number or has a number
            of more than six characters.

    Source: the compressed RLE of pycocotools.
    """
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if not len(digits) or digits.min() < 0 or digits.max() > 63:
        _fail("counts", "characters from '0' to 'o'", text)
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ends[-1] != len(digits) - 1:
        _fail("counts", "a last number that is complete", text)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_RUN_CHARACTERS:
        _fail("counts", f"numbers of at most {_MOST_RUN_CHARACTERS} characters", text)
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((digits & 31) << (5 * places), starts)
    counts -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


def _with_usable_mask(item: dict, record: dict, where: str, report: SkipReport) -> dict:
    if "segmentation" not in item:
        return item
    value = item["segmentation"]
    report.count("masks")
    try:
        mask = read_segmentation(value, record["height"], record["width"])
    except EntryError as error:
        report.skip("masks", where, error)
        return _without_mask(item)
    if isinstance(mask, list) and len(mask) < len(value):
        expected = "at least 3 points with area inside the image"
        found = f"{len(value) - len(mask)} of {len(value)} polygons without them"
        report.count("parts of masks", len(value) - len(mask))
        report.skip("parts of masks", where, EntryError(f"expected {expected}, found {found}", "polygons without area"))
    return {**item, "segmentation": mask}


def _without_mask(item: dict) -> dict:
    return {key: value for key, value in item.items() if key != "segmentation"}


def _read_polygons(value: Any, height: int, width: int) -> Polygons:
    if not isinstance(value, list) or not value or not all(isinstance(polygon, list) for polygon in value):
        _fail("segmentation", "a list of polygons, or an object with counts", value)
    num_points = sum(len(polygon) for polygon in value) // 2
    if num_points > _MOST_POINTS:
        raise EntryError(f"segmentation: expected at most {_MOST_POINTS} points, found {num_points}", "malformed masks")
    polygons, flaw = [], ""
    for polygon in value:
        numbers, points = _read_points(polygon)
        own_flaw = _flaw(points, height, width)
        if own_flaw:
            flaw = flaw or f"{show(polygon)}, which {own_flaw}"
        else:
            polygons.append(numbers)
    if not polygons:
        expected = f"at least 3 points with area inside an image of {width} x {height} pixels"
        raise EntryError(f"polygon: expected {expected}, found {flaw}", "polygons without area")
    return polygons


def _read_points(polygon: list) -> tuple[list, np.ndarray]:
    """Return x and y of each point of a polygon in turn, as they are unless they are text, and the (K, 2) points."""
    numbers = polygon
    if not all(type(one) in (int, float) for one in polygon):
        numbers = [as_number(one) for one in polygon]
    try:
        points = np.array(numbers, dtype=np.float64)  # None becomes nan.
    except OverflowError:
        points = np.array([np.inf])
    if not np.isfinite(points).all():
        _fail("polygon", "finite numbers", polygon)
    if len(points) % 2:
        _fail("polygon", "x and y of each point", polygon)
    return numbers, points.reshape(-1, 2)


def _flaw(points: np.ndarray, height: int, width: int) -> str:
    """Say why a polygon of (K, 2) points covers nothing of the image; "" if it may cover some of it.

    Raises:
        EntryError: It reaches farther out than the image is large.
    """
    if len(points) < 3:
        return f"has {len(points)} points"
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if left < -width or top < -height or right > 2 * width or bottom > 2 * height:
        raise EntryError(
            f"polygon: expected at most the size of the image outside an image of {width} x {height} pixels, found one "
            f"from ({left:g}, {top:g}) to ({right:g}, {bottom:g})",
            "malformed masks",
        )
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return "lies outside"
    arms = points - points[0]
    longest = arms[np.abs(arms).sum(axis=1).argmax()]
    # Not the signed area, which can vanish where an outline crosses itself.
    if np.abs(arms[:, 0] * longest[1] - arms[:, 1] * longest[0]).max() < _LEAST_AREA:
        return "has no area"
    return ""


def _read_rle(value: dict, height: int, width: int) -> dict:
    size, counts, num_pixels = value.get("size"), value.get("counts"), height * width
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2 and all(is_integer(side) for side in size)
    if not is_pair or [*(size or ())] != [height, width]:
        _fail("size of segmentation", f"[{height}, {width}], that of its image", size)
    if num_pixels >= _MOST_PIXELS:
        _fail("size of segmentation", f"less than {_MOST_PIXELS} pixels", size)
    if isinstance(counts, list):
        if not all(is_integer(run) for run in counts):
            _fail("counts", "integers", counts)
        runs = np.array(counts, dtype=np.int64)
    elif isinstance(counts, (str, bytes)):
        # In UTF-8 every other character, and half of one, becomes bytes outside of the code.
        runs = decode_counts(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    else:
        _fail("counts", "a string or a list", counts)
    if (runs < 0).any() or (runs > num_pixels).any() or runs.sum() != num_pixels:
        _fail("counts", f"runs that add up to {height} x {width} pixels", counts)
    if not runs[1::2].any():
        _fail("counts", "a mask that is not empty", counts)
    rle = {"size": [height, width], "counts": counts}
    if isinstance(counts, list):
        rle = mask_util.frPyObjects(rle, height, width)
    if (runs[1:] == 0).any():
        # Empty runs are legal, but pycocotools ends a comparison of two masks where both have one.
        rle = mask_util.encode(np.asfortranarray(mask_util.decode(rle)))
    text = rle["counts"]
    return {"size": [height, width], "counts": text.decode("ascii") if isinstance(text, bytes) else text}


def _fail(field: str, expected: str, found: Any) -> NoReturn:
    raise EntryError(f"{field}: expected {expected}, found {show(found)}", "malformed masks")
