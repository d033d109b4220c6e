"""A transformer layer over the tokens of a prompt with norms inside the residual branches, as in CLIP."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from ..errors import InputError
from .reading import KeyValues, visible_tokens

_NORM_EPS = 1e-12
_INIT_STD = 0.02


class PreNormLayer(nn.Module):
    """Let the tokens of each prompt attend to each other: x + attn(ln_1(x)), then x + mlp(ln_2(x)).

    A text encoder is a stack of these layers, and one of them follows the fusion in each block of the tower. Every
    token sees all real tokens before and after it, unless the text is read causally. Softmax and norms are computed in
    float32 at least.

    Args:
        hidden_size: D.
        num_heads: Must divide ``hidden_size``.
        intermediate_size: Width of the feed-forward part.
        drop_path: Probability that a residual branch is left out for a prompt, in training.

    Source: CLIP (Radford et al. 2021), with its parameter names and its causal mask. The smaller epsilon, 1e-12, and
    the initial weights, a normal distribution with deviation 0.02 cut at 2, are those of UniCL.
    """

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, drop_path: float) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise InputError(
                f"MODEL.TEXT_ENCODER.NUM_HEADS: expected a divisor of hidden_size {hidden_size}, found {num_heads}"
            )
        self.attn = SelfAttention(hidden_size, num_heads)
        self.ln_1 = nn.LayerNorm(hidden_size, eps=_NORM_EPS)
        wide, narrow = nn.Linear(hidden_size, intermediate_size), nn.Linear(intermediate_size, hidden_size)
        self.mlp = nn.Sequential(OrderedDict(c_fc=wide, gelu=QuickGELU(), c_proj=narrow))
        self.ln_2 = nn.LayerNorm(hidden_size, eps=_NORM_EPS)
        self.drop_path = DropPath(drop_path)
        for linear in (self.attn.out_proj, wide, narrow):
            nn.init.trunc_normal_(linear.weight, std=_INIT_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
        """Update the tokens of N prompts.

        Args:
            hidden: (N, T, D).
            mask: (N, T) bool, True at real tokens. Real tokens do not see the padding.
            causal: A token sees only tokens up to itself.

        Returns:
            (N, T, D). Values in the padding are finite and meaningless.
        """
        return self._update(hidden, self.attn(self.ln_1(hidden), mask, causal))

    def step(self, hidden: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """Update the next token of B texts as the causal ``forward`` does, without running those before it again.

        Args:
            hidden: (B, 1, D).
            past: Keys and values of the tokens before; None before the first token.

        Returns:
            (B, 1, D), and the keys and values for the next token.
        """
        attended, known = self.attn.step(self.ln_1(hidden), past)
        return self._update(hidden, attended), known

    def _update(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.drop_path(attended)
        return hidden + self.drop_path(self.mlp(self.ln_2(hidden)))


class SelfAttention(nn.Module):
    """Attention of the tokens of a prompt to its real tokens, in several heads.

    Args:
        hidden_size: D, a multiple of ``num_heads``.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Named as in torch's MultiheadAttention; the rows are those of queries, keys and values, in this order.
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_size))
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        nn.init.trunc_normal_(self.in_proj_weight, std=_INIT_STD)

    def forward(self, hidden: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
        """Map (N, T, D) with a mask (N, T), True at real tokens, to (N, T, D)."""
        query, key, value = self._project(hidden)
        visible = visible_tokens(mask, causal)
        # A token that may see nothing sees everything, because a softmax over nothing would be NaN.
        visible = visible | ~visible.any(dim=-1, keepdim=True)
        return self._merge(F.scaled_dot_product_attention(query, key, value, attn_mask=visible))

    def step(self, hidden: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """Map the next tokens (B, 1, D), which see those of ``past`` and themselves; see ``PreNormLayer.step``."""
        query, key, value = self._project(hidden)
        known = KeyValues.extend(past, key, value)
        return self._merge(F.scaled_dot_product_attention(query, known.keys, known.values)), known

    def _project(self, hidden: Tensor) -> tuple[Tensor, ...]:
        projected = F.linear(hidden, self.in_proj_weight, self.in_proj_bias)  # (N, T, 3 D)
        projected = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return projected.unbind()  # each (N, heads, T, D / heads)

    def _merge(self, attended: Tensor) -> Tensor:
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # (N, T, D)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of the GELU that CLIP was trained with."""

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * torch.sigmoid(1.702 * tensor)
