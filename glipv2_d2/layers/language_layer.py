"""One transformer layer over the tokens of a prompt, with clamped attention scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .products import apply
from .reading import KeyValues, visible_tokens

# Inside the range of half precision (65,504): scores and activations stop here instead of becoming infinite.
CLAMP_LIMIT = 50_000.0

# Added to the scores of padding. Far below -CLAMP_LIMIT, so that the softmax gives exactly 0; finite, so that a prompt
# without any real token gets equal weights and no NaN.
PADDING_SCORE = -9e15


def clamp_activations(tensor: Tensor) -> Tensor:
    """Limit values to +-50,000, inside the range of half precision."""
    return tensor.clamp(-CLAMP_LIMIT, CLAMP_LIMIT)


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bias that is added to attention scores so that padding gets no weight.

    Args:
        mask: Any shape, bool, True for weight: at real tokens, or at tokens that may be seen.
        dtype: Type of the scores; for half types the bias is float32, the type of the softmax.

    Returns:
        The same shape, 0 where ``mask`` is True and ``PADDING_SCORE`` elsewhere.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, PADDING_SCORE)


class LanguageLayer(nn.Module):
    """Let the tokens of each prompt attend to each other: a BERT layer with its norms after the residuals.

    It follows the fusion of each block of the tower and is trained from random weights. Attention scores and the
    activations of the feed-forward part are clamped to +-50,000, inside the range of half precision; the softmax runs
    in float32.

    Args:
        hidden_size: D.
        num_heads: Must divide ``hidden_size``.
        intermediate_size: Width of the feed-forward part.
        dropout: Probability for the attention weights and both residual branches, in training.

    Source: BERT (Devlin et al. 2019), with the clamps of the text layer in the official GLIP head except the one after
    the GELU, which cannot enlarge a value.
    """

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise InputError(
                f"MODEL.TEXT_ENCODER.NUM_HEADS: expected a divisor of hidden_size {hidden_size}, found {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.intermediate = nn.Linear(hidden_size, intermediate_size)
        self.output = nn.Linear(intermediate_size, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, hidden: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
        """Update the tokens of N prompts.

        Args:
            hidden: (N, T, D).
            mask: (N, T) bool, True at real tokens. Real tokens do not see the padding.
            causal: A token sees only tokens up to itself.

        Returns:
            (N, T, D). Values in the padding are finite and meaningless.
        """
        query, key, value = self._project(hidden)
        return self._update(hidden, self._attend(query, key, value, visible_tokens(mask, causal)))

    def step(self, hidden: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """Update the next token of B texts as the causal ``forward`` does, without running those before it again.

        Args:
            hidden: (B, 1, D).
            past: Keys and values of the tokens before; None before the first token.

        Returns:
            (B, 1, D), and the keys and values for the next token.
        """
        query, key, value = self._project(hidden)
        known = KeyValues.extend(past, key, value)
        visible = torch.ones(1, 1, 1, known.keys.shape[2], dtype=torch.bool, device=hidden.device)
        return self._update(hidden, self._attend(query, *known, visible)), known

    def _update(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self._drop(apply(self.attention_output, attended)))
        inner = F.gelu(clamp_activations(apply(self.intermediate, hidden)))
        updated = self._drop(clamp_activations(apply(self.output, inner)))
        return clamp_activations(self.output_norm(hidden + updated))

    def _project(self, hidden: Tensor) -> list[Tensor]:
        return [
            apply(projection, hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, T, D / heads)
            for projection in (self.query, self.key, self.value)
        ]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        scores = clamp_activations((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2))  # (N, heads, T, T)
        bias = padding_bias(visible, scores.dtype)
        weights = self._drop((scores + bias).softmax(-1)).to(value.dtype)
        return (weights @ value).transpose(1, 2).flatten(2)  # (N, T, D)

    def _drop(self, tensor: Tensor) -> Tensor:
        return F.dropout(tensor, self.dropout, self.training)
