"""Referring data from json in COCO's format whose annotations have a ``phrase``: the demo data sets, or your own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .grounding_records import EntryError, read_box, read_file_name, read_image_size, read_text
from .referring_records import referring_annotation, referring_record, register_referring
from .registration import check_dataset_files
from .skip_report import SkipReport, with_progress
from .value_checks import AnnotationError, is_integer, read_json_file, show


def register_referring_json(
    name: str, json_file: str | os.PathLike[str], image_root: str | os.PathLike[str], **metadata: Any
) -> None:
    """Register phrases with masks under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        json_file: Images and annotations.
        image_root: Directory that ``file_name`` in the json is relative to.
        metadata: More entries of the dataset's metadata; ``evaluator_type`` is "phrasecut" without one.

    Raises:
        ValueError: The name is taken.
    """
    files = {"json_file": json_file, "image_root": image_root}
    register_referring(name, load_referring_json, "phrasecut", files, metadata)


def load_referring_json(json_file: str, image_root: str, name: str) -> list[dict]:
    """Read a registered dataset: one dataset dict for each image and each different phrase of its annotations.

    An image has ``id``, ``file_name``, ``height`` and ``width``. An annotation has ``image_id``, ``phrase``, a box of
    left, top, width and height, and perhaps a ``segmentation``, which is passed on as it is. Annotations of one image
    with the same phrase are one dict: the phrase means all of them.

    What cannot be used is left out, and one warning counts it and names the first few: malformed images and
    annotations, crowd regions, and boxes of at most one pixel. An image without phrases gives no dict.

    Returns:
        Dataset dicts in the order of the images, and of an image in the order of its annotations. Their ``image_id`` is
        "<id of the image>__<number of the phrase in the image>".

    Raises:
        FileNotFoundError: The file or the image directory does not exist.
        AnnotationError: The file is no such json, two images have one id, or nothing is left.
    """
    check_dataset_files(name)
    content = read_json_file(json_file)
    for kind in ("images", "annotations"):
        if not isinstance(content.get(kind), list):
            raise AnnotationError(f"{json_file}: {kind} is {show(content.get(kind))}, expected a list")
    report = SkipReport(json_file)
    images = _read_images(json_file, content["images"], image_root, report)
    records: dict[int, dict[str, dict]] = {image_id: {} for image_id in images}
    for index, item in enumerate(with_progress(content["annotations"], f"{json_file}: phrases")):
        try:
            found = _read_annotation(item, images)
        except EntryError as error:
            report.skip("annotations", f"annotations[{index}]", str(error))
            continue
        if found is None:
            continue
        image_id, phrase, annotation = found
        phrases = records[image_id]
        if phrase not in phrases:
            phrases[phrase] = referring_record(*images[image_id], f"{image_id}__{len(phrases)}", phrase, [])
        phrases[phrase]["annotations"].append(annotation)
    usable = [record for phrases in records.values() for record in phrases.values()]
    report.close(usable, "phrases with boxes")
    return usable


def _read_images(
    json_file: str, images: list, image_root: str, report: SkipReport
) -> dict[int, tuple[str, list[int]] | None]:
    """Return path and size for each image id, None where the image cannot be used."""
    found: dict[int, tuple[str, list[int]] | None] = {}
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if not isinstance(image, dict) or not is_integer(image.get("id")):
            report.skip("images", where, f"found {show(image)}, expected an object with an integer as id")
            continue
        if image["id"] in found:
            raise AnnotationError(f"{json_file}: {where}: id is {image['id']}, expected an id that no other image has")
        found[image["id"]] = None
        try:
            size, file_name = read_image_size(image), read_file_name(image, "file_name")
        except EntryError as error:
            report.skip("images", f"{where} (id {image['id']})", str(error))
            continue
        found[image["id"]] = (os.path.join(image_root, file_name), size)
    return found


def _read_annotation(item: Any, images: Mapping[int, tuple[str, list[int]] | None]) -> tuple[int, str, dict] | None:
    """Return image id, phrase and annotation; None if the image was left out."""
    if not isinstance(item, dict):
        raise EntryError(f"found {show(item)}, expected an object")
    image_id = item.get("image_id")
    if not is_integer(image_id) or image_id not in images:
        raise EntryError(f"image_id is {show(image_id)}, expected an id that stands in images")
    image = images[image_id]
    if image is None:
        return None
    if item.get("iscrowd", 0) not in (0, False):
        raise EntryError(f"iscrowd is {show(item['iscrowd'])}, expected 0")
    phrase = read_text(item, "phrase")
    box = read_box(item.get("bbox"), *image[1], has_sides=True)
    return image_id, phrase, referring_annotation(box, phrase, item.get("segmentation"))
