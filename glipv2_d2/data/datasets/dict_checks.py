"""Checks of dataset dicts that a reader outside of this package has made; every failure is one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from .value_checks import AnnotationError, is_number, is_text, show

# The field whose character ranges boxes belong to.
TEXT_FIELDS = {
    "grounding": "caption",
    "pseudo_grounding": "caption",
    "vqa": "question",
    "captioning": "caption",
}
# The fields that a dict must have. Sizes are needed where there are boxes.
_ALWAYS = ("file_name",)
REQUIRED_FIELDS = {
    "detection": ("file_name", "width", "height"),
    "grounding": ("file_name", "width", "height", "caption"),
    "pseudo_grounding": ("file_name", "width", "height", "caption"),
    "vqa": ("file_name", "question", "question_id"),
    "captioning": ("file_name",),
}


def check_dataset_dicts(
    dataset: str,
    dataset_dicts: Sequence[Mapping[str, Any]],
    num_classes: int = 0,
    *,
    task: str = "detection",
) -> None:
    """Check that dataset dicts hold everything that training needs.

    Args:
        dataset: Its name, for the message.
        dataset_dicts: All of them; there may be none.
        num_classes: Number of categories of a detection dataset.
        task: Kind of data. The boxes of "detection" have a category id, those of the others character ranges of a
            sentence. Of a task that is not among ``REQUIRED_FIELDS`` only file names and boxes are checked.

    Raises:
        AnnotationError: A dict lacks a field; a box is not finite, has a negative side or lies outside its image; a
            category id is not in 0..num_classes - 1; a sentence is blank; a range is empty or leaves the sentence; a
            box belongs to nothing; a score is not in [0, 1]; two questions have one id; answers or captions are not
            lists of some words.
    """
    question_ids: set[Any] = set()
    for record in dataset_dicts:
        flaw = _missing_field(record, task)
        if flaw:
            raise AnnotationError(f"dataset {dataset!r}: {flaw}")
        flaw = _flaw_of_detections(record, num_classes) if task == "detection" else _flaw_of_sentences(record, task)
        flaw = _flaw_of_geometry(record) or flaw
        if task == "vqa":
            flaw = flaw or _flaw_of_question(record, question_ids)
        if flaw:
            raise AnnotationError(f"dataset {dataset!r}: {record['file_name']}: {flaw}")
        question_ids.add(record.get("question_id"))


def check_image_ids(dataset: str, dataset_dicts: Sequence[Mapping[str, Any]], *, one_each: bool) -> None:
    """Check the ids by which the results of images are judged: integers or strings.

    Args:
        dataset: Its name, for the message.
        dataset_dicts: All of them.
        one_each: Each has another id, and all are integers, or all strings.

    Raises:
        AnnotationError: An id is something else, or absent.
    """
    known: set[Any] = set()
    kinds = (int, np.integer) if isinstance(dataset_dicts[0].get("image_id"), (int, np.integer)) else (str,)
    for record in dataset_dicts:
        image_id = record.get("image_id")
        expected = ""
        if not isinstance(image_id, kinds if one_each else (int, np.integer, str)):
            expected = "an integer in every dict, or a string in every dict"
        elif one_each and image_id in known:
            expected = "an id that no other image has"
        if expected:
            raise AnnotationError(
                f"dataset {dataset!r}: {record['file_name']}: image_id: expected {expected}, found {show(image_id)}"
            )
        known.add(image_id)


def _missing_field(record: Mapping[str, Any], task: str) -> str:
    sizes_of_boxes = ("width", "height") if record.get("annotations") else ()
    missing = [field for field in (*REQUIRED_FIELDS.get(task, _ALWAYS), *sizes_of_boxes) if field not in record]
    return f"expected {missing[0]!r} in every dict, found {show(record)}" if missing else ""


def _flaw_of_geometry(record: Mapping[str, Any]) -> str:
    """Return the first flaw of the boxes of a dict, "" if there is none."""
    for item in record.get("annotations", ()):
        mode, box = item.get("bbox_mode"), item.get("bbox", ())
        if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            return f"bbox_mode: expected XYXY_ABS or XYWH_ABS, found {show(mode)}"
        try:
            left, top, right, bottom = np.asarray(box, dtype=np.float64).tolist()
        except (TypeError, ValueError):
            return f"bbox: expected four numbers, found {show(box)}"
        if mode == BoxMode.XYWH_ABS:
            right, bottom = left + right, top + bottom
        touches = right >= 0 and bottom >= 0 and left <= record["width"] and top <= record["height"]
        if not (np.isfinite([left, top, right, bottom]).all() and left <= right and top <= bottom and touches):
            return f"bbox: expected a finite box with sides >= 0 inside its image, found {show(box)}"
    return ""


def _flaw_of_detections(record: Mapping[str, Any], num_classes: int) -> str:
    for item in record.get("annotations", ()):
        category_id = item.get("category_id")
        if not isinstance(category_id, (int, np.integer)) or category_id not in range(num_classes):
            return f"category_id: expected an integer from 0 to {num_classes - 1}, found {show(category_id)}"
    return ""


def _flaw_of_sentences(record: Mapping[str, Any], task: str) -> str:
    """Return the first flaw of the sentences of a dict and of what belongs to them, "" if there is none."""
    if task not in TEXT_FIELDS:
        return ""
    field = TEXT_FIELDS[task]
    # Captions to be written may be absent, but not where boxes belong to them.
    if (field in record or record.get("annotations")) and not is_text(record.get(field)):
        return f"{field}: expected some words, found {show(record.get(field))}"
    if task == "captioning" and "captions" in record and not _are_texts(record["captions"]):
        return f"captions: expected a list of captions, found {show(record['captions'])}"
    for item in record.get("annotations", ()):
        spans = item.get("tokens_positive")
        names_answer = field == "question" and item.get("answer_box", False) is True
        if not (spans is None and names_answer) and not _are_spans(spans, len(record[field])):
            return f"tokens_positive: expected pairs (begin, end) inside the {field}, found {show(spans)}"
        score = item.get("score", 1.0)
        if not (is_number(score) and 0 <= score <= 1):
            return f"score: expected a number in [0, 1], found {show(score)}"
    return ""


def _flaw_of_question(record: Mapping[str, Any], known: set[Any]) -> str:
    if not isinstance(record["question_id"], (int, str)):
        return f"question_id: expected a number or a string, found {show(record['question_id'])}"
    if record["question_id"] in known:
        return f"question_id: expected an id that no other question has, found {show(record['question_id'])}"
    answers = record.get("answers")
    if answers is not None:
        is_list = isinstance(answers, (list, tuple))
        if not (is_list and _are_texts([one.get("answer") if isinstance(one, Mapping) else one for one in answers])):
            return f"answers: expected a list of answers, found {show(answers)}"
    return ""


def _are_texts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and all(is_text(value) for value in values)


def _are_spans(spans: Any, length: int) -> bool:
    return bool(spans) and all(len(pair) == 2 and 0 <= pair[0] < pair[1] <= length for pair in spans)
