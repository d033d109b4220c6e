"""The list of answers that visual questions are classified over, and how right each of them is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..errors import InputError
from .answer_normalization import normalize_answer

# Other annotators who have to say the same for full credit.
_AGREEING = 3
_KEY = "MODEL.GLIPV2.VQA.ANSWERS"


def agreement(matches: int, total: int) -> float:
    """Return how right an answer is that ``matches`` of ``total`` people gave, in [0, 1].

    It is the mean, over all ways to leave one of them out, of ``min(1, matches / 3)``: of ten people none, one, two,
    three, four or more give 0, 0.3, 0.6, 0.9 and 1. Up to three people cannot agree like this: there one is enough.

    Source: Antol et al., VQA, Sec. 3; the official evaluation.
    """
    if total <= _AGREEING:
        return float(matches > 0)
    left_out_match = matches * min(1.0, (matches - 1) / _AGREEING)
    left_out_other = (total - matches) * min(1.0, matches / _AGREEING)
    return (left_out_match + left_out_other) / total


class AnswerVocabulary:
    """A answers in the order of the classes.

    An answer that somebody gave is an entry of the list if their normal forms are equal, see ``normal_form``. Entries
    with the same normal form are right together.

    Args:
        answers: A >= 1 strings.
        source: Where they are from, for messages.
        counts: How many questions each is the answer of, if that is known.

    Attributes:
        frequencies: The share of the questions that has each answer, of those whose answer is in the list; None
            without ``counts``.

    Raises:
        InputError: There is none, one is blank or no string, one stands there twice, or a count is not a whole number
            from 1 on.
    """

    def __init__(self, answers: Sequence[str], source: str = _KEY, counts: Sequence[int] | None = None) -> None:
        if not answers:
            raise InputError(f"{source}: found no answer, expected at least one")
        self.answers = tuple(answers)
        self._rows: dict[str, list[int]] = {}
        first_row: dict[str, int] = {}
        for row, answer in enumerate(self.answers):
            if not isinstance(answer, str) or not answer.strip():
                raise InputError(f"{source}: answer {row} is {answer!r:.100}, expected a string that is not empty")
            if first_row.setdefault(answer, row) != row:
                raise InputError(f"{source}: answers {first_row[answer]} and {row} are both {answer!r}, expected one")
            self._rows.setdefault(normal_form(answer), []).append(row)
        for answer, count in zip(self.answers, counts or ()):
            if type(count) is not int or count < 1:
                raise InputError(f"{source}: {answer!r:.60}: expected a number of questions from 1 on, found {count!r}")
        self.frequencies = None if counts is None else tuple(count / sum(counts) for count in counts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> AnswerVocabulary:
        """Read the list of answers that a config names, see ``from_file``."""
        return cls.from_file(cfg.MODEL.GLIPV2.VQA.ANSWERS)

    @classmethod
    def from_file(cls, path: str) -> AnswerVocabulary:
        """Read a list of answers.

        It is a json object with the number of questions of each answer, a json list, or text with one answer a line,
        blank lines passed over.

        Args:
            path: Of the file; one that ends in ".json" holds json.

        Raises:
            InputError: The path is empty, the file is no text or no such json, or the answers are no vocabulary.
            FileNotFoundError: There is no such file.
        """
        if not path:
            raise InputError(f"{_KEY} is empty, expected the path of a list of answers (datasets/prepare_vqa.py)")
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"{_KEY}: {path} does not exist; datasets/prepare_vqa.py makes a list of answers")
        try:
            with PathManager.open(path, "r", encoding="utf-8") as file:
                text = file.read()
            # As pairs: of answers that stand there twice none is lost.
            content = json.loads(text, object_pairs_hook=tuple) if path.endswith(".json") else _lines(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {' '.join(str(error).split())}; expected a list of answers") from error
        if isinstance(content, tuple):
            return cls([answer for answer, _ in content], path, [count for _, count in content])
        if not isinstance(content, list):
            raise InputError(f"{path}: holds {content!r:.60}, expected a list of answers")
        return cls(content, path)

    def __len__(self) -> int:
        return len(self.answers)

    def rows_of(self, answer: str) -> tuple[int, ...]:
        """Return the rows of the entries that an answer is equal to; none if it is outside the list."""
        return tuple(self._rows.get(normal_form(answer), ()))

    def soft_scores(self, answers: Sequence[str]) -> Tensor:
        """Return how right each entry is for a question, (A,) float32 in [0, 1], by ``agreement``.

        Args:
            answers: What people answered, each one; those outside the list count among the people. All zero without an
                answer inside.
        """
        scores = torch.zeros(len(self.answers))
        counts = Counter(map(normal_form, answers))
        for form, matches in counts.items():
            scores[self._rows.get(form, [])] = agreement(matches, len(answers))
        return scores


def normal_form(answer: str) -> str:
    """Return the form in which an answer and the entries of a list are compared; empty for a blank one.

    That is ``normalize_answer``; of an answer that is made of articles or punctuation alone, as the "A" of a multiple
    choice, it is the lower case.
    """
    return normalize_answer(answer) or answer.strip().lower()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
