"""Masks from files that are not trusted: polygons and run lengths, checked before native code sees them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from .grounding_records import EntryError
from .skip_report import SkipReport, with_progress
from .value_checks import is_integer, show

Polygons = list[list[float]]

_MOST_POINTS = 10_000
# Polygons are rasterized in memory that grows with the length of their outline. In longer sides of the image, and in
# shorter sides of the box that the mask is cropped to; those of real objects are hundreds of times shorter.
_MOST_IMAGE_SIDES = 1_000
_MOST_BOX_SIDES = 20_000
# detectron2 takes a box for at least this wide and high when it crops a mask.
_SHORTEST_SIDE = 0.1
# Square pixels; the points of a polygon with less lie on one line.
_LEAST_AREA = 1e-6
# pycocotools keeps room for six characters of five bits, one of them the sign, for each run.
_MOST_PIXELS = 2**29
_MOST_RUN_CHARACTERS = 6
_FIRST_CHARACTER = ord("0")


class _CheckedPolygons(NamedTuple):
    """Polygons that can be used, the length of their outlines in pixels, and how many were left out."""

    polygons: Polygons
    length: float
    num_left_out: int


def read_segmentation(value: Any, height: int, width: int) -> Polygons | dict:
    """Return the mask of an annotation in a form that pycocotools and detectron2 can be given.

    Polygons without effect, of less than three points, without area or wholly outside the image, are left out of a mask
    that has others.

    Args:
        value: List of polygons, each a flat list x0, y0, x1, y1, ... in pixels; or an object with ``size``, height and
            width, and ``counts``, compressed (str or bytes) or not (list); not trusted.
        height, width: Of the image in pixels.

    Returns:
        Polygons as they are, or ``{"size": [height, width], "counts": str}``, compressed.

    Raises:
        EntryError: It is none of these, a coordinate is not finite or more than an image outside, a mask has more than
            10,000 points or an outline of more than 1,000 sides of the image, the size is not that of the image, the
            counts cannot be decoded or do not add up to the image, or nothing is inside the mask.

    Source: the format of COCO's annotations.
    """
    if isinstance(value, dict):
        return _read_rle(value, height, width)
    return _read_polygons(value, height, width).polygons


def keep_usable_masks(dataset_name: str, dataset_dicts: Sequence[dict]) -> list[dict]:
    """Return dataset dicts without the masks that cannot be used; every box stays.

    One warning counts what was left out and names the first few. Beside what ``read_segmentation`` leaves out, these
    are polygons that are far too long for their box.

    Args:
        dataset_name: For the messages.
        dataset_dicts: As ``check_dataset_dicts`` leaves them; they stay as they are.
    """
    report = SkipReport(f"dataset {dataset_name!r}")
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
        EntryError: A character is none of the code, or the text is empty, ends inside a number or has a number of more
            than six characters.

    Source: the compressed RLE of pycocotools.
    """
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if not len(digits) or digits.min() < 0 or digits.max() > 63:
        raise EntryError(f"counts are {show(text)}, expected characters from '0' to 'o'")
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ends[-1] != len(digits) - 1:
        raise EntryError(f"counts are {show(text)}, expected a last number that is complete")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_RUN_CHARACTERS:
        raise EntryError(f"counts are {show(text)}, expected numbers of at most {_MOST_RUN_CHARACTERS} characters")
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((digits & 31) << (5 * places), starts)
    counts -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


def _with_usable_mask(item: dict, record: dict, where: str, report: SkipReport) -> dict:
    if "segmentation" not in item:
        return item
    value, height, width = item["segmentation"], record["height"], record["width"]
    try:
        if isinstance(value, dict):
            return {**item, "segmentation": _read_rle(value, height, width)}
        checked = _read_polygons(value, height, width)
        _check_length(checked.length, item)
    except EntryError as error:
        report.skip("masks", where, str(error))
        return _without_mask(item)
    if checked.num_left_out:
        expected = "expected at least 3 points with area inside the image"
        report.skip("parts of masks", where, f"{checked.num_left_out} of {len(value)} polygons, {expected}")
    return {**item, "segmentation": checked.polygons}


def _without_mask(item: dict) -> dict:
    return {key: value for key, value in item.items() if key != "segmentation"}


