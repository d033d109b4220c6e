"""Weights between those before and after a tuning: what was learned, without all of the forgetting."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .name_rules import summarize_names

# What is added to the text or to a weight, and is zero in the model before the tuning.
_ADDITIVE = (".lora.up", "prompt_tuner.embeddings")


@torch.no_grad()
def interpolate_weights(model: nn.Module, base: Mapping[str, Tensor], share: float, source: str) -> None:
    """Move the weights of a model towards others: (1 - share) * base + share * own, floating-point tensors only.

    Prompt tables and low-rank updates, which other weights lack, are multiplied by ``share``: they start at zero. What
    else the base lacks keeps its values, with a warning.

    Args:
        model: Holds the tuned weights.
        base: Weights before the tuning, by the names of the model; what it has no place for is left out.
        share: 0 gives the base, 1 leaves the model as it is.
        source: Name of the base for messages.

    Raises:
        ValueError: ``share`` is no number from 0 to 1.

    Source: WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903), Eq. 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"MODEL.GLIPV2.INTERPOLATION: expected a number from 0 to 1, found {share}")
    kept = []
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name in base:
            tensor.copy_(torch.lerp(base[name].to(tensor), tensor, share))
        elif name.endswith(_ADDITIVE):
            tensor.mul_(share)
        elif not name.endswith((".lora.down", ".lora.scale")):
            kept.append(name)
    if kept:
        logging.getLogger(__name__).warning(
            "%s has no weights for %s: nothing to interpolate with", source, summarize_names(kept)
        )
