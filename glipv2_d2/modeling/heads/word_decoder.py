"""The base of the heads that rate words: two layers, and the mean cross-entropy over the tokens of all ranks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...device_copies import to_device
from ...distributed import mean_over_ranks
from ...errors import InputError
from ..batch import TrainingHead

# Spread of the weights before training, as in BERT.
_INITIAL_STD = 0.02


class WordDecoder(TrainingHead):
    """Rate every entry of the vocabulary for a token.

    The first layer is dense with GELU and LayerNorm. The second, the decoder, does not share the weights of the word
    embeddings.

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
        """Return the logits (..., V) of tokens with the features ``text``, (..., D)."""
        return self.decoder(self.norm(F.gelu(self.dense(text))))

    def mean_cross_entropy(self, text: Tensor, labels: Tensor, name: str, label_smoothing: float = 0.0) -> Tensor:
        """Compute the cross-entropy of tokens in single precision, as the mean over the tokens of all ranks.

        It is the mean once gradients are averaged over the ranks. Without tokens it is 0 and still reaches the
        parameters.

        Args:
            text: (n, D).
            labels: (n,) int64, the right ids, on the CPU, which does not wait for the device then.
            name: Name of the labels, for messages.
            label_smoothing: Share of the target that is spread evenly over the vocabulary.

        Returns:
            A scalar.

        Raises:
            InputError: A label is not an id below V.
        """
        vocab_size = self.decoder.out_features
        if ((labels < 0) | (labels >= vocab_size)).any():
            raise InputError(
                f"{name}: expected token ids below {vocab_size}, found {labels.min()} to {labels.max()}; "
                f"MODEL.TEXT_ENCODER.VOCAB_SIZE and TOKENIZER have to fit"
            )
        logits = self(text).float()  # (n, V)
        (targets,) = to_device([labels], text.device)
        total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        return mean_over_ranks(total, len(labels))
