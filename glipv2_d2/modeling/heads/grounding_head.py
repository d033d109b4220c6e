"""The head that aligns every anchor with the tokens of a prompt and predicts its box and centerness."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...structures import GroundingPredictions
from ..batch import TrunkShapes
from .anchor_head import AnchorHead, initialize_predictors, prior_bias

# Bound of the logits, inside the range of half precision.
MAX_LOGIT = 50_000.0


class GroundingHead(AnchorHead):
    """Align every anchor with every token, and regress its box and centerness.

    It follows the fusion tower. The alignment logit of anchor r and token t is a dot product of their features, divided
    by a learned temperature, plus a bias that depends on the token alone: a new vocabulary needs no new weights.

    Args:
        channels: C of the levels.
        language_dim: D of the text.
        prior_prob: Probability that an untrained anchor gives to a token, in (0, 1).
        log_scale: Initial log of the temperature.
        no_object_token: See ``AnchorHead``.
        grounding_loss_weight: Factor of ``loss_grounding``.
        options: Other arguments of ``AnchorHead``.

    Raises:
        ValueError: ``prior_prob`` is out of range, or ``DetectionSelector`` refuses a value.

    Source: GLIP (arXiv 2112.03857), Sec. 3.1; ``VLDyHead`` of the official code. Its unused classification branch is
    left out.
    """

    naming_loss = "loss_grounding"

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        language_dim: int,
        prior_prob: float = 0.01,
        log_scale: float = 0.0,
        no_object_token: int | None = 255,
        grounding_loss_weight: float = 1.0,
        **options: Any,
    ):
        super().__init__(
            channels=channels, no_object_token=no_object_token, naming_loss_weight=grounding_loss_weight, **options
        )
        self.text_projection = nn.Linear(language_dim, channels)
        self.log_scale = nn.Parameter(torch.tensor([log_scale]))
        self.bias_lang = nn.Parameter(torch.zeros(language_dim))
        self.bias0 = nn.Parameter(torch.tensor([prior_bias(prior_prob)]))
        initialize_predictors(self.bbox_pred, self.centerness)

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides."""
        config = cfg.MODEL.GLIPV2
        return {
            **cls.shared_options(cfg, shapes),
            "language_dim": shapes.language_dim,
            "prior_prob": config.GROUNDING.PRIOR_PROB,
            "log_scale": config.GROUNDING.LOG_SCALE,
            "no_object_token": cfg.MODEL.TEXT_ENCODER.MAX_TOKENS - 1,
            "grounding_loss_weight": config.GROUNDING.LOSS_WEIGHT,
            "test_score_aggregation": config.TEST.SCORE_AGGREGATION,
        }

    def forward(self, features: list[Tensor], text: Tensor) -> GroundingPredictions:
        """Predict for all anchors and tokens.

        Args:
            features: L levels (N, C, Hl, Wl) of the tower.
            text: (N, T, D), the tower's text, or the encoder's for a tower without fusion.
        """
        token_features, token_bias = self._project_text(text)
        token_logits = []
        for feature in features:
            regions = feature.flatten(2).transpose(1, 2)  # (N, Hl*Wl, C)
            logits = torch.baddbmm(token_bias[:, None], regions, token_features)  # (N, Hl*Wl, T)
            token_logits.append(logits.clamp(-MAX_LOGIT, MAX_LOGIT))
        return GroundingPredictions(token_logits, *self._place(features))

    def _project_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected tokens, (N, C, T), and the bias of each token, (N, T)."""
        # The guard against a zero norm, 1e-12, does not exist in half precision; padding may well be all zero.
        embedding = F.normalize(text.float(), dim=-1, eps=1e-12).to(self.bias_lang.dtype)
        token_features = self.text_projection(embedding / 2) / self.log_scale.exp()
        token_bias = embedding @ self.bias_lang + self.bias0
        return token_features.transpose(1, 2), token_bias
