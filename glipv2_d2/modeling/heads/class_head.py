"""The head that names anchors by the classes of one dataset: a detector without text."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...errors import InputError
from ...prompts.vocabulary import dataset_names
from ...structures import GroundingPredictions, TokenizedPrompt
from ..batch import TrunkShapes
from .anchor_head import AnchorHead, initialize_predictors, prior_bias


class ClassHead(AnchorHead):
    """Classify every anchor among fixed classes, and regress its box and centerness.

    For ``AnchorHead`` a class is a phrase of one token: the logits of classes take the place of those of tokens, and
    ``class_prompt`` is a prompt that no encoder reads.

    Args:
        channels: C of the levels.
        num_classes: K, at least 1.
        prior_prob: Probability that an untrained anchor gives to a class, in (0, 1).
        class_loss_weight: Factor of ``loss_class``.
        options: Other arguments of ``AnchorHead``.

    Raises:
        InputError: ``num_classes`` or ``prior_prob`` is out of range, or ``DetectionSelector`` refuses a value.

    Source: DyHead (arXiv 2106.08322) in its one-stage form, with the sigmoid focal loss of RetinaNet (arXiv
    1708.02002); ``cls_logits`` of the official ``VLDyHead``.
    """

    naming_loss = "loss_class"

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        prior_prob: float = 0.01,
        class_loss_weight: float = 1.0,
        **options: Any,
    ):
        # All aggregations agree on a single token; this one needs no matrix product.
        super().__init__(
            channels=channels, naming_loss_weight=class_loss_weight, test_score_aggregation="max", **options
        )
        if num_classes < 1:
            raise InputError(f"MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES: expected at least 1, found {num_classes}")
        self.cls_logits = nn.Conv2d(channels, num_classes, kernel_size=1)
        initialize_predictors(self.cls_logits, self.bbox_pred, self.centerness)
        nn.init.constant_(self.cls_logits.get_parameter("bias"), prior_bias(prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides; the class loss has the settings of the grounding loss."""
        config = cfg.MODEL.GLIPV2
        return {
            **cls.shared_options(cfg, shapes),
            "num_classes": config.CLASS_HEAD.NUM_CLASSES or _number_of_names(cfg),
            "prior_prob": config.GROUNDING.PRIOR_PROB,
            "class_loss_weight": config.GROUNDING.LOSS_WEIGHT,
        }

    @property
    def num_classes(self) -> int:
        """K."""
        return self.cls_logits.out_channels

    def class_prompt(self) -> TokenizedPrompt:
        """Return K phrases of one token each, with the class as their ``category_ids``."""
        classes = torch.arange(self.num_classes)
        token_map = torch.eye(self.num_classes, dtype=torch.bool)
        return TokenizedPrompt(classes, token_map, classes, tuple(map(str, range(self.num_classes))))

    def forward(self, features: list[Tensor], text: Tensor | None = None) -> GroundingPredictions:
        """Predict for all anchors of L levels (N, C, Hl, Wl); the text is ignored, and each class counts as a token."""
        class_logits = [self.cls_logits(feature).flatten(2).transpose(1, 2) for feature in features]  # (N, Hl*Wl, K)
        return GroundingPredictions(class_logits, *self._place(features))


def _number_of_names(cfg: CfgNode) -> int:
    """Return the number of names of the first dataset that is tested, or else trained on; 0 without one."""
    datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    return len(dataset_names(datasets[0])) if datasets else 0
