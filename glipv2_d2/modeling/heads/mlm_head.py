"""The head that restores masked tokens from the text that has seen the image, and its loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

from ...distributed import reduce_mean
from ...prompts.masking import IGNORED_LABEL
from ...structures import TokenizedPrompt

# Of the weights before training, as in BERT.
_INITIAL_STD = 0.02


class MLMHead(nn.Module):
    """Rate every entry of the vocabulary for each masked token: masked language modelling on the fused text.

    Two layers: dense, GELU and LayerNorm, then a decoder with weights of its own, not those of the word embeddings.

    Args:
        language_dim: D of the text.
        vocab_size: V, number of token ids.
        loss_weight: Factor of ``loss_mlm``.

    Source: GLIPv2, Sec. 3.2; the prediction head of BERT (arXiv 1810.04805), which the official GLIP code puts on the
    text after the last fusion, before any normalisation.
    """

    @configurable
    def __init__(self, *, language_dim: int, vocab_size: int, loss_weight: float = 1.0):
        super().__init__()
        self.dense = nn.Linear(language_dim, language_dim)
        self.norm = nn.LayerNorm(language_dim, eps=1e-12)
        self.decoder = nn.Linear(language_dim, vocab_size)
        for layer in (self.dense, self.decoder):
            nn.init.normal_(layer.weight, std=_INITIAL_STD)
            nn.init.zeros_(layer.bias)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, *, language_dim: int, vocab_size: int) -> dict[str, Any]:
        """Read the arguments that the config decides."""
        return {
            "language_dim": language_dim,
            "vocab_size": vocab_size,
            "loss_weight": cfg.MODEL.GLIPV2.MLM.LOSS_WEIGHT,
        }

    def forward(self, text: Tensor) -> Tensor:
        """Give the logits (..., V) of tokens whose features are ``text``, (..., D)."""
        return self.decoder(self.norm(F.gelu(self.dense(text))))

    def losses(self, hidden: Tensor, prompts: list[TokenizedPrompt]) -> dict[str, Tensor]:
        """Compute the weighted cross-entropy of the tokens to restore, in single precision.

        The logits of all other tokens are never made. The loss is the mean over the tokens of all ranks, once gradients
        are averaged over them; a batch without a token to restore has a loss of 0 that still reaches the parameters.

        Args:
            hidden: (N, T, D), the tower's text at N prompts.
            prompts: N prompts; one whose ``mlm_labels`` are None was not masked.

        Returns:
            The scalar ``loss_mlm``.

        Raises:
            ValueError: A label is no id below V.
        """
        rows, columns, labels = (index.to(hidden.device) for index in self._tokens_to_restore(prompts))
        logits = self(hidden[rows, columns]).float()  # (tokens to restore, V)
        total = F.cross_entropy(logits, labels, reduction="sum")
        count = reduce_mean(total.new_tensor(len(labels)))
        # A single token on one rank is a mean count of 1 / ranks.
        count = count.clamp(min=1 / comm.get_world_size())
        return {"loss_mlm": total / count * self.loss_weight}

    def _tokens_to_restore(self, prompts: list[TokenizedPrompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for each token to restore, its prompt, its place in it and its label."""
        rows, columns, labels = [], [], []
        for row, prompt in enumerate(prompts):
            if prompt.mlm_labels is not None:
                places = (prompt.mlm_labels != IGNORED_LABEL).nonzero().squeeze(1)
                rows.append(torch.full_like(places, row))
                columns.append(places)
                labels.append(prompt.mlm_labels[places])
        empty = torch.zeros(0, dtype=torch.int64)
        rows, columns, labels = (torch.cat([empty, *parts]) for parts in (rows, columns, labels))
        vocab_size = self.decoder.out_features
        if ((labels < 0) | (labels >= vocab_size)).any():
            raise ValueError(
                f"mlm_labels: expected token ids below {vocab_size}, found {labels.min()} to {labels.max()}; "
                f"MODEL.TEXT_ENCODER.VOCAB_SIZE and TOKENIZER have to fit"
            )
        return rows, columns, labels
