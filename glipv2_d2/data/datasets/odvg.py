"""Datasets in ODVG's format, one json object per line: detection, grounding, and captions with pseudo boxes."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from .grounding_records import read_odvg_grounding
from .registration import set_thing_classes
from .skip_report import SkipReport, read_lines
from .value_checks import (
    AnnotationError,
    EntryError,
    OmittedEntry,
    as_integer,
    is_text,
    parse_line,
    read_all,
    read_box,
    read_file_name,
    read_image_size,
    read_integer,
    read_json_file,
    read_object,
    show,
)


def load_odvg(jsonl_file: str, image_root: str, names_file: str | None, name: str) -> list[dict]:
    """Read a dataset; a detection dataset gets ``thing_classes`` in its metadata.

    The lines are those of MM-Grounding-DINO, boxes XYXY in pixels::

        {"filename": ..., "height": ..., "width": ...,
         "detection": {"instances": [{"bbox": [...], "label": 0, "category": "person"}]}}
        {"filename": ..., "height": ..., "width": ...,
         "grounding": {"caption": ..., "regions": [{"bbox": [...], "phrase": "a dog"}]}}

    See ``read_odvg_grounding`` for the other keys of a region. A sentence without any box left is left out by rule,
    unless it is a caption to be written (task "captioning").

    Returns:
        Dataset dicts in the order of the file, ``image_id`` being the number of the line, from 1. About 3 kB of memory
        each with five boxes.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: A label has no name or two names, lines are of another kind than the dataset, nothing is left,
            or there are too many faults.
    """
    task = MetadataCatalog.get(name).task
    names = _LabelNames(jsonl_file, names_file) if task == "detection" else None
    report = SkipReport(jsonl_file, name)
    records: list[dict] = []
    for number, (_, line) in enumerate(read_lines(jsonl_file), 1):
        if not line.strip():
            continue
        report.count("lines")
        where = f"line {number}"
        try:
            content = parse_line(line)
            file_name = os.path.join(image_root, read_file_name(content, "filename", image_root))
            _check_kind(content, task, f"{jsonl_file}: {where}")
            if names is not None:
                record = _read_detection(content, names, report, where)
            else:
                record = _read_grounding(content, report, where, needs_boxes=task != "captioning")
        except EntryError as error:
            report.skip("lines", where, error)
            continue
        records.append({"file_name": file_name, "image_id": number, **record})
    report.close(records, f"lines of a {task} dataset")
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
            number = as_integer(label) if label.isdecimal() and label.isascii() else None
            if number is None or number in self.names or not is_text(name):
                found = f"{show(label)}: {show(name)}"
                raise AnnotationError(
                    f"{names_file}: expected each number once, as string, and its name, found {found}"
                )
            self.names[number] = name

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
                f"{self.source}: {where}: label: expected a name in the names_file, or a category where there is no "
                f"such file, found label {label} with category {show(category)}"
            )
        if category is not None and category != name:
            raise AnnotationError(
                f"{self.source}: {where}: category of label {label}: expected {show(name)}, found {show(category)}"
            )


def _check_kind(content: dict, task: str, where: str) -> None:
    expected, other = ("detection", "grounding") if task == "detection" else ("grounding", "detection")
    if expected not in content and other in content:
        raise AnnotationError(
            f"{where}: expected {expected!r} in a {task} dataset, found {other!r}; see the task of register_odvg"
        )


def _read_detection(content: dict, names: _LabelNames, report: SkipReport, where: str) -> dict:
    height, width = read_image_size(content)
    detection = content.get("detection")
    instances = detection.get("instances") if isinstance(detection, dict) else None
    if not isinstance(instances, list):
        raise EntryError(f"detection: expected an object with a list of instances, found {show(detection)}")

    def read(item: Any) -> dict:
        label = read_integer(read_object(item), "label")
        box = read_box(item.get("bbox"), height, width)
        names.check(label, item.get("category"), where)
        return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}

    annotations = report.keep("boxes", where, *read_all(instances, read))
    return {"height": height, "width": width, "annotations": annotations}


def _read_grounding(content: dict, report: SkipReport, where: str, *, needs_boxes: bool) -> dict:
    record, left_out = read_odvg_grounding(content)
    report.keep("boxes", where, record["annotations"], left_out)
    if needs_boxes and not record["annotations"]:
        raise OmittedEntry(f"expected a box for {show(record['caption'])}, found none", "captions without a box")
    return record


def _make_contiguous(records: list[dict], names: _LabelNames, dataset: str) -> None:
    """Replace labels by their ranks in ascending order, and put the names into the metadata."""
    labels = sorted(names.names)
    classes = [names.names[label] for label in labels]
    set_thing_classes(names.source, dataset, classes)
    row_of_label = {label: row for row, label in enumerate(labels)}
    for record in records:
        for item in record["annotations"]:
            item["category_id"] = row_of_label[item["category_id"]]
