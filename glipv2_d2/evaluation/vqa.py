"""Accuracy of answers to visual questions, and the file that the server of VQA reads."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.dataset_mappers.vqa import answer_texts
from ..errors import InputError
from ..plurals import agreeing, counted, singular
from ..prompts.answer_normalization import normalize_answer
from ..prompts.answers import agreement
from .sample_evaluator import SampleEvaluator, by_id, percentage

QuestionId = int | str


def answer_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return how right an answer is by the official code, in [0, 1].

    It is the ``agreement`` of the references that say the same. Where all references are spelled the same, the answer
    has to be spelled so too; otherwise both sides are normalized first.

    Args:
        answer: Answer of the model, as it is.
        references: Answers of people, as they are, at least one.

    Raises:
        InputError: There is no reference.

    Source: Antol et al., VQA, Sec. 3; ``vqaEval.py`` of the official evaluation, ``evaluate``.
    """
    spellings = [_one_line(reference) for reference in references]
    if len(set(spellings)) == 1:
        return float(_one_line(answer) == spellings[0])
    return normalized_accuracy(answer, references)


def normalized_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return how right an answer is if both sides are always normalized, as the official description says, in [0, 1].

    Arguments and errors are those of ``answer_accuracy``.
    """
    if not references:
        raise InputError("references: expected at least one answer, found none")
    wanted = normalize_answer(answer)
    return agreement(sum(normalize_answer(reference) == wanted for reference in references), len(references))


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


class VQAResult(NamedTuple):
    """The answer to one question.

    Attributes:
        answer: Entry of the vocabulary.
        score: Score of the answer, in [0, 1].
        dropped: Numbers other than 0 of what the token limit has cut off, by their names in ``DroppedText``.
    """

    answer: str
    score: float
    dropped: Mapping[str, int]


class VQAEvaluator(SampleEvaluator[QuestionId, dict[str, Any], VQAResult]):
    """Accuracy of the answer with the highest score, the first of equally good ones.

    Results are ``{"vqa": {...}}``, all in 0..100: ``accuracy``, the mean of ``answer_accuracy`` over the questions that
    were processed, which is the official measure; ``accuracy_normalized``, the mean of ``normalized_accuracy``;
    ``upper_bound``, the ``accuracy`` if the model always chose the best answer of its vocabulary; and, where dataset
    dicts have an ``answer_type``, the ``accuracy`` of each type, as ``accuracy_yes/no``. Questions without ``answers``
    are answered and not judged. Results are empty if no question can be judged. One warning counts the
    questions that the token limit has cut off, and what was cut off.

    Two files are written: ``vqa_submission.json``, a list of ``{"question_id", "answer"}`` in the order of the dataset,
    and ``vqa_predictions.json``, which also has the score and, where it is known, the accuracy of each answer.

    Args:
        dataset_name, distributed, output_folder: See ``SampleEvaluator``.
        dataset_dicts: One dict of the contract for each question.
        answers: The vocabulary: A answers, in the order of the model's ``answer_scores``.

    Raises:
        InputError: The vocabulary is empty, or two questions have the same ``question_id``.
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
        if not answers:
            raise InputError(f"dataset {dataset_name!r}: expected answers in MODEL.GLIPV2.VQA.ANSWERS, found none")
        questions = by_id(dataset_name, dataset_dicts, "question_id", "question")
        super().__init__(dataset_name, questions, distributed=distributed, output_folder=output_folder)
        self._answers = list(answers)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the answers to some questions.

        Args:
            inputs: Model inputs with ``question_id`` and, of a question that was cut off, ``dropped``.
            outputs: Model outputs with ``answer_scores`` (A,) in [0, 1]; without them there is no answer, which is
                wrong.

        Raises:
            InputError: A question is not of the dataset, or its scores are not one number for each answer.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            question_id, scores = sample["question_id"], output.get("answer_scores")
            self.known(sample, "question_id")
            if scores is None:
                self._results.setdefault(question_id, VQAResult("", 0.0, {}))
                continue
            if tuple(scores.shape) != (len(self._answers),):
                raise InputError(
                    f"question_id {question_id!r}: expected answer_scores of shape ({len(self._answers)},), one for "
                    f"each answer of MODEL.GLIPV2.VQA.ANSWERS, found {tuple(scores.shape)}"
                )
            if scores.isnan().any():
                raise InputError(f"question_id {question_id!r}: expected answer_scores in [0, 1], found NaN")
            best = int((scores == scores.max()).nonzero()[0])
            result = VQAResult(self._answers[best], float(scores[best]), sample.get("dropped", {}))
            self._results.setdefault(question_id, result)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Judge the answers; empty on all processes but the first, and if there is nothing to judge."""
        if (found := self.gather(self._known)) is None:
            return OrderedDict()
        if len(found) < len(self._known):
            total = counted(len(self._known), "question")
            self._logger.warning("dataset %r: %d of %s processed", self._name, len(found), total)
        self._report_cut_off(found)
        references = {question_id: answer_texts(self._known[question_id]) for question_id in found}
        accuracies = {
            question_id: answer_accuracy(result.answer, references[question_id])
            for question_id, result in found.items()
            if references[question_id]
        }
        self._write(found, accuracies)
        if not accuracies:
            self._logger.warning(
                "dataset %r: none of %s has answers to judge by", self._name, counted(len(found), "question")
            )
            return OrderedDict()
        normalized = [normalized_accuracy(found[one].answer, references[one]) for one in accuracies]
        scores = self._scores(accuracies, normalized, references)
        self.log(counted(len(accuracies), "question"), scores)
        return OrderedDict(vqa=scores)

    def _report_cut_off(self, found: Mapping[QuestionId, VQAResult]) -> None:
        dropped = [result.dropped for result in found.values() if result.dropped]
        if not dropped:
            return
        counts: Counter[str] = Counter()
        for numbers in dropped:
            counts.update(numbers)
        self._logger.warning(
            "dataset %r: %d of %s %s MODEL.TEXT_ENCODER.MAX_TOKENS, cut off: %s",
            self._name,
            len(dropped),
            counted(len(found), "question"),
            agreeing(len(dropped), "passes", "pass"),
            ", ".join(counted(count, singular(name)) for name, count in counts.items()),
        )

    def _scores(
        self,
        accuracies: Mapping[QuestionId, float],
        normalized: Sequence[float],
        references: Mapping[QuestionId, Sequence[str]],
    ) -> dict[str, float]:
        entries: dict[str, list[str]] = {}
        for answer in self._answers:
            entries.setdefault(normalize_answer(answer), []).append(answer)
        best = {
            question_id: max(
                (
                    answer_accuracy(answer, references[question_id])
                    for form in {normalize_answer(reference) for reference in references[question_id]}
                    for answer in entries.get(form, ())
                ),
                default=0.0,
            )
            for question_id in accuracies
        }
        outside = sum(accuracy == 0 for accuracy in best.values())
        if outside:
            total, verb = counted(len(best), "question"), agreeing(outside, "has", "have")
            self._logger.info("dataset %r: %d of %s %s no answer in the vocabulary", self._name, outside, total, verb)
        by_type: dict[str, list[float]] = {}
        for question_id, accuracy in accuracies.items():
            kind = self._known[question_id].get("answer_type")
            if kind is not None:
                by_type.setdefault(f"accuracy_{kind}", []).append(accuracy)
        groups: dict[str, Collection[float]] = {
            "accuracy": accuracies.values(),
            "accuracy_normalized": normalized,
            "upper_bound": best.values(),
            **dict(sorted(by_type.items())),
        }
        return {name: percentage(sum(values), len(values)) for name, values in groups.items()}

    def _write(self, found: Mapping[QuestionId, VQAResult], accuracies: Mapping[QuestionId, float]) -> None:
        self.write(
            "vqa_submission.json",
            [{"question_id": question_id, "answer": result.answer} for question_id, result in found.items()],
        )
        self.write(
            "vqa_predictions.json",
            [
                {
                    "question_id": question_id,
                    "image_id": self._known[question_id].get("image_id"),
                    "question": self._known[question_id]["question"],
                    "answer": result.answer,
                    "score": result.score,
                    **({"accuracy": accuracies[question_id]} if question_id in accuracies else {}),
                }
                for question_id, result in found.items()
            ],
        )
