"""Questions about images with their answers but without boxes: jsonl files and the two files of VQAv2, in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

from .caption_files import JsonlCaptions, SkippedCaption, what_is_wrong
from .value_checks import AnnotationError, is_integer, read_json_file, show, stays_inside

# As the images of COCO 2014, which VQAv2 asks about, are called.
_COCO_IMAGE_NAME = "COCO_{subtype}_{{:012d}}.jpg"


class QuestionSample(NamedTuple):
    """A question about an image, and its answer.

    Attributes:
        name: Where it was found, for messages.
        key: Unique in its piece.
        file_name: Path of the image below the image folder.
        question_id: Unique in the file, if the file says so.
        question: Text that can be tokenized and written, not blank.
        answer: Likewise.
        image: None, since the image is a file of its own.
    """

    name: str
    key: str
    file_name: str
    question_id: int
    question: str
    answer: str
    image: None = None


class JsonlQuestions(JsonlCaptions):
    """Lines ``{"filename": ..., "question": ..., "answer": ..., "question_id": ...}`` in pieces of equal length.

    Without a ``question_id`` it is the number of the line, from 1. Otherwise as ``JsonlCaptions``.
    """

    _content = "a filename, a question and an answer"

    def _make_sample(self, name: str, content: dict[str, Any], number: int) -> QuestionSample | SkippedCaption:
        question_id = content.get("question_id", number + 1)
        if not is_integer(question_id):
            return SkippedCaption(name, "question_id that is no integer")
        texts = content.get("question"), content.get("answer")
        return _check_texts(QuestionSample(name, f"{number:09d}", content["filename"], question_id, *texts))


class VQAQuestions:
    """The questions of a split of VQAv2 with the answer that most people gave, in pieces of equal length.

    Args:
        questions_file: Json with ``questions``, objects with ``question_id``, ``image_id`` and ``question``, and
            perhaps ``data_subtype``, the split of COCO that the images are of.
        annotations_file: Json with ``annotations``, objects with ``question_id`` and ``multiple_choice_answer``.
        image_names: Path of the image below the image folder, with a place for its id as Python's ``format`` has it;
            by default "COCO_train2014_{:012d}.jpg" with the split of the questions.
        piece_size: Questions in a piece.

    Raises:
        FileNotFoundError: A file is missing.
        AnnotationError: A file is no such json, or holds nothing.
        ValueError: ``image_names`` has no place for the id, or leaves the image folder.
    """

    holds_images = False

    def __init__(self, questions_file: str, annotations_file: str, image_names: str | None, piece_size: int) -> None:
        self.piece_size = piece_size
        content = read_json_file(questions_file)
        self._questions = _read_list(content, "questions", questions_file)
        annotations = _read_list(read_json_file(annotations_file), "annotations", annotations_file)
        self._answers = {
            item["question_id"]: item.get("multiple_choice_answer")
            for item in annotations
            if isinstance(item, dict) and is_integer(item.get("question_id"))
        }
        subtype = content.get("data_subtype")
        if image_names is None and not isinstance(subtype, str):
            raise AnnotationError(
                f"{questions_file}: data_subtype is {show(subtype)}, expected the split of the images, or --image-names"
            )
        self._image_names = image_names or _COCO_IMAGE_NAME.format(subtype=subtype)
        _check_image_names(self._image_names)
        self.files = [PathManager.get_local_path(file) for file in (questions_file, annotations_file)]
        self.num_lines = len(self._questions)

    def __len__(self) -> int:
        return -(-self.num_lines // self.piece_size)

    def read(self, piece: int) -> Iterator[QuestionSample | SkippedCaption]:
        """Yield the questions of a piece."""
        first = piece * self.piece_size
        for number, entry in enumerate(self._questions[first : first + self.piece_size], first):
            yield self._read_question(entry, number)

    def _read_question(self, entry: Any, number: int) -> QuestionSample | SkippedCaption:
        name = f"questions[{number}]"
        if not isinstance(entry, dict):
            return SkippedCaption(name, "question that is no object")
        question_id, image_id = entry.get("question_id"), entry.get("image_id")
        if not is_integer(question_id) or not is_integer(image_id):
            return SkippedCaption(name, "question_id or image_id that is no integer")
        file_name = self._image_names.format(image_id)
        texts = entry.get("question"), self._answers.get(question_id)
        return _check_texts(QuestionSample(name, f"{number:09d}", file_name, question_id, *texts))


def open_questions(
    path: str, annotations_file: str | None, image_names: str | None, piece_size: int
) -> JsonlQuestions | VQAQuestions:
    """Open questions: with an annotations file those of VQAv2, else a jsonl file.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is empty or of another form; ``image_names`` is given for jsonl, or cannot be used.
    """
    for file in filter(None, (path, annotations_file)):
        if not os.path.isfile(PathManager.get_local_path(file)):
            raise FileNotFoundError(f"questions: there is no file {file}")
    if annotations_file is not None:
        return VQAQuestions(path, annotations_file, image_names, piece_size)
    if path.endswith(".json"):
        raise ValueError(f"--annotations: expected the file with the answers to the questions of {path}, found none")
    if image_names is not None:
        raise ValueError(f"--image-names: expected none with jsonl, whose lines name the image, found {image_names!r}")
    return JsonlQuestions(path, piece_size)


def _check_texts(sample: QuestionSample) -> QuestionSample | SkippedCaption:
    for field in ("question", "answer"):
        text = getattr(sample, field)
        reason = what_is_wrong(text, field, sample.file_name)
        if reason is None and not text.strip():
            reason = f"no {field}"
        if reason is not None:
            return SkippedCaption(sample.name, reason)
    return sample


def _read_list(content: dict[str, Any], field: str, file: str) -> list[Any]:
    entries = content.get(field)
    if not isinstance(entries, list) or not entries:
        raise AnnotationError(f"{file}: {field} is {show(entries)}, expected a list that is not empty")
    return entries


def _check_image_names(image_names: str) -> None:
    try:
        has_place = image_names.format(1) != image_names.format(2)
    except (LookupError, ValueError, AttributeError, TypeError):
        has_place = False
    if not has_place:
        raise ValueError(
            f"--image-names: expected one place for the id, as in COCO_train2014_{{:012d}}.jpg, found {image_names!r}"
        )
    if not stays_inside(image_names):
        raise ValueError(f"--image-names: expected a path inside the folder of the images, found {image_names!r}")
