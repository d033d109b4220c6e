"""Questions about images with their answers but without boxes: jsonl files and the two files of VQAv2, in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

from ...errors import InputError
from .caption_files import JsonlCaptions, SkippedCaption, what_is_wrong
from .coco_images import read_coco_images
from .value_checks import AnnotationError, is_integer, is_text, read_json_file, show, stays_inside


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
        images_file: Json in COCO's format with the paths of the images; without it they are made of the split of the
            questions, as "COCO_train2014_000000000009.jpg".
        piece_size: Questions in a piece.

    Raises:
        FileNotFoundError: A file is missing.
        AnnotationError: A file is no such json, or holds nothing.
    """

    holds_images = False

    def __init__(self, questions_file: str, annotations_file: str, images_file: str | None, piece_size: int) -> None:
        self.piece_size = piece_size
        content = read_json_file(questions_file)
        self._questions = _read_list(content, "questions", questions_file)
        annotations = _read_list(read_json_file(annotations_file), "annotations", annotations_file)
        self._answers = {
            item["question_id"]: item.get("multiple_choice_answer")
            for item in annotations
            if isinstance(item, dict) and is_integer(item.get("question_id"))
        }
        self._subtype = content.get("data_subtype")
        self._images = None if images_file is None else read_coco_images([images_file])
        if self._images is None and not (is_text(self._subtype) and stays_inside(f"COCO_{self._subtype}_")):
            raise AnnotationError(
                f"{questions_file}: data_subtype is {show(self._subtype)}, expected the split of the images; "
                f"or --images-file"
            )
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
        if not isinstance(entry, dict):
            return SkippedCaption(name, "question that is no object")
        question_id, image_id = entry.get("question_id"), entry.get("image_id")
        if not is_integer(question_id) or not is_integer(image_id):
            return SkippedCaption(name, "question_id or image_id that is no integer")
        if self._images is None:
            file_name = f"COCO_{self._subtype}_{image_id:012d}.jpg"
        elif image_id in self._images:
            file_name = self._images[image_id].file_name
        else:
            return SkippedCaption(name, "image_id that is not in the images file")
        texts = entry.get("question"), self._answers.get(question_id)
        return _check_texts(QuestionSample(name, f"{number:09d}", file_name, question_id, *texts))


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
