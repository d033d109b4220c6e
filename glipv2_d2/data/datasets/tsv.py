"""Datasets in the official TSV format: a yaml file that names TSV files of images, of labels and of image sizes."""

from __future__ import annotations

import json
import os
from typing import Any

import yaml
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ...errors import InputError, one_line
from ...yaml_texts import check_yaml
from ..image_reading import image_size, read_tsv_image
from .grounding_records import grounding_annotation
from .registration import set_thing_classes
from .skip_report import SkipReport, with_progress
from .tsv_file import TsvFile, read_integers
from .value_checks import (
    AnnotationError,
    EntryError,
    OmittedEntry,
    is_integer,
    is_text,
    path_inside,
    read_all,
    read_box,
    read_image_size,
    read_json_file,
    read_object,
    read_spans,
    read_text,
    show,
)

# Keys of the yaml file that may name the json of class names; the second is joined as the word is not one of ours.
_NAMES_KEYS = ("jsondict", "label" + "map")
_FILE_KEYS = ("img", "label", "hw", "linelist", *_NAMES_KEYS)
_BACKGROUND = "__background__"
_MAX_DIGITS = 10


def load_tsv(yaml_file: str, name: str) -> list[dict]:
    """Read a dataset; a detection dataset gets ``thing_classes`` in its metadata.

    Keys of the yaml file: ``img``, lines of a key and an image in base64; ``label``, lines of the same key and json;
    ``hw``, lines of the key and the height and width, without which the sizes come from the labels or the images;
    ``linelist``, the numbers of the lines to use, which may repeat (a test takes each once); ``jsondict``, json with
    the number of each class under ``label_to_idx``, without which the classes are those of the boxes in alphabetical
    order. Others are passed over.

    Labels of a detection dataset are a list of ``{"class", "rect"}``, boxes XYXY in pixels, also as the ``objects`` of
    an object. Those of captions are ``{"caption", "bboxes", "scores", "tokens_positive", "img_h", "img_w"}``, with one
    entry per box, or one per phrase that holds several boxes and scores.

    Captions without any box left are left out by rule.

    Returns:
        Dataset dicts in the order of the lines, each with the ``tsv_offset`` of its image; ``image_id`` is the number
        of the line, from 0. A line that is listed twice gives the same dict twice.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: The files do not belong together, a class is unknown, nothing is left, or there are too many
            faults.

    Source: the official TSV datasets.
    """
    task = MetadataCatalog.get(name).task
    paths = _read_yaml(yaml_file)
    files: dict[str, TsvFile] = {key: TsvFile(paths[key]) for key in ("img", "label", "hw") if key in paths}
    try:
        _check_keys(files)
        rows = _read_rows(paths, len(files["label"]))
        class_rows = _read_classes(paths)
        report = SkipReport(yaml_file, name)
        report.count("lines", len(set(rows)))
        record_of_row: dict[int, dict] = {}
        for row in with_progress(sorted(set(rows)), f"{paths['label']}: labels"):
            try:
                record_of_row[row] = _read_row(row, files, task, class_rows, report)
            except EntryError as error:
                report.skip("lines", f"line {row}", error)
    finally:
        for file in files.values():
            file.close()
    records = [record_of_row[row] for row in rows if row in record_of_row]
    report.close(records, f"lines of a {task} dataset")
    if task == "detection":
        _set_classes(record_of_row, class_rows, yaml_file, name)
    return records


