"""Questions about images with their answers but without boxes: jsonl files and the two files of VQAv2, in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

from ...errors import InputError
from .caption_files import JsonlCaptions, SkippedCaption, why_unusable
from .questions import image_finder, read_vqa_annotations
from .value_checks import (
    AnnotationError,
    EntryError,
    as_integer,
    list_of,
    read_integer,
    read_json_file,
    read_object,
)


class QuestionSample(NamedTuple):
    """A question about an image, and its answer.

    Attributes:
        name: Where it was found, for messages.
        key: Unique in its piece.
        file_name: Path of the image below the image folder.
        question_id: Unique in a proper file.
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
        question_id = as_integer(content.get("question_id", number + 1))
        if question_id is None:
            return SkippedCaption(name, "question_id that is not an integer")
        texts = content.get("question"), content.get("answer")
        return _check_texts(name, number, content["filename"], question_id, *texts)


class VQAQuestions:
    """The questions of a split of VQAv2 with the answer that most people gave, in pieces of equal length.

    Args:
        questions_file: Json with ``questions``, objects with ``question_id``, ``image_id`` and ``question``, and
            perhaps ``data_subtype``, the split of COCO that the images are of.
        annotations_file: Json with ``annotations``, objects with ``question_id`` and ``multiple_choice_answer``.
        images_file: Json in COCO's format with the paths of the images; without it they are made of the split of the
            questions, as "COCO_train2014_000000000009.jpg".
        piece_size: Questions in a piece.

    Raises:
        FileNotFoundError: A file is missing.
        AnnotationError: A file cannot be used, or holds nothing.
    """

    holds_images = False

    def __init__(self, questions_file: str, annotations_file: str, images_file: str | None, piece_size: int) -> None:
        self.piece_size = piece_size
        content = read_json_file(questions_file)
        self._questions = list_of(content, "questions", questions_file)
        if not self._questions:
            raise AnnotationError(f"{questions_file}: questions: expected at least one, found []")
        self._annotations = read_vqa_annotations(annotations_file)
        if not self._annotations:
            raise AnnotationError(f"{annotations_file}: annotations: expected answers to questions, found none")
        self._find_image = image_finder(questions_file, content, images_file)
        files = (questions_file, annotations_file, images_file)
        self.files = [PathManager.get_local_path(file) for file in files if file is not None]
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
        try:
            question_id, image_id = read_integer(read_object(entry), "question_id"), read_integer(entry, "image_id")
            file_name, _ = self._find_image(image_id)
        except EntryError as error:
            return SkippedCaption(name, error.kind)
        answer = self._annotations.get(question_id, {}).get("multiple_choice_answer")
        return _check_texts(name, number, file_name, question_id, entry.get("question"), answer)


def open_questions(
    path: str, annotations_file: str | None, images_file: str | None, piece_size: int
) -> JsonlQuestions | VQAQuestions:
    """Open questions: with an annotations file those of VQAv2, else a jsonl file.

    Raises:
        FileNotFoundError: A file is missing.
        InputError: A file is empty or of another form, or ``images_file`` is given for jsonl.
    """
    for file in filter(None, (path, annotations_file, images_file)):
        if not os.path.isfile(PathManager.get_local_path(file)):
            raise FileNotFoundError(f"questions: there is no file {file}")
    if annotations_file is not None:
        return VQAQuestions(path, annotations_file, images_file, piece_size)
    if path.endswith(".json"):
        raise InputError(f"--annotations: expected the file with the answers to the questions of {path}, found none")
    if images_file is not None:
        raise InputError(f"--images-file: expected none with jsonl, whose lines name the image, found {images_file}")
    return JsonlQuestions(path, piece_size)


def _check_texts(
    name: str, number: int, file_name: str, question_id: int, question: Any, answer: Any
) -> QuestionSample | SkippedCaption:
    for field, text in (("question", question), ("answer", answer)):
        reason = why_unusable(text, field, file_name)
        if reason is None and not text.strip():
            reason = f"no {field}"
        if reason is not None:
            return SkippedCaption(name, reason)
    return QuestionSample(name, f"{number:09d}", file_name, question_id, question, answer)
