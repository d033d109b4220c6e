"""Checks of the text in dataset dicts: sentences, the ranges of their boxes, questions, answers and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .value_checks import AnnotationError, is_number, is_text, show

# The field whose character ranges boxes belong to.
TEXT_FIELDS = {
    "grounding": "caption",
    "pseudo_grounding": "caption",
    "vqa": "question",
    "captioning": "caption",
}
# What a dict must have, whichever reader has made it. Sizes are needed where there are boxes.
REQUIRED_FIELDS = {
    "detection": ("file_name", "width", "height"),
    "grounding": ("file_name", "width", "height", "caption"),
    "pseudo_grounding": ("file_name", "width", "height", "caption"),
    "vqa": ("file_name", "question", "question_id"),
    "captioning": ("file_name",),
}


def check_sentences(dataset: str, dataset_dicts: Sequence[Mapping[str, Any]], task: str) -> None:
    """Check the text of dataset dicts, and what their boxes say of it.

    Args:
        dataset: Its name, for the message.
        dataset_dicts: All of them, with the ``REQUIRED_FIELDS`` of the task.
        task: Kind of data, but for "detection".

    Raises:
        AnnotationError: A sentence is blank, a range is empty or leaves the sentence, a box belongs to nothing, a score
            is not in [0, 1]; two questions have one id; answers or captions are not lists of some words.
    """
    question_ids: set[Any] = set()
    for record in dataset_dicts:
        flaw = _flaw_of_text(record, task) or _flaw_of_boxes(record, TEXT_FIELDS[task])
        if task == "vqa":
            flaw = flaw or _flaw_of_question(record, question_ids)
        if flaw:
            raise AnnotationError(f"dataset {dataset!r}: {record['file_name']}: {flaw}")
        question_ids.add(record.get("question_id"))


def _flaw_of_text(record: Mapping[str, Any], task: str) -> str:
    """Return what is wrong with the sentences of a dict, "" if nothing is."""
    field = TEXT_FIELDS[task]
    # Captions to be written may be absent, but not where boxes belong to them.
    if (field in record or record.get("annotations")) and not is_text(record.get(field)):
        return f"{field} is {show(record.get(field))}, expected some words"
    if task == "captioning" and "captions" in record and not _are_texts(record["captions"]):
        return f"captions is {show(record['captions'])}, expected a list of captions"
    return ""


def _flaw_of_boxes(record: Mapping[str, Any], field: str) -> str:
    for item in record.get("annotations", ()):
        spans = item.get("tokens_positive")
        names_answer = field == "question" and item.get("answer_box", False) is True
        if not (spans is None and names_answer) and not _are_spans(spans, len(record[field])):
            return f"tokens_positive is {show(spans)}, expected pairs (begin, end) inside the {field}"
        score = item.get("score", 1.0)
        if not (is_number(score) and 0 <= score <= 1):
            return f"score is {show(score)}, expected a number in [0, 1]"
    return ""


def _flaw_of_question(record: Mapping[str, Any], known: set[Any]) -> str:
    if not isinstance(record["question_id"], (int, str)):
        return f"question_id is {show(record['question_id'])}, expected a number or a string"
    if record["question_id"] in known:
        return f"question_id is {show(record['question_id'])}, expected an id that no other question has"
    answers = record.get("answers")
    if answers is not None:
        is_list = isinstance(answers, (list, tuple))
        if not (is_list and _are_texts([one.get("answer") if isinstance(one, Mapping) else one for one in answers])):
            return f"answers is {show(answers)}, expected a list of answers"
    return ""


def _are_texts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and all([is_text(value) for value in values])


def _are_spans(spans: Any, length: int) -> bool:
    return bool(spans) and all([len(pair) == 2 and 0 <= pair[0] < pair[1] <= length for pair in spans])
