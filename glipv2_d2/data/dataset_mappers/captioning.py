"""Captions to learn to write: one of an image's references is the prompt of a training sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from ...prompts.flip_words import swap_left_right
from .base import PromptedBoxes, boxes_to_train_on, image_of
from .grounding import GroundingDatasetMapper


class CaptioningDatasetMapper(GroundingDatasetMapper):
    """Make model inputs from images with captions; they have ``task`` "captioning".

    A training sample reads one of its ``captions``, drawn by the seed of the sample; grounded, the ``caption`` that its
    boxes belong to. A dataset without boxes stays plain, and plain samples have no ``instances``. At test time the
    image is all there is.

    Source: GLIPv2, App. D.2.
    """

    task = "captioning"
    targets = ("captions", "caption")
    learns_boxes_alone = False
    config_node = "CAPTIONING"

    @configurable
    def __init__(self, *, grounded: bool, min_score: float = 0.0, **options):
        """
        Args:
            grounded: See MODEL.GLIPV2.CAPTIONING.GROUNDED.
            min_score: See INPUT.PROMPT.MIN_PSEUDO_SCORE.
            options: Arguments of ``PromptDatasetMapper``.
        """
        super().__init__(**options)
        self.grounded = grounded
        self.min_score = min_score

    @classmethod
    def own_options(cls, cfg: CfgNode, dataset_names: Sequence[str]) -> dict[str, Any]:
        """Read what of a caption is learned."""
        return {
            "grounded": cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED,
            "min_score": cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE,
        }

    @classmethod
    def test_dicts(cls, dataset_dicts: list[dict]) -> list[dict]:
        """Return each image once, however many captions it has: the evaluator knows all of them."""
        return list({image_of(one): one for one in reversed(dataset_dicts)}.values())[::-1]

    def test_sample(self, dataset_dict: dict) -> dict:
        """Make a model input without a prompt."""
        return {**self.test_image(dataset_dict), "task": self.task}

    def training_target(self, dataset_dict: dict, rng: np.random.Generator) -> PromptedBoxes:
        """Choose the caption, and keep the boxes with a sufficient score; crowd regions are never targets."""
        if self._is_grounded(dataset_dict):
            annotations = boxes_to_train_on(dataset_dict, self.min_score)
            return self.ground(dataset_dict["caption"], annotations)
        captions = reference_captions(dataset_dict)
        return self.ground(captions[rng.integers(len(captions))], [])

    def mirrored(self, dataset_dict: dict) -> dict:
        """Return a dataset dict with "left" and "right" swapped in its captions."""
        mirrored = super().mirrored(dataset_dict) if "caption" in dataset_dict else dict(dataset_dict)
        if "captions" in dataset_dict:
            mirrored["captions"] = [swap_left_right(caption, [])[0] for caption in dataset_dict["captions"]]
        return mirrored

    def completed(self, sample: dict, dataset_dict: dict) -> dict:
        """Return a sample with ``task``, and without ``instances`` if it is a plain one."""
        sample = {**sample, "task": self.task}
        if not self._is_grounded(dataset_dict):
            del sample["instances"]
        return sample

    def _is_grounded(self, dataset_dict: dict) -> bool:
        return self.grounded and "annotations" in dataset_dict


def reference_captions(dataset_dict: dict) -> list[str]:
    """Return the captions of an image; none for one of a test set."""
    if "captions" in dataset_dict:
        return list(dataset_dict["captions"])
    return [dataset_dict["caption"]] if "caption" in dataset_dict else []
