"""Visual questions in the official format of VQA: questions in one json file, what people answered in another."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from .coco_images import CocoImage, read_coco_images
from .grounding_records import EntryError, read_text
from .registration import check_dataset_files
from .skip_report import SkipReport, read_lines, with_progress
from .value_checks import AnnotationError, is_integer, is_text, read_json_file, show
from .vqa_records import question_record, read_answers, read_question_boxes, register_questions


def register_vqa(
    name: str,
    questions_file: str | os.PathLike[str],
    annotations_file: str | os.PathLike[str] | None,
    image_root: str | os.PathLike[str],
    *,
    images_file: str | os.PathLike[str] | None = None,
    boxes_file: str | os.PathLike[str] | None = None,
    image_ids_file: str | os.PathLike[str] | None = None,
    leave_out_ids: bool = False,
    **metadata: Any,
) -> None:
    """Register questions in the format of VQA under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        questions_file: As v2_OpenEnded_mscoco_train2014_questions.json.
        annotations_file: As v2_mscoco_train2014_annotations.json; None for a test set.
        image_root: Directory of the images.
        images_file: File in COCO's format with the paths and sizes of the images. Without it a path is made of the
            ``data_subtype`` of the questions, as "COCO_train2014_000000000009.jpg", and upright and wide images share
            batches.
        boxes_file: Boxes of what questions and answers name, to ground them: lines of
            ``tools/generate_pseudo_boxes.py --source vqa``.
        image_ids_file: Json list of ids: only questions about these images belong to the dataset.
        leave_out_ids: Rather all others do.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    sources = {
        "questions_file": questions_file,
        "annotations_file": annotations_file,
        "image_root": image_root,
        "images_file": images_file,
        "boxes_file": boxes_file,
        "image_ids_file": image_ids_file,
        "leave_out_ids": leave_out_ids,
    }
    register_questions(name, load_vqa, sources, metadata)


def load_vqa(
    questions_file: str,
    annotations_file: str | None,
    image_root: str,
    images_file: str | None,
    boxes_file: str | None,
    image_ids_file: str | None,
    leave_out_ids: bool,
    name: str,
) -> list[dict]:
    """Read a registered dataset: one dataset dict for each question.

    A question has ``image_id``, ``question`` and ``question_id``; an annotation ``question_id``, ``answers`` (a list of
    objects with ``answer``) and perhaps an ``answer_type``. A line of boxes has ``question_id``, ``question``, and what
    ``read_question_boxes`` reads.

    What cannot be used is left out, and one warning counts it and names the first few: malformed or blank questions,
    questions without an annotation where there is a file of them, images that are not in the ``images_file``, and lines
    and boxes that are malformed or of another question.

    Returns:
        Dataset dicts in the order of the questions; with ``annotations`` if there is a ``boxes_file``.

    Raises:
        FileNotFoundError: A file or the image directory does not exist.
        AnnotationError: A file is of no such format, two questions have one id, or nothing is left.

    Source: the files of VQA (Goyal et al., arXiv 1612.00837).
    """
    check_dataset_files(name)
    content = read_json_file(questions_file)
    questions = _list_of(content, "questions", questions_file)
    answers = None if annotations_file is None else _read_annotations(annotations_file)
    images = None if images_file is None else read_coco_images([images_file])
    chosen = None if image_ids_file is None else _read_ids(image_ids_file)
    subtype = content.get("data_subtype")
    if images is None and not is_text(subtype):
        raise AnnotationError(f"{questions_file}: data_subtype is {show(subtype)}, expected one, or an images_file")
    report = SkipReport(questions_file)
    records: dict[int, dict] = {}
    for index, entry in enumerate(with_progress(questions, f"{questions_file}: questions")):
        try:
            question_id, image_id = _read_id(entry, "question_id"), _read_id(entry, "image_id")
            if chosen is not None and (image_id in chosen) == leave_out_ids:
                continue
            if question_id in records:
                found = f"{questions_file}: questions[{index}]: question_id is {question_id}"
                raise AnnotationError(f"{found}, expected an id that no other question has")
            file_name, size = _find_image(image_id, images, subtype)
            records[question_id] = question_record(
                os.path.join(image_root, file_name),
                size,
                image_id,
                question=read_text(entry, "question"),
                question_id=question_id,
                **_find_answers(question_id, answers),
            )
        except EntryError as error:
            report.skip("questions", f"questions[{index}]", str(error))
    if boxes_file is not None:
        _add_boxes(records, boxes_file, report)
    report.close(records, "questions")
    return list(records.values())


def _list_of(content: dict, kind: str, json_file: str) -> list:
    if not isinstance(content.get(kind), list):
        raise AnnotationError(f"{json_file}: {kind} is {show(content.get(kind))}, expected a list")
    return content[kind]


def _read_annotations(annotations_file: str) -> dict[int, dict]:
    entries = _list_of(read_json_file(annotations_file), "annotations", annotations_file)
    return {
        entry["question_id"]: entry
        for entry in entries
        if isinstance(entry, dict) and is_integer(entry.get("question_id"))
    }


def _read_ids(image_ids_file: str) -> set[int]:
    ids = read_json_file(image_ids_file, list)
    for value in ids:
        if not is_integer(value):
            raise AnnotationError(f"{image_ids_file}: holds {show(value)}, expected ids of images")
    return set(ids)


def _read_id(entry: Any, field: str) -> int:
    if not isinstance(entry, dict):
        raise EntryError(f"found {show(entry)}, expected an object")
    if not is_integer(entry.get(field)):
        raise EntryError(f"{field} is {show(entry.get(field))}, expected an integer")
    return entry[field]


def _find_image(image_id: int, images: Mapping[int, CocoImage] | None, subtype: str) -> tuple[str, list[int] | None]:
    """Return path and, where it is known, size of an image."""
    if images is None:
        # The questions of "test-dev2015" are about images of "test2015".
        return f"COCO_{subtype.replace('-dev', '')}_{image_id:012d}.jpg", None
    if image_id not in images:
        raise EntryError(f"image_id is {image_id}, expected an id that stands in the images_file")
    return images[image_id]


def _find_answers(question_id: int, annotations: Mapping[int, dict] | None) -> dict[str, Any]:
    """Return ``answers`` and ``answer_type`` of a question."""
    if annotations is None:
        return {"answers": None}
    if question_id not in annotations:
        raise EntryError(f"question_id is {question_id}, expected an id that stands in the annotations")
    annotation = annotations[question_id]
    answers = read_answers(annotation.get("answers"))
    if answers is None:
        raise EntryError(f"answers of question {question_id} is None, expected a list of answers")
    return {"answers": answers, "answer_type": annotation.get("answer_type")}


def _add_boxes(records: Mapping[int, dict], boxes_file: str, report: SkipReport) -> None:
    """Put the boxes of questions and answers into the dataset dicts; a question without a line has none."""
    for record in records.values():
        record["annotations"] = []
    for number, (_, line) in enumerate(read_lines(boxes_file), 1):
        if not line.strip():
            continue
        where = f"{boxes_file}: line {number}"
        try:
            content = json.loads(line)
            record = records.get(_read_id(content, "question_id"))
            if record is None:
                continue  # A question of another part of the data.
            if content.get("question") != record["question"]:
                raise EntryError(f"question is {show(content.get('question'))}, expected {show(record['question'])}")
            record["annotations"], left_out = read_question_boxes(content, record["question"])
        except (ValueError, RecursionError) as error:
            report.skip("lines", where, " ".join(str(error).split()))
            continue
        for reason in left_out:
            report.skip("boxes", where, reason)
        record["height"], record["width"] = content["height"], content["width"]
