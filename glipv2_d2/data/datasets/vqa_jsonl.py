"""Visual questions as json lines: what the generator of pseudo boxes reads, what it writes, or your own."""

from __future__ import annotations

import json
import os
from typing import Any

from .grounding_records import EntryError, read_file_name, read_image_size, read_text
from .registration import check_dataset_files
from .skip_report import SkipReport, read_lines
from .value_checks import AnnotationError, is_integer, show
from .vqa_records import question_record, read_answers, read_question_boxes, register_questions


def register_vqa_jsonl(
    name: str, jsonl_file: str | os.PathLike[str], image_root: str | os.PathLike[str], **metadata: Any
) -> None:
    """Register json lines of questions under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        jsonl_file: The questions.
        image_root: Directory that ``filename`` is relative to.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    register_questions(name, load_vqa_jsonl, {"jsonl_file": jsonl_file, "image_root": image_root}, metadata)


def load_vqa_jsonl(jsonl_file: str, image_root: str, name: str) -> list[dict]:
    """Read a registered dataset: one dataset dict for each line.

    A line has ``filename``, ``question``, and perhaps ``question_id``, by default the number of the line from 1;
    ``answer`` (one string) or ``answers``; ``height`` and ``width``; ``regions``, see ``read_question_boxes``. The
    dataset is one with boxes if a line has regions.

    What cannot be used is left out, and one warning counts it and names the first few: malformed or blank lines and
    questions, and malformed boxes.

    Returns:
        Dataset dicts in the order of the file; ``image_id`` is the ``filename``.

    Raises:
        FileNotFoundError: The file or the image directory does not exist.
        AnnotationError: Two questions have one id, or nothing is left.
    """
    check_dataset_files(name)
    report = SkipReport(jsonl_file)
    records: dict[int, dict] = {}
    for number, (_, line) in enumerate(read_lines(jsonl_file), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            record, left_out = _read_line(line, image_root, number)
        except (ValueError, RecursionError) as error:
            report.skip("lines", where, " ".join(str(error).split()))
            continue
        if record["question_id"] in records:
            found = f"{jsonl_file}: {where}: question_id is {record['question_id']}"
            raise AnnotationError(f"{found}, expected an id that no other question has")
        for reason in left_out:
            report.skip("boxes", where, reason)
        records[record["question_id"]] = record
    report.close(records, "lines with a filename and a question")
    if any("annotations" in record for record in records.values()):
        for record in records.values():
            record.setdefault("annotations", [])
    return list(records.values())


def _read_line(line: bytes, image_root: str, number: int) -> tuple[dict, list[str]]:
    """Return the dataset dict of a line, and a line for each box that was left out."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise EntryError(f"found {show(entry)}, expected an object")
    question_id = entry.get("question_id", number)
    if not is_integer(question_id):
        raise EntryError(f"question_id is {show(question_id)}, expected an integer")
    file_name, question = read_file_name(entry, "filename"), read_text(entry, "question")
    record = question_record(
        os.path.join(image_root, file_name),
        read_image_size(entry) if "height" in entry or "width" in entry else None,
        file_name,
        question=question,
        question_id=question_id,
        answers=read_answers([entry["answer"]] if "answer" in entry else entry.get("answers")),
        answer_type=entry.get("answer_type"),
    )
    left_out: list[str] = []
    if "regions" in entry:
        record["annotations"], left_out = read_question_boxes(entry, question)
    return record, left_out
