"""Accuracy of answers to visual questions, and the file that the server of VQA reads."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..errors import InputError
from ..prompts.answer_normalization import normalize_answer
from ..prompts.answers import agreement
from .gathering import GatheringEvaluator

QuestionId = int | str


def answer_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return how right an answer is, in [0, 1]: the ``agreement`` of the references that say the same.

    Args:
        answer: As the model gave it; both sides are normalized.
        references: What people answered, at least one.

    Raises:
        InputError: There is no reference.

    Source: Antol et al., VQA, Sec. 3; the official evaluation. That does not normalize anything where all references
    are spelled the same; here, as its description says, both sides always are.
    """
    if not references:
        raise InputError("references: found none, expected at least one answer")
    wanted = normalize_answer(answer)
    return agreement(sum(normalize_answer(reference) == wanted for reference in references), len(references))


class VQAResult(NamedTuple):
    """The answer to one question.

    Attributes:
        question_id: Of the question.
        answer: Of the vocabulary.
        score: Of the answer, in [0, 1].
        dropped: What the token limit has cut off, numbers of ``DroppedText`` by their names; those that are 0 are not
            there.
    """

    question_id: QuestionId
    answer: str
    score: float
    dropped: Mapping[str, int]


class VQAEvaluator(GatheringEvaluator):
    """Accuracy of the answer with the highest score, the first of equally good ones.

    ``accuracy``, the mean of ``answer_accuracy`` over the questions that were processed; ``upper_bound``, the same if
    the model chose the best answer of its vocabulary every time; and, where dataset dicts have an ``answer_type``, the
    accuracy of each type, as ``accuracy_yes/no``. All are in 0..100; results are ``{"vqa": {...}}``. Questions without
    ``answers`` are answered and not judged; if there are no others, results are empty. One warning counts the questions
    that the token limit has cut off, with what was cut off.

    Two files are written: ``vqa_submission.json``, a list of ``{"question_id", "answer"}`` in the order of the dataset,
    and ``vqa_predictions.json``, which also has the score and, where it is known, the accuracy of each answer.

    Args:
        dataset_name: For messages.
        dataset_dicts: One for each question, as the contract describes them.
        answers: The vocabulary: A answers, in the order of the model's ``answer_scores``.
        distributed: Collect the answers of all processes; the first of them judges.
        output_folder: None: no file is written.

    Raises:
        InputError: The vocabulary is empty, or a ``question_id`` stands there twice.
    """

    def __init__(
        self,
        dataset_name: str,
        dataset_dicts: Sequence[dict[str, Any]],
        answers: Sequence[str],
        *,
        distributed: bool = True,
        output_folder: str | None = None,
    ) -> None:
        super().__init__(distributed)
        if not answers:
            raise InputError(f"dataset {dataset_name!r}: found an empty vocabulary, expected MODEL.GLIPV2.VQA.ANSWERS")
        self._questions = {item["question_id"]: item for item in dataset_dicts}
        if len(self._questions) < len(dataset_dicts):
            found = f"{len(dataset_dicts)} questions with {len(self._questions)} different question_id"
            raise InputError(f"dataset {dataset_name!r}: {found}, expected one for each question")
        self._name, self._answers = dataset_name, list(answers)
        self._output_folder = output_folder

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the answers to some questions.

        Args:
            inputs: Model inputs with ``question_id`` and, of a question that was cut off, ``dropped``.
            outputs: Model outputs with ``answer_scores`` (A,).

        Raises:
            InputError: A question is not of the dataset, or its scores are not one number for each answer.
        """
        for sample, output in zip(inputs, outputs):
            question_id, scores = sample["question_id"], output["answer_scores"]
            if question_id not in self._questions:
                raise InputError(f"question_id {question_id!r}: expected one of the dataset {self._name!r}")
            if tuple(scores.shape) != (len(self._answers),):
                raise InputError(
                    f"question_id {question_id!r}: answer_scores has shape {tuple(scores.shape)}, expected "
                    f"({len(self._answers)},), one for each answer of MODEL.GLIPV2.VQA.ANSWERS"
                )
            if scores.isnan().any():
                raise InputError(f"question_id {question_id!r}: answer_scores holds NaN, expected numbers in [0, 1]")
            best = int((scores == scores.max()).nonzero()[0])
            dropped = sample.get("dropped", {})
            self._results.append(VQAResult(question_id, self._answers[best], float(scores[best]), dropped))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Judge the answers; empty on all processes but the first, and if there is nothing to judge."""
        if (results := self.gather()) is None:
            return OrderedDict()
        # A question that two processes had counts once. Sums depend on their order: this is that of the dataset.
        found = {result.question_id: result for result in reversed(results)}
        found = {question_id: found[question_id] for question_id in self._questions if question_id in found}
        logger = logging.getLogger(__name__)
        if len(found) < len(self._questions):
            logger.warning(
                "dataset %r: %d of %d questions were processed", self._name, len(found), len(self._questions)
            )
        self._report_cut_off(found)
        references = {question_id: _references(self._questions[question_id]) for question_id in found}
        accuracies = {
            question_id: answer_accuracy(result.answer, references[question_id])
            for question_id, result in found.items()
            if references[question_id]
        }
        if self._output_folder:
            self._write(found, accuracies)
        if not accuracies:
            logger.warning("dataset %r: none of %d questions has answers to judge by", self._name, len(found))
            return OrderedDict()
        scores = self._scores(accuracies, references)
        logger.info("dataset %r, %d questions:\n%s", self._name, len(accuracies), create_small_table(scores))
        return OrderedDict(vqa=scores)

    def _report_cut_off(self, found: Mapping[QuestionId, VQAResult]) -> None:
        dropped = [result.dropped for result in found.values() if result.dropped]
        if not dropped:
            return
        counts: Counter[str] = Counter()
        for one in dropped:
            counts.update(one)
        logging.getLogger(__name__).warning(
            "dataset %r: %d of %d questions pass MODEL.TEXT_ENCODER.MAX_TOKENS, cut off: %s",
            self._name,
            len(dropped),
            len(found),
            ", ".join(f"{count} {name}" for name, count in counts.items()),
        )

    def _scores(
        self, accuracies: Mapping[QuestionId, float], references: Mapping[QuestionId, Sequence[str]]
    ) -> dict[str, float]:
        vocabulary = set(map(normalize_answer, self._answers))
        best = {
            question_id: max(
                (
                    answer_accuracy(answer, references[question_id])
                    for answer in {normalize_answer(reference) for reference in references[question_id]} & vocabulary
                ),
                default=0.0,
            )
            for question_id in accuracies
        }
        outside = sum(accuracy == 0 for accuracy in best.values())
        if outside:
            logging.getLogger(__name__).info(
                "dataset %r: %d of %d questions have no answer in the vocabulary", self._name, outside, len(best)
            )
        scores = {"accuracy": _percentage(accuracies.values()), "upper_bound": _percentage(best.values())}
        types = {question_id: self._questions[question_id].get("answer_type") for question_id in accuracies}
        for kind in sorted({kind for kind in types.values() if kind is not None}):
            chosen = [accuracy for question_id, accuracy in accuracies.items() if types[question_id] == kind]
            scores[f"accuracy_{kind}"] = _percentage(chosen)
        return scores

    def _write(self, found: Mapping[QuestionId, VQAResult], accuracies: Mapping[QuestionId, float]) -> None:
        submission = [{"question_id": result.question_id, "answer": result.answer} for result in found.values()]
        predictions = [
            {
                "question_id": question_id,
                "image_id": self._questions[question_id].get("image_id"),
                "question": self._questions[question_id]["question"],
                "answer": result.answer,
                "score": result.score,
                **({"accuracy": accuracies[question_id]} if question_id in accuracies else {}),
            }
            for question_id, result in found.items()
        ]
        PathManager.mkdirs(self._output_folder)
        for file_name, content in (("vqa_submission.json", submission), ("vqa_predictions.json", predictions)):
            with PathManager.open(os.path.join(self._output_folder, file_name), "w") as file:
                json.dump(content, file)


def _references(question: Mapping[str, Any]) -> list[str]:
    """Return what people answered; empty for a question of a test set."""
    answers = question.get("answers") or ()
    return [answer if isinstance(answer, str) else answer["answer"] for answer in answers]


def _percentage(values: Collection[float]) -> float:
    return 100.0 * sum(values) / len(values)
