"""Pseudo-box data: captions whose boxes a teacher has predicted, with captions of other images as negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from ...errors import InputError
from ...prompts.builder import prompt_from_caption
from ...prompts.caption_packing import pack_captions
from .base import PromptedBoxes, boxes_to_train_on, check_probability
from .grounding import GroundingDatasetMapper


class PseudoGroundingDatasetMapper(GroundingDatasetMapper):
    """Make model inputs from captions with pseudo boxes.

    A box counts from a score on; one without a ``score`` was drawn by a person and always counts. The prompt is the
    caption among some of the ``negative_captions`` in the dataset dict. At test time it is the caption alone.

    Source: the official GLIP code for captions with pseudo boxes.
    """

    task = "pseudo_grounding"
    has_pseudo_boxes = True

    @configurable
    def __init__(
        self,
        *,
        min_score: float,
        num_negatives: int,
        no_negatives_prob: float,
        full_negatives_prob: float,
        scores_other_captions: bool = False,
        **options,
    ):
        """
        Args:
            min_score: See INPUT.PROMPT.MIN_PSEUDO_SCORE.
            num_negatives: See INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS.
            no_negatives_prob: See INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB.
            full_negatives_prob: See INPUT.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB.
            scores_other_captions: See MODEL.GLIPV2.MLM.OTHER_CAPTIONS.
            options: Arguments of ``PromptDatasetMapper``.

        Raises:
            InputError: A number or a probability is out of range.
        """
        super().__init__(**options)
        if num_negatives < 0:
            raise InputError(f"INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS: expected at least 0, found {num_negatives}")
        check_probability("INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB", no_negatives_prob)
        check_probability("INPUT.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB", full_negatives_prob)
        self.min_score = min_score
        self.num_negatives = num_negatives
        self.no_negatives_prob = no_negatives_prob
        self.full_negatives_prob = full_negatives_prob
        self.scores_other_captions = scores_other_captions

    @classmethod
    def own_options(cls, cfg: CfgNode, dataset_names: Sequence[str]) -> dict[str, Any]:
        """Read the numbers of INPUT.PROMPT."""
        prompt = cfg.INPUT.PROMPT
        return {
            "min_score": prompt.MIN_PSEUDO_SCORE,
            "num_negatives": prompt.NUM_NEGATIVE_CAPTIONS,
            "no_negatives_prob": prompt.NO_NEGATIVE_CAPTIONS_PROB,
            "full_negatives_prob": prompt.FULL_NEGATIVE_CAPTIONS_PROB,
            "scores_other_captions": cfg.MODEL.GLIPV2.MLM.OTHER_CAPTIONS,
        }

    def training_target(self, dataset_dict: dict, rng: np.random.Generator) -> PromptedBoxes:
        """Keep the boxes with a sufficient score, and make the caption a prompt with captions of other images."""
        annotations = boxes_to_train_on(dataset_dict, self.min_score)
        packed = pack_captions(
            dataset_dict["caption"],
            [item["tokens_positive"] for item in annotations],
            dataset_dict.get("negative_captions", ()),
            self.tokenizer,
            num_negatives=self.num_negatives,
            no_prob=self.no_negatives_prob,
            full_prob=self.full_negatives_prob,
            rng=rng,
        )
        target = self.ground(
            packed.text, [{**item, "tokens_positive": own} for item, own in zip(annotations, packed.spans, strict=True)]
        )
        if self.mask_prob is None or self.scores_other_captions:
            return target
        own_caption = self.tokenizer(prompt_from_caption(packed.text, [[packed.own]], category_ids=[-1]))
        return target._replace(own_tokens=own_caption.phrase_token_map[0])