def _read_yaml(yaml_file: str) -> dict[str, str]:
    try:
        with PathManager.open(yaml_file, "r", encoding="utf-8") as file:
            text = file.read()
        check_yaml(text)
        content = yaml.safe_load(text)
    except InputError as error:
        raise AnnotationError(f"{yaml_file}: {error}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise AnnotationError(f"{yaml_file}: expected a yaml file, found {one_line(error)}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{yaml_file}: expected img, label and other keys, found {show(content)}")
    folder = os.path.dirname(yaml_file)
    named = {key: value for key, value in content.items() if is_text(key) and is_text(value)}
    for key, value in named.items():
        if key in _FILE_KEYS and path_inside(value, folder or ".") is None:
            expected = f"a file below {folder or 'its folder'} (or DATASETS.ALLOW_OUTSIDE_FILES True)"
            raise AnnotationError(f"{yaml_file}: {key}: expected {expected}, found {show(value)}")
    paths = {key: os.path.join(folder, value) for key, value in named.items()}
    for key in ("img", "label"):
        if key not in paths:
            raise AnnotationError(f"{yaml_file}: {key}: expected a TSV file, found {show(content.get(key))}")
    return paths


def _check_keys(files: dict[str, TsvFile]) -> None:
    """Check that the files have equally many lines, and samples of them the same keys."""
    labels = files["label"]
    for file in files.values():
        if len(file) != len(labels):
            raise AnnotationError(f"{file.path}: expected {len(labels)} lines as in {labels.path}, found {len(file)}")
        for number in labels.probes():
            if file.key(number) != labels.key(number):
                raise AnnotationError(
                    f"{file.path}: line {number}: expected the key {show(labels.key(number))} as in {labels.path}, "
                    f"found {show(file.key(number))}"
                )


def _read_rows(paths: dict[str, str], num_rows: int) -> list[int]:
    if "linelist" not in paths:
        return list(range(num_rows))
    rows = read_integers(paths["linelist"])
    wrong = rows[(rows < 0) | (rows >= num_rows)]
    if len(wrong):
        raise AnnotationError(f"{paths['linelist']}: expected lines 0 to {num_rows - 1}, found {wrong[0]}")
    return rows.tolist()


def _read_classes(paths: dict[str, str]) -> dict[str, int] | None:
    """Return the contiguous id of each class, None if no file names them."""
    path = next((paths[key] for key in _NAMES_KEYS if key in paths), None)
    if path is None:
        return None
    content = read_json_file(path)
    numbers = content.get("label_to_idx", content)
    if not isinstance(numbers, dict) or not all(is_text(one) and is_integer(numbers[one]) for one in numbers):
        raise AnnotationError(f"{path}: expected the number of each class, found {show(numbers)}")
    names = sorted((one for one in numbers if one != _BACKGROUND), key=numbers.__getitem__)
    return {one: row for row, one in enumerate(names)}


def _read_row(
    row: int, files: dict[str, TsvFile], task: str, class_rows: dict[str, int] | None, report: SkipReport
) -> dict:
    key, text = files["label"].row(row)
    try:
        label = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EntryError(f"expected a key and json, found {one_line(error)}", "lines that are not json") from error
    height, width = _read_size(row, key, files, label)
    record = {
        "file_name": files["img"].path,
        "tsv_offset": int(files["img"].offsets[row]),
        "image_id": row,
        "height": height,
        "width": width,
    }
    if task == "detection":
        where = f"{files['label'].path}: line {row}"
        return {**record, "annotations": _read_objects(label, height, width, class_rows, report, where)}
    caption = read_text(read_object(label), "caption")

    def read(entry: tuple[Any, Any, Any]) -> dict:
        box, score, spans = entry
        return grounding_annotation(read_box(box, height, width), read_spans(spans, caption), score)

    annotations = report.keep("boxes", f"line {row}", *read_all(_caption_boxes(label), read))
    if not annotations:
        raise OmittedEntry(f"expected a box for {show(caption)}, found none", "captions without a box")
    return {**record, "caption": caption, "annotations": annotations}


def _read_size(row: int, key: bytes, files: dict[str, TsvFile], label: Any) -> list[int]:
    if "hw" in files:
        size_key, text = files["hw"].row(row)
        if size_key != key:
            raise AnnotationError(
                f"{files['hw'].path}: line {row}: expected the key {show(key)}, found {show(size_key)}"
            )
        try:
            size = json.loads(text)
        except (ValueError, RecursionError):
            sides = [int(side) for side in text.split() if side.isdigit() and len(side) < _MAX_DIGITS]
            size = dict(zip(("height", "width"), sides, strict=False))  # Fewer are an error below.
        size = size[0] if isinstance(size, list) and size else size
        return read_image_size(size if isinstance(size, dict) else {})
    if isinstance(label, dict) and "img_h" in label:
        return read_image_size(label, "img_h", "img_w")
    try:
        return list(image_size(read_tsv_image(files["img"].path, int(files["img"].offsets[row]))))
    except ValueError as error:
        raise EntryError(f"image: expected one whose size can be read, found {error}", "unreadable images") from error


def _read_objects(
    label: Any, height: int, width: int, class_rows: dict[str, int] | None, report: SkipReport, where: str
) -> list[dict]:
    """Return the annotations of a detection line; without ``class_rows`` their ``category_id`` is still the name."""
    objects = label.get("objects") if isinstance(label, dict) else label
    if not isinstance(objects, list):
        raise EntryError(f"label: expected a list of objects, found {show(label)}")

    def read(item: Any) -> dict:
        category = read_text(read_object(item), "class")
        if class_rows is not None and category not in class_rows:
            expected = f"one of the {len(class_rows)} known"
            raise AnnotationError(f"{where}: class: expected {expected}, found {show(category)}")
        box = read_box(item.get("rect"), height, width)
        category_id = category if class_rows is None else class_rows[category]
        return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category_id}

    return report.keep("boxes", where, *read_all(objects, read))


def _caption_boxes(label: dict) -> list[tuple[Any, Any, Any]]:
    """Return box, score and character ranges of each box; where an entry holds several boxes, they share its ranges."""
    boxes, spans = label.get("bboxes"), label.get("tokens_positive")
    if not isinstance(boxes, list) or not isinstance(spans, list) or len(boxes) != len(spans):
        raise EntryError(f"bboxes: expected as many as tokens_positive {show(spans)}, found {show(boxes)}")
    scores = label.get("scores", [None] * len(boxes))
    if not isinstance(scores, list) or len(scores) != len(boxes):
        raise EntryError(f"scores: expected {len(boxes)}, found {show(scores)}", "malformed scores")
    flat = []
    for entry, entry_scores, ranges in zip(boxes, scores, spans, strict=True):
        if not (isinstance(entry, list) and entry and isinstance(entry[0], list)):
            flat.append((entry, entry_scores, ranges))
            continue
        entry_scores = entry_scores if isinstance(entry_scores, list) else [entry_scores] * len(entry)
        if len(entry_scores) != len(entry):
            raise EntryError(f"scores: expected {len(entry)}, found {show(entry_scores)}", "malformed scores")
        flat += [(box, score, ranges) for box, score in zip(entry, entry_scores, strict=True)]
    return flat


def _set_classes(record_of_row: dict[int, dict], class_rows: dict[str, int] | None, yaml_file: str, name: str) -> None:
    if class_rows is None:
        items = [item for record in record_of_row.values() for item in record["annotations"]]
        class_rows = {one: row for row, one in enumerate(sorted({item["category_id"] for item in items}))}
        for item in items:
            item["category_id"] = class_rows[item["category_id"]]
    set_thing_classes(yaml_file, name, list(class_rows))
