"""Weights between those before and after a tuning: what was learned, without all of the forgetting."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from .name_rules import summarize_names

# What is added to the text, the image or a weight; zero says the same as a model without it.
_ADDITIVE = (".lora.up", "prompt_tuner.embeddings", ".position_proj.weight")


@torch.no_grad()
def interpolate_weights(model: nn.Module, base: Mapping[str, Tensor], share: float, source: str) -> None:
    """Move the weights of a model towards others: (1 - share) * base + share * own, floating-point tensors only.

    Prompt tables, low-rank updates and the layers of positions are multiplied by ``share`` where the base lacks them:
    zero says the same. What else it lacks keeps its values, with a warning.

    Args:
        model: Holds the tuned weights.
        base: Weights before the tuning, by the names of the model; what it has no place for is left out.
        share: 0 gives the base, 1 leaves the model as it is.
        source: Name of the base for messages.

    Raises:
        InputError: ``share`` is no number from 0 to 1.

    Source: WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903), Eq. 1.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"MODEL.GLIPV2.INTERPOLATION: expected a number from 0 to 1, found {share}")
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
