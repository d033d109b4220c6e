"""Questions about images: the question is the prompt, and the answers of people are the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Instances

from ...prompts.answers import AnswerVocabulary
from ...prompts.flip_words import swap_left_right
from ...prompts.questions import question_prompt, question_to_answer
from .base import PromptDatasetMapper, PromptedBoxes, boxes_to_train_on, image_of
from .grounding import distinct_phrases, mirror_text, num_tokens_cut_off


class VQADatasetMapper(PromptDatasetMapper):
    """Make model inputs from images with a question.

    They have ``task`` "vqa" and, at test time, ``question_id``; in training ``question_ids`` and ``answer_scores``,
    (Q, A) in [0, 1]. A question none of whose answers is in the list has zeros only, and is counted under ``dropped``
    as ``questions_without_answers``.

    A grounded question ends with the mask token. In training its boxes belong to character ranges of the question, to
    the answer, or to both; samples of a dataset without boxes, and plain ones, have no ``instances``. At test time its
    phrases are its noun phrases and the answer.

    What the token limit cuts off is counted under ``dropped`` at test time too, as ``tokens`` and ``phrases``.

    A dataset dict of ``questions_by_image`` stands for all questions of its image. Its sample has a prompt for each of
    the Q that are chosen.

    Source: GLIPv2, App. D.2.
    """

    task = "vqa"
    targets = ("answers",)
    learns_boxes_alone = False
    config_node = "VQA"

    @configurable
    def __init__(
        self,
        *,
        answers: AnswerVocabulary,
        grounded: bool,
        min_score: float = 0.0,
        questions_per_image: int = 1,
        **options,
    ):
        """
        Args:
            answers: The list of answers.
            grounded: See MODEL.GLIPV2.VQA.GROUNDED.
            min_score: See INPUT.PROMPT.MIN_PSEUDO_SCORE.
            questions_per_image: The most questions that are chosen for an image.
            options: Arguments of ``PromptDatasetMapper``.

        Raises:
            ValueError: Questions are to be grounded, but the tokenizer has no mask token.
        """
        super().__init__(**options)
        self.questions_per_image = questions_per_image
        self.answers = answers
        self.grounded = grounded
        self.min_score = min_score
        if grounded:
            _ = self.tokenizer.mask_id  # An error here is one line before the first step, not one of a worker.

    @classmethod
    def own_options(cls, cfg: CfgNode, dataset_names: Sequence[str]) -> dict[str, Any]:
        """Read the list of answers and the settings of the questions."""
        return {
            "answers": AnswerVocabulary.from_config(cfg),
            "grounded": cfg.MODEL.GLIPV2.VQA.GROUNDED,
            "min_score": cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE,
            "questions_per_image": cfg.INPUT.QUESTIONS_PER_IMAGE,
        }

    def training_sample(
        self, dataset_dict: dict, image_sample: dict, transforms: T.TransformList, rng: np.random.Generator
    ) -> dict:
        """Add a question to its image, or some of the questions of a dict that has ``questions``."""
        if "questions" not in dataset_dict:
            return super().training_sample(dataset_dict, image_sample, transforms, rng)
        chosen = rng.permutation(len(dataset_dict["questions"]))[: self.questions_per_image]
        of_image = {key: value for key, value in dataset_dict.items() if key != "questions"}
        samples = []
        dropped: Counter[str] = Counter()
        for row in chosen:
            question = {**of_image, **dataset_dict["questions"][row]}
            samples.append(super().training_sample(question, image_sample, transforms, rng))
            dropped.update(samples[-1].pop("dropped", {}))
        return {**_with_all_questions(samples), **({"dropped": dict(dropped)} if dropped else {})}

    def test_sample(self, dataset_dict: dict) -> dict:
        """Make a model input whose one prompt is the question."""
        asked = question_to_answer(dataset_dict["question"], self.tokenizer, grounded=self.grounded)
        sample = {**self.test_image(dataset_dict), "task": self.task, "question_id": dataset_dict["question_id"]}
        sample["prompts"] = [asked.prompt]
        counts = {"tokens": asked.num_lost_tokens, "phrases": len(asked.lost_phrases)}
        dropped = {key: number for key, number in counts.items() if number}
        return {**sample, "dropped": dropped} if dropped else sample

    def training_target(self, dataset_dict: dict, rng: np.random.Generator) -> PromptedBoxes:
        """Make the question a prompt whose phrases are those of the boxes; crowd regions are never targets."""
        annotations = boxes_to_train_on(dataset_dict, self.min_score) if self.grounded else []
        phrases, rows = distinct_phrases(annotations)
        question = dataset_dict["question"]
        prompt = question_prompt(
            question,
            self.tokenizer,
            [spans for spans, _ in phrases],
            names_answer=[names_answer for _, names_answer in phrases],
            # Even without boxes: the model always reads the question as it does at test time.
            with_mask=self.grounded,
        )
        # Phrases of a sentence belong to no category.
        prompt.category_ids.fill_(-1)
        num_lost = num_tokens_cut_off(question, prompt, self.tokenizer, num_added=int(self.grounded))
        return PromptedBoxes.with_tokens(prompt, annotations, rows, num_lost)

    def mirrored(self, dataset_dict: dict) -> dict:
        """Return a dataset dict with "left" and "right" swapped in its question and in the answers."""
        answers = [swap_left_right(answer, [])[0] for answer in answer_texts(dataset_dict)]
        return {**mirror_text(dataset_dict, "question"), "answers": answers}

    def completed(self, sample: dict, dataset_dict: dict) -> dict:
        """Return a sample with ``task``, ``question_ids`` and the scores of the answers."""
        sample = {**sample, "task": self.task, "question_ids": [dataset_dict["question_id"]]}
        sample["answer_scores"] = self.answers.soft_scores(answer_texts(dataset_dict)).unsqueeze(0)
        if not sample["answer_scores"].any():
            sample["dropped"] = {**sample.get("dropped", {}), "questions_without_answers": 1}
        if not self.grounded or "annotations" not in dataset_dict:
            del sample["instances"]
        return sample


def _with_all_questions(samples: list[dict]) -> dict:
    """Join samples of one question each about the same image."""
    joined = {**samples[0], "answer_scores": torch.cat([sample["answer_scores"] for sample in samples])}
    for key in ("prompts", "question_ids"):
        joined[key] = [item for sample in samples for item in sample[key]]
    if "instances" in joined:
        for number, sample in enumerate(samples):
            sample["instances"].gt_prompts = torch.full_like(sample["instances"].gt_classes, number)
        joined["instances"] = Instances.cat([sample["instances"] for sample in samples])
    return joined


def questions_by_image(dataset_dicts: list[dict]) -> list[dict]:
    """Put the questions of each image into one dataset dict.

    Returns:
        Dicts in the order in which the images first occur, with what the questions of an image have in common and,
        under ``questions``, for each of them a dict of the rest. Questions with annotations and those without are
        never put together.
    """
    by_image: dict[tuple, list[dict]] = {}
    for item in dataset_dicts:
        by_image.setdefault((*image_of(item), "annotations" in item), []).append(item)
    return [_question_group(group) for group in by_image.values()]


def _question_group(group: list[dict]) -> dict:
    of_question = ("question", "question_id", "answers", "answer_type", "annotations")
    shared = {key: value for key, value in group[0].items() if key not in of_question}
    if "annotations" in group[0]:
        # The field says that there are annotations; each question has its own.
        shared["annotations"] = []
    return {**shared, "questions": [{key: item[key] for key in of_question if key in item} for item in group]}


def answer_texts(dataset_dict: dict) -> list[str]:
    """Return the answers of people, one string each; none for a question of a test set."""
    answers = dataset_dict.get("answers") or ()
    return [answer if isinstance(answer, str) else answer["answer"] for answer in answers]
