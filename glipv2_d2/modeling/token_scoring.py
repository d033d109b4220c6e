"""From the probabilities of tokens to the scores of phrases."""

from __future__ import annotations

import torch
from torch import Tensor

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
