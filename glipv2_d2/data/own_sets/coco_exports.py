"""COCO json as tools and people write it: Roboflow, CVAT, Label Studio, LabelMe's converter, published sets."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from ..datasets.coco_json import CocoImage, CocoJson
from ..datasets.mask_checks import read_segmentation
from ..datasets.skip_report import DataReport, SkipReport
from ..datasets.value_checks import (
    AnnotationError,
    Box,
    EntryError,
    OmittedEntry,
    as_integer,
    as_number,
    is_integer,
    is_text,
    list_of,
    read_corners,
    read_flag,
    read_integer,
    read_text,
    show,
    unknown_id,
)
from .folder import Folder, as_utf_8
from .sets import OwnBox, OwnImage, Part

_SNIFFED = 65_536  # bytes at the beginning of a file, and as many at its end
_COCO_KEY = re.compile(rb'"(images|annotations|categories|licenses|info)"\s*:')
_FIRST_OF_TEXTS = 2**62  # the number of the first id that is a text; one that is a number is hardly as large
_FEWEST_TO_JUDGE = 10  # boxes; fewer may look like anything by chance
_MANY_OUTSIDE = 0.2
_LABELME_KEY = re.compile(rb'"(shapes|imagePath|imageData)"\s*:')


def looks_like_coco(path: str) -> bool:
    """Tell whether a file may be COCO json, by its beginning and its end."""
    text = sniff(path)
    return text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" and bool(_COCO_KEY.search(text)) and not is_labelme(text)


def is_labelme(text: bytes) -> bool:
    """Tell whether the beginning and the end of a file have keys of LabelMe's json."""
    return bool(_LABELME_KEY.search(text))


def sniff(path: str) -> bytes:
    """Return the beginning and the end of a file in UTF-8; nothing of one that cannot be read."""
    try:
        with open(path, "rb") as file:
            begin = file.read(_SNIFFED)
            file.seek(max(len(begin), os.path.getsize(path) - _SNIFFED))
            return as_utf_8(begin + file.read(_SNIFFED))
    except OSError:
        return b""


class _Candidate(NamedTuple):
    """A json file that may be used.

    Attributes:
        json_file: The file.
        part: What it holds.
        report: What is left out of it.
    """

    json_file: str
    part: Part
    report: SkipReport

    @property
    def size(self) -> tuple[int, int]:
        """Number of categories that boxes have, and of boxes; of files about the same images, one with more is used."""
        names = [box.name for image in self.part.images for box in image.boxes]
        return len({*names}), len(names)


def read_coco_exports(json_files: Sequence[str], files: Folder, report: SkipReport, split: str = "") -> list[Part]:
    """Read json files in COCO's format.

    The split of a file is that of its name or of the folder it lies in. Files of one split are put together, and an
    image of two has the boxes of the one with the most categories and boxes; a file about the same images as another,
    at least half of them, is not used.

    Args:
        json_files: The files; those without ``images`` and ``categories`` are passed over.
        files: The folder that the images lie in.
        report: Names the files that are not used.
        split: The split of all files, where it is known.

    Raises:
        AnnotationError: The only file cannot be read, or too much of one is faulty.
    """
    by_split: defaultdict[str, list[_Candidate]] = defaultdict(list)
    errors: list[AnnotationError] = []
    for json_file in json_files:
        report.count("annotation files")
        try:
            content = CocoJson(json_file, report.dataset)
            if not _is_detection_data(content.content):
                keys = show([*content.content])
                raise OmittedEntry(f"expected images and categories, found {keys}", "other annotation files")
            own = split or files.split_of_path(json_file, of_file=True)
            part = _read(content, own, files)
            if not part.images:
                content.report.close(part.images, "images that are there")
            by_split[own].append(_Candidate(json_file, part, content.report))
        except OmittedEntry as error:
            report.skip("annotation files", files.relative(json_file), error)
        except AnnotationError as error:
            errors.append(error)
            reason = str(error).removeprefix(f"{json_file}: ")
            report.skip("annotation files", files.relative(json_file), EntryError(reason, "unusable files"))
    if errors and not by_split:
        raise errors[0]
    return _chosen(by_split, files, report)


def _chosen(by_split: dict[str, list[_Candidate]], files: Folder, report: SkipReport) -> list[Part]:
    parts = []
    used_by_named: set[str] = set()
    # Files of no split come last: they may hold all images once more.
    for split in sorted(by_split, reverse=True):
        used: set[str] = set()
        for one in sorted(by_split[split], key=lambda one: one.size, reverse=True):
            paths = {image.path for image in one.part.images}
            if 2 * len(paths & used) >= len(paths) or (split == "" and paths & used_by_named):
                error = OmittedEntry("expected other images, found those of a file with more", "other annotation files")
                names = {box.name for image in one.part.images for box in image.boxes}
                report.skip("annotation files", files.relative(one.json_file), error, names)
                continue
            one.report.close(one.part.images, "images that are there")
            parts.append(one.part._replace(images=[image for image in one.part.images if image.path not in used]))
            for image in one.part.images:
                if image.path in used:
                    error = OmittedEntry("expected in one file, found in another with more", "images of two files")
                    where = f"{files.relative(one.json_file)}: {files.relative(image.path)}"
                    report.count("images")
                    report.skip("images", where, error, [box.name for box in image.boxes])
            used |= paths
        used_by_named |= used
    return parts


def _is_detection_data(content: dict[str, Any]) -> bool:
    return isinstance(content.get("images"), list) and bool(content.get("categories"))


