"""What becomes of weights once they are loaded: tuned ones go over them, others are mixed with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..errors import InputError
from .name_rules import summarize_names
from .tuned_weights import load_tuned

# Weights that are added to the text, the image or another weight: with zeros the model is as one without them.
_ADDITIVE = (".lora.up", "prompt_tuner.embeddings", ".position_proj.weight")


@dataclass(frozen=True)
class WeightChanges:
    """What becomes of the weights of a file once they are loaded.

    Attributes:
        tuned_weights: File of ``save_tuned`` to apply over them, or empty.
        interpolate_with: File of weights to interpolate with, or empty.
        interpolation: Share of the weights loaded, with those of ``tuned_weights``, in the result, 0 to 1.

    Raises:
        InputError: The share is out of range, or there is nothing to interpolate with.
    """

    tuned_weights: str = ""
    interpolate_with: str = ""
    interpolation: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.interpolation <= 1.0:
            raise InputError(
                f"MODEL.GLIPV2.TUNING.INTERPOLATION: expected a number from 0 to 1, found {self.interpolation}"
            )
        if self.interpolation != 1.0 and not self.interpolate_with:
            raise InputError(
                "MODEL.GLIPV2.TUNING.INTERPOLATE_WITH: expected weights for MODEL.GLIPV2.TUNING.INTERPOLATION "
                f"{self.interpolation}, "
                f"found none"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WeightChanges:
        """Read the config."""
        tuning = cfg.MODEL.GLIPV2.TUNING
        return cls(tuning.WEIGHTS, tuning.INTERPOLATE_WITH, tuning.INTERPOLATION)

    def apply_tuned(self, model: nn.Module) -> None:
        """Apply the file of tuned weights, which there has to be; see ``load_tuned``."""
        load_tuned(model, self.tuned_weights)


@torch.no_grad()
def interpolate_weights(model: nn.Module, base: Mapping[str, Tensor], share: float, source: str) -> None:
    """Move the weights of a model towards others: (1 - share) * base + share * own, floating-point tensors only.

    Prompt tables, low-rank updates and position weights are multiplied by ``share`` where the base lacks them: a model
    without them is one where they are zero. All else that the base lacks keeps its values, with a warning.

    Args:
        model: Holds the tuned weights.
        base: Weights before the tuning, by the names of the model; names that the model lacks are left out.
        share: 0 gives the base, 1 leaves the model as it is.
        source: Name of the base for messages.

    Source: WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903), Eq. 1.
    """
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
