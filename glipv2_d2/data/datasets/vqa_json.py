"""Questions in json in COCO's format, with boxes of what they name: the demo data sets, or your own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.structures import BoxMode

from ...structures import CharSpan
from .grounding_records import EntryError, read_box, read_file_name, read_image_size, read_text
from .registration import check_dataset_files
from .skip_report import SkipReport, with_progress
from .value_checks import AnnotationError, is_integer, read_json_file, show
from .vqa_records import question_record, read_answers, register_questions


def register_vqa_json(
    name: str, json_file: str | os.PathLike[str], image_root: str | os.PathLike[str], **metadata: Any
) -> None:
    """Register questions about annotated images under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        json_file: Images with their questions, and annotations.
        image_root: Directory that ``file_name`` in the json is relative to.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    register_questions(name, load_vqa_json, {"json_file": json_file, "image_root": image_root}, metadata)


def load_vqa_json(json_file: str, image_root: str, name: str) -> list[dict]:
    """Read a registered dataset: one dataset dict for each question.

    An image has ``id``, ``file_name``, ``height``, ``width`` and perhaps ``questions``: objects with ``question``,
    ``question_id``, ``answer`` (one string) or ``answers`` (a list of strings, or of objects with ``answer``), and
    perhaps a ``type``. Without answers a question can be asked, but not learnt.

    Annotations are optional. One has ``image_id``, a box of left, top, width and height, and a ``phrase``, the name of
    what is in it. It is an annotation of each question of its image that mentions the phrase as whole words, and of
    each whose first answer is the phrase, both in any case. Where phrases overlap the longest is meant, also if it is
    one of another image: "orange" is no part of "mandarin orange".

    What cannot be used is left out, and one warning counts it and names the first few: malformed images, questions and
    annotations, blank questions, crowd regions, and boxes of at most one pixel.

    Returns:
        Dataset dicts in the order of the file, with ``question``, ``question_id``, ``answers`` and ``answer_type``
        where they are known, and, if the file has annotations, ``annotations`` with ``tokens_positive`` (ranges of the
        question), ``answer_box`` True, or both.

    Raises:
        FileNotFoundError: The file or the image directory does not exist.
        AnnotationError: The file is no such json, two images or two questions have one id, or nothing is left.
    """
    check_dataset_files(name)
    content = read_json_file(json_file)
    images, annotations = content.get("images"), content.get("annotations", [])
    for kind, entries in (("images", images), ("annotations", annotations)):
        if not isinstance(entries, list):
            raise AnnotationError(f"{json_file}: {kind} is {show(entries)}, expected a list")
    report = SkipReport(json_file)
    boxes = _read_boxes(annotations, _sizes(images), report)
    finder = PhraseMentions(phrase for of_image in boxes.values() for phrase in of_image)
    records: dict[int, dict] = {}
    image_ids: set[int] = set()
    for index, image in enumerate(with_progress(images, f"{json_file}: questions")):
        where = f"images[{index}]"
        try:
            image_id, path, size, questions = _read_image(image, image_root)
        except EntryError as error:
            report.skip("images", where, str(error))
            continue
        if image_id in image_ids:
            raise AnnotationError(f"{json_file}: {where}: id is {image_id}, expected an id that no other image has")
        image_ids.add(image_id)
        for place, entry in enumerate(questions):
            try:
                record = _read_question(entry, path, size, image_id)
            except EntryError as error:
                report.skip("questions", f"{where}.questions[{place}]", str(error))
                continue
            if record["question_id"] in records:
                found = f"{json_file}: {where}.questions[{place}]: question_id is {record['question_id']}"
                raise AnnotationError(f"{found}, expected an id that no other question has")
            if annotations:
                record["annotations"] = _ground(record, boxes.get(image_id, {}), finder)
            records[record["question_id"]] = record
    report.close(records, "questions")
    return list(records.values())


class PhraseMentions:
    """Finds known phrases in texts, as whole words in any case; where two overlap, the first, and then the longest."""

    def __init__(self, phrases: Iterable[str]):
        """
        Args:
            phrases: In lower case; there may be none.
        """
        longest_first = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
        choices = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE) if choices else None

    def __call__(self, text: str) -> dict[str, list[CharSpan]]:
        """Return for each phrase in a text, in lower case, the half-open character ranges where it stands."""
        found: dict[str, list[CharSpan]] = {}
        for match in self._pattern.finditer(text) if self._pattern else ():
            found.setdefault(match[0].lower(), []).append(match.span())
        return found


def _sizes(images: list) -> dict[int, list[int] | None]:
    """Return height and width for each image id, None where they cannot be used."""
    sizes: dict[int, list[int] | None] = {}
    for image in images:
        if isinstance(image, dict) and is_integer(image.get("id")):
            try:
                sizes[image["id"]] = read_image_size(image)
            except EntryError:
                sizes[image["id"]] = None
    return sizes


def _read_boxes(
    annotations: list, sizes: Mapping[int, list[int] | None], report: SkipReport
) -> dict[int, dict[str, list[tuple[float, ...]]]]:
    """Return for each image id the boxes of each phrase, in lower case."""
    boxes: dict[int, dict[str, list[tuple[float, ...]]]] = {}
    for index, item in enumerate(annotations):
        try:
            if not isinstance(item, dict):
                raise EntryError(f"found {show(item)}, expected an object")
            image_id = item.get("image_id")
            if not is_integer(image_id) or image_id not in sizes:
                raise EntryError(f"image_id is {show(image_id)}, expected an id that stands in images")
            if item.get("iscrowd", 0) not in (0, False):
                raise EntryError(f"iscrowd is {show(item['iscrowd'])}, expected 0")
            size = sizes[image_id]
            if size is None:
                continue  # Its image is left out and counted.
            phrase = read_text(item, "phrase").strip().lower()
            box = read_box(item.get("bbox"), *size, has_sides=True)
        except EntryError as error:
            report.skip("annotations", f"annotations[{index}]", str(error))
            continue
        boxes.setdefault(image_id, {}).setdefault(phrase, []).append(box)
    return boxes


def _read_image(image: Any, image_root: str) -> tuple[int, str, list[int], list]:
    """Return id, path, size and questions."""
    if not isinstance(image, dict) or not is_integer(image.get("id")):
        raise EntryError(f"found {show(image)}, expected an object with an integer as id")
    questions = image.get("questions", [])
    if not isinstance(questions, list):
        raise EntryError(f"questions is {show(questions)}, expected a list")
    path = os.path.join(image_root, read_file_name(image, "file_name"))
    return image["id"], path, read_image_size(image), questions


def _read_question(entry: Any, path: str, size: list[int], image_id: int) -> dict:
    if not isinstance(entry, dict) or not is_integer(entry.get("question_id")):
        raise EntryError(f"found {show(entry)}, expected an object with an integer as question_id")
    answers = read_answers([entry["answer"]] if "answer" in entry else entry.get("answers"))
    return question_record(
        path,
        size,
        image_id,
        question=read_text(entry, "question"),
        question_id=entry["question_id"],
        answers=answers,
        answer_type=entry.get("type"),
    )


def _ground(record: dict, boxes: Mapping[str, list[tuple[float, ...]]], finder: PhraseMentions) -> list[dict]:
    """Return the annotations of a question: the boxes of what it mentions, and of its answer."""
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
