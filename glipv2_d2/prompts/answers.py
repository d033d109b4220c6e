"""The list of answers that the model chooses from, and the scores of the answers to a question."""

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

# Number of other annotators who have to agree for full credit.
_AGREEING = 3
_KEY = "MODEL.GLIPV2.VQA.ANSWERS"


def agreement(matches: int, total: int) -> float:
    """Return the score, in [0, 1], of an answer that ``matches`` of ``total`` people gave.

    It is the mean of ``min(1, matches / 3)`` over all ways to leave one person out. With ten people, 0, 1, 2, 3, and 4
    or more matches give 0, 0.3, 0.6, 0.9 and 1. With at most three people one match is enough.

    Source: Antol et al., VQA, Sec. 3; the official evaluation.
    """
    if total <= _AGREEING:
        return float(matches > 0)
    left_out_match = matches * min(1.0, (matches - 1) / _AGREEING)
    left_out_other = (total - matches) * min(1.0, matches / _AGREEING)
    return (left_out_match + left_out_other) / total


class AnswerVocabulary:
    """A answers in the order of the classes.

    A given answer matches an entry of the list if their normal forms are equal, see ``normal_form``. Entries with the
    same normal form match together.

    Args:
        answers: A >= 1 strings.
        source: Origin of the answers, for messages.
        counts: Number of questions that each answer belongs to, if known.

    Attributes:
        frequencies: For each answer its share of the questions whose answer is in the list; None without ``counts``.

    Raises:
        InputError: The list is empty, an answer is blank, not a string, or listed twice, or a count is not a positive
            integer.
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
        # Without counts there is nothing to check.
        for answer, count in zip(self.answers, counts or (), strict=counts is not None):
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

        The file is a json object with the number of questions of each answer, a json list, or text with one answer on
        each line; blank lines are ignored.

        Args:
            path: Path of the file; a file that ends in ".json" holds json.

        Raises:
            InputError: The path is empty, the file is not text or not such a json, or the answers are not as above.
            FileNotFoundError: There is no such file.
        """
        if not path:
            raise InputError(f"{_KEY} is empty, expected the path of a list of answers (datasets/prepare_vqa.py)")
        if not PathManager.isfile(path):
            raise FileNotFoundError(
                f"{_KEY}: expected a list of answers, found no file {path}; name the one that datasets/prepare_vqa.py "
                f"has made and said"
            )
        try:
            with PathManager.open(path, "r", encoding="utf-8-sig") as file:
                text = file.read()
            # Pairs, so that an answer listed twice is noticed.
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

    def soft_scores(self, answers: Sequence[str]) -> Tensor:
        """Return the score of each entry for a question, (A,) float32 in [0, 1], by ``agreement``.

        Args:
            answers: The answer of each person, including answers outside the list. If all of them are outside, all
                scores are 0.
        """
        scores = torch.zeros(len(self.answers))
        counts = Counter(map(normal_form, answers))
        for form, matches in counts.items():
            scores[self._rows.get(form, [])] = agreement(matches, len(answers))
        return scores


def normal_form(answer: str) -> str:
    """Return the form in which an answer and the entries of a list are compared; empty for a blank one.

    This is ``normalize_answer``. An answer of articles or punctuation alone, such as the "A" of a multiple choice, is
    only put into lower case.
    """
    return normalize_answer(answer) or answer.strip().lower()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
