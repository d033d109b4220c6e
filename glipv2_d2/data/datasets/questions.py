"""Visual questions in three formats: the official files of VQA, json in COCO's format with boxes, and json lines.

The generator of pseudo boxes reads the first and the last of them in pieces, see ``question_pieces``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode

from ...structures import CharSpan
from .coco_json import CocoImage, CocoJson, read_coco_images
from .skip_report import SkipReport, read_lines, with_progress
from .value_checks import (
    AnnotationError,
    Box,
    EntryError,
    as_integer,
    check_no_crowd,
    is_text,
    list_of,
    parse_line,
    read_all,
    read_box,
    read_file_name,
    read_image_size,
    read_integer,
    read_json_file,
    read_object,
    read_score,
    read_spans,
    read_text,
    show,
    stays_inside,
    unknown_id,
)

# Finds the path and, where it is known, the size of an image by its id.
ImageFinder = Callable[[int], tuple[str, list[int] | None]]


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
    """Read the official format: one dataset dict for each question.

    A question has ``image_id``, ``question`` and ``question_id``; an annotation ``question_id``, ``answers`` (a list of
    objects with ``answer``) and perhaps an ``answer_type``. A line of boxes has ``question_id``, ``question``, and the
    regions that ``read_question_boxes`` reads.

    Returns:
        Dataset dicts in the order of the questions; with ``annotations`` if there is a ``boxes_file``.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: A file cannot be used, two different questions have one id, or there are too many faults.

    Source: the files of VQA (Goyal et al., arXiv 1612.00837).
    """
    content = read_json_file(questions_file)
    questions = list_of(content, "questions", questions_file)
    annotations = None if annotations_file is None else read_vqa_annotations(annotations_file)
    find_image = image_finder(questions_file, content, images_file)
    chosen = None if image_ids_file is None else _read_ids(image_ids_file)
    report = SkipReport(questions_file, name)
    records: dict[int, dict] = {}
    for index, entry in enumerate(with_progress(questions, f"{questions_file}: questions")):
        where = f"questions[{index}]"
        try:
            question_id, image_id = read_integer(read_object(entry), "question_id"), read_integer(entry, "image_id")
            if chosen is not None and (image_id in chosen) == leave_out_ids:
                continue
            file_name, size = find_image(image_id)
            record = _record(os.path.join(image_root, file_name), size, image_id, read_text(entry, "question"))
            if annotations is not None:
                if question_id not in annotations:
                    raise unknown_id("question_id", question_id, "an id that stands in the annotations")
                answers = annotations[question_id].get("answers")
                if answers is None:
                    raise EntryError(
                        f"answers of question {question_id}: expected a list, found None", "questions without answers"
                    )
                _set_answers(record, answers, annotations[question_id].get("answer_type"))
            _add_question(records, question_id, record, f"{questions_file}: {where}")
        except EntryError as error:
            report.skip("questions", where, error)
    report.count("questions", len(records) + sum(report.faults.values()))
    if boxes_file is not None:
        _add_boxes(records, boxes_file, report)
    report.close(records, "questions")
    return list(records.values())


def load_vqa_json(json_file: str, image_root: str, name: str) -> list[dict]:
    """Read json in COCO's format: one dataset dict for each question.

    An image has ``id``, ``file_name``, ``height``, ``width`` and perhaps ``questions``: objects with ``question``,
    ``question_id``, ``answer`` (one string) or ``answers`` (a list of strings, or of objects with ``answer``), and
    perhaps a ``type``. Without answers a question can be asked, but not learnt.

    Annotations are optional. One has ``image_id``, a box of left, top, width and height, and a ``phrase``, the name of
    the thing in it. It is an annotation of each question of its image that mentions the phrase as whole words, and of
    each whose first answer is the phrase, both in any case. Where phrases overlap the longest is meant, also if it is
    one of another image: "orange" does not occur in "mandarin orange".

    Returns:
        Dataset dicts in the order of the file, with ``question``, ``question_id``, ``answers`` and ``answer_type``
        where they are known, and, if the file has annotations, ``annotations`` with ``tokens_positive`` (ranges of the
        question), ``answer_box`` True, or both.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: The file cannot be used, two different questions have one id, or there are too many faults.
    """
    content = CocoJson(json_file, name)
    images = content.images(folder=image_root)
    has_annotations = bool(content.annotation_entries())
    boxes: dict[int, dict[str, list[Box]]] = {}

    def read(image: CocoImage, item: dict) -> None:
        check_no_crowd(item)
        phrase = read_text(item, "phrase").strip().lower()
        box = read_box(item.get("bbox"), *image.size, has_sides=True)
        boxes.setdefault(image.id, {}).setdefault(phrase, []).append(box)

    content.annotations(images, read)
    finder = PhraseMentions(phrase for of_image in boxes.values() for phrase in of_image)
    records: dict[int, dict] = {}
    for image in images.values():
        if image is None:
            continue
        questions = image.entry.get("questions", [])
        if not isinstance(questions, list):
            error = EntryError(f"questions: expected a list, found {show(questions)}")
            content.report.skip("images", f"images (id {image.id})", error)
            continue
        content.report.count("questions", len(questions))
        for number, entry in enumerate(questions):
            where = f"images (id {image.id}).questions[{number}]"
            try:
                question_id = read_integer(read_object(entry), "question_id")
                path = os.path.join(image_root, image.file_name)
                record = _record(path, image.size, image.id, read_text(entry, "question"))
                _set_own_answers(record, entry, "type")
                if has_annotations:
                    record["annotations"] = _ground(record, boxes.get(image.id, {}), finder)
                _add_question(records, question_id, record, f"{json_file}: {where}")
            except EntryError as error:
                content.report.skip("questions", where, error)
    content.report.close(records, "questions")
    return list(records.values())


def load_vqa_jsonl(jsonl_file: str, image_root: str, name: str) -> list[dict]:
    """Read json lines: one dataset dict for each line.

    A line has ``filename``, ``question``, and perhaps ``question_id``, by default the number of the line from 1;
    ``answer`` (one string) or ``answers``; ``height`` and ``width``; ``regions``, see ``read_question_boxes``. The
    dataset is one with boxes if a line has regions. Lines of POPE, with ``image``, ``text`` and ``label``, are read
    too; their ids come several times, so the number of the line is taken.

    Returns:
        Dataset dicts in the order of the file; ``image_id`` is the ``filename``.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: Two questions have one id, or there are too many faults.
    """
    report = SkipReport(jsonl_file, name)
    records: dict[int, dict] = {}
    for number, (_, line) in enumerate(read_lines(jsonl_file), 1):
        if not line.strip():
            continue
        report.count("lines")
        where = f"line {number}"
        try:
            entry = _without_pope(parse_line(line))
            question_id = read_integer(entry, "question_id") if "question_id" in entry else number
            file_name = read_file_name(entry, "filename", image_root)
            size = read_image_size(entry) if "height" in entry or "width" in entry else None
            record = _record(os.path.join(image_root, file_name), size, file_name, read_text(entry, "question"))
            _set_own_answers(record, entry, "answer_type")
            if "regions" in entry:
                boxes = read_question_boxes(entry, record["question"])
                record["annotations"] = report.keep("boxes", where, *boxes)
            _add_question(records, question_id, record, f"{jsonl_file}: {where}")
        except EntryError as error:
            report.skip("lines", where, error)
    report.close(records, "lines with a filename and a question")
    if any("annotations" in record for record in records.values()):
        for record in records.values():
            record.setdefault("annotations", [])
    return list(records.values())


def _without_pope(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a line of POPE under our names, and any other line as it is."""
    if "question" in entry or not {"image", "text", "label"} <= entry.keys():
        return entry
    return {"filename": entry["image"], "question": entry["text"], "answer": entry["label"]}


