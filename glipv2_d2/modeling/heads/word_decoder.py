"""What the heads that rate words share: the two layers, and the mean cross-entropy over the tokens of all ranks."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from ...distributed import reduce_mean
from ...errors import InputError
from ..batch import TrainingHead

# Of the weights before training, as in BERT.
_INITIAL_STD = 0.02


class WordDecoder(TrainingHead):
    """Rate every entry of the vocabulary for a token.

    Two layers: dense, GELU and LayerNorm, then a decoder with weights of its own, not those of the word embeddings.

    Args:
        language_dim: D of the text.
        vocab_size: V, number of token ids.

    Source: the prediction head of BERT (arXiv 1810.04805).
    """

    def __init__(self, language_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(language_dim, language_dim)
        self.norm = nn.LayerNorm(language_dim, eps=1e-12)
        self.decoder = nn.Linear(language_dim, vocab_size)
        for layer in (self.dense, self.decoder):
            nn.init.normal_(layer.weight, std=_INITIAL_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, text: Tensor) -> Tensor:
        """Give the logits (..., V) of tokens whose features are ``text``, (..., D)."""
        return self.decoder(self.norm(F.gelu(self.dense(text))))

    def mean_cross_entropy(self, text: Tensor, labels: Tensor, name: str, label_smoothing: float = 0.0) -> Tensor:
        """Compute the cross-entropy of tokens in single precision, as their mean over all ranks.

        It is the mean once gradients are averaged over the ranks. No token at all gives a loss of 0 that still reaches
        the parameters.

        Args:
            text: (n, D).
            labels: (n,) int64, the ids that the tokens should be rated best for, on any device.
            name: What the labels are, for messages.
            label_smoothing: Share of the target that is spread evenly over the vocabulary.

        Returns:
            A scalar.

        Raises:
            InputError: A label is no id below V.
        """
        vocab_size = self.decoder.out_features
        if ((labels < 0) | (labels >= vocab_size)).any():
            raise InputError(
                f"{name}: expected token ids below {vocab_size}, found {labels.min()} to {labels.max()}; "
                f"MODEL.TEXT_ENCODER.VOCAB_SIZE and TOKENIZER have to fit"
            )
        logits = self(text).float()  # (n, V)
        total = F.cross_entropy(logits, labels.to(text.device), reduction="sum", label_smoothing=label_smoothing)
        count = reduce_mean(total.new_tensor(len(labels)))
        # A single token on one rank is a mean count of 1 / ranks.
        return total / count.clamp(min=1 / comm.get_world_size())