def _check_length(length: float, item: dict) -> None:
    left, top, right, bottom = item["bbox"]
    sides = (right, bottom) if item["bbox_mode"] == BoxMode.XYWH_ABS else (right - left, bottom - top)
    if length > _MOST_BOX_SIDES * max(min(sides), _SHORTEST_SIDE):
        raise EntryError(
            f"segmentation has an outline of {length:.0f} pixels, expected at most {_MOST_BOX_SIDES} shorter sides "
            f"of its box {show(item['bbox'])}"
        )


def _read_polygons(value: Any, height: int, width: int) -> _CheckedPolygons:
    if not isinstance(value, list) or not value or not all([isinstance(polygon, list) for polygon in value]):
        raise EntryError(f"segmentation is {show(value)}, expected a list of polygons, or an object with counts")
    num_points = sum([len(polygon) for polygon in value]) // 2
    if num_points > _MOST_POINTS:
        raise EntryError(f"segmentation has {num_points} points, expected at most {_MOST_POINTS}")
    polygons, length, flaw = [], 0.0, ""
    for polygon in value:
        points = _read_points(polygon)
        own_flaw = _flaw(points, height, width)
        if own_flaw:
            flaw = flaw or f"polygon {show(polygon)} {own_flaw}"
            continue
        polygons.append(polygon)
        length += np.abs(points[1:] - points[:-1]).max(axis=1).sum() + np.abs(points[0] - points[-1]).max()
    if not polygons:
        raise EntryError(f"{flaw}, expected at least 3 points with area inside an image of {width} x {height} pixels")
    if length > _MOST_IMAGE_SIDES * max(height, width):
        raise EntryError(
            f"segmentation has an outline of {length:.0f} pixels, expected at most {_MOST_IMAGE_SIDES} times the "
            f"longer side of an image of {width} x {height} pixels"
        )
    return _CheckedPolygons(polygons, float(length), len(value) - len(polygons))


def _read_points(polygon: list) -> np.ndarray:
    """Return the points of a polygon, (K, 2)."""
    try:
        numbers = np.array(polygon)
    except ValueError:  # lists of different lengths
        numbers = np.array(None)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise EntryError(f"polygon is {show(polygon)}, expected finite numbers")
    if len(polygon) % 2:
        raise EntryError(f"polygon {show(polygon)} has {len(polygon)} numbers, expected x and y of each point")
    return numbers.astype(np.float64).reshape(-1, 2)


def _flaw(points: np.ndarray, height: int, width: int) -> str:
    """Say why a polygon of (K, 2) points covers nothing of the image; empty if it may.

    Raises:
        EntryError: It reaches farther out than the image is large.
    """
    if len(points) < 3:
        return f"has {len(points)} points"
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if left < -width or top < -height or right > 2 * width or bottom > 2 * height:
        raise EntryError(
            f"a polygon reaches from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), expected at most the size of the "
            f"image outside an image of {width} x {height} pixels"
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
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2 and all([is_integer(side) for side in size])
    if not is_pair or list(size) != [height, width]:
        raise EntryError(f"segmentation has size {show(size)}, expected [{height}, {width}], that of its image")
    if num_pixels >= _MOST_PIXELS:
        raise EntryError(f"segmentation has size {show(size)}, expected less than {_MOST_PIXELS} pixels")
    if isinstance(counts, list):
        if not all([is_integer(run) for run in counts]):
            raise EntryError(f"counts are {show(counts)}, expected integers")
        runs = np.array(counts, dtype=np.int64)
    elif isinstance(counts, (str, bytes)):
        # In UTF-8 every other character, and half of one, becomes bytes that are none of the code.
        runs = decode_counts(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    else:
        raise EntryError(f"counts are {show(counts)}, expected a string or a list")
    if (runs < 0).any() or (runs > num_pixels).any() or runs.sum() != num_pixels:
        raise EntryError(f"counts are {show(counts)}, expected runs that add up to {height} x {width} pixels")
    if not runs[1::2].any():
        raise EntryError(f"counts are {show(counts)}, expected a mask that is not empty")
    rle = {"size": [height, width], "counts": counts}
    if isinstance(counts, list):
        rle = mask_util.frPyObjects(rle, height, width)
    if (runs[1:] == 0).any():
        # Empty runs are legal, but pycocotools ends a comparison of two masks where both have one.
        rle = mask_util.encode(np.asfortranarray(mask_util.decode(rle)))
    text = rle["counts"]
    return {"size": [height, width], "counts": text.decode("ascii") if isinstance(text, bytes) else text}