class PhraseMentions:
    """Finds known phrases in texts, as whole words in any case; where two overlap, the first, and then the longest.

    Args:
        phrases: In lower case; there may be none.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        longest_first = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
        choices = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE) if choices else None

    def __call__(self, text: str) -> dict[str, list[CharSpan]]:
        """Return for each phrase in a text, in lower case, the half-open character ranges where it stands."""
        found: dict[str, list[CharSpan]] = {}
        for match in self._pattern.finditer(text) if self._pattern else ():
            found.setdefault(match[0].lower(), []).append(match.span())
        return found


def image_finder(questions_file: str, content: Mapping[str, Any], images_file: str | None) -> ImageFinder:
    """Return a function that finds the path and, where they are known, height and width of an image by its id.

    The function raises EntryError for an image that is not listed.

    Args:
        questions_file: The file of the questions, for messages.
        content: What it holds. Without an ``images_file`` its ``data_subtype`` makes up the paths, as
            "COCO_train2014_000000000009.jpg".
        images_file: File in COCO's format with paths and sizes.

    Raises:
        AnnotationError: Neither is there.
    """
    subtype = content.get("data_subtype")
    if images_file is None and not (is_text(subtype) and stays_inside(f"COCO_{subtype}_")):
        expected = "the split of the images, or an images_file"
        raise AnnotationError(f"{questions_file}: data_subtype: expected {expected}, found {show(subtype)}")
    # The questions of "test-dev2015" are about images of "test2015".
    prefix = f"COCO_{str(subtype).replace('-dev', '')}_"
    images = None if images_file is None else read_coco_images([images_file])

    def find(image_id: int) -> tuple[str, list[int] | None]:
        if images is None:
            return f"{prefix}{image_id:012d}.jpg", None
        image = images.get(image_id)
        if image is None:
            raise unknown_id("image_id", image_id, "an id that stands in the images_file")
        return image.file_name, image.size

    return find


def read_vqa_annotations(annotations_file: str) -> dict[int, dict[str, Any]]:
    """Return the annotations of the official format by the ids of their questions.

    Raises:
        AnnotationError: The file cannot be used.
    """
    entries = list_of(read_json_file(annotations_file), "annotations", annotations_file)
    by_id = {as_integer(entry.get("question_id")): entry for entry in entries if isinstance(entry, dict)}
    return {question_id: entry for question_id, entry in by_id.items() if question_id is not None}


def read_answers(value: Any) -> list[str]:
    """Return the answers that people gave.

    Args:
        value: A list of strings, or of objects with the string ``answer``; not trusted.

    Raises:
        EntryError: It is something else, is empty, or an answer is blank.
    """
    if not isinstance(value, list) or not value:
        raise EntryError(f"answers: expected a list of answers, found {show(value)}", "malformed answers")
    answers = []
    for item in value:
        answer = item.get("answer") if isinstance(item, dict) else item
        if not is_text(answer):
            found = f"answer: expected a string that is not empty, found {show(answer)}"
            raise EntryError(found, "malformed answers")
        # Ten people mostly say the same: one string for all of them, in millions of answers.
        answers.append(sys.intern(answer))
    return answers


def read_question_boxes(entry: Mapping[str, Any], question: str) -> tuple[list[dict], list[EntryError]]:
    """Read the boxes of a question, as ``tools/generate_pseudo_boxes.py --source vqa`` writes them.

    Args:
        entry: With ``height`` and ``width`` of the image and the list ``regions``: objects with ``bbox`` (XYXY in
            pixels), ``tokens_positive`` (ranges of the question), ``answer_box`` True, or both, and perhaps a
            ``score``; not trusted.
        question: Its text.

    Returns:
        Annotations of a dataset dict, and what is wrong with each region that was left out.

    Raises:
        EntryError: The size or the list of regions is not what it should be.
    """
    height, width = read_image_size(entry)
    regions = entry.get("regions")
    if not isinstance(regions, list):
        raise EntryError(f"regions: expected a list, found {show(regions)}")
    return read_all(regions, lambda region: _read_region(region, question, height, width))


def _read_region(region: Any, question: str, height: int, width: int) -> dict[str, Any]:
    box = read_box(read_object(region).get("bbox"), height, width)
    annotation: dict[str, Any] = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
    names_answer = region.get("answer_box", False)
    if not isinstance(names_answer, bool):
        raise EntryError(f"answer_box: expected true or false, found {show(names_answer)}", "malformed flags")
    if names_answer:
        annotation["answer_box"] = True
    if not names_answer or region.get("tokens_positive") is not None:
        annotation["tokens_positive"] = read_spans(region.get("tokens_positive"), question)
    if region.get("score") is not None:
        annotation["score"] = read_score(region["score"])
    return annotation


def _record(file_name: str, size: Sequence[int] | None, image_id: int | str, question: str) -> dict[str, Any]:
    """Make a dataset dict; questions of one image share its id."""
    record: dict[str, Any] = {"file_name": file_name, "image_id": image_id, "question": question}
    if size is not None:
        record["height"], record["width"] = size
    return record


def _set_answers(record: dict[str, Any], answers: Any, answer_type: Any) -> None:
    """Add answers, unless they are None, and their type if it is a text."""
    if answers is not None:
        record["answers"] = read_answers(answers)
    if is_text(answer_type):
        record["answer_type"] = answer_type


def _set_own_answers(record: dict[str, Any], entry: Mapping[str, Any], type_field: str) -> None:
    """Add the ``answer`` or the ``answers`` that an entry has itself."""
    _set_answers(record, [entry["answer"]] if "answer" in entry else entry.get("answers"), entry.get(type_field))


def _add_question(records: dict[int, dict], question_id: int, record: dict[str, Any], where: str) -> None:
    """Add a question.

    Raises:
        EntryError: It is there already, word for word.
        AnnotationError: Another question has its id; what refers to the id could mean either.
    """
    known = records.setdefault(question_id, record)
    if known is not record and known != {**record, "question_id": question_id}:
        raise AnnotationError(f"{where}: question_id: expected an id that no other question has, found {question_id}")
    if known is not record:
        raise EntryError(f"question_id: expected one entry, found {question_id} again", "questions listed twice")
    record["question_id"] = question_id


def _read_ids(image_ids_file: str) -> set[int]:
    ids = [as_integer(value) for value in read_json_file(image_ids_file, list)]
    if None in ids:
        raise AnnotationError(f"{image_ids_file}: expected ids of images, found {show(ids)}")
    return {value for value in ids if value is not None}


def _add_boxes(records: Mapping[int, dict], boxes_file: str, report: SkipReport) -> None:
    """Put the boxes of questions and answers into the dataset dicts; a question without a line has none."""
    for record in records.values():
        record["annotations"] = []
    for number, (_, line) in enumerate(read_lines(boxes_file), 1):
        if not line.strip():
            continue
        report.count("lines")
        where = f"{boxes_file}: line {number}"
        try:
            content = parse_line(line)
            question_id = read_integer(content, "question_id")
            if question_id not in records:
                continue  # A question of another part of the data.
            record = records[question_id]
            if content.get("question") != record["question"]:
                found = f"expected {show(record['question'])}, found {show(content.get('question'))}"
                raise EntryError(f"question: {found}", "boxes of another question")
            record["height"], record["width"] = read_image_size(content)
            record["annotations"] = report.keep("boxes", where, *read_question_boxes(content, record["question"]))
        except EntryError as error:
            report.skip("lines", where, error)


def _ground(record: Mapping[str, Any], boxes: Mapping[str, list[Box]], finder: PhraseMentions) -> list[dict]:
    """Return the annotations of a question: the boxes of the things it mentions, and of its answer."""
    mentioned = finder(record["question"])
    answer = record["answers"][0].strip().lower() if record.get("answers") else None
    annotations = []
    for phrase, of_phrase in boxes.items():
        target: dict[str, Any] = {"bbox_mode": BoxMode.XYXY_ABS}
        if phrase in mentioned:
            target["tokens_positive"] = tuple(mentioned[phrase])
        if phrase == answer:
            target["answer_box"] = True
        if len(target) > 1:
            annotations += [{"bbox": box, **target} for box in of_phrase]
    return annotations
