"""Dataset dicts of visual questions: an image, a question, and what people answered."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.structures import BoxMode

from .grounding_records import EntryError, read_box, read_image_size, read_score, read_spans
from .registration import register_dataset
from .value_checks import is_text, show


def register_questions(
    name: str, load: Callable[..., list[dict]], sources: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Register a dataset of questions.

    Args:
        name: New in the catalog.
        load: Called with ``sources`` and ``name`` when the dataset is used.
        sources: Paths and switches by their names, under which the metadata has them too; None for one that is not
            given.
        metadata: More entries of the metadata.

    Raises:
        ValueError: The name is taken.
    """
    sources = {field: os.fspath(one) if isinstance(one, os.PathLike) else one for field, one in sources.items()}
    entries = {"task": "vqa", "evaluator_type": "vqa", **sources, **metadata}
    register_dataset(name, functools.partial(load, **sources, name=name), **entries)


def read_answers(value: Any) -> list[str] | None:
    """Return the answers that people gave; None if there are none, as in a test set.

    Args:
        value: A list of strings, or of objects with the string ``answer``; not trusted.

    Raises:
        EntryError: It is something else, is empty, or an answer is blank.
    """
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise EntryError(f"answers is {show(value)}, expected a list of answers")
    answers = [item.get("answer") if isinstance(item, dict) else item for item in value]
    for answer in answers:
        if not is_text(answer):
            raise EntryError(f"answer is {show(answer)}, expected a string that is not empty")
    # Ten people mostly say the same: one string for all of them, in millions of answers.
    return [sys.intern(answer) for answer in answers]


def read_question_boxes(entry: dict, question: str) -> tuple[list[dict], list[str]]:
    """Read the boxes of a question, as ``tools/generate_pseudo_boxes.py --source vqa`` writes them.

    Args:
        entry: With ``height`` and ``width`` of the image and the list ``regions``: objects with ``bbox`` (XYXY in
            pixels), ``tokens_positive`` (ranges of the question), ``answer_box`` True, or both, and perhaps a
            ``score``; not trusted.
        question: Its text.

    Returns:
        Annotations of a dataset dict, and a line for each region that was left out.

    Raises:
        EntryError: The size or the list of regions is not what it should be.
    """
    height, width = read_image_size(entry)
    regions = entry.get("regions")
    if not isinstance(regions, list):
        raise EntryError(f"regions is {show(regions)}, expected a list")
    annotations: list[dict] = []
    left_out: list[str] = []
    for region in regions:
        try:
            annotations.append(_read_region(region, question, height, width))
        except EntryError as error:
            left_out.append(str(error))
    return annotations, left_out


def _read_region(region: Any, question: str, height: int, width: int) -> dict:
    if not isinstance(region, dict):
        raise EntryError(f"region is {show(region)}, expected an object")
    annotation = {"bbox": read_box(region.get("bbox"), height, width), "bbox_mode": BoxMode.XYXY_ABS}
    names_answer = region.get("answer_box", False)
    if not isinstance(names_answer, bool):
        raise EntryError(f"answer_box is {show(names_answer)}, expected true or false")
    if names_answer:
        annotation["answer_box"] = True
    if not names_answer or region.get("tokens_positive") is not None:
        annotation["tokens_positive"] = read_spans(region.get("tokens_positive"), question)
    if region.get("score") is not None:
        annotation["score"] = read_score(region["score"])
    return annotation


def question_record(
    file_name: str,
    size: Sequence[int] | None,
    image_id: int | str,
    *,
    question: str,
    question_id: int,
    answers: list[str] | None,
    answer_type: Any = None,
) -> dict:
    """Make a dataset dict.

    Args:
        file_name: Path of the image.
        size: Its height and width in pixels; None if they are not known.
        image_id: Of the image; questions share it.
        question: Not blank.
        question_id: No other question of the dataset has it.
        answers: What people answered; None if it is not known.
        answer_type: A string, by which accuracy is reported too; anything else is passed over.
    """
    record: dict[str, Any] = {
        "file_name": file_name,
        "image_id": image_id,
        "question": question,
        "question_id": question_id,
    }
    if size is not None:
        record["height"], record["width"] = size
    if answers is not None:
        record["answers"] = answers
    if is_text(answer_type):
        record["answer_type"] = answer_type
    return record