def _read(content: CocoJson, split: str, files: Folder) -> Part:
    has_texts = {
        "images": _number(content, "images", "image_id"),
        "categories": _number(content, "categories", "category_id"),
    }
    rows = list_of(content.content, "categories", content.json_file)
    content.content["categories"] = _plain_categories(rows)
    names = content.categories()
    found = content.images(lambda entry: read_text(entry, "file_name"), needs_size=False)
    images: dict[int, OwnImage | None] = {}
    listed_images: dict[tuple[str | int, ...], OwnImage] = {}
    for image_id, image in found.items():
        images[image_id] = own = _find(image, content, files)
        if image is not None and own is not None:
            # Some converters list an image anew for each of its boxes.
            images[image_id] = listed_images.setdefault((image.file_name, *image.size), own)
            if images[image_id] is not own:
                content.report.change("images listed twice, whose boxes were put together")

    def read(image: OwnImage, item: dict[str, Any]) -> None:
        found_id = read_integer(item, "category_id")
        name = names.get(content.category_ids.get(found_id, -1))
        if name is None:
            raise unknown_id("category_id", found_id, "an id that stands in categories")
        where = f"{files.relative(content.json_file)}: annotation {show(item.get('id'))}"
        image.boxes.append(_read_box(item, name, image, content.report, where))

    listed = [item.get("category_id") for item in content.annotation_entries() if isinstance(item, dict)]
    content.annotations(images, read)
    used = list(listed_images.values())
    _warn_of_corners(used, content.report)
    with_boxes = {box.name for image in used for box in image.boxes}
    category_ids = (as_integer(value) for value in listed)
    found_ids = {content.category_ids.get(value) for value in category_ids if value is not None}
    lost = (name for source_id, name in names.items() if source_id in found_ids)
    content.report.names.update(name for name in lost if name not in with_boxes)
    source_ids = {} if has_texts["categories"] else {name: source_id for source_id, name in names.items()}
    if has_texts["images"]:
        used = [image._replace(source_id=None) for image in used]
    return Part(split, used, list(names.values()), source_ids)


def _warn_of_corners(images: Sequence[OwnImage], report: SkipReport) -> None:
    """Say so if boxes look like left, top, right, bottom: each of the last two is larger, and many reach outside."""
    boxes = [(box.corners, image.size) for image in images if image.size for box in image.boxes]
    outside = sum(right > 1.02 * size[1] or bottom > 1.02 * size[0] for (_, _, right, bottom), size in boxes)
    are_larger = all(right > 2 * left and bottom > 2 * top for (left, top, right, bottom), _ in boxes)
    if len(boxes) >= _FEWEST_TO_JUDGE and are_larger and outside >= _MANY_OUTSIDE * len(boxes):
        for _ in boxes:
            report.change("boxes that may be left, top, right, bottom, taken as left, top, width, height")
        logging.getLogger(__name__).log(
            DataReport.current().level,
            "%s: %d of %d boxes reach out of their images; are they left, top, right, bottom? Width and height are "
            "expected as the last two",
            *(report.source, outside, len(boxes)),
        )


def _number(content: CocoJson, rows_of: str, field: str) -> bool:
    """Put numbers in place of ids that are texts, as UUIDs, in annotations too; tell whether there are such ids."""
    rows = [row for row in list_of(content.content, rows_of, content.json_file) if isinstance(row, dict)]
    if not any(is_text(row.get("id")) and as_integer(row["id"]) is None for row in rows):
        return False
    numbers: dict[str, int] = {}
    for row in rows:
        row["id"] = numbers.setdefault(str(row.get("id")), _FIRST_OF_TEXTS + len(numbers))
    for item in content.annotation_entries():
        if isinstance(item, dict):
            item[field] = numbers.get(str(item.get(field)), item.get(field))
    return True


def _plain_categories(rows: list[Any]) -> list[Any]:
    """Return categories without what does not tell them apart: a name that stands there twice is one class."""
    parents: dict[str, Any] = {}
    plain = []
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else None
        if is_text(name) or is_integer(name):
            name = " ".join(str(name).split())
            parent = parents.setdefault(name, row.get("supercategory"))
            plain.append({"id": row.get("id"), "name": name, "supercategory": parent})
        else:
            plain.append(row)
    return plain


def _find(image: CocoImage | None, content: CocoJson, files: Folder) -> OwnImage | None:
    if image is None:
        return None
    try:
        path = files.find_image(image.file_name, content.json_file)
    except EntryError as error:
        content.report.skip("images", f"image {image.id} {show(image.file_name)}", error)
        return None
    size = (image.size[0], image.size[1]) if image.size else None
    return OwnImage(path, [], size, image.id)


def _read_box(item: dict[str, Any], name: str, image: OwnImage, report: SkipReport, where: str) -> OwnBox:
    flags = [read_flag(item, field) for field in ("iscrowd", "ignore")]
    if flags[1]:
        raise EntryError(f"ignore: expected 0, found {show(item['ignore'])}", "boxes to ignore")
    mask = item.get("segmentation") or None
    if item.get("bbox") in (None, [], [0, 0, 0, 0]) and mask is not None:
        corners = _box_of_mask(mask, image)
        report.change("boxes made of their masks")
    else:
        corners = read_corners(item.get("bbox"), has_sides=True)
    return OwnBox(name, corners, mask, flags[0], as_number(item.get("area")), where)


def _box_of_mask(mask: Any, image: OwnImage) -> Box:
    if isinstance(mask, dict):
        if image.size is None:
            raise EntryError("bbox: expected four finite numbers, found none", "boxes that are not four numbers")
        left, top, width, height = map(float, mask_util.toBbox(read_segmentation(mask, *image.size)))
        return read_corners([left, top, width, height], has_sides=True)
    size = image.size or (2**24, 2**24)
    polygons = read_segmentation(mask, *size)
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons])
    return read_corners([*points.min(axis=0).tolist(), *points.max(axis=0).tolist()])
