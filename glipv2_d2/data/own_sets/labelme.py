"""LabelMe's json, a file for each image; AnyLabeling and X-AnyLabeling write it, too."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from ..datasets.coco_json import BACKGROUND
from ..datasets.skip_report import SkipReport
from ..datasets.value_checks import (
    EntryError,
    OmittedEntry,
    as_integer,
    as_number,
    is_text,
    list_of,
    read_corners,
    read_object,
    read_text,
    show,
)
from .coco_exports import is_labelme, sniff
from .folder import Folder, read_bytes
from .sets import OwnBox, OwnImage, Part

_MOST_BYTES = 2**28  # the image may be in it, as base64
_WITHOUT_AREA = ("point", "points", "line", "linestrip")

Points = list[tuple[float, float]]


def looks_like_labelme(path: str) -> bool:
    """Tell whether a json file may be of this format, by its beginning and its end."""
    return is_labelme(sniff(path))


def read_labelme(json_files: Sequence[str], files: Folder, report: SkipReport) -> list[Part]:
    """Read rectangles, polygons and circles; polygons of one label and group are one object.

    An image is that of the same name as its json, or else the one that the json names. Its split is that of its folder
    or of the folder of its json. Points and lines have no area and are left out.

    Args:
        json_files: The files.
        files: The folder that the images lie in.
        report: Counts what is left out.
    """
    parts: dict[str, Part] = {}
    report.count("annotation files", len(json_files))
    for json_file in json_files:
        names = set()
        try:
            content = _read_content(json_file)
            names = _labels(content["shapes"])
            image = _read_image(content, json_file, files, report)
            split = files.split_of_path(json_file) or files.split_of_path(image.path)
            parts.setdefault(split, Part(split, [], [], {})).images.append(image)
        except EntryError as error:
            report.skip("annotation files", files.relative(json_file), error, names)
    return list(parts.values())


def _labels(shapes: Sequence[Any]) -> set[str]:
    """Return the classes of the shapes of a file."""
    labels: list[str] = [shape["label"] for shape in shapes if isinstance(shape, dict) and is_text(shape.get("label"))]
    return {label for label in labels if label.strip() not in BACKGROUND}


def _read_content(json_file: str) -> dict[str, Any]:
    try:
        content = read_object(json.loads(read_bytes(json_file, _MOST_BYTES)))
    except EntryError:
        raise
    except (ValueError, RecursionError) as error:
        raise EntryError(f"expected json, found {show(str(error))}", "files that are not json") from error
    if not isinstance(content.get("shapes"), list):
        raise EntryError(f"shapes: expected a list, found {show(content.get('shapes'))}")
    return content


def _read_image(content: dict[str, Any], json_file: str, files: Folder, report: SkipReport) -> OwnImage:
    named = content["imagePath"] if is_text(content.get("imagePath")) else ""
    try:
        path = files.find_own_image(json_file, named)
    except EntryError as error:
        if not is_text(content.get("imageData")):
            raise
        name = os.path.splitext(os.path.basename(json_file))[0]
        way_out = f"imageData has it in base64: save it as {name}.jpg"
        raise EntryError(f"{error}; {way_out}", error.kind) from error
    where = files.relative(json_file)
    sides = [as_integer(content.get(side)) or 0 for side in ("imageHeight", "imageWidth")]
    boxes = _read_boxes(list_of(content, "shapes", json_file), where, report)
    return OwnImage(path, boxes, (sides[0], sides[1]) if min(sides) > 0 else None)


def _read_boxes(shapes: Sequence[Any], where: str, report: SkipReport) -> list[OwnBox]:
    boxes: list[OwnBox] = []
    groups: dict[tuple[str, Any], int] = {}
    for number, shape in enumerate(shapes):
        place = f"{where}: shape {number}"
        try:
            box = _read_shape(read_object(shape), place, report)
        except EntryError as error:
            report.count("boxes")
            report.skip("boxes", place, error, _labels([shape]))
            continue
        group = shape.get("group_id")
        if box.segmentation is None or not isinstance(group, (int, str)):
            boxes.append(box)
            continue
        first = groups.setdefault((box.name, group), len(boxes))
        if first == len(boxes):
            boxes.append(box)
        else:
            boxes[first] = _joined(boxes[first], box)
    return boxes


def _joined(one: OwnBox, other: OwnBox) -> OwnBox:
    """Return the parts of one object as one."""
    left, top = map(min, one.corners[:2], other.corners[:2])
    right, bottom = map(max, one.corners[2:], other.corners[2:])
    return one._replace(corners=(left, top, right, bottom), segmentation=one.segmentation + other.segmentation)


def _read_shape(shape: dict[str, Any], where: str, report: SkipReport) -> OwnBox:
    name, kind = read_text(shape, "label"), shape.get("shape_type") or "polygon"
    if name.strip() in BACKGROUND:
        raise OmittedEntry(f"label: expected a class, found {show(name)}", "shapes of no class")
    points = _read_points(shape.get("points"))
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return OwnBox(name, read_corners([x - radius, y - radius, x + radius, y + radius]), where=where)
    if kind == "mask":
        report.change("boxes of masks that were not read")
    if kind in ("rectangle", "mask") and len(points) >= 2:
        return OwnBox(name, _box_of(points), where=where)
    if kind in _WITHOUT_AREA:
        found = f"shape_type: expected a rectangle, polygon or circle, found {show(kind)}"
        raise OmittedEntry(found, "shapes without area")
    # AnyLabeling has more names for polygons, such as rotation and quadrilateral.
    if len(points) < 3:
        found = f"points: expected more for a shape of type {show(kind)}, found {len(points)}"
        raise EntryError(found, "polygons without area")
    polygon = [value for point in points for value in point]
    return OwnBox(name, _box_of(points), [polygon], where=where)


def _read_points(value: Any) -> Points:
    points = []
    for pair in value if isinstance(value, list) else []:
        x, y = map(as_number, pair) if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if x is None or y is None:
            raise EntryError(f"points: expected pairs of finite numbers, found {show(pair)}", "malformed points")
        points.append((x, y))
    if not points:
        raise EntryError(f"points: expected pairs of finite numbers, found {show(value)}", "malformed points")
    return points


def _box_of(points: Points) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return read_corners([min(xs), min(ys), max(xs), max(ys)])
