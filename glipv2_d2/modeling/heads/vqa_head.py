"""The head that answers questions by choosing from a list of answers, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...distributed import mean_over_ranks
from ...errors import InputError
from ...layers.language_layer import padding_bias
from ...prompts.answers import AnswerVocabulary
from ..batch import Fused, TrainBatch, TrainingHead, TrunkShapes


class VQAHead(TrainingHead):
    """Rate every answer of a list for a question that has seen the image.

    Attention pooling turns the tokens into one vector: a linear layer rates each token, and a softmax over the real
    tokens gives the weights of their sum. Two layers, each with a GELU, and a last linear layer turn it into A logits.

    Text features of a detector have their own scale, which a short training on questions cannot change. With ``norm``
    both layers are normalized before their GELU.

    Args:
        language_dim: D of the text.
        num_answers: A.
        hidden_size: Width of the two layers; 0: twice D.
        norm: "" (the paper) or "LN", a LayerNorm between each of the two layers and its GELU.
        frequencies: For each answer its share of the questions, in (0, 1], which sets the initial biases; None: all are
            equal.
        loss_weight: Factor of ``loss_vqa``.

    Source: GLIPv2, App. D.2, which leaves the width open.
    """

    @configurable
    def __init__(
        self,
        *,
        language_dim: int,
        num_answers: int,
        hidden_size: int = 0,
        norm: str = "",
        frequencies: Sequence[float] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if norm not in ("", "LN"):
            raise InputError(f"MODEL.GLIPV2.VQA.NORM: expected '' or 'LN', found {norm!r}")
        if num_answers < 1:
            raise InputError(f"MODEL.GLIPV2.VQA.ANSWERS: expected at least one answer, found {num_answers}")
        hidden_size = hidden_size or 2 * language_dim
        self.pooling = nn.Linear(language_dim, 1)
        layers: list[nn.Module] = []
        for width in (language_dim, hidden_size):
            layers += [nn.Linear(width, hidden_size), *([nn.LayerNorm(hidden_size)] if norm else []), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(hidden_size, num_answers)
        # With a bias of 0, the first updates would only lower the scores of all answers, and the text would lose what
        # it holds of the image.
        guess = torch.tensor(frequencies or [1 / num_answers] * num_answers)
        guess = guess.clamp(max=0.5 if num_answers == 1 else 0.99)
        self.classifier.bias.data.copy_(guess.logit())
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides, and the list of answers."""
        answers = AnswerVocabulary.from_config(cfg)
        return {
            "language_dim": shapes.language_dim,
            "num_answers": len(answers),
            "frequencies": answers.frequencies,
            "hidden_size": cfg.MODEL.GLIPV2.VQA.HIDDEN_SIZE,
            "norm": cfg.MODEL.GLIPV2.VQA.NORM,
            "loss_weight": cfg.MODEL.GLIPV2.VQA.LOSS_WEIGHT,
        }

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return the logits (N, A) of N questions.

        Args:
            text: (N, T, D), the tower's text.
            mask: (N, T) bool, True at real tokens.
        """
        rating = self.pooling(text).squeeze(-1)  # (N, T)
        weights = (rating + padding_bias(mask, rating.dtype)).softmax(-1).to(text.dtype)
        pooled = (weights.unsqueeze(1) @ text).squeeze(1)  # (N, D)
        return self.classifier(self.layers(pooled))

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted binary cross-entropy, summed over the answers, in single precision.

        It is the mean over the questions of all ranks, once gradients are averaged over them.

        Args:
            fused: Its ``hidden``, (M, T, D), is read.
            batch: M >= 1 questions with ``answer_scores``, (M, A) soft targets in [0, 1].

        Returns:
            The scalar ``loss_vqa``.

        Raises:
            InputError: There are no scores, or not those of M questions and A answers.
        """
        text, scores = fused.hidden, batch.answer_scores
        expected = (len(text), self.classifier.out_features)
        if scores is None or tuple(scores.shape) != expected:
            raise InputError(
                f"model input: answer_scores: expected the shape {expected}, found "
                f"{None if scores is None else tuple(scores.shape)}; "
                f"MODEL.GLIPV2.VQA.ANSWERS has to be the list that the data was read with"
            )
        logits = self(text, batch.tokens.mask).float()
        targets = scores.to(logits.device, torch.float32)
        total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return {"loss_vqa": mean_over_ranks(total, len(text)) * self.loss_weight}

    def inference(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return the probability of each answer, (N, A) float32; probabilities are independent of each other."""
        return self(text, mask).float().sigmoid()
