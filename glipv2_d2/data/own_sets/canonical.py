"""The canonical form: equal sets in different formats become equal COCO json."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from ..datasets.mask_checks import Polygons, read_segmentation
from ..datasets.skip_report import DataReport, SkipReport, with_progress
from ..datasets.value_checks import EntryError, cut_box, read_corners, show
from ..image_reading import ImageShape
from .folder import ImageShapes, shown_path
from .sets import CocoSet, OwnBox, OwnImage

_DIGITS = 2  # of coordinates, in pixels
_PER_CENT = 100
_LEAST_BOXES = 10  # fewer may lie in a corner by chance


class _Object(NamedTuple):
    """An annotation without ids."""

    name: str
    bbox: list[float]
    area: float
    iscrowd: int
    segmentation: Polygons | dict | None


class _Image(NamedTuple):
    path: str
    shape: ImageShape
    objects: list[_Object]
    source_id: int | None


def same_name(text: str) -> str:
    """Return the name of a class without white space around it, and with single spaces inside."""
    return " ".join(text.split())


def make_coco_sets(
    splits: Mapping[str, Sequence[OwnImage]],
    declared: Sequence[str],
    source_ids: Mapping[str, int],
    shapes: ImageShapes,
    report: SkipReport,
) -> tuple[dict[str, CocoSet], list[str], list[str]]:
    """Check images and boxes, and bring them into the canonical form.

    The size of an image is that of its upright file, whatever the annotations say. Where they were made before it was
    turned upright, by its EXIF orientation, the boxes are turned with it. A class without boxes in all splits is left
    out, unless no class has boxes. Masks are left out if each is only the rectangle of its box.

    Args:
        splits: The images of each split.
        declared: Names of classes that the files list.
        source_ids: Ids of classes in a COCO json.
        shapes: The sizes of their files.
        report: Counts what is left out.

    Returns:
        The splits that have images, the names of the classes, and those of the declared classes without boxes.
    """
    images = {split: _read_images(found, shapes, report, split) for split, found in splits.items()}
    images = {split: found for split, found in images.items() if found}
    if not _has_masks(images, report):
        images = {split: [_without_masks(image) for image in found] for split, found in images.items()}
    _warn_of_per_cent(images, report)
    used = {one.name for found in images.values() for image in found for one in image.objects}
    listed = {same_name(name) for name in declared} - {""}
    names = sorted(used or listed)
    unused = sorted(listed - set(names))
    for _ in unused:
        report.change("classes left out that no box has")
    ids = {same_name(name): source_id for name, source_id in source_ids.items()}
    return {split: _coco_set(found, names, ids) for split, found in images.items()}, names, unused


def _warn_of_per_cent(images: Mapping[str, Sequence[_Image]], report: SkipReport) -> None:
    """Say so if boxes look like per cent of the sides: all in the first 100 pixels, in images of twice that."""
    found = [image for split in images.values() for image in split if image.objects]
    boxes = [one.bbox for image in found for one in image.objects]
    if len(boxes) < _LEAST_BOXES or min(min(image.shape[:2]) for image in found) < 2 * _PER_CENT:
        return
    if all(left + width <= _PER_CENT >= top + height for left, top, width, height in boxes):
        for _ in boxes:
            report.change("boxes that may be in per cent, taken as pixels")
        logging.getLogger(__name__).log(
            DataReport.current().level,
            "%s: all %d boxes lie in the first %d pixels of their images; are they in per cent? Pixels are expected",
            *(report.source, len(boxes), _PER_CENT),
        )


def _read_images(found: Sequence[OwnImage], shapes: ImageShapes, report: SkipReport, split: str) -> list[_Image]:
    report.count("images", len(found))
    root = report.source if os.path.isdir(report.source) else os.path.dirname(report.source)
    images: dict[str, _Image] = {}
    for image in with_progress(sorted(found, key=lambda one: one.path), f"images of {split}"):
        where = shown_path(image.path, root)
        try:
            shape = shapes.of(image.path)
            boxes = _fitted_boxes(image, shape, report)
            objects = _read_objects(boxes, shape, where, report)
            known = images.get(image.path)
            if known is not None and known.objects != objects:
                raise EntryError("expected one list of boxes, found two that differ", "images listed twice")
            images.setdefault(image.path, _Image(image.path, shape, objects, image.source_id))
        except EntryError as error:
            report.skip("images", where, error, [box.name for box in image.boxes])
    return list(images.values())


def _fitted_boxes(image: OwnImage, shape: ImageShape, report: SkipReport) -> list[OwnBox]:
    """Return boxes in pixels of the upright file.

    Raises:
        EntryError: They are meant for an image of another size.
    """
    size = (shape.height, shape.width)
    if image.size is None or image.size == size or not all(image.size):
        return image.boxes
    if image.size == size[::-1]:
        if shape.orientation > 4:
            report.change("images whose boxes were turned upright with them")
            return [_turned(box, *image.size, shape.orientation) for box in image.boxes]
        if all(box.corners[2] <= shape.width and box.corners[3] <= shape.height for box in image.boxes):
            report.change("images with width and height exchanged in their annotation")
            return image.boxes
    found = f"{image.size[1]} x {image.size[0]} in its annotation"
    raise EntryError(
        f"expected {shape.width} x {shape.height} pixels as in its file, found {found}", "sizes that differ"
    )


def _turned(box: OwnBox, height: int, width: int, orientation: int) -> OwnBox:
    """Return a box of a stored image as it lies in the upright one; ``orientation`` exchanges the sides, 5 to 8."""

    def turn(x: float, y: float) -> tuple[float, float]:
        # 5 and 6 put the stored left side on top, 7 and 8 below; 6 and 7 put the stored upper side on the right.
        return (height - y if orientation in (6, 7) else y), (width - x if orientation in (7, 8) else x)

    (left, top), (right, bottom) = turn(*box.corners[:2]), turn(*box.corners[2:])
    segmentation = box.segmentation
    if isinstance(segmentation, list):
        polygons = read_segmentation(segmentation, height, width)
        points = [zip(polygon[::2], polygon[1::2], strict=True) for polygon in polygons]
        segmentation = [[one for x, y in pairs for one in turn(x, y)] for pairs in points]
    corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    return box._replace(corners=corners, segmentation=segmentation)


def _read_objects(boxes: Sequence[OwnBox], shape: ImageShape, image: str, report: SkipReport) -> list[_Object]:
    report.count("boxes", len(boxes))
    objects = []
    for number, box in enumerate(boxes):
        where = box.where or f"{image}: box {number}"
        try:
            objects.append(_read_object(box, shape, where, report))
        except EntryError as error:
            report.skip("boxes", where, error, [box.name])
    return sorted(objects, key=lambda one: (one.bbox, one.name, json.dumps(one[2:])))


def _read_object(box: OwnBox, shape: ImageShape, where: str, report: SkipReport) -> _Object:
    if not same_name(box.name):
        raise EntryError(f"name: expected the name of a class, found {box.name!r}", "boxes without a name")
    if max(map(abs, box.corners)) <= 1 < min(shape[:2]):
        found = show([*box.corners])
        raise EntryError(f"bbox: expected pixels, found corners in shares of the image, {found}", "boxes not in pixels")
    whole = read_corners(_rounded(box.corners))
    left, top, right, bottom = cut_box(whole, shape.height, shape.width)
    if (left, top, right, bottom) != whole:
        report.change("boxes cut at the border of their image")
    sides = _rounded((right - left, bottom - top))
    segmentation = _read_mask(box, shape, where, report)
    area = box.area if segmentation is not None and box.area is not None and box.area > 0 else None
    if area is None:
        area = sides[0] * sides[1] if segmentation is None else _mask_area(segmentation)
    return _Object(same_name(box.name), [left, top, *sides], round(float(area), _DIGITS), box.iscrowd, segmentation)


def _read_mask(box: OwnBox, shape: ImageShape, where: str, report: SkipReport) -> Polygons | dict | None:
    # Tools write [[]], too, for no mask.
    if not box.segmentation or box.segmentation == [[]]:
        return None
    report.count("masks")
    try:
        mask = read_segmentation(box.segmentation, shape.height, shape.width)
    except EntryError as error:
        report.skip("masks", where, error)
        return None
    return [list(_rounded(polygon)) for polygon in mask] if isinstance(mask, list) else mask


def _mask_area(mask: Polygons | dict) -> float:
    """Compute the area of a mask in square pixels; parts of polygons that overlap count twice, as in COCO's files."""
    if isinstance(mask, dict):
        return float(mask_util.area(mask))
    area = 0.0
    for polygon in mask:
        x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T  # (K,) each
        area += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return area


