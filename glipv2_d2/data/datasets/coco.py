"""Datasets in COCO's json format: registration, and a reader that checks what it reads."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from .annotation_checks import CocoFile
from .registration import check_dataset_files, register_dataset, set_thing_classes

__all__ = ["check_dataset_files", "load_coco_grounding", "register_coco_grounding"]


def register_coco_grounding(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    clip_boxes: bool = False,
    **metadata: Any,
) -> None:
    """Register a dataset in COCO's json format under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        json_file: The annotations.
        image_root: Directory that ``file_name`` in the json is relative to.
        clip_boxes: Cut boxes that reach more than one pixel past their image; otherwise they are an error.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    load = functools.partial(load_coco_grounding, json_file, image_root, name, clip_boxes=clip_boxes)
    entries = {"evaluator_type": "coco", "task": "detection", **metadata}
    register_dataset(name, load, json_file=json_file, image_root=image_root, **entries)


def load_coco_grounding(json_file: str, image_root: str, name: str, *, clip_boxes: bool = False) -> list[dict]:
    """Read a registered dataset, and add ``thing_classes`` and the map of category ids to its metadata.

    Category ids become contiguous, in the order of the ids in the file. Boxes without area are left out, and boxes that
    reach up to one pixel past their image are cut (any number of pixels with ``clip_boxes``); one warning counts both.
    Masks are carried along as they are, for ``keep_usable_masks``; keypoints are not read.

    Returns:
        Dataset dicts of detectron2 by ascending image id, with an XYXY box, ``category_id`` and ``iscrowd`` per
        annotation, and ``segmentation`` where the file has one. Images without annotations are among them.

    Raises:
        FileNotFoundError: The file or the image directory does not exist.
        AnnotationError: The file breaks the format.
    """
    check_dataset_files(name)
    content = CocoFile(json_file)
    records = read_records(content, image_root, name, clip_boxes)
    num_not_evaluable = content.num_not_evaluable()
    if num_not_evaluable:
        logging.getLogger(__name__).warning(
            "%s: %d annotations lack 'area' or 'iscrowd', which COCO's evaluation needs; training does not",
            json_file,
            num_not_evaluable,
        )
    return records


def read_records(content: CocoFile, image_root: str, name: str, clip_boxes: bool) -> list[dict]:
    """Make dataset dicts of a file, and put its categories into the metadata, as ``load_coco_grounding`` says.

    Raises:
        AnnotationError: The file breaks the format.
    """
    names_by_id = content.categories()
    images = content.images()
    file_names = content.file_names()
    crowds = content.crowds()
    image_rows = content.image_rows()
    category_ids = content.contiguous_ids()
    masks = content.masks()
    whole_boxes, boxes = content.boxes(image_rows, clip_boxes)
    _set_names(content.json_file, name, names_by_id)

    records: list[dict] = [
        {
            "file_name": os.path.join(image_root, file_name),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
        for image, file_name in zip(images, file_names)
    ]
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    entries = zip(has_area.tolist(), image_rows, boxes.tolist(), category_ids, crowds, masks)
    for keep, row, box, category_id, crowd, mask in entries:
        if keep:
            annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category_id, "iscrowd": crowd}
            if mask:
                annotation["segmentation"] = mask
            records[row]["annotations"].append(annotation)
    num_cut = int((whole_boxes != boxes)[has_area].any(axis=1).sum())
    _report(content.json_file, len(images), len(boxes), num_cut, int((~has_area).sum()))
    return sorted(records, key=lambda record: record["image_id"])


def _set_names(json_file: str, name: str, names_by_id: dict[int, str]) -> None:
    """Fill the metadata as detectron2's own reader does."""
    set_thing_classes(json_file, name, list(names_by_id.values()))
    metadata = MetadataCatalog.get(name)
    metadata.thing_dataset_id_to_contiguous_id = {value: index for index, value in enumerate(names_by_id)}


def _report(json_file: str, num_images: int, num_boxes: int, num_cut: int, num_empty: int) -> None:
    logger = logging.getLogger(__name__)
    logger.info("%s: %d images, %d boxes", json_file, num_images, num_boxes)
    if num_cut or num_empty:
        logger.warning(
            "%s: cut %d boxes that reach past their image, left out %d boxes without area",
            json_file,
            num_cut,
            num_empty,
        )
