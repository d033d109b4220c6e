"""From tokens to phrases: scores from the probabilities of their tokens, and means of the features of these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..device_copies import to_device
from ..errors import InputError

SCORE_AGGREGATIONS = ("mean", "max", "power")


def token_to_phrase_scores(
    token_scores: Tensor, phrase_token_map: Tensor, aggregation: str = "mean", longest: int | None = None
) -> Tensor:
    """Score each phrase by the tokens that spell it.

    Args:
        token_scores: (..., T) probabilities in [0, 1]. The computation is in single precision, even under autocast.
        phrase_token_map: (P, T) bool; or (M, P, T), for M tensors of scores (M, R, T).
        aggregation: "mean" of the probabilities, their "max", or "power", their geometric mean. The mean is one matrix
            product, so a NaN at any of the T tokens reaches all P scores.
        longest: The most tokens of a phrase, or more; None: it is read from the map, for which the CPU waits.

    Returns:
        (..., P) in [0, 1]. A phrase without tokens scores 0 and passes no threshold.

    Raises:
        InputError: Unknown aggregation.

    Source: GLIP, Sec. 3.1, and the official box selection ("MEAN", "MAX", "POWER"), where a phrase without tokens is
    NaN.
    """
    if aggregation not in SCORE_AGGREGATIONS:
        raise InputError(f"score aggregation: expected one of {SCORE_AGGREGATIONS}, found {aggregation!r}")
    counts = phrase_token_map.sum(dim=-1)  # (P,)
    token_scores = token_scores.to(torch.promote_types(token_scores.dtype, torch.float32))
    weights = (phrase_token_map.to(token_scores.dtype) / counts.clamp(min=1)[..., None]).transpose(-1, -2)  # (T, P)
    counts = counts.unsqueeze(-2) if counts.ndim > 1 else counts
    with torch.autocast(token_scores.device.type, enabled=False):
        if aggregation == "max":
            return _max_over_tokens(token_scores, phrase_token_map, counts, longest)
        if aggregation == "mean":
            scores = token_scores @ weights
        else:
            # The logarithm of a probability that underflowed is infinite, and infinity times a zero weight is NaN.
            tiny = torch.finfo(token_scores.dtype).tiny
            scores = (token_scores.clamp(min=tiny).log() @ weights).exp()
    return torch.where(counts > 0, scores, 0.0)


def phrase_means(text: Tensor, token_maps: Sequence[Tensor]) -> Tensor:
    """Average the tokens that spell phrases, for all prompts together.

    Args:
        text: (N, T, D). The computation is in single precision, even under autocast.
        token_maps: N tensors (K, T) bool, or narrower, on the CPU: the tokens of K >= 0 phrases.

    Returns:
        (sum of K, D), prompt after prompt; 0 for a phrase without tokens. Tokens of no phrase have no effect.
    """
    counts, width = torch.tensor([len(one) for one in token_maps]), max(one.shape[1] for one in token_maps)
    maps = pad_sequence([F.pad(one, (0, width - one.shape[1])) for one in token_maps], batch_first=True)
    text = text[:, :width].to(torch.promote_types(text.dtype, torch.float32))
    weights = maps.to(text.dtype) / maps.sum(dim=2, keepdim=True).clamp(min=1)  # (N, K, T)
    real = (torch.arange(maps.shape[1]) < counts[:, None]).flatten().nonzero().squeeze(1)
    used, weights, real = to_device([maps.any(dim=1), weights, real], text.device)
    with torch.autocast(text.device.type, enabled=False):
        # Padding must not have an effect, and 0 times NaN is NaN.
        means = weights @ text.where(used[..., None], 0.0)
    return means.flatten(0, 1).index_select(0, real)


def _max_over_tokens(token_scores: Tensor, phrase_token_map: Tensor, counts: Tensor, longest: int | None) -> Tensor:
    """Return the (..., P) largest token score of each phrase, without a (..., P, T) tensor."""
    # The sort brings the tokens of a phrase to the front of its row.
    tokens = phrase_token_map.int().argsort(dim=-1, descending=True)  # (P, T)
    scores = token_scores.new_zeros(*token_scores.shape[:-1], counts.shape[-1])
    if longest is None:
        longest = int(counts.max()) if counts.numel() else 0
    for rank in range(longest):
        token = tokens[..., rank]
        if token.ndim == 1:
            own = token_scores[..., token]
        else:
            own = token_scores.gather(-1, token.unsqueeze(-2).expand_as(scores))
        scores = torch.where(counts > rank, scores.maximum(own), scores)
    return scores
