"""Low-rank updates of weights (LoRA): a layer keeps its weight, and two thin matrices are learned beside it."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError

# Parts of the model whose layers may get an update.
LORA_PARTS = ("fusion_tower", "backbone")
_LAYERS = (nn.Linear, nn.Conv2d)


class LoRASettings(NamedTuple):
    """Settings of low-rank updates.

    Attributes:
        rank: Largest rank of an update.
        alpha: An update is multiplied by alpha / rank.
        parts: Parts of the model whose layers get an update, from ``LORA_PARTS``.
    """

    rank: int = 8
    alpha: float = 16.0
    parts: tuple[str, ...] = LORA_PARTS


class LowRankUpdate(nn.Module):
    """The product of two thin matrices, which is zero before training.

    Args:
        weight: The weight to update, (out, ...); the update has its type and device.
        rank: Rank of the product.
        alpha: The product is multiplied by alpha / rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        # Part of the state of the model, because the two matrices with another factor are another update.
        self.scale: Tensor
        self.register_buffer("scale", weight.new_tensor(alpha / rank))
        # As torch initializes a linear layer.
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, in the shape of ``weight``."""
        return weight + (self.up @ self.down).view_as(weight) * self.scale


class _UpdatedLayer(nn.Module):
    """A base class, put before the class of a layer, whose ``weight`` includes the update.

    The parameter keeps its name, so that weight files fit with and without updates. Code that reads ``weight`` itself,
    such as the folded fusion and the deformable convolutions, sees the update too.
    """

    @property
    def weight(self) -> Tensor:
        return self.get_submodule("lora")(self._parameters["weight"])


@functools.cache
def _updated_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"LoRA{layer_class.__name__}", (_UpdatedLayer, layer_class), {})


def add_lora(model: nn.Module, settings: LoRASettings) -> list[str]:
    """Give the linear and convolution layers of some parts of a model a low-rank update, ``lora``.

    A layer stays as it is if its weight is frozen, or not larger than the update would be. Parameters that are not the
    ``weight`` of a layer, such as the joint projections in the attention of CLIP-type layers, get no update.

    Args:
        model: Its direct children are its parts.
        settings: See ``LoRASettings``.

    Returns:
        The names of the layers.

    Raises:
        InputError: A setting is out of range, a part does not exist, or no layer of a part is left.

    Source: LoRA (Hu et al. 2021, arXiv 2106.09685); the weight of a convolution is read as a matrix with one row
    per output channel.
    """
    if settings.rank < 1:
        raise InputError(f"MODEL.GLIPV2.TUNING.LORA.RANK: expected at least 1, found {settings.rank}")
    if not math.isfinite(settings.alpha) or settings.alpha <= 0:
        raise InputError(f"MODEL.GLIPV2.TUNING.LORA.ALPHA: expected a number above 0, found {settings.alpha}")
    unknown = sorted(set(settings.parts) - set(LORA_PARTS))
    if unknown or not settings.parts:
        raise InputError(
            f"MODEL.GLIPV2.TUNING.LORA.PARTS: expected some of {list(LORA_PARTS)}, found {list(settings.parts)}"
        )
    updated = []
    for part in dict.fromkeys(settings.parts):
        layers: list[tuple[str, Any]] = [
            (name, layer)
            for name, layer in model.get_submodule(part).named_modules(prefix=part)
            if isinstance(layer, _LAYERS) and _is_worth_it(layer.weight, settings.rank)
        ]
        if not layers:
            raise InputError(
                f"MODEL.GLIPV2.TUNING.LORA: found no layer of {part} that trains and is larger than an update of rank "
                f"{settings.rank}; expected another rank or other PARTS"
            )
        for name, layer in layers:
            update = LowRankUpdate(layer.weight.detach(), settings.rank, settings.alpha)
            layer.__class__ = _updated_class(layer.__class__)
            layer.lora = update
            updated.append(name)
    return updated


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add all updates to the weights they belong to and remove them: the same model at the speed of one without."""
    for layer in list(model.modules()):
        if isinstance(layer, _UpdatedLayer):
            dict(layer.named_parameters(recurse=False))["weight"].copy_(layer.weight)
    remove_lora(model)


def remove_lora(model: nn.Module) -> None:
    """Remove all updates: the weights are those that they were learned beside."""
    for layer in list(model.modules()):
        if isinstance(layer, _UpdatedLayer):
            del layer.lora
            layer.__class__ = type(layer).__bases__[1]


def _is_worth_it(weight: Tensor, rank: int) -> bool:
    size_of_update = rank * (len(weight) + weight[0].numel())
    return weight.requires_grad and size_of_update < weight.numel()
