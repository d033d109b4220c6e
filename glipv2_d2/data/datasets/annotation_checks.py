"""Checks of annotations in COCO's json format; every failure is one line that names entry, field and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from .sentence_checks import REQUIRED_FIELDS, check_sentences
from .value_checks import AnnotationError, is_box, is_integer, is_text, read_json_file, show, stays_inside

__all__ = ["AnnotationError", "CocoFile", "LvisFile", "check_dataset_dicts", "touches_image"]

_OVERHANG = 1.0  # pixels that a box may reach past its image: rounding, or coordinates of last pixels


class CocoFile:
    """The content of a json file in COCO's format; each method checks one part of it and returns it.

    Raises:
        AnnotationError: The file is no json, or ``images``, ``categories`` and ``annotations`` are not lists of
            objects. Every method raises it at the first value that breaks the format.
    """

    def __init__(self, json_file: str):
        self.json_file = json_file
        content = read_json_file(json_file)
        self._entries: dict[str, list[dict]] = {}
        for kind in ("images", "categories", "annotations"):
            entries = content.get(kind)
            if not isinstance(entries, list):
                raise AnnotationError(f"{json_file}: {kind} is {show(entries)}, expected a list")
            self._entries[kind] = entries
            self._check(kind, None, [isinstance(entry, dict) for entry in entries], "an object")

    def categories(self) -> dict[int, str]:
        """Return the names of the categories by their ids, in ascending order of the ids."""
        self._check_ids("categories", at_least_one=True)
        field, names = self._names()
        self._check("categories", field, _is_first(names), "a name that no other category has")
        ids = [category["id"] for category in self._entries["categories"]]
        return dict(sorted(zip(ids, names)))

    def images(self) -> list[dict]:
        """Return the images, each with ``id``, ``width`` and ``height``."""
        images = self._entries["images"]
        self._check_ids("images", at_least_one=True)
        for field in ("width", "height"):
            valid = [is_integer(image.get(field)) and image[field] > 0 for image in images]
            self._check("images", field, valid, "a positive integer")
        return images

    def file_names(self) -> list[str]:
        """Return for each image its path below the image directory."""
        paths = [image.get("file_name") for image in self._entries["images"]]
        self._check("images", "file_name", [is_text(path) for path in paths], "a path below the image directory")
        return paths

    def image_rows(self) -> list[int]:
        """Return for each annotation the place of its image in the list of images."""
        return self._references("image_id", "images", [image["id"] for image in self._entries["images"]])

    def contiguous_ids(self) -> list[int]:
        """Return for each annotation the place of its category in the ascending order of category ids."""
        ids = sorted(category["id"] for category in self._entries["categories"])
        return self._references("category_id", "categories", ids)

    def crowds(self) -> list[int]:
        """Return for each annotation 1 if it is a crowd region, else 0."""
        annotations = self._entries["annotations"]
        self._check_ids("annotations")
        self._check("annotations", "iscrowd", [item.get("iscrowd", 0) in (0, 1) for item in annotations], "0 or 1")
        # detectron2 and COCO's evaluation would treat a box to ignore as an ordinary one.
        valid = [item.get("ignore", 0) == 0 for item in annotations]
        self._check("annotations", "ignore", valid, "0 (a region to leave out is marked by iscrowd)")
        return [int(item.get("iscrowd", 0)) for item in annotations]

    def masks(self) -> list[Any]:
        """Return for each annotation its ``segmentation`` as it is; None or an empty list where it has none."""
        return [item.get("segmentation") for item in self._entries["annotations"]]

    def boxes(self, image_rows: Sequence[int], clip_boxes: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes as they are and cut to their images, both (M, 4) XYXY in pixels.

        Args:
            image_rows: Place of each annotation's image in the list of images.
            clip_boxes: Allow boxes that reach more than one pixel past their image.
        """
        annotations, images = self._entries["annotations"], self._entries["images"]
        valid = [is_box(item.get("bbox")) for item in annotations]
        self._check("annotations", "bbox", valid, "four finite numbers x, y, width, height")
        boxes = np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4)
        self._check("annotations", "bbox", (boxes[:, 2:] >= 0).all(axis=1), "width and height >= 0")
        boxes[:, 2:] += boxes[:, :2]
        sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)[list(image_rows)]
        inside = touches_image(boxes, sizes)
        limit = "inside its image"
        if not clip_boxes:
            overhang = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes).max(axis=1)
            inside &= overhang <= _OVERHANG
            limit += ", up to one pixel (clip_boxes=True of register_coco_grounding cuts what reaches farther)"
        if not inside.all():
            width, height = sizes[inside.argmin()].astype(int)
            self._check("annotations", "bbox", inside, f"x, y, width, height {limit} of {width} x {height} pixels")
        return boxes, np.concatenate([boxes[:, :2].clip(min=0), np.minimum(boxes[:, 2:], sizes)], axis=1)

    def num_not_evaluable(self) -> int:
        """Return the number of annotations without ``area`` or ``iscrowd``, which COCO's evaluation needs."""
        return sum("area" not in item or "iscrowd" not in item for item in self._entries["annotations"])

    def _names(self) -> tuple[str, list[str]]:
        """Return the field that names a category, and the names."""
        names = [category.get("name") for category in self._entries["categories"]]
        self._check("categories", "name", [is_text(name) for name in names], "a string that is not empty")
        return "name", names

    def _references(self, field: str, kind: str, ids: list[int]) -> list[int]:
        annotations = self._entries["annotations"]
        place = {value: index for index, value in enumerate(ids)}
        valid = [is_integer(item.get(field)) and item[field] in place for item in annotations]
        self._check("annotations", field, valid, f"an id that stands in {kind}")
        return [place[item[field]] for item in annotations]

    def _check_ids(self, kind: str, *, at_least_one: bool = False) -> None:
        ids = [entry.get("id") for entry in self._entries[kind]]
        if at_least_one and not ids:
            raise AnnotationError(f"{self.json_file}: {kind} is [], expected at least one")
        self._check(kind, "id", [is_integer(value) for value in ids], "an integer")
        self._check(kind, "id", _is_first(ids), "an id that no other entry has")

    def _check(self, kind: str, field: str | None, valid: Sequence[bool] | np.ndarray, expected: str) -> None:
        """Raise for the first entry that is not valid."""
        valid = np.asarray(valid, dtype=bool)
        if valid.all():
            return
        index = int(valid.argmin())
        entry = self._entries[kind][index]
        where = f"{self.json_file}: {kind}[{index}]"
        if field is None:
            raise AnnotationError(f"{where} is {show(entry)}, expected {expected}")
        if field != "id":
            where += f" (id {show(entry.get('id'))})"
        raise AnnotationError(f"{where}: {field} is {show(entry.get(field))}, expected {expected}")


