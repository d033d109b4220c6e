"""Datasets of captions whose phrases have boxes, in MDETR's json format: Flickr30K entities and the mixed data."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from detectron2.data import MetadataCatalog

from .grounding_records import (
    EntryError,
    grounding_annotation,
    read_box,
    read_file_name,
    read_image_size,
    read_spans,
    read_text,
)
from .registration import check_dataset_files, register_dataset
from .skip_report import SkipReport, with_progress
from .value_checks import AnnotationError, is_integer, read_json_file, show

ImageRoot = str | Mapping[str, str]


def register_grounding_json(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    task: str = "grounding",
    **metadata: Any,
) -> None:
    """Register a dataset in MDETR's json format under a name for DATASETS.TRAIN.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        json_file: The annotations.
        image_root: Directory that ``file_name`` in the json is relative to. For images of several sources a directory
            for each value of ``data_source``; that of "" is for all other values.
        task: "grounding", "pseudo_grounding" to train on it with negative captions, or "captioning" to learn to write
            captions and to ground their words.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    json_file = os.fspath(json_file)
    if isinstance(image_root, Mapping):
        root: ImageRoot = {source: os.fspath(directory) for source, directory in image_root.items()}
    else:
        root = os.fspath(image_root)
    load = functools.partial(load_grounding_json, json_file, root, name)
    if task == "captioning":
        metadata = {"evaluator_type": "grounded_captioning", **metadata}
    register_dataset(name, load, **{"task": task, "json_file": json_file, "image_root": root, **metadata})


def load_grounding_json(json_file: str, image_root: ImageRoot, name: str) -> list[dict]:
    """Read a registered dataset.

    Each entry of ``images`` is one caption, with ``id``, ``file_name``, ``height`` and ``width``; images may come
    several times. An annotation has ``image_id``, a box of left, top, width and height, and ``tokens_positive``; where
    it has ``tokens`` they are read instead. A ``segmentation`` is carried along as it is, for ``keep_usable_masks``.
    The rest is passed over.

    What cannot be used is left out, and one warning counts it and names the first few: entries that break the format,
    crowd regions, boxes of at most one pixel, ranges outside the caption, and captions without any box left, which
    would teach that what they speak of is not there. Captions to be written (task "captioning") stay without a box.

    Returns:
        Dataset dicts in the order of the file, with ``caption``, and per annotation an XYXY box, cut to the image, and
        ``tokens_positive``. About 3 kB of memory each with five boxes.

    Raises:
        FileNotFoundError: The file or an image directory does not exist.
        AnnotationError: The file is no such json, two captions have one id, a ``data_source`` has no directory, or
            nothing is left.

    Source: the official code for data in MDETR's format. Departure: where it cuts a box at the last pixel's centre, the
    half-open box is cut at the border of the image.
    """
    check_dataset_files(name)
    content = read_json_file(json_file)
    report = SkipReport(json_file)
    records = _read_images(json_file, _entries(content, "images", json_file), image_root, report)
    annotations = _entries(content, "annotations", json_file)
    for index, item in enumerate(with_progress(annotations, f"{json_file}: boxes")):
        annotations[index] = None  # The whole file need not stay in memory.
        try:
            record, annotation = _read_annotation(item, records)
        except EntryError as error:
            report.skip("annotations", f"annotations[{index}]", str(error))
            continue
        if record is not None:
            record["annotations"].append(annotation)
    needs_boxes = MetadataCatalog.get(name).get("task") != "captioning"
    usable = []
    for record in records.values():
        if record is None:
            continue
        if record["annotations"] or not needs_boxes:
            usable.append(record)
        else:
            report.skip("captions", f"image id {record['image_id']}", f"no box for {show(record['caption'])}")
    report.close(usable, "captions with boxes")
    return usable


def _entries(content: dict, kind: str, json_file: str) -> list:
    entries = content.pop(kind, None)
    if not isinstance(entries, list):
        raise AnnotationError(f"{json_file}: {kind} is {show(entries)}, expected a list")
    return entries


def _read_images(json_file: str, images: list, image_root: ImageRoot, report: SkipReport) -> dict[int, dict | None]:
    """Return a dataset dict without boxes for each image id, None where the caption cannot be used."""
    records: dict[int, dict | None] = {}
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if not isinstance(image, dict) or not is_integer(image.get("id")):
            report.skip("images", where, f"found {show(image)}, expected an object with an integer as id")
            continue
        if image["id"] in records:
            raise AnnotationError(f"{json_file}: {where}: id is {image['id']}, expected an id that no other image has")
        records[image["id"]] = None
        try:
            height, width = read_image_size(image)
            caption, file_name = read_text(image, "caption"), read_file_name(image, "file_name")
        except EntryError as error:
            report.skip("images", f"{where} (id {image['id']})", str(error))
            continue
        directory = image_root if isinstance(image_root, str) else _directory(image, image_root, json_file, where)
        records[image["id"]] = {
            "file_name": os.path.join(directory, file_name),
            "height": height,
            "width": width,
            "image_id": image["id"],
            "caption": caption,
            "annotations": [],
        }
    return records


def _directory(image: dict, image_root: Mapping[str, str], json_file: str, where: str) -> str:
    source = image.get("data_source")
    directory = image_root.get(source if isinstance(source, str) else "", image_root.get(""))
    if directory is None:
        raise AnnotationError(
            f"{json_file}: {where}: data_source is {show(source)}, expected one of {list(image_root)}"
        )
    return directory


def _read_annotation(item: Any, records: Mapping[int, dict | None]) -> tuple[dict | None, dict]:
    """Return the record of an annotation's image, None where that was left out, and the annotation."""
    if not isinstance(item, dict):
        raise EntryError(f"found {show(item)}, expected an object")
    image_id = item.get("image_id")
    if not is_integer(image_id) or image_id not in records:
        raise EntryError(f"image_id is {show(image_id)}, expected an id that stands in images")
    record = records[image_id]
    if record is None:
        return None, {}
    if item.get("iscrowd", 0) not in (0, False):
        raise EntryError(f"iscrowd is {show(item['iscrowd'])}, expected 0")
    box = read_box(item.get("bbox"), record["height"], record["width"], has_sides=True)
    tokens = item.get("tokens")
    spans = read_spans(item.get("tokens_positive") if tokens is None else tokens, record["caption"])
    return record, grounding_annotation(box, spans, segmentation=item.get("segmentation"))
