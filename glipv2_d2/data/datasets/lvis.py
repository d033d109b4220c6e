"""Datasets in LVIS's json format: registration, and a reader that checks what it reads."""

from __future__ import annotations

import functools
import os
from typing import Any

from detectron2.data import MetadataCatalog

from .annotation_checks import LvisFile
from .coco import read_records
from .registration import check_dataset_files, register_dataset


def register_lvis(
    name: str, json_file: str | os.PathLike[str], image_root: str | os.PathLike[str], **metadata: Any
) -> None:
    """Register a dataset in LVIS v1's json format under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        json_file: The annotations.
        image_root: Directory of COCO's folders "train2017" and "val2017".
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    load = functools.partial(load_lvis, json_file, image_root, name)
    entries = {"evaluator_type": "lvis", "task": "detection", **metadata}
    register_dataset(name, load, json_file=json_file, image_root=image_root, **entries)


def load_lvis(json_file: str, image_root: str, name: str) -> list[dict]:
    """Read a registered dataset, and add ``thing_classes`` and the map of category ids to its metadata.

    The name of a category is the first of its ``synonyms``. Category ids become contiguous, in the order of the ids in
    the file. Boxes are cut to their image; those without area are left out. Masks are carried along as they are, for
    ``keep_usable_masks``.

    Returns:
        Dataset dicts as ``load_coco_grounding`` makes them, with the category ids of the file in ``neg_category_ids``
        and ``not_exhaustive_category_ids``, as detectron2's own reader gives them. Where not all objects of some
        categories have a box, the contiguous ids of these are ``never_negative_ids``.

    Raises:
        FileNotFoundError: The file or the image directory does not exist.
        AnnotationError: The file breaks the format.

    Source: ``load_lvis_json`` of detectron2. Departure: it stops at a polygon of less than three points.
    """
    check_dataset_files(name)
    content = LvisFile(json_file)
    records = read_records(content, image_root, name, clip_boxes=True)
    contiguous_ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    record_of_image = {record["image_id"]: record for record in records}
    absent = content.image_categories("neg_category_ids")
    not_exhaustive = content.image_categories("not_exhaustive_category_ids")
    for image, absent_ids, not_exhaustive_ids in zip(content.images(), absent, not_exhaustive):
        record = record_of_image[image["id"]]
        record["neg_category_ids"], record["not_exhaustive_category_ids"] = absent_ids, not_exhaustive_ids
        never_negative_ids = [contiguous_ids[value] for value in not_exhaustive_ids if value in contiguous_ids]
        if never_negative_ids:
            record["never_negative_ids"] = never_negative_ids
    return records
