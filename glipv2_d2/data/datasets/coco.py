"""Detection data in the json formats of COCO and LVIS."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

from .coco_json import CocoImage, CocoJson, Images, image_record
from .registration import missing_files, set_thing_classes
from .value_checks import (
    Box,
    EntryError,
    as_integer,
    as_number,
    cut_box,
    is_text,
    read_corners,
    read_file_name,
    read_flag,
    read_four_numbers,
    read_integer,
    read_text,
    show,
    stays_inside,
    unknown_id,
)


def load_coco_grounding(json_file: str, image_root: str, name: str) -> list[dict]:
    """Read a dataset, and add ``thing_classes``, ``thing_parents`` and the map of category ids to its metadata.

    Category ids become contiguous, in the order of the ids in the file; ``thing_parents`` has the ``supercategory`` of
    each name, "" for one without. Boxes that reach past their image are cut. Masks are carried along as they are, for
    ``keep_usable_masks``; keypoints are not read. A file without ``annotations``, as of a test set, has images only.

    Returns:
        Dataset dicts of detectron2 by ascending image id, with an XYXY box, ``category_id`` and ``iscrowd`` per
        annotation, and ``segmentation`` where the file has one. Images without annotations are among them. An image
        with LVIS's ``not_exhaustive_category_ids`` has the contiguous ids of these in ``never_negative_ids``.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: The file cannot be used, or has more faults than DATASETS.MAX_FAULTY_SHARE allows.
    """
    records = _load_records(json_file, image_root, name)[1]
    return sorted(records.values(), key=lambda record: record["image_id"])


def load_lvis(json_file: str, image_root: str, name: str) -> list[dict]:
    """Read a dataset as ``load_coco_grounding`` does.

    The name of a category is its ``name``, as the official GLIP asks for it; detectron2 takes the first of the
    ``synonyms``, which for "bull" is "horned_cow". The path of an image is the last two parts of its
    ``coco_url``, or its ``file_name`` where it has none.

    Returns:
        Dataset dicts as ``load_coco_grounding`` makes them, with the category ids of the file in ``neg_category_ids``
        and ``not_exhaustive_category_ids``, as detectron2's own reader gives them. Where not all objects of some
        categories have a box, the contiguous ids of these are ``never_negative_ids``.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: As in ``load_coco_grounding``.

    Source: ``load_lvis_json`` of detectron2. Departure: it stops at a polygon of less than three points.
    """
    images, records = _load_records(json_file, image_root, name, is_lvis=True)
    for image_id, record in records.items():
        image = images[image_id]
        entry = {} if image is None else image.entry
        record.update({field: entry.get(field, []) for field in _LVIS_FIELDS})
    return sorted(records.values(), key=lambda record: record["image_id"])


# What an evaluator compares with, in COCO's format: "images", "categories" and, but for a test set, "annotations".
Truth = dict[str, list[dict]]

# Filled by a reader inside of ``keeping_truth``.
_kept_truth: ContextVar[Truth | None] = ContextVar("kept_truth", default=None)


@contextmanager
def keeping_truth() -> Iterator[Truth]:
    """Fill a dict, as long as the ``with`` block runs, with the truth of the dataset that is read in it.

    It is what ``load_detection_truth`` returns without an ``image_root``, without reading the file again. It stays
    empty with readers of other formats.
    """
    truth: Truth = {}
    token = _kept_truth.set(truth)
    try:
        yield truth
    finally:
        _kept_truth.reset(token)


def truth_of_dicts(name: str, dicts: list[dict]) -> Truth:
    """Return the truth of detection data that come from no file in COCO's format, by detectron2's conversion.

    Args:
        name: The dataset, for the names in its metadata.
        dicts: Its dicts, with height and width; byte strings of masks become text.
    """
    metadata = MetadataCatalog.get(name)
    # The conversion asks the catalog, whose reader would read the files a second time.
    as_read = f"{name} as it was read"
    DatasetCatalog.register(as_read, lambda: dicts)
    fields = {field: metadata.get(field) for field in ("thing_classes", "thing_dataset_id_to_contiguous_id")}
    MetadataCatalog.get(as_read).set(**{field: value for field, value in fields.items() if value is not None})
    try:
        converted = convert_to_coco_dict(as_read)
    finally:
        DatasetCatalog.remove(as_read)
        MetadataCatalog.remove(as_read)
    return {kind: converted[kind] for kind in ("images", "categories", "annotations") if kind in converted}


def truth_of_images(truth: Truth, image_ids: Container[int]) -> Truth:
    """Return a truth with the images of some ids alone and their annotations, which are numbered anew, from 1."""
    kept = {**truth, "images": [image for image in truth["images"] if image["id"] in image_ids]}
    if "annotations" in truth:
        kept["annotations"] = _numbered([item for item in truth["annotations"] if item["image_id"] in image_ids])
    return kept


def load_detection_truth(json_file: str, image_root: str | None = None, *, is_lvis: bool = False) -> Truth:
    """Read what an evaluator compares with: the annotations that the loader uses, as they stand in the file.

    A dataset that is read inside of ``keeping_truth`` does not need it.

    Args:
        json_file: In COCO's or LVIS's format.
        image_root: Images whose file is not there are left out; None: they are not looked up.
        is_lvis: The file is in LVIS's format.

    Returns:
        ``images``, ``categories`` and, unless the file lacks them, ``annotations`` in COCO's format. Annotations have
        ``id`` from 1 in the order of the file, and ``area`` (of the box, in square pixels) and ``iscrowd`` (0) where
        the file lacks them.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: As in ``load_coco_grounding``.
    """
    content = CocoJson(json_file)
    # No image is read here.
    images = content.images(_read_lvis_path if is_lvis else _read_any_path, one_entry_per_file=True)
    if image_root is not None:
        paths = {os.path.join(image_root, image.file_name): image.id for image in images.values() if image is not None}
        images.update(dict.fromkeys(paths[path] for path in missing_files(paths)))
    names = content.categories()
    annotations: list[dict] = []

    def keep(image: CocoImage, item: dict, box: Box, category_id: int, crowd: int) -> None:
        annotations.append(_true_annotation(image, item, category_id, crowd))

    _read_boxes(content, images, names, keep)
    return _truth(content, images, names, annotations)


_LVIS_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def _load_records(
    json_file: str, image_root: str, name: str, *, is_lvis: bool = False
) -> tuple[Images, dict[int, dict]]:
    """Return the images of a file and their dataset dicts, both by image id, and fill the metadata."""
    content = CocoJson(json_file, name)
    path_of = functools.partial(_read_lvis_path, folder=image_root) if is_lvis else None
    images = content.images(path_of, folder=image_root, one_entry_per_file=True)
    names = content.categories()
    rows = {category_id: row for row, category_id in enumerate(names)}
    records = {image.id: image_record(image, image_root) for image in images.values() if image is not None}
    kept_truth = _kept_truth.get()
    true_annotations: list[dict] = []

    def add(image: CocoImage, item: dict, box: Box, category_id: int, crowd: int) -> None:
        annotation = {
            "bbox": list(box),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": rows[category_id],
            "iscrowd": crowd,
        }
        if item.get("segmentation"):
            annotation["segmentation"] = item["segmentation"]
        records[image.id]["annotations"].append(annotation)
        if kept_truth is not None:
            true_annotations.append(_true_annotation(image, item, category_id, crowd))

    _read_boxes(content, images, names, add)
    _add_never_negatives(content, images, rows, records)
    content.report.close(records, "images")
    set_thing_classes(json_file, name, list(names.values()))
    MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id=rows, thing_parents=content.parents(rows))
    if kept_truth is not None:
        kept_truth.update(_truth(content, images, names, true_annotations))
    return images, records


def _add_never_negatives(content: CocoJson, images: Images, rows: dict[int, int], records: dict[int, dict]) -> None:
    """Note the categories whose objects do not all have a box in an image, as contiguous ids."""
    for image_id, record in records.items():
        image = images[image_id]
        incomplete = [] if image is None else image.entry.get("not_exhaustive_category_ids", [])
        if not isinstance(incomplete, list):
            content.report.change("not_exhaustive_category_ids that are no lists, passed over")
            continue
        never_negative_ids = [rows[value] for value in incomplete if type(value) is int and value in rows]
        if never_negative_ids:
            record["never_negative_ids"] = never_negative_ids


def _true_annotation(image: CocoImage, item: dict, category_id: int, crowd: int) -> dict:
    left, top, width, height = read_four_numbers(item["bbox"])
    area = as_number(item.get("area"))
    return {
        **item,
        "image_id": image.id,
        "category_id": category_id,
        "bbox": [left, top, width, height],
        "area": width * height if area is None else area,
        "iscrowd": crowd,
    }


def _truth(content: CocoJson, images: Images, names: dict[int, str], annotations: list[dict]) -> Truth:
    rows = {as_integer(row["id"]): row for row in content.content["categories"]}
    truth = {
        "images": [
            {**image.entry, "id": image.id, "height": image.size[0], "width": image.size[1]}
            for image in images.values()
            if image is not None
        ],
        "categories": [{**rows[category_id], "id": category_id, "name": name} for category_id, name in names.items()],
    }
    return {**truth, "annotations": _numbered(annotations)} if "annotations" in content.content else truth


def _numbered(annotations: list[dict]) -> list[dict]:
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return annotations


def _read_boxes(
    content: CocoJson, images: Images, names: dict[int, str], use: Callable[[CocoImage, dict, Box, int, int], None]
) -> None:
    """Call a function with the image, entry, cut box, category id and crowd flag of each annotation without a fault."""

    def read(image: CocoImage, item: dict) -> None:
        found_id = read_integer(item, "category_id")
        category_id = content.category_ids.get(found_id)
        if category_id is None or category_id not in names:
            raise unknown_id("category_id", found_id, "an id that stands in categories")
        # detectron2 and COCO's evaluation would treat a box to ignore as an ordinary one.
        flags = [read_flag(item, field) for field in ("iscrowd", "ignore")]
        if flags[1]:
            expected = "0 (a region to leave out is marked by iscrowd)"
            raise EntryError(f"ignore: expected {expected}, found {show(item['ignore'])}", "boxes to ignore")
        whole = read_corners(item.get("bbox"), has_sides=True)
        # Annotated in shares of the image; as pixels all boxes would lie in one of its corners.
        if max(map(abs, whole)) <= 1 < min(image.size):
            found = show(item["bbox"])
            raise EntryError(f"bbox: expected pixels, found shares of the image, {found}", "boxes not in pixels")
        box = cut_box(whole, *image.size)
        if box != whole:
            content.report.change("boxes cut at the border of their image")
        use(image, item, box, category_id, flags[0])

    content.annotations(images, read)


def _read_any_path(entry: dict) -> str:
    """Return ``file_name``, wherever it leads."""
    return read_text(entry, "file_name")


def _read_lvis_path(entry: dict, folder: str | None = None) -> str:
    """Return the last two parts of ``coco_url``, as "val2017/000000000139.jpg", and check the lists of categories."""
    for field in _LVIS_FIELDS:
        ids = entry.get(field, [])
        if not isinstance(ids, list) or not all(type(value) is int for value in ids):
            raise EntryError(f"{field}: expected a list of category ids, found {show(ids)}", "malformed images")
    url = entry.get("coco_url")
    if url is None and "file_name" in entry:
        return _read_any_path(entry) if folder is None else read_file_name(entry, "file_name", folder)
    parts = url.split("/")[-2:] if is_text(url) else []
    if not (len(parts) == 2 and all(parts) and stays_inside("/".join(parts))):
        raise EntryError(f"coco_url: expected a URL that ends with a folder and a file, found {show(url)}")
    return "/".join(parts)