def _rounded(values: Sequence[float]) -> Any:
    """Round coordinates; -0.0 becomes 0.0."""
    return tuple(round(float(value), _DIGITS) + 0.0 for value in values)


def _has_masks(images: Mapping[str, Sequence[_Image]], report: SkipReport) -> bool:
    """Tell whether a set has masks that say more than their boxes do."""
    objects = [one for found in images.values() for image in found for one in image.objects]
    masks = [one for one in objects if one.segmentation is not None]
    if not masks or not all(_is_rectangle(one) for one in masks):
        return bool(masks)
    for _ in masks:
        report.change("masks left out that are the rectangles of their boxes, as all masks here")
    return False


def _is_rectangle(one: _Object) -> bool:
    if not isinstance(one.segmentation, list) or len(one.segmentation) != 1:
        return False
    points = set(zip(one.segmentation[0][::2], one.segmentation[0][1::2], strict=False))
    left, top, width, height = one.bbox
    right, bottom = (round(left + width, _DIGITS), round(top + height, _DIGITS))
    return points == {(left, top), (left, bottom), (right, bottom), (right, top)}


def _without_masks(image: _Image) -> _Image:
    objects = []
    for one in image.objects:
        _, _, width, height = one.bbox
        area = one.area if one.segmentation is None else round(width * height, _DIGITS)
        objects.append(one._replace(segmentation=None, area=area))
    return image._replace(objects=objects)


def _coco_set(found: Sequence[_Image], names: Sequence[str], source_ids: Mapping[str, int]) -> CocoSet:
    root = os.path.commonpath([os.path.dirname(image.path) for image in found])
    paths = {image.path: os.path.relpath(image.path, root).replace(os.sep, "/") for image in found}
    category_ids = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    image_ids: dict[int, int] = {}
    for image_id, image in enumerate(sorted(found, key=lambda one: paths[one.path]), 1):
        size = {"height": image.shape.height, "width": image.shape.width}
        images.append({"id": image_id, "file_name": paths[image.path], **size})
        if image.source_id is not None:
            image_ids[image_id] = image.source_id
        for one in image.objects:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category_ids[one.name],
                "bbox": one.bbox,
                "area": one.area,
                "iscrowd": one.iscrowd,
            }
            annotations.append(
                annotation if one.segmentation is None else annotation | {"segmentation": one.segmentation}
            )
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in category_ids.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    known = {category_ids[name]: source_id for name, source_id in source_ids.items() if name in category_ids}
    return CocoSet(root, content, {"images": image_ids, "categories": known})
