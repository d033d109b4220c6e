"""The head that restores masked tokens from the text that has seen the image, and its loss."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...device_copies import to_device
from ...prompts.masking import IGNORED_LABEL
from ...structures import TokenizedPrompt
from ..batch import Fused, TrainBatch, TrunkShapes
from .word_decoder import WordDecoder


class MLMHead(WordDecoder):
    """Rate every entry of the vocabulary for each masked token: masked language modelling on the fused text.

    Args:
        language_dim: D of the text.
        vocab_size: V, number of token ids.
        loss_weight: Factor of ``loss_mlm``.

    Source: GLIPv2, Sec. 3.2; the official GLIP code puts the prediction head of BERT on the text after the last fusion,
    before any normalisation.
    """

    @configurable
    def __init__(self, *, language_dim: int, vocab_size: int, loss_weight: float = 1.0):
        super().__init__(language_dim, vocab_size)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides."""
        return {
            "language_dim": shapes.language_dim,
            "vocab_size": shapes.vocab_size,
            "loss_weight": cfg.MODEL.GLIPV2.MLM.LOSS_WEIGHT,
        }

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted cross-entropy of the tokens to restore, in single precision.

        The logits of all other tokens are never made. The loss is the mean over the tokens of all ranks, once gradients
        are averaged over them; a batch without a token to restore has a loss of 0 that still reaches the parameters.

        Args:
            fused: Its ``hidden``, (M, T, D), is read.
            batch: M prompts; one whose ``mlm_labels`` are None was not masked.

        Returns:
            The scalar ``loss_mlm``.

        Raises:
            InputError: A label is not an id below V.
        """
        rows, columns, labels = _tokens_to_restore(batch.prompts)
        rows, columns = to_device([rows, columns], fused.hidden.device)
        text = fused.hidden[rows, columns]  # (tokens to restore, D)
        return {"loss_mlm": self.mean_cross_entropy(text, labels, "mlm_labels") * self.loss_weight}


def _tokens_to_restore(prompts: list[TokenizedPrompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each token to restore, its prompt, its index in it and its label."""
    empty = torch.zeros(0, dtype=torch.int64)
    parts = [(empty, empty, empty)]
    for row, prompt in enumerate(prompts):
        if prompt.mlm_labels is not None:
            chosen = (prompt.mlm_labels != IGNORED_LABEL).nonzero().squeeze(1)
            parts.append((torch.full_like(chosen, row), chosen, prompt.mlm_labels[chosen]))
    rows, columns, labels = map(torch.cat, zip(*parts, strict=True))
    return rows, columns, labels