class LvisFile(CocoFile):
    """The content of a json file in LVIS's format, which differs from COCO's in names, paths and lists of images."""

    def file_names(self) -> list[str]:
        """Return for each image the last two parts of its ``coco_url``, as "val2017/000000000139.jpg"."""
        urls = [image.get("coco_url") for image in self._entries["images"]]
        parts = [url.split("/")[-2:] if is_text(url) else [] for url in urls]
        valid = [len(pair) == 2 and all(pair) and stays_inside("/".join(pair)) for pair in parts]
        self._check("images", "coco_url", valid, "a URL that ends with a folder and a file")
        return ["/".join(pair) for pair in parts]

    def image_categories(self, field: str) -> list[list[int]]:
        """Return for each image the category ids in ``field``, none where it is absent; they need not be known."""
        lists = [image.get(field, []) for image in self._entries["images"]]
        valid = [isinstance(ids, list) and all([is_integer(value) for value in ids]) for ids in lists]
        self._check("images", field, valid, "a list of category ids")
        return lists

    def _names(self) -> tuple[str, list[str]]:
        synonyms = [category.get("synonyms") for category in self._entries["categories"]]
        valid = [isinstance(names, list) and bool(names) and is_text(names[0]) for names in synonyms]
        self._check("categories", "synonyms", valid, "a list that begins with the name")
        return "synonyms", [names[0] for names in synonyms]


def check_dataset_dicts(
    dataset: str,
    dataset_dicts: Sequence[Mapping[str, Any]],
    num_classes: int | None = None,
    *,
    task: str = "detection",
) -> None:
    """Check what training needs of dataset dicts, whichever reader has made them.

    Args:
        dataset: Its name, for the message.
        dataset_dicts: All of them; none is fine.
        num_classes: Of a detection dataset.
        task: Kind of data. The boxes of "detection" have a category id, those of the others character ranges of a
            sentence, see ``check_sentences``.

    Raises:
        AnnotationError: A dict lacks a field, a box is not finite, has a negative side or lies outside its image, a
            category id is not in 0..num_classes - 1, or a sentence has a flaw.
    """
    for record in dataset_dicts:
        sizes_of_boxes = ("width", "height") if record.get("annotations") else ()
        missing = [field for field in (*REQUIRED_FIELDS[task], *sizes_of_boxes) if field not in record]
        if missing:
            raise AnnotationError(f"dataset {dataset!r}: {show(record)} lacks {missing[0]!r}")
    items = [item for record in dataset_dicts for item in record.get("annotations", ())]
    owners = np.repeat(np.arange(len(dataset_dicts)), [len(record.get("annotations", ())) for record in dataset_dicts])

    def check(field: str, valid: Sequence[bool] | np.ndarray, expected: str) -> None:
        valid = np.asarray(valid, dtype=bool)
        if not valid.all():
            first = int(valid.argmin())
            file_name, found = dataset_dicts[owners[first]]["file_name"], show(items[first].get(field))
            raise AnnotationError(f"dataset {dataset!r}: {file_name}: {field} is {found}, expected {expected}")

    modes = [item.get("bbox_mode") for item in items]
    has_sides = np.array([mode == BoxMode.XYWH_ABS for mode in modes], dtype=bool)
    has_corners = np.array([mode == BoxMode.XYXY_ABS for mode in modes], dtype=bool)
    check("bbox_mode", has_sides | has_corners, "XYXY_ABS or XYWH_ABS")
    check("bbox", [len(item.get("bbox", ())) == 4 for item in items], "four numbers")
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes[has_sides, 2:] += boxes[has_sides, :2]
    sizes = np.array([(record.get("width", 0), record.get("height", 0)) for record in dataset_dicts], dtype=np.float64)
    sizes = sizes.reshape(-1, 2)[owners]
    proper = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    check("bbox", proper & touches_image(boxes, sizes), "a finite box with sides >= 0 inside its image")
    if task == "detection":
        names = range(num_classes)
        category_ids = [item.get("category_id", -1) in names for item in items]
        check("category_id", category_ids, f"a number from 0 to {num_classes - 1}")
    else:
        check_sentences(dataset, dataset_dicts, task)


def touches_image(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Tell whether boxes, (M, 4) XYXY, share a point with images of (M, 2) width and height: (M,) bool."""
    return (boxes[:, 2:] >= 0).all(axis=1) & (boxes[:, :2] <= sizes).all(axis=1)


def _is_first(values: Sequence[Any]) -> list[bool]:
    """Tell for each value whether it stands there for the first time."""
    first = {value: index for index, value in reversed(list(enumerate(values)))}
    return [first[value] == index for index, value in enumerate(values)]
