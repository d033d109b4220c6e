"""Datasets in ODVG's format, one json object per line: detection, grounding, and captions with pseudo boxes."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from .grounding_records import EntryError, TinyBoxError, read_box, read_file_name, read_image_size, read_odvg_grounding
from .registration import check_dataset_files, register_dataset, set_thing_classes
from .skip_report import SkipReport, read_lines
from .value_checks import AnnotationError, is_integer, is_text, read_json_file, show


def register_odvg(
    name: str,
    jsonl_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    names_file: str | os.PathLike[str] | None = None,
    task: str | None = None,
    **metadata: Any,
) -> None:
    """Register a dataset in ODVG's format under a name for DATASETS.TRAIN.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        jsonl_file: The annotations.
        image_root: Directory that ``filename`` is relative to.
        names_file: For detection data: json that gives each label, as a string, its name. Without it the names are
            those that the boxes have as their ``category``.
        task: "detection", "grounding", "pseudo_grounding" for pseudo boxes, or "captioning" to learn to write captions
            and to ground their words. By default "detection" with a ``names_file``, else "grounding".
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    task = task or ("grounding" if names_file is None else "detection")
    jsonl_file, image_root = os.fspath(jsonl_file), os.fspath(image_root)
    entries = {"task": task, "jsonl_file": jsonl_file, "image_root": image_root, **metadata}
    if task == "captioning":
        entries.setdefault("evaluator_type", "grounded_captioning")
    if names_file is not None:
        entries["names_file"] = os.fspath(names_file)
    register_dataset(name, functools.partial(load_odvg, jsonl_file, image_root, name), **entries)


def load_odvg(jsonl_file: str, image_root: str, name: str) -> list[dict]:
    """Read a registered dataset; a detection dataset gets ``thing_classes`` in its metadata.

    The lines are those of MM-Grounding-DINO, boxes XYXY in pixels::

        {"filename": ..., "height": ..., "width": ...,
         "detection": {"instances": [{"bbox": [...], "label": 0, "category": "person"}]}}
        {"filename": ..., "height": ..., "width": ...,
         "grounding": {"caption": ..., "regions": [{"bbox": [...], "phrase": "a dog"}]}}

    See ``read_odvg_grounding`` for what else a region may hold. A line that cannot be used is left out, as are regions
    of a sentence, and sentences without any box left, but for captions to be written (task "captioning"); one warning
    counts them and names the first few. A detection line with a box that cannot be used is left out as a whole: without
    the box its object would count as background. Only boxes of at most one pixel are left out alone.

    Returns:
        Dataset dicts in the order of the file, ``image_id`` being the number of the line, from 1. About 3 kB of memory
        each with five boxes.

    Raises:
        FileNotFoundError: A file or the image directory does not exist.
        AnnotationError: A label has no name or two names, lines are of another kind than the dataset, or nothing is
            left.
    """
    check_dataset_files(name)
    metadata = MetadataCatalog.get(name)
    names = _LabelNames(jsonl_file, metadata.get("names_file")) if metadata.task == "detection" else None
    report = SkipReport(jsonl_file)
    records: list[dict] = []
    for number, (_, line) in enumerate(read_lines(jsonl_file), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            content = _read_object(line)
            file_name = os.path.join(image_root, read_file_name(content, "filename"))
            _check_kind(content, metadata.task, f"{jsonl_file}: {where}")
            if names is not None:
                record = _read_detection(content, names, report, where)
            else:
                record = _read_grounding(content, report, where, needs_boxes=metadata.task != "captioning")
        except EntryError as error:
            report.skip("lines", where, str(error))
            continue
        records.append({"file_name": file_name, "image_id": number, **record})
    report.close(records, f"lines of a {metadata.task} dataset")
    if names is not None:
        _make_contiguous(records, names, name)
    return records


class _LabelNames:
    """The names of the labels of a detection dataset: those of a file, or those that the boxes bring."""

    def __init__(self, jsonl_file: str, names_file: str | None):
        self.source = jsonl_file
        self.is_complete = names_file is not None
        self.names: dict[int, str] = {}
        for label, name in (read_json_file(names_file) if names_file is not None else {}).items():
            if not (label.isdecimal() and is_text(name)):
                found = f"{show(label)}: {show(name)}"
                raise AnnotationError(f"{names_file}: found {found}, expected a number as string and its name")
            self.names[int(label)] = name

    def check(self, label: int, category: Any, where: str) -> None:
        """Check that a label has one name; the first category of a label names it where no file does.

        Raises:
            AnnotationError: It has none, or another one. Leaving out the box would hide that the names are wrong.
        """
        if not self.is_complete and is_text(category):
            self.names.setdefault(label, category)
        name = self.names.get(label)
        if name is None:
            raise AnnotationError(
                f"{self.source}: {where}: label {label} with category {show(category)} has no name, expected one in "
                f"the names_file, or a category where there is no such file"
            )
        if category is not None and category != name:
            raise AnnotationError(
                f"{self.source}: {where}: category of label {label} is {show(category)}, expected {show(name)}"
            )


def _read_object(line: bytes) -> dict:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{' '.join(str(error).split())}; expected json") from error
    if not isinstance(content, dict):
        raise EntryError(f"found {show(content)}, expected an object")
    return content


def _check_kind(content: dict, task: str, where: str) -> None:
    expected, other = ("detection", "grounding") if task == "detection" else ("grounding", "detection")
    if expected not in content and other in content:
        raise AnnotationError(
            f"{where}: holds {other!r}, expected {expected!r} in a {task} dataset (task of register_odvg)"
        )


def _read_detection(content: dict, names: _LabelNames, report: SkipReport, where: str) -> dict:
    height, width = read_image_size(content)
    detection = content.get("detection")
    instances = detection.get("instances") if isinstance(detection, dict) else None
    if not isinstance(instances, list):
        raise EntryError(f"detection is {show(detection)}, expected an object with a list of instances")
    annotations = []
    for item in instances:
        if not isinstance(item, dict) or not is_integer(item.get("label")):
            raise EntryError(f"instance is {show(item)}, expected an object with bbox and an integer as label")
        try:
            box = read_box(item.get("bbox"), height, width)
        except TinyBoxError as error:
            report.skip("boxes", where, str(error))
            continue
        names.check(item["label"], item.get("category"), where)
        annotations.append({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": item["label"]})
    return {"height": height, "width": width, "annotations": annotations}


def _read_grounding(content: dict, report: SkipReport, where: str, *, needs_boxes: bool) -> dict:
    record, left_out = read_odvg_grounding(content)
    for reason in left_out:
        report.skip("regions", where, reason)
    if needs_boxes and not record["annotations"]:
        raise EntryError(f"no box for {show(record['caption'])}")
    return record


def _make_contiguous(records: list[dict], names: _LabelNames, dataset: str) -> None:
    """Replace labels by their places in ascending order, and put the names into the metadata.

    Raises:
        AnnotationError: Two labels have one name, or the metadata has other ``thing_classes``.
    """
    labels = sorted(names.names)
    classes = [names.names[label] for label in labels]
    set_thing_classes(names.source, dataset, classes)
    row_of_label = {label: row for row, label in enumerate(labels)}
    for record in records:
        for item in record["annotations"]:
            item["category_id"] = row_of_label[item["category_id"]]
