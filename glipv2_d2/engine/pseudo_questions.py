"""Pseudo boxes for questions: a teacher finds the things that a question and its answer name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..data.datasets.question_files import QuestionSample
from ..prompts.questions import names_something
from .pseudo_boxes import CaptionPhrases, PseudoBoxTask, PseudoBoxTeacher

# Answers that begin with one of these words name nothing that is there: "can't tell", "is blue", "no dog". They are
# compared without apostrophes, which many people leave out.
_AUXILIARIES = "is are was were do does did has have had could would should might must need".split()
_NEGATED = [f"{word}nt" for word in _AUXILIARIES]
_OTHERS = "be been being am can will shall may cannot cant wont shant aint no not never neither nor".split()
_NO_BEGINNINGS = frozenset((*_AUXILIARIES, *_NEGATED, *_OTHERS))
_FIRST_WORD = re.compile(r"\w[\w'’]*")
# Answers that read like nouns but do not name a thing.
_NO_THINGS = frozenset(
    """
    yes yeah yep no nope maybe true false sure unsure unknown unclear none nothing nobody nowhere neither nor
    """.split()
)
# From this intersection over union on, a box of the answer is one of the question: "which is larger, cat or dog?".
_SAME_BOX = 0.9


def read_question(teacher: PseudoBoxTeacher, sample: QuestionSample) -> CaptionPhrases | None:
    """Make a caption of a question with the answer behind it; None if neither has a noun phrase.

    The teacher looks for the phrases of both together. They are found in each text alone, so that no phrase reaches
    from the question into the answer. Phrases that name nothing when a question is answered ("what color", "the
    picture") are left out here too.

    Source: GLIPv2, Sec. 3.3: VQA becomes grounded by the boxes of entities of the question and of the answer.
    """
    begin = _answer_begin(sample)
    found = [(phrase, spans) for phrase, spans in teacher.finder.find(sample.question) if names_something(phrase)]
    if _may_be_thing(sample.answer):
        found += [
            (phrase, [(begin + first, begin + last) for first, last in spans])
            for phrase, spans in teacher.finder.find(sample.answer)
            if phrase.lower() not in _NO_THINGS
        ]
    return teacher.read_phrases(f"{sample.question} {sample.answer}", found)


def question_regions(sample: QuestionSample, regions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tell the boxes of the answer from those of the question.

    Args:
        sample: Its question with the answer behind it was the caption.
        regions: Regions of that caption, as ``regions_of`` writes them.

    Returns:
        Regions of the question with ``tokens_positive``, ranges of the question; regions of the answer with
        ``answer_box`` True instead. A box of the answer that is also a box of the question becomes one region with
        both keys and the lower of the two scores.
    """
    begin = _answer_begin(sample)
    of_question = [dict(region) for region in regions if region["tokens_positive"][0][0] < begin]
    of_answer = [region for region in regions if region["tokens_positive"][0][0] >= begin]
    overlaps = box_iou(_boxes_of(of_answer), _boxes_of(of_question))
    alone = []
    for region, row in zip(of_answer, overlaps, strict=True):
        if len(row) and row.max() >= _SAME_BOX:
            same = of_question[int(row.argmax())]
            same.update(answer_box=True, score=min(same["score"], region["score"]))
        else:
            fields = {key: value for key, value in region.items() if key != "tokens_positive"}
            alone.append({**fields, "answer_box": True})
    return of_question + alone


def question_content(sample: QuestionSample, regions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the record of a question holds beyond its image."""
    return {
        "question_id": sample.question_id,
        "question": sample.question,
        "answer": sample.answer,
        "regions": list(regions),
    }


def _may_be_thing(answer: str) -> bool:
    """Tell whether an answer does not begin with an auxiliary or a negation."""
    first = _FIRST_WORD.search(answer.lower())
    return first is None or re.sub("['’]", "", first.group()) not in _NO_BEGINNINGS


def _boxes_of(regions: Sequence[dict[str, Any]]) -> Tensor:
    """Return the boxes of M regions, (M, 4) float64 XYXY."""
    return torch.tensor([region["bbox"] for region in regions], dtype=torch.float64).view(-1, 4)


def _answer_begin(sample: QuestionSample) -> int:
    return len(sample.question) + 1


QUESTIONS = PseudoBoxTask("question", read_question, question_regions, question_content)
