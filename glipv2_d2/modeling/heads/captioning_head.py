"""The head that predicts the next word of a caption, and its loss."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...errors import InputError
from ..batch import Fused, TrainBatch, TrunkShapes
from .word_decoder import WordDecoder


class CaptioningHead(WordDecoder):
    """Rate every entry of the vocabulary as the next token of a caption: language modelling on the fused text.

    The text must be causal: its token t may depend on tokens up to t only (``FusionTower.forward``).

    Args:
        language_dim: D of the text.
        vocab_size: V, number of token ids.
        loss_weight: Factor of ``loss_caption``.
        label_smoothing: Share of the target that is spread evenly over the vocabulary, in [0, 1).

    Source: GLIPv2, App. D.2, which does not describe the layers; here they are those of ``MLMHead``. ``CaptionDecoder``
    writes captions with this head.
    """

    @configurable
    def __init__(
        self, *, language_dim: int, vocab_size: int, loss_weight: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(language_dim, vocab_size)
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"MODEL.GLIPV2.CAPTIONING.LABEL_SMOOTHING: expected a number in [0, 1), found {label_smoothing}"
            )
        self.loss_weight = loss_weight
        self.label_smoothing = label_smoothing

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides."""
        return {
            "language_dim": shapes.language_dim,
            "vocab_size": shapes.vocab_size,
            "loss_weight": cfg.MODEL.GLIPV2.CAPTIONING.LOSS_WEIGHT,
            "label_smoothing": cfg.MODEL.GLIPV2.CAPTIONING.LABEL_SMOOTHING,
        }

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted cross-entropy of each token after the first, predicted from the one before it.

        The first token is the start of the text, the last one its end. Padding is neither read nor predicted. The loss
        is in single precision and the mean over the tokens of all ranks, once gradients are averaged over them;
        captions of one token each have a loss of 0 that still reaches the parameters.

        Args:
            fused: Its ``hidden``, (M, T, D), is read: the text must be causal.
            batch: Its M prompts are the captions.

        Returns:
            The scalar ``loss_caption``.

        Raises:
            InputError: A token id is not below V.
        """
        text = torch.cat([fused.hidden[row, : len(prompt) - 1] for row, prompt in enumerate(batch.prompts)])
        labels = torch.cat([prompt.input_ids[1:] for prompt in batch.prompts])
        loss = self.mean_cross_entropy(text, labels, "caption", self.label_smoothing)
        return {"loss_caption": loss * self.loss_weight}
